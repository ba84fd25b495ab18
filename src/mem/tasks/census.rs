//! The task that counts what backs the guest, page by page: once a second, and sooner where the VM
//! depends on it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::measure::BUSY;
use super::{Done, Rest, Task};
use crate::mem::Pager;
use crate::mem::census::Counting;
use crate::mem::pager::Error;
use crate::units::Pages;

/// From the end of one census to the next, while nothing asks for one.
const PERIOD: Duration = Duration::from_secs(1);
/// The same in a VM that is still, at most. Chosen: a census finds nothing there, but what the kernel
/// itself did to the VM's memory.
const STILL_MAX: Duration = Duration::from_secs(60);
/// The same, while something does. Chosen: the shortest time in which the cheap count is read.
const PRESSED_PERIOD: Duration = BUSY;
/// A census takes at most this part of the time, however large the guest: one in fifty.
const PART: u32 = 50;
/// Shared pages that may have been written unseen and are worth a census: 1 MiB.
const UNSEEN: Pages = Pages(256);
/// The same while the VM waits: more than the kernel's count is off by.
const UNSEEN_WAITED: Pages = Pages(64);

/// Why a census should not wait for its period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Press {
    None,
    /// The guest seems to write shared pages.
    Written,
    /// The VM waits for credit: pages that it wrote are charged twice, until they are found.
    Waited,
}

/// See the module documentation.
#[derive(Debug)]
pub struct CensusTask {
    pager: Arc<Pager>,
    counting: Option<Counting>,
    /// What the parts of the running census took.
    took: Duration,
    /// When the last one ended, and how long all of it took.
    ended: Instant,
    last_took: Duration,
    press: Press,
    rest: Rest,
}

impl CensusTask {
    /// The first census is due in a period.
    pub fn new(pager: Arc<Pager>) -> CensusTask {
        CensusTask {
            pager,
            counting: None,
            took: Duration::ZERO,
            ended: Instant::now(),
            last_took: Duration::ZERO,
            press: Press::None,
            rest: Rest::default(),
        }
    }

    /// For how long the VM has been still.
    pub fn set_still(&mut self, still: Duration) {
        self.rest.set_still(still);
    }

    /// Whether a census is wanted before its period is over: because the guest uses more than was
    /// mapped for it, which may be shared pages that it has written; or because, besides, the VM
    /// `waits` for credit.
    /// A shared page that was written is charged twice until a census finds it, as a page and as a
    /// reference to its frame, and with its memory twice on its account a VM may be at its limit.
    pub fn press(&mut self, waits: bool) {
        let unseen = self.pager.unseen_writes();
        self.press = if waits && unseen >= UNSEEN_WAITED {
            Press::Waited
        } else if unseen >= UNSEEN {
            Press::Written
        } else {
            Press::None
        };
    }

    /// Whether the VM waits for what a census finds.
    pub fn is_waited_for(&self) -> bool {
        self.press == Press::Waited
    }
}

/// From the end of a census, all of which took `took`, to the next.
fn period(press: Press, took: Duration, rest: &Rest) -> Duration {
    match press {
        Press::None => rest.period(PERIOD.max(took * PART), STILL_MAX),
        Press::Written => PRESSED_PERIOD.max(took * PART),
        // There is something to find at every measurement, and the vCPUs need no time.
        Press::Waited => took,
    }
}

impl Task for CensusTask {
    fn due(&self) -> Option<Instant> {
        let running = self.counting.as_ref().map(|_| self.ended);
        Some(running.unwrap_or_else(|| self.ended + period(self.press, self.last_took, &self.rest)))
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
            self.press = Press::None;
            self.rest.looked();
            self.ended = Instant::now();
            self.last_took = std::mem::take(&mut self.took);
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_census_comes_sooner_the_more_depends_on_it() {
        let ms = Duration::from_millis;
        let table = [
            (Press::None, ms(1), ms(0), ms(1000)),
            (Press::None, ms(100), ms(0), ms(5000)),
            (Press::None, ms(1), ms(999), ms(1000)),
            (Press::None, ms(1), ms(7000), ms(7000)),
            (Press::None, ms(1), ms(900_000), ms(60_000)),
            // Of a large VM less often still.
            (Press::None, ms(2000), ms(900_000), ms(100_000)),
            (Press::Written, ms(0), ms(0), ms(10)),
            (Press::Written, ms(1), ms(900_000), ms(50)),
            (Press::Waited, ms(1), ms(900_000), ms(1)),
        ];
        for (press, took, still, expected) in table {
            let mut rest = Rest::default();
            rest.set_still(still);
            rest.looked();
            let period = period(press, took, &rest);
            assert_eq!(period, expected, "{press:?} {took:?} {still:?}");
        }
    }
}
