//! The task that looks for pages worth sharing, as fast as it is told and when there is something to
//! look at.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Done, Task};
use crate::mem::Pager;
use crate::mem::pager::Error;
use crate::mem::share::Scanner;
use crate::units::Gfn;
use crate::words::Key;

/// Pages looked at between two pauses.
const STEP_PAGES: std::ops::RangeInclusive<u32> = 64..=1024;
/// Steps a second, where the rate allows that.
const STEPS_PER_SECOND: u32 = 20;

/// In a VM that has been still for so long, in which no chunk is to be looked at again soon,
const STILL: Duration = Duration::from_secs(2);
/// the scan's time passes so much slower. Chosen: a VM that stands still is looked at once in eight and
/// a half minutes, and in half a minute when it runs again.
const STILL_PART: u32 = 16;

/// The time that the scan goes by.
#[derive(Debug)]
struct Clock {
    /// At `seen`.
    time: Duration,
    seen: Instant,
    /// One second of it is so many of ours.
    part: u32,
}

impl Clock {
    fn new(now: Instant) -> Clock {
        Clock {
            time: Duration::ZERO,
            seen: now,
            part: 1,
        }
    }

    fn advance(&mut self, now: Instant) -> Duration {
        self.time += now.saturating_duration_since(self.seen) / self.part;
        self.seen = self.seen.max(now);
        self.time
    }

    fn set_part(&mut self, part: u32, now: Instant) {
        if part != self.part {
            self.advance(now);
            self.part = part;
        }
    }

    /// When it is `time`, if nothing changes.
    fn when(&self, time: Duration) -> Instant {
        self.seen + time.saturating_sub(self.time) * self.part
    }
}

/// See the module documentation.
#[derive(Debug)]
pub struct Scan {
    pager: Arc<Pager>,
    scanner: Scanner,
    clock: Clock,
    pages_per_second: u32,
    is_heard: bool,
    /// From when on the rate allows more.
    open: Instant,
    /// From when on there is something to look at, by the clock, unless something stirs before that.
    next: Duration,
    offers: Vec<(Gfn, Key)>,
}

impl Scan {
    /// Does not scan yet; `seed` is the share group's, for the keys.
    pub fn new(pager: Arc<Pager>, seed: u64) -> Scan {
        let now = Instant::now();
        Scan {
            scanner: Scanner::new(pager.ram().layout(), seed),
            pager,
            clock: Clock::new(now),
            pages_per_second: 0,
            is_heard: false,
            open: now,
            next: Duration::ZERO,
            offers: Vec::new(),
        }
    }

    /// Keys have another seed from now on, and no page has been offered.
    pub fn restart(&mut self, seed: u64) {
        self.scanner = Scanner::new(self.pager.ram().layout(), seed);
        self.clock = Clock::new(Instant::now());
        self.next = Duration::ZERO;
        self.offers.clear();
    }

    /// How many pages to look at, at most; 0: do not scan.
    pub fn set_rate(&mut self, pages_per_second: u32) {
        self.pages_per_second = pages_per_second;
    }

    /// For how long the VM has been still at `now`: what nobody writes need not be looked at again.
    pub fn set_still(&mut self, still: Duration, now: Instant) {
        let slow = still >= STILL && self.scanner.is_calm();
        self.clock.set_part(if slow { STILL_PART } else { 1 }, now);
    }

    /// Whether anybody hears of what is found: an offer that nobody hears is not worth its scan.
    pub fn set_heard(&mut self, is_heard: bool) {
        self.is_heard = is_heard;
    }

    /// The seed of keys, while somebody hears of them.
    pub fn key_seed(&self) -> Option<u64> {
        self.is_heard.then(|| self.scanner.seed())
    }

    /// Keys of the pages found since this was asked last.
    pub fn take_offers(&mut self) -> Vec<(Gfn, Key)> {
        std::mem::take(&mut self.offers)
    }
}

impl Task for Scan {
    fn due(&self) -> Option<Instant> {
        (self.is_heard && self.pages_per_second > 0).then(|| match self.pager.is_stirred() {
            true => self.open,
            false => self.open.max(self.clock.when(self.next)),
        })
    }

    fn run(&mut self, until: Instant) -> Result<Done, Error> {
        let start = Instant::now();
        let most = self.pages_per_second / STEPS_PER_SECOND;
        let most = most.clamp(*STEP_PAGES.start(), *STEP_PAGES.end());
        let mut pages = 0;
        while pages < most {
            let part = (most - pages).min(*STEP_PAGES.start());
            let now = self.clock.advance(Instant::now());
            let found = self.scanner.step(&self.pager, part, now)?;
            pages += found.pages;
            self.offers.extend(found.offers);
            if found.pages == 0 || Instant::now() >= until {
                break;
            }
        }
        self.open = start + Duration::from_secs(1) * pages / self.pages_per_second.max(1);
        self.next = self.scanner.next_look();
        Ok(Done::since(start, pages))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_slows_down_and_loses_nothing() {
        let second = Duration::from_secs(1);
        let start = Instant::now();
        let mut clock = Clock::new(start);
        assert_eq!(clock.advance(start + second * 10), second * 10);
        clock.set_part(STILL_PART, start + second * 20);
        assert_eq!(clock.when(second * 30), start + second * (20 + 160));
        assert_eq!(clock.advance(start + second * (20 + 16)), second * 21);
        // What was due in ten minutes is due in half a minute when the VM runs.
        clock.set_part(1, start + second * 36);
        assert_eq!(clock.when(second * 51), start + second * 66);
        // What is past is due.
        assert_eq!(clock.when(Duration::ZERO), start + second * 36);
    }
}
