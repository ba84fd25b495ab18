//! The free-memory states of the host and when one follows another.
//!
//! | state | entered when free falls below | left upward when free reaches | what is allowed |
//! |---|---|---|---|
//! | high | - | - | nothing is reclaimed, except above a limit; below 8 % free guests are asked for what they have free, below 6 % balloons start early |
//! | soft | 4 % | 6 % | ballooning; swapping where ballooning is not possible |
//! | hard | 2 % | 4 % | ballooning and swapping |
//! | low | 1 % | 2 % | the same, and VMs above their target are blocked |
//!
//! A state is left upward only at the threshold *above* the one that entered it, so a free figure
//! that hovers around one edge changes nothing. A jump passes over states: from low with 7 % free
//! the host is in high at once, with 5 % free in soft.
//!
//! On the sliding scale the thresholds are parts of `minFree` = 6 % of the first 4 GiB, 4 % of the next
//! 8, 2 % of the next 16, 1 % of the rest: high 100 %, soft 64 %, hard 32 %, low 16 % of it.
//!
//! Source: sliding scale: VMware `Mem.MinFreePct` (ESXi 5); 6/4/2/1 % and the actions: Waldspurger section 6.3 and the ESX white paper section 3.5.
//! Ballooning starts on the approach to soft because it is slow (white paper, same section).

use super::settings::MinFree;
use crate::units::Pages;
use crate::words::MemState;

/// Free memory that state high wants, percent of the budget (ESX default).
const HIGH_PERCENT: u64 = 6;
/// Below this the host is in soft, percent of the budget (ESX default).
const SOFT_PERCENT: u64 = 4;
/// Below this the host is in hard, percent of the budget (ESX default).
const HARD_PERCENT: u64 = 2;
/// Below this the host is in low, percent of the budget (ESX default).
const LOW_PERCENT: u64 = 1;

/// The sliding scale: of so many GiB, so many percent are kept free; one percent of the rest.
const SLIDING_GIB_PERCENT: [(u64, u64); 3] = [(4, 6), (8, 4), (16, 2)];
/// Soft, hard and low on the sliding scale, percent of minFree.
const SLIDING_PERCENT: [u64; 3] = [64, 32, 16];

/// The four thresholds of one budget. `low <= hard <= soft <= high`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Soft is left for high from here on.
    pub high: Pages,
    /// Soft is entered below, hard is left for soft from here on.
    pub soft: Pages,
    /// Hard is entered below, low is left for hard from here on.
    pub hard: Pages,
    /// Low is entered below.
    pub low: Pages,
}

impl Thresholds {
    /// 6/4/2/1 % of the budget, rounded up: a host with any budget has a threshold above zero.
    pub fn of_budget(budget: Pages) -> Thresholds {
        let percent = |percent: u64| Pages((budget.0 * percent).div_ceil(100));
        Thresholds {
            high: percent(HIGH_PERCENT),
            soft: percent(SOFT_PERCENT),
            hard: percent(HARD_PERCENT),
            low: percent(LOW_PERCENT),
        }
    }

    /// The thresholds of a budget on one of the scales.
    pub fn on_scale(budget: Pages, scale: MinFree) -> Thresholds {
        match scale {
            MinFree::Percent => Thresholds::of_budget(budget),
            MinFree::Sliding => {
                let high = sliding_min_free(budget);
                let [soft, hard, low] =
                    SLIDING_PERCENT.map(|percent| Pages((high.0 * percent).div_ceil(100)));
                Thresholds {
                    high,
                    soft,
                    hard,
                    low,
                }
            }
        }
    }

    /// The state after `current` when `free` pages are free.
    pub fn next(&self, current: MemState, free: Pages) -> MemState {
        // The ordering of `MemState` is high < soft < hard < low. `least` is the state that this
        // much free memory enters by falling, `most` the one that rising to it leaves behind; a
        // state between the two is kept.
        let least = self.state_between(free, self.soft, self.hard, self.low);
        let most = self.state_between(free, self.high, self.soft, self.hard);
        current.clamp(least, most)
    }

    /// Whether free memory is near enough to soft that slow balloons should start.
    pub fn near_soft(&self, free: Pages) -> bool {
        free < self.high
    }

    /// Whether free memory falls towards soft, but balloons need not start yet: the first to be
    /// asked for is what guests have free anyway. Chosen: a third of state high's free memory
    /// earlier.
    pub fn falls_to_soft(&self, free: Pages) -> bool {
        free.0 < self.high.0 + self.high.0 / 3
    }

    /// Free memory that swapping works towards where it does not end the shortage alone: half way between
    /// soft and high, so that the last few pages, which VMs hold as unused credit, do not keep the host
    /// in hard.
    pub fn swap_goal(&self) -> Pages {
        Pages(self.soft.0.midpoint(self.high.0))
    }

    /// Free memory below which those who would have to be swapped do not grow beyond their targets: a
    /// quarter of the way from soft to high, so that what they were granted before does not enter
    /// soft.
    pub fn hold_below(&self) -> Pages {
        Pages(self.soft.0 + (self.high.0 - self.soft.0) / 4)
    }

    fn state_between(&self, free: Pages, soft: Pages, hard: Pages, low: Pages) -> MemState {
        if free < low {
            MemState::Low
        } else if free < hard {
            MemState::Hard
        } else if free < soft {
            MemState::Soft
        } else {
            MemState::High
        }
    }
}

fn sliding_min_free(budget: Pages) -> Pages {
    let (mut rest, mut hundredths) = (budget.0, 0);
    for (gib, percent) in SLIDING_GIB_PERCENT {
        let part = rest.min(Pages::mib(gib << 10).0);
        hundredths += part * percent;
        rest -= part;
    }
    Pages((hundredths + rest).div_ceil(100))
}

#[cfg(test)]
mod tests {
    use super::*;
    use MemState::{Hard, High, Low, Soft};

    /// Budget of 10000 pages: thresholds 600, 400, 200, 100.
    #[test]
    fn edges_exactly_at_just_below_and_just_above() {
        let thresholds = Thresholds::of_budget(Pages(10_000));
        // (from, free, to)
        let table = [
            (High, 400, High),
            (High, 399, Soft),
            (High, 200, Soft),
            (High, 199, Hard),
            (High, 100, Hard),
            (High, 99, Low),
            (High, 0, Low),
            (Soft, 400, Soft),
            (Soft, 599, Soft),
            (Soft, 600, High),
            (Soft, 200, Soft),
            (Soft, 199, Hard),
            (Hard, 200, Hard),
            (Hard, 399, Hard),
            (Hard, 400, Soft),
            (Hard, 599, Soft),
            (Hard, 600, High),
            (Hard, 99, Low),
            (Low, 100, Low),
            (Low, 199, Low),
            (Low, 200, Hard),
            (Low, 399, Hard),
            (Low, 400, Soft),
            (Low, 600, High),
        ];
        for (from, free, to) in table {
            assert_eq!(thresholds.next(from, Pages(free)), to, "{from:?} {free}");
        }
    }

    #[test]
    fn a_tiny_budget_still_has_every_threshold() {
        let thresholds = Thresholds::of_budget(Pages(1));
        assert_eq!(thresholds.low, Pages(1));
        assert_eq!(thresholds.next(High, Pages(0)), Low);
    }

    /// The figures that VMware publishes: 28 GB -> 899 MB, 100 GB -> 1619 MB (whole gigabytes here).
    #[test]
    fn the_sliding_scale_matches_the_published_figures() {
        for (gib, mib) in [(4, 245), (28, 901), (100, 1638)] {
            let thresholds = Thresholds::on_scale(Pages::mib(gib << 10), MinFree::Sliding);
            assert_eq!(thresholds.high.bytes() >> 20, mib, "{gib}");
            assert!(thresholds.low < thresholds.hard && thresholds.hard < thresholds.soft);
            assert!(thresholds.soft < thresholds.high);
        }
    }
}
