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

/// See the module documentation.
#[derive(Debug)]
pub struct Scan {
    pager: Arc<Pager>,
    scanner: Scanner,
    /// When the scan began.
    start: Instant,
    pages_per_second: u32,
    is_heard: bool,
    /// From when on the rate allows more.
    open: Instant,
    /// From when on there is something to look at, unless something stirs before that.
    next: Instant,
    offers: Vec<(Gfn, Key)>,
}

impl Scan {
    /// Does not scan yet; `seed` is the share group's, for the keys.
    pub fn new(pager: Arc<Pager>, seed: u64) -> Scan {
        let now = Instant::now();
        Scan {
            scanner: Scanner::new(pager.ram().layout(), seed),
            pager,
            start: now,
            pages_per_second: 0,
            is_heard: false,
            open: now,
            next: now,
            offers: Vec::new(),
        }
    }

    /// Keys have another seed from now on, and no page has been offered.
    pub fn restart(&mut self, seed: u64) {
        self.scanner = Scanner::new(self.pager.ram().layout(), seed);
        self.start = Instant::now();
        self.next = self.start;
        self.offers.clear();
    }

    /// How many pages to look at, at most; 0: do not scan.
    pub fn set_rate(&mut self, pages_per_second: u32) {
        self.pages_per_second = pages_per_second;
    }

    /// Whether anybody hears of what is found: an offer that nobody hears is not worth its scan.
    pub fn set_heard(&mut self, is_heard: bool) {
        self.is_heard = is_heard;
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
            false => self.open.max(self.next),
        })
    }

    fn run(&mut self, until: Instant) -> Result<Done, Error> {
        let start = Instant::now();
        let most = self.pages_per_second / STEPS_PER_SECOND;
        let most = most.clamp(*STEP_PAGES.start(), *STEP_PAGES.end());
        let mut pages = 0;
        while pages < most {
            let part = (most - pages).min(*STEP_PAGES.start());
            let now = self.start.elapsed();
            let found = self.scanner.step(&self.pager, part, now)?;
            pages += found.pages;
            self.offers.extend(found.offers);
            if found.pages == 0 || Instant::now() >= until {
                break;
            }
        }
        self.open = start + Duration::from_secs(1) * pages / self.pages_per_second.max(1);
        self.next = self.start + self.scanner.next_look();
        Ok(Done::since(start, pages))
    }
}
