//! What is remembered about one VM's balloon: is it obeying, stuck, uncooperative?
//!
//! | conduct | when | until |
//! |---|---|---|
//! | stuck | asked for more, and in [`STUCK_AFTER`] it gained less than [`PROGRESS_MIN`] | it gains that much, or memory has not been short for [`FORGET_AFTER`] |
//! | uncooperative | what it was asked for first is not done after [`UNCOOPERATIVE_AFTER`] | it is done, or memory has not been short for [`FORGET_AFTER`] |
//!
//! Only time in which it was asked counts, summed up over pauses: swapping ends a shortage in less
//! than a second, for as long as the guest needs to touch what was swapped, so that a balloon that
//! never answers is hardly ever asked for five seconds without a break.
//!
//! Both are judged over windows. squeezed's own design page names three ways around its detection,
//! closed here: a guest that frees a page now and then is not active (the trickler), one that wakes
//! up shortly before it would be flagged must finish what it owes, and refusing gains nothing,
//! because a guest that cannot be ballooned is swapped.
//!
//! Source: xen-api `squeezed` (5 s without progress, flag after 20 s; "innocent until proven
//! guilty"), its `design/index.md`, section Issues.

use std::time::Duration;

use super::safeguard::{Safeguard, Safeguards};
use super::types::Conduct;
use crate::units::Pages;

/// A balloon that is below its order and has not grown for so long is stuck (squeezed: 5 s).
pub const STUCK_AFTER: Duration = Duration::from_secs(5);
/// A guest that has not done for so long what it was asked for is uncooperative (squeezed: 20 s).
pub const UNCOOPERATIVE_AFTER: Duration = Duration::from_secs(20);
/// What was held against a balloon is forgotten when memory has not been short for so long. Chosen,
/// as long as it takes to flag a guest: guilt shall not be proven anew in each shortage of many.
pub const FORGET_AFTER: Duration = Duration::from_secs(20);
/// Less than this in [`STUCK_AFTER`] is no progress, unless it is all that was asked for. Chosen:
/// 256 KiB, a hundredth of what the slowest useful balloon gives.
pub const PROGRESS_MIN: Pages = Pages(64);

/// A balloon that is this near to its order has done it. Chosen: guests round, and page tables and
/// the like come and go.
const TOLERANCE: Pages = Pages(16);

/// What a balloon held at a time of its own clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    held: Pages,
    at: Duration,
}

/// What is remembered about one VM's balloon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BalloonRecord {
    /// The last order.
    pub(super) order: Pages,
    /// The balloon's own clock: for how long more was wanted of it than it held.
    asked_for: Duration,
    /// When the clock was read last; `None` while it stands still, because nothing is asked.
    asked_at: Option<Duration>,
    /// Where the running window of [`STUCK_AFTER`] began.
    window: Option<Mark>,
    /// What the balloon shall hold, and since when it was asked for; `None`: it owes nothing.
    owed: Option<Mark>,
    /// Since when memory has not been short, nor asked for.
    enough_since: Option<Duration>,
    stuck: bool,
    uncooperative: bool,
}

impl BalloonRecord {
    /// A balloon that holds what it was asked to hold.
    pub(super) fn resting(order: Pages) -> BalloonRecord {
        BalloonRecord {
            order,
            ..BalloonRecord::default()
        }
    }

    /// How the balloon behaves.
    pub fn conduct(&self) -> Conduct {
        if self.uncooperative {
            Conduct::Uncooperative
        } else if self.stuck {
            Conduct::Stuck
        } else {
            Conduct::Cooperative
        }
    }

    /// Whether waiting for this balloon is pointless.
    pub(super) fn is_stuck(&self) -> bool {
        self.stuck
    }

    /// Notes what the balloon holds while more is wanted of it.
    pub(super) fn observe(&mut self, ballooned: Pages, now: Duration, guards: Safeguards) {
        let mark = |at| Mark {
            held: ballooned,
            at,
        };
        let before = self.asked_at.replace(now);
        let window = self.window.get_or_insert(mark(self.asked_for));
        // A balloon that shrank (deflate on out-of-memory) is measured from where it is.
        window.held = window.held.min(ballooned);
        let Some(before) = before else {
            // What it did while nothing was asked is no answer.
            return;
        };
        self.asked_for += now.saturating_sub(before);
        let gained = ballooned - window.held;
        let progress = if guards.has(Safeguard::TrickleRule) {
            let asked = self.order.saturating_sub(window.held);
            PROGRESS_MIN.min(asked).max(Pages(1))
        } else {
            Pages(1)
        };
        let over = self.asked_for.saturating_sub(window.at) >= STUCK_AFTER;
        if gained >= progress {
            self.stuck = false;
            self.window = Some(mark(self.asked_for));
        } else if ballooned + TOLERANCE < self.order && over {
            self.stuck = guards.has(Safeguard::StuckDetection);
            // A new window: pages that trickled in count for nothing.
            self.window = Some(mark(self.asked_for));
        }
        self.settle(ballooned, guards);
    }

    fn settle(&mut self, ballooned: Pages, guards: Safeguards) {
        let Some(owed) = self.owed else {
            return;
        };
        if ballooned + TOLERANCE >= owed.held {
            self.owed = None;
            self.uncooperative = false;
        } else if self.asked_for.saturating_sub(owed.at) >= UNCOOPERATIVE_AFTER {
            self.uncooperative = guards.has(Safeguard::StuckDetection);
        }
    }

    /// Orders the balloon to hold `order` from now on, more than it does.
    pub(super) fn ask(&mut self, order: Pages) {
        self.order = order;
        self.enough_since = None;
        let owed = self.owed.get_or_insert(Mark {
            held: order,
            at: self.asked_for,
        });
        owed.held = owed.held.min(order);
    }

    /// Nothing more is asked for: the balloon shall hold `order`, at most what it does.
    pub(super) fn rest(&mut self, order: Pages, shortage: Shortage, now: Duration) {
        self.order = order;
        self.asked_at = None;
        if shortage == Shortage::Near {
            self.enough_since = None;
            return;
        }
        let since = *self.enough_since.get_or_insert(now);
        if now.saturating_sub(since) >= FORGET_AFTER {
            *self = BalloonRecord {
                enough_since: Some(since),
                ..BalloonRecord::resting(order)
            };
        }
    }
}

/// Whether the host is short of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shortage {
    /// Free memory is at the high threshold or above.
    None,
    /// It is below: soft is near, or past.
    Near,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks for 4096 pages each 100 ms and lets the balloon answer; the conduct at each second.
    fn play(seconds: u64, held_at: impl Fn(u64) -> u64) -> Vec<Conduct> {
        let mut record = BalloonRecord::default();
        let mut conduct = Vec::new();
        for ms in (0..=seconds * 1000).step_by(100) {
            let now = Duration::from_millis(ms);
            let held = Pages(held_at(ms));
            record.observe(held, now, Safeguards::default());
            record.ask(held + Pages(4096));
            if ms % 1000 == 0 {
                conduct.push(record.conduct());
            }
        }
        conduct
    }

    #[test]
    fn a_prompt_and_a_slow_balloon_are_innocent() {
        for pages_per_second in [300, 4000] {
            let conduct = play(60, |ms| ms * pages_per_second / 1000);
            assert!(conduct.iter().all(|c| *c == Conduct::Cooperative));
        }
    }

    #[test]
    fn silence_is_stuck_after_5_s_and_uncooperative_after_20() {
        let conduct = play(21, |_| 7);
        assert_eq!(conduct[4], Conduct::Cooperative);
        assert_eq!(conduct[5], Conduct::Stuck);
        assert_eq!(conduct[19], Conduct::Stuck);
        assert_eq!(conduct[20], Conduct::Uncooperative);
    }

    #[test]
    fn a_page_every_five_seconds_is_no_progress() {
        let conduct = play(60, |ms| ms / 4900);
        assert!(conduct[6..20].iter().all(|c| *c == Conduct::Stuck));
        assert!(conduct[20..].iter().all(|c| *c == Conduct::Uncooperative));
    }

    #[test]
    fn waking_up_for_a_second_does_not_settle_what_is_owed() {
        // 200 pages in every twentieth second: 4096 were owed.
        let conduct = play(60, |ms| (ms + 1000) / 20_000 * 200);
        assert_eq!(conduct[18], Conduct::Stuck);
        assert_eq!(conduct[20], Conduct::Uncooperative);
        assert_eq!(conduct[59], Conduct::Uncooperative);
    }

    #[test]
    fn doing_what_was_asked_for_makes_innocent() {
        let conduct = play(40, |ms| if ms < 30_000 { 0 } else { 4096 });
        assert_eq!(conduct[29], Conduct::Uncooperative);
        assert_eq!(conduct[31], Conduct::Cooperative);
    }

    #[test]
    fn a_balloon_that_is_asked_now_and_then_is_found_out() {
        let mut record = BalloonRecord::default();
        // Asked for half of each second.
        for ms in (0..12_000).step_by(100) {
            let now = Duration::from_millis(ms);
            if ms % 1000 < 600 {
                record.observe(Pages(7), now, Safeguards::default());
                record.ask(Pages(4096));
            } else {
                record.rest(Pages(7), Shortage::None, now);
            }
        }
        assert_eq!(record.conduct(), Conduct::Stuck);
        let enough = |record: &mut BalloonRecord, seconds: u64| {
            record.rest(Pages(7), Shortage::None, Duration::from_secs(seconds));
            record.conduct()
        };
        assert_eq!(enough(&mut record, 12), Conduct::Stuck);
        assert_eq!(enough(&mut record, 31), Conduct::Stuck);
        assert_eq!(enough(&mut record, 32), Conduct::Cooperative);
    }

    #[test]
    fn a_balloon_is_not_blamed_for_a_withdrawn_order() {
        let mut record = BalloonRecord::default();
        for ms in (0..60_000).step_by(200) {
            let now = Duration::from_millis(ms);
            record.observe(Pages(7), now, Safeguards::default());
            record.ask(Pages(4096));
            record.rest(Pages(7), Shortage::Near, now + Duration::from_millis(100));
        }
        assert_eq!(record.conduct(), Conduct::Cooperative);
    }
}
