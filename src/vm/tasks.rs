//! The tasks of a VM process, with their priorities.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::active::Active;
use super::schedule::Ranked;
use crate::link::message::{Orders, Welcome};
use crate::mem::Pager;
use crate::mem::read_ahead::WINDOW_MAX;
use crate::mem::returns::Prefetch;
use crate::mem::tasks::census::CensusTask;
use crate::mem::tasks::measure::Measure;
use crate::mem::tasks::merge::Merge;
use crate::mem::tasks::prefetch::PrefetchTask;
use crate::mem::tasks::scan::Scan;
use crate::mem::tasks::stock::DropStock;
use crate::mem::tasks::swap::Swap;
use crate::sys::pool_view::PoolView;
use crate::units::Gfn;
use crate::words::{Key, MemState};

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Tasks {
    pager: Arc<Pager>,
    pub measure: Measure,
    pub swap: Swap,
    pub prefetch: PrefetchTask,
    pub merge: Merge,
    pub census: CensusTask,
    pub sample: Active,
    pub scan: Scan,
    stock: DropStock,
    /// What is not shared may be swapped.
    is_capped: bool,
}

impl Tasks {
    /// The tasks of a VM that was welcomed with these terms. Choices follow from `seed`.
    pub fn new(pager: &Arc<Pager>, welcome: &Welcome, pool: PoolView, seed: u64) -> Tasks {
        let mut swap = Swap::new(Arc::clone(pager), seed);
        if welcome.hardened {
            swap.harden();
        }
        Tasks {
            pager: Arc::clone(pager),
            measure: Measure::new(Arc::clone(pager)),
            swap,
            prefetch: PrefetchTask::new(Arc::clone(pager)),
            merge: Merge::new(Arc::clone(pager), pool),
            census: CensusTask::new(Arc::clone(pager)),
            sample: Active::new(Arc::clone(pager), welcome.sampling, seed),
            scan: Scan::new(Arc::clone(pager), welcome.key_seed),
            stock: DropStock::new(Arc::clone(pager)),
            is_capped: false,
        }
    }

    /// What the host manager ordered.
    pub fn obey(&mut self, orders: &Orders) {
        let prefetch = match (orders.state, orders.private_max) {
            (MemState::High, None) => Prefetch::Allowed,
            _ => Prefetch::Forbidden,
        };
        self.pager.allow_prefetch(prefetch);
        let read_ahead_max = match orders.state {
            MemState::Low => 1,
            _ => WINDOW_MAX,
        };
        self.pager.bound_read_ahead(read_ahead_max);
        self.measure.set_short(orders.state > MemState::High);
        self.swap.bound(orders.private_max);
        self.is_capped = orders.private_max.is_some();
        self.scan.set_rate(orders.scan_pages_per_second);
    }

    /// Whether anybody hears of what is offered for sharing.
    pub fn set_heard(&mut self, is_heard: bool) {
        self.scan.set_heard(is_heard);
        self.swap.offer_with(self.scan.key_seed());
    }

    /// Keys of pages to share since this was asked last.
    pub fn take_offers(&mut self) -> Vec<(Gfn, Key)> {
        let mut offers = self.swap.take_offers();
        offers.extend(self.scan.take_offers());
        offers
    }

    /// For how long the VM has been still at `now`.
    pub fn rest(&mut self, still: Duration, now: Instant) {
        self.measure.set_still(still);
        self.census.set_still(still);
        self.sample.set_still(still);
        self.scan.set_still(still, now);
    }

    /// All of them, the most important first; each with the memory state from which on it does not
    /// wait for the time budget. What is ordered never waits, nor does what the guest waits for; and
    /// where memory is scarce, neither does what gives some back, or finds what can be taken.
    pub fn ranked(&mut self) -> [Ranked<'_>; 8] {
        // What the guest's vCPUs are held for.
        let census = match self.census.is_waited_for() {
            true => MemState::High,
            false => MemState::Hard,
        };
        // Page by page cheaper than to swap them, and back.
        let merge = match self.is_capped {
            true => MemState::High,
            false => MemState::Soft,
        };
        [
            (&mut self.measure, Some(MemState::High)),
            (&mut self.swap, Some(MemState::High)),
            (&mut self.prefetch, Some(MemState::High)),
            (&mut self.stock, Some(MemState::High)),
            (&mut self.merge, Some(merge)),
            (&mut self.census, Some(census)),
            (&mut self.sample, None),
            (&mut self.scan, None),
        ]
    }
}
