//! How much memory a VM is using, estimated from a sample of its pages.
//!
//! At the start of a period `n` random pages of the VM are taken out, or only watched where they have no
//! memory; a page that is touched is given back and counted; at the end the share of touched pages, `touched / n`, times the VM's size is
//! an estimate of its active memory. Three averages are kept and the largest counts, so that the
//! estimate follows growth at once and decay slowly:
//!
//! | estimate | moved by | weight of the new period |
//! |---|---|---|
//! | slow | each full period | a quarter; three quarters if the VM slept through it |
//! | fast | each full period | three quarters |
//! | running | the period that is not over yet, on top of fast | its share of the sample so far |
//!
//! Pure: this module picks the pages and does the arithmetic. The VM process takes the pages out
//! and reports touches.
//!
//! **Time.** A VM has two clocks ([`VmClock`]). *Free* time is wall time in which it could have run:
//! it passes while the guest works and while it sleeps, and stands while the VM waits for a CPU or is
//! held by the host manager, so that a VM that is not let run does not look idle. *Busy* time is
//! what its vCPUs ran. A period is one of free time. In ESX it is one of busy time: a VM that sleeps
//! keeps its last estimate for ever there, is never taxed, and keeps its memory beside a neighbour
//! that is swapped in and out for want of it.
//!
//! **The first period** says nothing before it is over. What was touched so far is what a guest that fills
//! its memory had a moment ago: less than it holds, so that it would be taxed for what it has just written,
//! and be swapped beside free memory.
//!
//! **Sleep.** A VM slept through a period if it was busy for less than a sixteenth of it. What it
//! touched meanwhile counts like any other sample, but the slow average then moves like the fast one:
//! from all active to a sixteenth within two periods, not nine. The slow average is there for guests
//! that go from one part of their memory to another and back, and one that sleeps does not go
//! anywhere. If its memory is wanted it pays once, when it wakes; a busy neighbour with too little
//! pays as long as it has too little. A nap loses nothing: a period in which the VM also worked is
//! no slept one, and every period begins with whatever fast average the last has left.
//!
//! **Error bound.** The number of touched pages of a sample is hypergeometric, at most as wide as the
//! binomial: the standard deviation of `f` is at most `sqrt(f * (1 - f) / n)`, 5 % at `n = 100`, `f = 0.5`.
//! The bound is twice that (95 %), plus half a page of the sample, for the largest estimate.
//!
//! Source: Waldspurger, section 5.3 (100 pages, 30 s of VM time, three averages, the largest); the
//! weights, and all about sleep, are chosen.

use std::time::Duration;

use crate::units::{Gfn, Pages};
use crate::words::Sampling;

/// Pages of a sample (ESX).
pub const SAMPLE_PAGES: u32 = 100;
/// Free time of a period (ESX 2: `Mem.SamplePeriod`, in busy time).
pub const PERIOD: Duration = Duration::from_secs(30);
/// Weight of a new period in the slow average: 1 / this. Chosen.
const SLOW_DIVISOR: u64 = 4;
/// Weight of the *old* value in the fast average: 1 / this. Chosen.
const FAST_DIVISOR: u64 = 4;
/// A VM that was busy for less than a period / this slept through it. Chosen: an idle Linux guest's
/// ticks, and its balloon's service, take a few hundredths.
const SLEEP_DIVISOR: u32 = 16;
/// Fractions are in millionths.
const ONE: u64 = 1_000_000;
/// Standard deviations in the error bound: 95 %.
const DEVIATIONS: u64 = 2;

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling {
            pages: SAMPLE_PAGES,
            period: PERIOD,
        }
    }
}

/// The clocks of one VM; both begin at its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VmClock {
    /// Time in which it could have run: neither held nor waiting for a CPU of the host.
    pub free: Duration,
    /// Time that its vCPUs ran, all together.
    pub busy: Duration,
}

/// The active memory of one VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    /// The largest of the three averages.
    pub active: Pages,
    /// The truth is within this of the average's expectation 19 times of 20.
    pub error: Pages,
}

/// The running sample of one VM and its averages.
#[derive(Debug, Clone)]
pub struct Sampler {
    sample_pages: u32,
    period: Duration,
    random: SplitMix64,
    /// Pages in the running sample; zero before the first.
    sampled: u32,
    touched: u32,
    /// The VM's clocks at the start of the running period.
    since: VmClock,
    averages: Option<Averages>,
}

/// Fractions in millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Averages {
    slow: u64,
    fast: u64,
}

impl Sampler {
    /// A sampler of `sample_pages` pages (at least one) in each `period` of free time.
    pub fn new(sample_pages: u32, period: Duration, seed: u64) -> Sampler {
        Sampler {
            sample_pages: sample_pages.max(1),
            period,
            random: SplitMix64(seed),
            sampled: 0,
            touched: 0,
            since: VmClock::default(),
            averages: None,
        }
    }

    /// Whether the period is over (or none has begun): call [`Sampler::begin`].
    pub fn is_due(&self, now: VmClock) -> bool {
        self.left(now) == Duration::ZERO
    }

    /// How long the period lasts on, if all of the time is free.
    pub fn left(&self, now: VmClock) -> Duration {
        match self.sampled {
            0 => Duration::ZERO,
            _ => (self.since.free + self.period).saturating_sub(now.free),
        }
    }

    /// Ends the running period and picks the pages of the next, in ascending order, each at most
    /// once: those that `eligible` accepts, of the first `size` frames.
    ///
    /// A page that cannot be taken out (it maps a shared frame, or the pager is at work on it) is not
    /// eligible. Untouched pages of the old sample are to be given back first. A page without memory
    /// (never written, ballooned, swapped) is eligible: nothing need be done to it, and it counts as
    /// touched once the guest has memory for it.
    pub fn begin(&mut self, now: VmClock, size: Pages, eligible: impl Fn(Gfn) -> bool) -> Vec<Gfn> {
        if self.sampled > 0 {
            self.averages = Some(self.after_period(self.slept(now)));
        }
        self.since = now;
        self.touched = 0;
        let picked = self.pick(size, eligible);
        self.sampled = u32::try_from(picked.len()).expect("at most sample_pages, a u32");
        picked
    }

    /// A page that was begun but cannot be sampled after all: as if it had not been picked.
    pub fn withdraw(&mut self) {
        self.sampled = self.sampled.saturating_sub(1);
        self.touched = self.touched.min(self.sampled);
    }

    /// The guest touched a page of the running sample.
    pub fn touch(&mut self) {
        self.touched = (self.touched + 1).min(self.sampled);
    }

    /// What is known now; `None` before a first period is over.
    ///
    /// `size` is the memory that the sample was drawn from.
    pub fn estimate(&self, size: Pages) -> Option<Estimate> {
        let averages = self.averages?;
        let running = match self.sampled {
            0 => 0,
            _ => self.running(averages),
        };
        let fraction = averages.slow.max(averages.fast).max(running);
        let pages = |millionths: u64| {
            let pages = u128::from(size.0) * u128::from(millionths.min(ONE));
            Pages(u64::try_from(pages.div_ceil(u128::from(ONE))).expect("at most the size"))
        };
        Some(Estimate {
            active: pages(fraction),
            error: pages(error(fraction, u64::from(self.sample_pages))),
        })
    }

    /// Share of the running sample that was touched, in millionths.
    fn fraction(&self) -> u64 {
        u64::from(self.touched) * ONE / u64::from(self.sampled.max(1))
    }

    /// Whether the VM slept through the period that ends now.
    fn slept(&self, now: VmClock) -> bool {
        let busy = now.busy.saturating_sub(self.since.busy);
        busy.saturating_mul(SLEEP_DIVISOR) < now.free.saturating_sub(self.since.free)
    }

    fn after_period(&self, slept: bool) -> Averages {
        let new = self.fraction();
        let Some(old) = self.averages else {
            return Averages {
                slow: new,
                fast: new,
            };
        };
        let fast = |old: u64| (old + new * (FAST_DIVISOR - 1)) / FAST_DIVISOR;
        let slow = |old: u64| (old * (SLOW_DIVISOR - 1) + new) / SLOW_DIVISOR;
        Averages {
            slow: if slept {
                fast(old.slow)
            } else {
                slow(old.slow)
            },
            fast: fast(old.fast),
        }
    }

    /// The fast average as if the period ended now: rises with each touch, never falls within a
    /// period.
    fn running(&self, old: Averages) -> u64 {
        (old.fast + self.fraction() * (FAST_DIVISOR - 1)) / FAST_DIVISOR
    }

    /// Up to `sample_pages` different eligible pages, by drawing with a bound on the number of draws.
    fn pick(&mut self, size: Pages, eligible: impl Fn(Gfn) -> bool) -> Vec<Gfn> {
        /// Draws for each page wanted: enough where one page in eight is eligible.
        const DRAWS_PER_PAGE: u32 = 8;
        let frames = u32::try_from(size.0).unwrap_or(u32::MAX);
        let mut picked = std::collections::BTreeSet::new();
        if frames == 0 {
            return Vec::new();
        }
        for _ in 0..self.sample_pages.saturating_mul(DRAWS_PER_PAGE) {
            if picked.len() as u64 >= u64::from(self.sample_pages.min(frames)) {
                break;
            }
            let gfn = Gfn(self.random.below(frames));
            if eligible(gfn) {
                picked.insert(gfn);
            }
        }
        picked.into_iter().collect()
    }
}

/// Two standard deviations of the share, and half a page of the sample, in millionths.
fn error(fraction: u64, sample_pages: u64) -> u64 {
    let fraction = fraction.min(ONE);
    let variance = fraction * (ONE - fraction) / sample_pages;
    DEVIATIONS * variance.isqrt() + ONE / (2 * sample_pages)
}

/// Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014. Policies take no
/// random numbers from outside, so that the same input gives the same result.
#[derive(Debug, Clone)]
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound` (Lemire: multiply and take the upper half).
    fn below(&mut self, bound: u32) -> u32 {
        let wide = (self.next() >> 32) * u64::from(bound);
        u32::try_from(wide >> 32).expect("below the bound")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: Pages = Pages::mib(256);

    /// A VM that has always been busy.
    fn busy(time: Duration) -> VmClock {
        VmClock {
            free: time,
            busy: time,
        }
    }

    /// Plays whole periods of a guest that touches its first `active(period)` pages.
    fn play(periods: u64, seed: u64, active: impl Fn(u64) -> u64) -> (Sampler, Vec<Estimate>) {
        let mut sampler = Sampler::new(SAMPLE_PAGES, PERIOD, seed);
        let mut estimates = Vec::new();
        for period in 0..=periods {
            let now = busy(PERIOD * u32::try_from(period).expect("a short test"));
            assert!(sampler.is_due(now));
            for gfn in sampler.begin(now, SIZE, |_| true) {
                if u64::from(gfn.0) < active(period) {
                    sampler.touch();
                }
            }
            assert!(!sampler.is_due(now));
            estimates.extend(sampler.estimate(SIZE));
        }
        (sampler, estimates)
    }

    #[test]
    fn a_sample_has_different_pages_in_order() {
        let mut sampler = Sampler::new(100, PERIOD, 1);
        let picked = sampler.begin(busy(Duration::ZERO), Pages(120), |_| true);
        assert!(picked.len() > 90, "{}", picked.len());
        assert!(picked.is_sorted_by(|a, b| a < b));
        let even = sampler.begin(busy(PERIOD), SIZE, |gfn| gfn.0 % 2 == 0);
        assert!(even.len() == 100 && even.iter().all(|gfn| gfn.0 % 2 == 0));
        assert_eq!(sampler.begin(busy(PERIOD * 2), SIZE, |_| false), []);
        assert_eq!(sampler.begin(busy(PERIOD * 3), Pages::ZERO, |_| true), []);
    }

    #[test]
    fn nothing_is_known_before_the_first_period_is_over() {
        let mut sampler = Sampler::new(100, PERIOD, 1);
        assert_eq!(sampler.estimate(SIZE), None);
        sampler.begin(busy(Duration::ZERO), SIZE, |_| true);
        // A guest that has filled half of its memory so far, and goes on.
        for _ in 0..50 {
            sampler.touch();
        }
        assert_eq!(sampler.estimate(SIZE), None);
        for _ in 50..100 {
            sampler.touch();
        }
        sampler.begin(busy(PERIOD), SIZE, |_| true);
        assert_eq!(sampler.estimate(SIZE).map(|e| e.active), Some(SIZE));
    }

    #[test]
    fn growth_is_seen_within_the_period_and_decay_slowly() {
        let half = SIZE.0 / 2;
        let active = |period| match period {
            0..=3 => half / 4,
            4..=7 => half,
            _ => 0,
        };
        let (_, estimates) = play(16, 3, active);
        // The first is that of period 1.
        assert!(estimates[2].active.0 < half / 2);
        assert!(estimates[3].active.0 > half * 2 / 3, "fast up");
        assert!(estimates[7].active.0 > half / 2, "slow down");
        assert!(estimates[15].active.0 < half / 4);
    }

    /// A guest that used all its memory for so long, then sleeps: what is left of the estimate after
    /// each of the following periods, in percent of its size.
    fn asleep(periods: u32, busy_part: u32) -> Vec<u64> {
        let (mut sampler, _) = play(8, 3, |_| SIZE.0);
        let start = PERIOD * 8;
        (1..=periods)
            .map(|period| {
                let now = VmClock {
                    free: start + PERIOD * period,
                    busy: start + PERIOD * period / busy_part,
                };
                assert!(sampler.is_due(now));
                sampler.begin(now, SIZE, |_| true);
                let estimate = sampler.estimate(SIZE).map(|e| e.active.0);
                estimate.unwrap() * 100 / SIZE.0
            })
            .collect()
    }

    #[test]
    fn a_vm_that_sleeps_loses_its_claim_in_two_periods_and_an_idle_one_that_works_in_nine() {
        // The first period still has the touches of the time before.
        let sleeps = asleep(4, 50);
        assert_eq!((sleeps[0], sleeps[1]), (100, 25), "{sleeps:?}");
        assert!(sleeps[2] <= 7, "{sleeps:?}");
        let works = asleep(10, 10);
        assert!(works[2] > 50 && works[9] < 8, "{works:?}");
    }

    #[test]
    fn a_nap_within_a_period_loses_nothing() {
        let (mut sampler, _) = play(8, 3, |_| SIZE.0);
        for period in 1..6 {
            // Nine tenths of each period asleep, then everything is touched.
            let now = VmClock {
                free: PERIOD * (8 + period),
                busy: PERIOD * 8 + PERIOD * period / 10,
            };
            for _ in sampler.begin(now, SIZE, |_| true) {
                sampler.touch();
            }
            assert_eq!(sampler.estimate(SIZE).map(|e| e.active), Some(SIZE));
        }
    }

    #[test]
    fn a_vm_that_is_not_let_run_keeps_its_estimate() {
        let (sampler, estimates) = play(8, 3, |_| SIZE.0);
        // Held for hours: neither of its clocks moves.
        assert!(!sampler.is_due(busy(PERIOD * 8)));
        assert_eq!(sampler.estimate(SIZE), estimates.last().copied());
    }

    #[test]
    fn withdrawn_pages_do_not_count() {
        let mut sampler = Sampler::new(10, PERIOD, 1);
        sampler.begin(busy(Duration::ZERO), SIZE, |_| true);
        for _ in 0..5 {
            sampler.withdraw();
            sampler.touch();
        }
        sampler.begin(busy(PERIOD), SIZE, |_| true);
        assert_eq!(sampler.estimate(SIZE).map(|e| e.active), Some(SIZE));
    }

    proptest! {
        #[test]
        fn the_estimate_never_exceeds_the_size(seed in any::<u64>(), touches in 0..300_u32, pages in 1..200_u32) {
            let mut sampler = Sampler::new(pages, PERIOD, seed);
            for period in 0..4 {
                sampler.begin(busy(PERIOD * period), SIZE, |_| true);
                (0..touches).for_each(|_| sampler.touch());
                if let Some(estimate) = sampler.estimate(SIZE) {
                    prop_assert!(estimate.active <= SIZE && estimate.error <= SIZE);
                }
            }
        }

        #[test]
        fn a_touch_never_lowers_the_estimate(seed in any::<u64>(), before in 0..100_u32) {
            let mut sampler = Sampler::new(100, PERIOD, seed);
            sampler.begin(busy(Duration::ZERO), SIZE, |_| true);
            (0..before).for_each(|_| sampler.touch());
            sampler.begin(busy(PERIOD), SIZE, |_| true);
            let mut last = sampler.estimate(SIZE).map(|e| e.active);
            for _ in 0..100 {
                sampler.touch();
                let next = sampler.estimate(SIZE).map(|e| e.active);
                prop_assert!(next >= last);
                last = next;
            }
        }

        /// A steady working set is found to within a few deviations: the largest of three averages
        /// leans upward, so the bound upward is wider.
        #[test]
        fn a_steady_working_set_is_found(seed in any::<u64>(), percent in 0..=100_u64) {
            let truth = SIZE.0 * percent / 100;
            let (_, estimates) = play(6, seed, |_| truth);
            let last = estimates.last().map(|e| e.active.0).unwrap_or(0);
            let deviation = error(percent * ONE / 100, u64::from(SAMPLE_PAGES)) * SIZE.0 / ONE / 2;
            prop_assert!(last + 4 * deviation + SIZE.0 / 50 >= truth, "{last} of {truth}");
            prop_assert!(last <= truth + 6 * deviation + SIZE.0 / 50, "{last} of {truth}");
        }

        #[test]
        fn the_same_seed_picks_the_same_pages(seed in any::<u64>()) {
            let pick = || Sampler::new(100, PERIOD, seed).begin(busy(Duration::ZERO), SIZE, |_| true);
            prop_assert_eq!(pick(), pick());
        }
    }
}
