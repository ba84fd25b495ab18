//! One model guest: its memory, its balloon, what it touches and what it says.
//!
//! ```text
//! size = data + cache + swapped + ballooned + free          private = data + cache
//! wants = data + swapped + paged + not touched yet
//! ```
//!
//! `swapped` pages are in the VM's swap file, taken at random; `paged` ones in the guest's own, which
//! takes what is idle first. Where a scenario has samples, what is active is estimated by the policies'
//! own sampler, as if the guest's active data were its first pages. A balloon takes free pages, then cache, then pages data out. All in
//! whole steps, not page by page: a fleet has ten thousand guests.

use std::time::Duration;

use super::scenario::{GuestSpec, Model, Reports};
use crate::policy::sampling::{Sampler, VmClock};
use crate::policy::types::{VmId, VmPlan, VmSnapshot};
use crate::units::{Gfn, Pages};
use crate::words::{Allocation, GuestMemoryStats, Run, Sampling};

/// Time of one step.
pub(super) const STEP: Duration = Duration::from_millis(100);
/// Pages that a guest touches, a pager moves, or a prompt balloon takes in one step.
const STEP_PAGES: u64 = 4096;
/// A guest left with less than this kills its workload (measured: Linux 6.12 lived with 6 MiB).
const LEFT_MIN: Pages = Pages::mib(4);
/// The trickler gives a page so often.
const TRICKLE: Duration = Duration::from_millis(4900);

/// A model guest that has started.
#[derive(Debug, Clone)]
pub(super) struct Guest {
    pub(super) spec: GuestSpec,
    pub(super) allocation: Allocation,
    started: Duration,
    run: Run,
    wants: u64,
    active: u64,
    data: u64,
    cache: u64,
    pub(super) swapped: u64,
    paged: u64,
    pub(super) ballooned: u64,
    pub(super) swap_ins: u64,
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
    pub(super) fn new(spec: &GuestSpec, sampling: Option<Sampling>, now: Duration) -> Guest {
        let seed = spec.name.bytes().map(u64::from).sum();
        let sample = |of: Sampling| Sample {
            sampler: Sampler::new(of.pages, of.period, seed),
            clock: VmClock::default(),
            picked: Vec::new(),
            touched: 0,
        };
        Guest {
            allocation: spec.allocation,
            started: now,
            run: Run::Go,
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
            sample: sampling.map(sample),
            spec: spec.clone(),
        }
    }

    /// Host memory that backs it.
    pub(super) fn held(&self) -> Pages {
        Pages(self.data + self.cache)
    }

    /// Guest pages that nothing is in.
    fn free(&self) -> u64 {
        let used = self.data + self.cache + self.swapped + self.ballooned;
        self.allocation.size.0.saturating_sub(used)
    }

    /// Whether its process has died.
    pub(super) fn has_died(&self, now: Duration) -> bool {
        matches!(self.spec.model, Model::Dies { at } if now >= at)
    }

    /// Whether so little was left to it that it killed its workload.
    pub(super) fn is_starved(&self) -> bool {
        self.allocation.size.0 < self.ballooned + LEFT_MIN.0
    }

    /// What the host measures, and what the guest says.
    pub(super) fn snapshot(&self, id: VmId) -> VmSnapshot {
        VmSnapshot {
            id,
            allocation: self.allocation,
            consumed: self.held(),
            frames: Pages::ZERO,
            private: self.held(),
            ballooned: Pages(self.ballooned),
            swapped: Pages(self.swapped),
            // What a model guest is not granted it does without until the next step.
            asked: Pages::ZERO,
            swap_in_pages: self.swap_ins,
            balloon_driver: true,
            active: self.active(),
            overhead: self.spec.overhead,
            guest: self.stats(),
        }
    }

    fn active(&self) -> Option<Pages> {
        match &self.sample {
            None => Some(self.truly_active()),
            Some(sample) => {
                let estimate = sample.sampler.estimate(self.allocation.size);
                estimate.map(|estimate| estimate.active)
            }
        }
    }

    fn truly_active(&self) -> Pages {
        Pages(self.active.min(self.data + self.swapped))
    }

    /// One step of its sample, if there is one.
    pub(super) fn sample(&mut self, clock: PeriodClock) {
        let (active, size) = (self.truly_active().0, self.allocation.size);
        let runs = self.run == Run::Go;
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
            total_bytes: bytes(self.allocation.size.0 - self.ballooned),
            available_bytes: bytes(self.free() + self.cache),
            caches_bytes: bytes(self.cache),
        };
        match self.spec.reports {
            Reports::Nothing => GuestMemoryStats::default(),
            Reports::Truth => truth,
            Reports::Lies => GuestMemoryStats {
                free_bytes: Some(0),
                total_bytes: bytes(self.allocation.size.0),
                available_bytes: Some(0),
                caches_bytes: Some(0),
                ..truth
            },
        }
    }

    /// Carries out its orders: swapping is the VM process's work, ballooning the guest's.
    pub(super) fn obey(&mut self, plan: &VmPlan, now: Duration) {
        self.run = plan.run;
        if let Some(max) = plan.private_max {
            let out = self.held().saturating_sub(max).0.min(STEP_PAGES);
            let data = out.min(self.data);
            self.data -= data;
            let cache = (out - data).min(self.cache);
            self.cache -= cache;
            self.swapped += data + cache;
        }
        let order = plan.balloon_target.saturating_sub(self.spec.misses).0;
        let step = self.balloon_step(now);
        if order > self.ballooned {
            self.inflate((order - self.ballooned).min(step));
        } else {
            let upper = self.allocation.size.saturating_sub(self.spec.upper).0;
            let least = order.max(upper).min(self.ballooned);
            self.ballooned -= (self.ballooned - least).min(step);
        }
    }

    fn inflate(&mut self, pages: u64) {
        let below = match self.spec.model {
            Model::Refuses { below } => below.0,
            _ => 0,
        };
        let size = self.allocation.size.0;
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

    /// Touches memory; `ask` is asked for pages of the host and says how many there are.
    pub(super) fn touch(&mut self, now: Duration, mut ask: impl FnMut(&Guest, u64) -> u64) {
        if let Model::SuddenNeed { at, wants } = self.spec.model
            && now >= at
        {
            self.wants = wants.0.max(self.wants);
            self.active = self.active.max(wants.0);
        }
        if let Model::Sleeps { at } = self.spec.model
            && now >= at
        {
            self.active = 0;
            return;
        }
        if self.run == Run::Block {
            return;
        }
        let mut left = STEP_PAGES;
        // Victims of the host are random: as much of them is active as of all data.
        let swapped_active = self.swapped.min(self.share_of_active(self.swapped));
        let back = ask(self, swapped_active.min(left));
        self.swapped -= back;
        self.data += back;
        self.swap_ins += back;
        left -= back;
        let untouched = self
            .wants
            .saturating_sub(self.data + self.swapped + self.paged);
        // Data pushes the cache out when nothing else is free.
        let want = untouched.min(left).min(self.free() + self.cache);
        self.cache -= want.saturating_sub(self.free()).min(self.cache);
        let new = ask(self, want.min(self.free()));
        self.data += new;
        left -= new;
        left -= self.page_in(left, &mut ask);
        let want = self.spec.cache.0.saturating_sub(self.cache);
        self.cache += ask(self, want.min(left).min(self.free()));
    }

    fn share_of_active(&self, pages: u64) -> u64 {
        let part = u128::from(pages) * u128::from(self.active);
        u64::try_from(part / u128::from(self.wants.max(1))).unwrap_or(u64::MAX)
    }

    /// Active data that the guest had to page out comes back, or is fought for.
    fn page_in(&mut self, left: u64, ask: &mut impl FnMut(&Guest, u64) -> u64) -> u64 {
        let idle = self.wants.saturating_sub(self.active);
        let missed = self.paged.saturating_sub(idle).min(left);
        let back = ask(self, missed.min(self.free()));
        self.paged -= back;
        self.data += back;
        self.major_faults += missed;
        // What found no room pushed out something else.
        self.paged_out += missed - back;
        back
    }
}
