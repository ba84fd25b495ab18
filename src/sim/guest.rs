//! One model guest with its VM process: its memory, its balloon, its credit, what it touches, and what
//! is said to the host manager.
//!
//! ```text
//! size = data + cache + swapped + ballooned + free          private = data + cache
//! wants = data + swapped + paged + not touched yet
//! ```
//!
//! The VM process is modelled by what it says and obeys: it keeps the real credit account
//! ([`CreditBook`]), asks and returns as that says, swaps down to its orders, and reports once a step.
//!
//! `swapped` pages are in the VM's swap file, taken at random; `paged` ones in the guest's own, which
//! takes what is idle first. Where a scenario has samples, what is active is estimated by the policies'
//! own sampler, as if the guest's active data were its first pages. A balloon takes free pages, then cache, then pages data out. All in
//! whole steps, not page by page: a fleet has ten thousand guests.

use std::time::Duration;

use super::scenario::{GuestSpec, Model, Reports};
use crate::link::message::{Orders, ToHost, ToVm, Welcome};
use crate::mem::credit::{CreditBook, CreditMove};
use crate::mem::tasks::swap::ROOM_PAGES;
use crate::policy::sampling::{Sampler, VmClock};
use crate::policy::types::VmId;
use crate::units::{Gfn, Pages};
use crate::words::{Counters, Gauges, GuestMemoryStats, Holding, Measured, MemState, Report, Run};

/// Time of one step.
pub(super) const STEP: Duration = Duration::from_millis(100);
/// Pages that a guest touches, a pager moves, or a prompt balloon takes in one step.
const STEP_PAGES: u64 = 4096;
/// A guest left with less than this kills its workload (measured: Linux 6.12 lived with 6 MiB).
const LEFT_MIN: Pages = Pages::mib(4);
/// The trickler gives a page so often.
const TRICKLE: Duration = Duration::from_millis(4900);

/// A model guest that has been admitted.
#[derive(Debug, Clone)]
pub(super) struct Guest {
    /// Which VM it is to the host manager.
    pub(super) id: VmId,
    pub(super) spec: GuestSpec,
    started: Duration,
    orders: Orders,
    credit: CreditBook,
    /// It went without a page for want of credit.
    waits: bool,
    /// Pages that it can still touch in this step.
    strength: u64,
    wants: u64,
    active: u64,
    data: u64,
    cache: u64,
    swapped: u64,
    paged: u64,
    ballooned: u64,
    swap_ins: u64,
    major_faults: u64,
    paged_out: u64,
    sample: Option<Sample>,
}

/// What the VM process would know of the guest's working set.
#[derive(Debug, Clone)]
struct Sample {
    sampler: Sampler,
    clock: VmClock,
    picked: Vec<Gfn>,
    touched: usize,
}

/// Whether a sample's period passes while its VM sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PeriodClock {
    /// It does.
    Free,
    /// It stands: as in ESX.
    Busy,
}

impl Guest {
    /// A guest on the terms of its `welcome`. Without `sampled` its active memory is known.
    pub(super) fn new(
        spec: &GuestSpec,
        id: VmId,
        welcome: &Welcome,
        sampled: bool,
        now: Duration,
    ) -> Guest {
        let seed = spec.name.bytes().map(u64::from).sum();
        let sampling = welcome.sampling;
        let sample = || Sample {
            sampler: Sampler::new(sampling.pages, sampling.period, seed),
            clock: VmClock::default(),
            picked: Vec::new(),
            touched: 0,
        };
        Guest {
            id,
            started: now,
            orders: Orders {
                state: MemState::High,
                balloon_target: Pages::ZERO,
                hint_rounds: 0,
                private_max: None,
                run: Run::Go,
                scan_pages_per_second: 0,
            },
            credit: CreditBook::new(welcome.credit, welcome.credit_batch),
            waits: false,
            strength: 0,
            wants: spec.wants.0,
            active: spec.active.0,
            data: 0,
            cache: 0,
            swapped: 0,
            paged: 0,
            ballooned: 0,
            swap_ins: 0,
            major_faults: 0,
            paged_out: 0,
            sample: sampled.then(sample),
            spec: spec.clone(),
        }
    }

    /// Host memory that backs it.
    pub(super) fn held(&self) -> Pages {
        Pages(self.data + self.cache)
    }

    fn size(&self) -> Pages {
        self.spec.allocation.size
    }

    /// Guest pages that nothing is in.
    fn free(&self) -> u64 {
        let used = self.data + self.cache + self.swapped + self.ballooned;
        self.size().0.saturating_sub(used)
    }

    /// Whether its process has died.
    pub(super) fn has_died(&self, now: Duration) -> bool {
        matches!(self.spec.model, Model::Dies { at } if now >= at)
    }

    /// What its balloon has left it, if that is so little that it killed its workload.
    pub(super) fn starved_with(&self) -> Option<Pages> {
        let left = self.size() - Pages(self.ballooned);
        (left < LEFT_MIN).then_some(left)
    }

    /// Takes a message of the host manager.
    pub(super) fn hear(&mut self, message: ToVm) {
        match message {
            ToVm::Credit { pages } => self.credit.grant(pages),
            ToVm::Orders(orders) => self.orders = orders,
            // Nobody stops a model guest, and it offers no page to share.
            ToVm::Welcome(_)
            | ToVm::Refused { .. }
            | ToVm::Candidates { .. }
            | ToVm::Want { .. }
            | ToVm::Stop
            | ToVm::Knock { .. } => {}
        }
    }

    /// Begins a step: carries out its orders. Swapping is the VM process's work, ballooning the
    /// guest's.
    pub(super) fn begin(&mut self, now: Duration) {
        self.strength = STEP_PAGES;
        if let Some(most) = self.orders.private_max {
            // As the VM process does, it makes room for a fault that waits.
            let room = if self.waits { ROOM_PAGES } else { Pages::ZERO };
            self.swap_out(self.credit.excess(most, room).0.min(STEP_PAGES));
        }
        self.balloon(now);
        self.credit.measured(self.held());
        self.grow_into(now);
    }

    /// Touches what its credit allows. Returns what its account says to the host manager, if anything;
    /// what it has given up it gives back first.
    pub(super) fn go_on(&mut self) -> Option<ToHost> {
        let most = match self.spec.model {
            Model::Greedy => None,
            _ => self.orders.private_max,
        };
        let said = self.credit.settle(most).or_else(|| {
            self.touch();
            self.credit.settle(most)
        })?;
        Some(match said {
            CreditMove::Request(pages) => ToHost::CreditRequest { pages },
            CreditMove::Return(pages) => ToHost::CreditReturn { pages },
        })
    }

    /// What is measured, and what the guest says.
    pub(super) fn report(&self) -> Report {
        Report {
            holding: Holding::private(self.held()),
            overhead: self.spec.overhead,
            measured: Measured {
                gauges: Gauges {
                    ballooned: Pages(self.ballooned),
                    swapped: Pages(self.swapped),
                    ..Gauges::default()
                },
                counters: Counters {
                    swap_in_pages: self.swap_ins,
                    ..Counters::default()
                },
                active: self.active(),
                balloon_driver: true,
                balloon_actual: Pages(self.ballooned),
                guest_memory: self.stats(),
                ..Measured::default()
            },
        }
    }

    fn active(&self) -> Option<Pages> {
        match &self.sample {
            None => Some(self.truly_active()),
            Some(sample) => {
                let estimate = sample.sampler.estimate(self.size());
                estimate.map(|estimate| estimate.active)
            }
        }
    }

    fn truly_active(&self) -> Pages {
        Pages(self.active.min(self.data + self.swapped))
    }

    /// One step of its sample, if there is one.
    pub(super) fn sample(&mut self, clock: PeriodClock) {
        let (active, size) = (self.truly_active().0, self.size());
        let runs = self.orders.run == Run::Go;
        let Some(sample) = &mut self.sample else {
            return;
        };
        let busy = if runs && active > 0 {
            STEP
        } else {
            Duration::ZERO
        };
        sample.clock.busy += busy;
        sample.clock.free += match clock {
            PeriodClock::Free if runs => STEP,
            PeriodClock::Free => Duration::ZERO,
            PeriodClock::Busy => busy,
        };
        if runs {
            let touched = sample.picked.iter();
            let touched = touched.filter(|gfn| u64::from(gfn.0) < active).count();
            (sample.touched..touched).for_each(|_| sample.sampler.touch());
            sample.touched = sample.touched.max(touched);
        }
        if sample.sampler.is_due(sample.clock) {
            sample.picked = sample.sampler.begin(sample.clock, size, |_| true);
            sample.touched = 0;
        }
    }

    fn stats(&self) -> GuestMemoryStats {
        let bytes = |pages: u64| Some(Pages(pages).bytes());
        let truth = GuestMemoryStats {
            swap_in_bytes: bytes(self.major_faults),
            swap_out_bytes: bytes(self.paged_out),
            major_faults: Some(self.major_faults),
            minor_faults: None,
            free_bytes: bytes(self.free()),
            total_bytes: bytes(self.size().0 - self.ballooned),
            available_bytes: bytes(self.free() + self.cache),
            caches_bytes: bytes(self.cache),
            ..GuestMemoryStats::default()
        };
        match self.spec.reports {
            Reports::Nothing => GuestMemoryStats::default(),
            Reports::Truth => truth,
            Reports::Lies => GuestMemoryStats {
                free_bytes: Some(0),
                total_bytes: bytes(self.size().0),
                available_bytes: Some(0),
                caches_bytes: Some(0),
                ..truth
            },
        }
    }

    fn swap_out(&mut self, pages: u64) {
        let data = pages.min(self.data);
        self.data -= data;
        let cache = (pages - data).min(self.cache);
        self.cache -= cache;
        self.swapped += data + cache;
    }

    fn balloon(&mut self, now: Duration) {
        let order = self.orders.balloon_target;
        let order = order.saturating_sub(self.spec.misses).0;
        let step = self.balloon_step(now);
        if order > self.ballooned {
            self.inflate((order - self.ballooned).min(step));
        } else {
            let upper = self.size().saturating_sub(self.spec.upper).0;
            let least = order.max(upper).min(self.ballooned);
            self.ballooned -= (self.ballooned - least).min(step);
        }
    }

    fn inflate(&mut self, pages: u64) {
        let below = match self.spec.model {
            Model::Refuses { below } => below.0,
            _ => 0,
        };
        let size = self.size().0;
        let mut wanted = pages.min(size.saturating_sub(below + self.ballooned));
        let free = wanted.min(self.free());
        self.ballooned += free;
        wanted -= free;
        let cache = wanted.min(self.cache);
        self.cache -= cache;
        self.ballooned += cache;
        wanted -= cache;
        let data = wanted.min(self.data);
        self.data -= data;
        self.paged += data;
        self.paged_out += data;
        self.ballooned += data;
    }

    /// Pages that its balloon can move in this step.
    fn balloon_step(&self, now: Duration) -> u64 {
        let age = now.saturating_sub(self.started);
        match self.spec.model {
            Model::Prompt
            | Model::Greedy
            | Model::Refuses { .. }
            | Model::Dies { .. }
            | Model::Sleeps { .. }
            | Model::SuddenNeed { .. } => STEP_PAGES,
            Model::Slow { step } => step.0,
            Model::Stuck => 0,
            Model::SometimesStuck { works, period } => {
                let period = period.as_millis().max(1);
                u64::from(age.as_millis() % period < works.as_millis()) * STEP_PAGES
            }
            Model::Trickle => {
                let drips = |at: Duration| at.as_millis() / TRICKLE.as_millis();
                u64::from(drips(age + STEP) > drips(age))
            }
        }
    }

    /// Its need changes as its model says.
    fn grow_into(&mut self, now: Duration) {
        match self.spec.model {
            Model::SuddenNeed { at, wants } if now >= at => {
                self.wants = wants.0.max(self.wants);
                self.active = self.active.max(wants.0);
            }
            Model::Sleeps { at } if now >= at => {
                self.active = 0;
                self.strength = 0;
            }
            _ => {}
        }
    }

    /// Takes up to so many pages of the host; fewer where there is no credit for them.
    fn take(&mut self, pages: u64) -> u64 {
        let pages = pages.min(self.strength);
        let taken = pages.min(self.credit.headroom().0);
        self.waits |= taken < pages;
        self.strength -= taken;
        self.credit.mapped(Pages(taken));
        taken
    }

    fn touch(&mut self) {
        self.waits = false;
        if self.orders.run == Run::Block {
            return;
        }
        // Victims of the host are random: as much of them is active as of all data.
        let swapped_active = self.swapped.min(self.share_of_active(self.swapped));
        let back = self.take(swapped_active);
        self.swapped -= back;
        self.data += back;
        self.swap_ins += back;
        let untouched = self
            .wants
            .saturating_sub(self.data + self.swapped + self.paged);
        // Data pushes the cache out when nothing else is free.
        let want = untouched.min(self.strength).min(self.free() + self.cache);
        let pushed = want.saturating_sub(self.free()).min(self.cache);
        self.cache -= pushed;
        self.credit.measured(self.held());
        self.data += self.take(want.min(self.free()));
        self.page_in();
        let want = self.spec.cache.0.saturating_sub(self.cache);
        self.cache += self.take(want.min(self.free()));
    }

    fn share_of_active(&self, pages: u64) -> u64 {
        let part = u128::from(pages) * u128::from(self.active);
        u64::try_from(part / u128::from(self.wants.max(1))).unwrap_or(u64::MAX)
    }

    /// Active data that the guest had to page out comes back, or is fought for.
    fn page_in(&mut self) {
        let idle = self.wants.saturating_sub(self.active);
        let missed = self.paged.saturating_sub(idle).min(self.strength);
        let room = missed.min(self.free());
        let back = self.take(room);
        self.paged -= back;
        self.data += back;
        // What found no room in the guest pushed out something else.
        let fought = missed - room;
        self.strength -= fought;
        self.major_faults += back + fought;
        self.paged_out += fought;
    }
}
