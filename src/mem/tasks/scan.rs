//! The task that looks for pages worth sharing, at the rate that it is told.

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
    pages_per_second: u32,
    is_heard: bool,
    due: Instant,
    offers: Vec<(Gfn, Key)>,
}

impl Scan {
    /// Does not scan yet; `seed` is the share group's, for the keys.
    pub fn new(pager: Arc<Pager>, seed: u64) -> Scan {
        Scan {
            pager,
            scanner: Scanner::new(seed),
            pages_per_second: 0,
            is_heard: false,
            due: Instant::now(),
            offers: Vec::new(),
        }
    }

    /// Keys have another seed from now on, and no page has been offered.
    pub fn restart(&mut self, seed: u64) {
        self.scanner = Scanner::new(seed);
        self.offers.clear();
    }

    /// How many pages to look at; 0: do not scan.
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
        (self.is_heard && self.pages_per_second > 0).then_some(self.due)
    }

    fn run(&mut self, until: Instant) -> Result<Done, Error> {
        let start = Instant::now();
        let most = self.pages_per_second / STEPS_PER_SECOND;
        let most = most.clamp(*STEP_PAGES.start(), *STEP_PAGES.end());
        let mut pages = 0;
        while pages < most {
            // At the end of memory the next step starts over.
            let part = (most - pages).min(*STEP_PAGES.start());
            let found = self.scanner.step(&self.pager, part)?;
            pages += found.pages;
            self.offers.extend(found.offers);
            if found.wrapped || Instant::now() >= until {
                break;
            }
        }
        self.due = start + Duration::from_secs(1) * pages / self.pages_per_second.max(1);
        Ok(Done::since(start, pages))
    }
}
