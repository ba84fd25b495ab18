//! The task that counts what backs the guest, page by page.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Done, Task};
use crate::mem::Pager;
use crate::mem::census::Counting;
use crate::mem::pager::Error;

/// From the end of one census to the next, at least.
const PERIOD: Duration = Duration::from_secs(1);
/// A census takes at most this part of the time, however large the guest: one in fifty.
const PART: u32 = 50;

/// See the module documentation.
#[derive(Debug)]
pub struct CensusTask {
    pager: Arc<Pager>,
    counting: Option<Counting>,
    /// What the parts of the running census took.
    took: Duration,
    due: Instant,
}

impl CensusTask {
    /// The first census is due in a period.
    pub fn new(pager: Arc<Pager>) -> CensusTask {
        CensusTask {
            pager,
            counting: None,
            took: Duration::ZERO,
            due: Instant::now() + PERIOD,
        }
    }
}

impl Task for CensusTask {
    fn due(&self) -> Option<Instant> {
        Some(self.due)
    }

    fn run(&mut self, until: Instant) -> Result<Done, Error> {
        let start = Instant::now();
        let mut counting = match self.counting.take() {
            Some(counting) => counting,
            None => Counting::begin(&self.pager)?,
        };
        let before = counting.pages();
        let mut last = false;
        while !last {
            last = counting.count_chunk(&self.pager)?;
            if Instant::now() >= until {
                break;
            }
        }
        let pages = counting.pages() - before;
        if last {
            counting.end(&self.pager)?;
        } else {
            self.counting = Some(counting);
        }
        let done = Done::since(start, u32::try_from(pages).unwrap_or(u32::MAX));
        self.took += done.took;
        if last {
            self.due = Instant::now() + PERIOD.max(self.took * PART);
            self.took = Duration::ZERO;
        }
        Ok(done)
    }
}
