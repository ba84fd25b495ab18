//! What is remembered about one VM's balloon: is it obeying, stuck, uncooperative?
//!
//! | conduct | when | until |
//! |---|---|---|
//! | stuck | asked for more, and in [`STUCK_AFTER`] it gained less than [`PROGRESS_MIN`] | it gains that much, or memory is no longer short |
//! | uncooperative | what it was asked for first is not done after [`UNCOOPERATIVE_AFTER`] | it is done, or memory is no longer short |
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
/// Less than this in [`STUCK_AFTER`] is no progress, unless it is all that was asked for. Chosen:
/// 256 KiB, a hundredth of what the slowest useful balloon gives.
pub const PROGRESS_MIN: Pages = Pages(64);

/// A balloon that is this near to its order has done it. Chosen: guests round, and page tables and
/// the like come and go.
const TOLERANCE: Pages = Pages(16);

/// What a balloon held at a time.
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
    /// Where the running window of [`STUCK_AFTER`] began; `None` while nothing is asked.
    window: Option<Mark>,
    /// What the balloon shall hold, and since when it was asked for; `None`: it owes nothing.
    owed: Option<Mark>,
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
        let window = self.window.get_or_insert(Mark {
            held: ballooned,
            at: now,
        });
        // A balloon that shrank (deflate on out-of-memory) is measured from where it is.
        window.held = window.held.min(ballooned);
        let gained = ballooned - window.held;
        let progress = if guards.has(Safeguard::TrickleRule) {
            let asked = self.order.saturating_sub(window.held);
            PROGRESS_MIN.min(asked).max(Pages(1))
        } else {
            Pages(1)
        };
        if gained >= progress {
            self.stuck = false;
            self.window = Some(Mark {
                held: ballooned,
                at: now,
            });
        } else if ballooned + TOLERANCE < self.order && now.saturating_sub(window.at) >= STUCK_AFTER
        {
            self.stuck = guards.has(Safeguard::StuckDetection);
            // A new window: pages that trickled in count for nothing.
            self.window = Some(Mark {
                held: ballooned,
                at: now,
            });
        }
        self.settle(ballooned, now, guards);
    }

    fn settle(&mut self, ballooned: Pages, now: Duration, guards: Safeguards) {
        let Some(owed) = self.owed else {
            return;
        };
        if ballooned + TOLERANCE >= owed.held {
            self.owed = None;
            self.uncooperative = false;
        } else if now.saturating_sub(owed.at) >= UNCOOPERATIVE_AFTER {
            self.uncooperative = guards.has(Safeguard::StuckDetection);
        }
    }

    /// Orders the balloon to hold `order` from now on, more than it does.
    pub(super) fn ask(&mut self, order: Pages, now: Duration) {
        self.order = order;
        let owed = self.owed.get_or_insert(Mark {
            held: order,
            at: now,
        });
        owed.held = owed.held.min(order);
    }

    /// Nothing more is asked for: the balloon shall hold `order`, at most what it does.
    pub(super) fn rest(&mut self, order: Pages, memory: Memory) {
        self.order = order;
        self.window = None;
        self.owed = None;
        if memory == Memory::Enough {
            // Only a host with enough memory forgets: guilt shall not be proven anew, five seconds
            // each time, for as long as memory is short.
            self.stuck = false;
            self.uncooperative = false;
        }
    }
}

/// Whether the host has enough memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Memory {
    /// Free memory is at the high threshold or above.
    Enough,
    /// It is below.
    Short,
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
            record.ask(held + Pages(4096), now);
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
}
