//! The task that takes pages out of memory until the VM uses no more than it was ordered to.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::measure::BUSY;
use super::{Done, Task};
use crate::mem::Pager;
use crate::mem::pager::Error;
use crate::mem::reclaim::{BATCH_PAGES, Reclaimer};
use crate::units::{Gfn, Pages};
use crate::words::Key;

/// Pause after the swap file failed.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);
/// For how long after the last try a swap file counts as full: it is tried again meanwhile, if there is
/// anything to write.
const FULL: Duration = FAILURE_PAUSE.saturating_mul(3);
/// Room made at a time for a guest that waits at the most it may use. Chosen: a cluster of victims.
pub const ROOM_PAGES: Pages = Pages(32);

/// See the module documentation.
#[derive(Debug)]
pub struct Swap {
    pager: Arc<Pager>,
    reclaimer: Reclaimer,
    /// What the VM may use.
    most: Option<Pages>,
    /// Pages that map a frame are victims, and count as used.
    takes_mapped: bool,
    /// Not before: there was nothing to take, or the swap file failed.
    due: Instant,
    failure: Option<io::Error>,
    /// Until when the swap file counts as full.
    full_until: Option<Instant>,
}

impl Swap {
    /// Nothing is to be taken yet. The choice of victims follows from `seed`.
    pub fn new(pager: Arc<Pager>, seed: u64) -> Swap {
        Swap {
            pager,
            reclaimer: Reclaimer::new(seed),
            most: None,
            takes_mapped: false,
            due: Instant::now(),
            failure: None,
            full_until: None,
        }
    }

    /// The share group is hardened: pages that map a frame are victims too, and count as used. None is
    /// offered before it goes: that would give it a frame first.
    pub fn harden(&mut self) {
        self.takes_mapped = true;
        self.reclaimer.take_mapped();
    }

    /// Frames that count as used: see [`Swap::harden`].
    pub fn mapped(&self) -> Pages {
        match self.takes_mapped {
            true => self.pager.mapped(),
            false => Pages::ZERO,
        }
    }

    /// The VM may use at most `most` from now on; `None`: as much as its credit.
    pub fn bound(&mut self, most: Option<Pages>) {
        self.most = most;
        self.pager.bound_store(most);
    }

    /// Pages that are to go are offered for sharing first, with keys of this seed; `None`: nobody hears
    /// of offers.
    pub fn offer_with(&mut self, key_seed: Option<u64>) {
        let key_seed = key_seed.filter(|_| !self.takes_mapped);
        self.reclaimer.offer_with(key_seed);
    }

    /// Keys of pages that are to go, since this was asked last.
    pub fn take_offers(&mut self) -> Vec<(Gfn, Key)> {
        self.reclaimer.take_offers()
    }

    /// Why pages stayed in memory, since this was asked last: the swap file failed or is full.
    pub fn take_failure(&mut self) -> Option<io::Error> {
        self.failure.take()
    }

    /// Whether pages found no room in the swap file when that was tried last, a moment ago.
    pub fn is_full(&self, now: Instant) -> bool {
        self.full_until.is_some_and(|until| now < until)
    }

    /// Pages that are to go. A guest that waits at the most it may use gets its page for others of
    /// its own: nobody owes it credit, so it would wait for ever.
    fn excess(&self) -> Pages {
        let Some(most) = self.most else {
            return Pages::ZERO;
        };
        let waits = self.pager.starving_faults() > 0;
        let room = if waits { ROOM_PAGES } else { Pages::ZERO };
        let beside = room + self.mapped();
        self.pager.with_credit(|credit| credit.excess(most, beside))
    }
}

/// Whether a write failed for lack of room, and not because the disk is broken.
fn is_room(failure: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(failure.kind(), StorageFull | FileTooLarge | QuotaExceeded)
}

impl Task for Swap {
    fn due(&self) -> Option<Instant> {
        (self.excess() > Pages::ZERO).then_some(self.due)
    }

    fn run(&mut self, until: Instant) -> Result<Done, Error> {
        let start = Instant::now();
        let mut pages = 0;
        loop {
            let wanted = usize::try_from(self.excess().0).unwrap_or(usize::MAX);
            if wanted == 0 {
                break;
            }
            let batch = self.reclaimer.step(&self.pager, wanted.min(BATCH_PAGES))?;
            pages += batch.pages;
            self.pager.measure()?;
            self.pager.retry_starving()?;
            if let Some(failure) = batch.failure {
                let now = Instant::now();
                self.full_until = is_room(&failure).then_some(now + FULL);
                self.failure = Some(failure);
                self.due = now + FAILURE_PAUSE;
                break;
            }
            if batch.pages > 0 {
                self.full_until = None;
            } else {
                self.due = Instant::now() + BUSY;
                break;
            }
            if Instant::now() >= until {
                break;
            }
        }
        Ok(Done::since(start, pages))
    }
}
