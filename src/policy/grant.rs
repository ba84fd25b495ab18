//! Whether a VM that asks for more pages gets them now.
//!
//! The host manager keeps the ledger `free = budget - credits - frames - overheads` and asks this
//! rule for every credit request, so the budget is enforced between decisions too:
//!
//! | the VM then holds | it gets the pages |
//! |---|---|
//! | at most its target or its reservation, whichever is more | as long as anything is free |
//! | more, in high and soft, and its balloon can make up for it | as long as the low threshold (1 %) stays free |
//! | more, in high and soft, but it must be swapped instead | as long as the soft threshold (4 %) stays free |
//! | more, in hard and low | nothing |
//! | more than its limit, or than its cap (`private_max`) beyond its target | nothing |
//!
//! What is kept is for those who are entitled to it, while a VM above its target waits for
//! reclamation. Grants may be partial. Scenarios in `examples/scenarios` show what two of the rows are
//! for. Without the cap a VM process that asks on takes back at once what was
//! swapped out of it (`greedy.toml`). Without the 4 % guests that all want more than their targets
//! push the host into soft or hard and are pushed back ten times a second (`all-want-more.toml`); with
//! it, and with a cap on those who would have to be swapped ([`reclaim`](super::reclaim)), the host
//! rests in high.
//!
//! Nobody waits for ever: as long as memory is short some VM is above its target (see `supply`), and
//! taking from that VM ends the shortage.

use super::state::Thresholds;
use super::types::{Mechanism, VmPlan};
use crate::units::Pages;
use crate::words::{Allocation, MemState};

/// One request, and what the ledger says about the VM that makes it.
#[derive(Debug, Clone, Copy)]
pub struct CreditRequest<'a> {
    /// Further pages wanted.
    pub asked: Pages,
    /// What the VM holds in the ledger: its whole credit, used or not, and its part of the frames.
    pub held: Pages,
    /// The credit of that, which is what a cap is on.
    pub credit: Pages,
    /// What it is entitled to.
    pub allocation: &'a Allocation,
    /// Its entry in the last plan; `None` before its first.
    pub plan: Option<&'a VmPlan>,
}

impl CreditRequest<'_> {
    fn target(&self) -> Pages {
        let target = self.plan.map_or(Pages::ZERO, |plan| plan.target);
        target.max(self.allocation.reservation)
    }

    /// What its cap leaves the VM.
    fn below_cap(&self) -> Pages {
        let cap = self.plan.and_then(|plan| plan.private_max);
        cap.map_or(self.asked, |cap| cap.saturating_sub(self.credit))
    }

    /// What must stay free when the VM goes beyond its target; `None`: it must not.
    fn kept_beyond(&self, thresholds: &Thresholds, state: MemState) -> Option<Pages> {
        if state >= MemState::Hard {
            return None;
        }
        match self.plan {
            Some(plan) if plan.mechanism == Mechanism::Swap => Some(thresholds.soft),
            Some(_) | None => Some(thresholds.low),
        }
    }
}

/// How many of the asked pages the host hands out now, when `free` pages are free and the last
/// decision found the host in `state`.
///
/// Never more than asked, than free, or than takes the VM to its limit.
pub fn grant(
    request: &CreditRequest<'_>,
    free: Pages,
    thresholds: &Thresholds,
    state: MemState,
) -> Pages {
    let limit = request.allocation.ceiling();
    let asked = request.asked.min(limit.saturating_sub(request.held));
    let due = asked.min(request.target().saturating_sub(request.held));
    if due > free {
        return free;
    }
    let beyond = request
        .kept_beyond(thresholds, state)
        .map_or(Pages::ZERO, |kept| (free - due).saturating_sub(kept));
    let below_cap = request.below_cap().saturating_sub(due);
    due + beyond.min(asked - due).min(below_cap)
}

#[cfg(test)]
mod tests {
    use super::super::types::{Conduct, VmId};
    use super::super::why::{Rule, Why};
    use super::*;
    use crate::words::Run;
    use proptest::prelude::*;

    /// Budget 10000 pages: low threshold 100, soft 400.
    #[derive(Clone, Copy)]
    struct Case {
        state: MemState,
        mechanism: Mechanism,
        private_max: Option<Pages>,
    }

    const SOFT: Case = Case {
        state: MemState::Soft,
        mechanism: Mechanism::Balloon,
        private_max: None,
    };

    fn granted(case: Case, asked: u64, held: u64, free: u64) -> u64 {
        let allocation = Allocation {
            size: Pages(3000),
            reservation: Pages(200),
            limit: Pages(2000),
            shares: 1,
            dynamic_min: Pages(0),
            dynamic_max: Pages(3000),
        };
        let plan = VmPlan {
            id: VmId(1),
            target: Pages(1000),
            balloon_target: Pages::ZERO,
            hint_rounds: 0,
            private_max: case.private_max,
            mechanism: case.mechanism,
            run: Run::Go,
            conduct: Conduct::Cooperative,
            why: Why::new(Rule::DynamicMinimum),
        };
        let request = CreditRequest {
            asked: Pages(asked),
            held: Pages(held),
            credit: Pages(held),
            allocation: &allocation,
            plan: Some(&plan),
        };
        let thresholds = Thresholds::of_budget(Pages(10_000));
        grant(&request, Pages(free), &thresholds, case.state).0
    }

    #[test]
    fn examples() {
        // (asked, held, free, granted)
        let table = [
            (64, 0, 5000, 64),
            (64, 0, 10, 10),      // below target: to the last page
            (64, 936, 64, 64),    // exactly to the target
            (64, 968, 50, 32),    // half entitled, nothing beyond: the low threshold
            (64, 968, 148, 48),   // 32 entitled, then 16 until 100 are left
            (64, 1000, 100, 0),   // above the target, at the low threshold
            (64, 1000, 130, 30),  // partial
            (64, 1990, 5000, 10), // the limit
            (64, 2100, 5000, 0),  // above a lowered limit
            (64, 0, 0, 0),
        ];
        for (asked, held, free, expected) in table {
            assert_eq!(
                granted(SOFT, asked, held, free),
                expected,
                "{asked} {held} {free}"
            );
        }
    }

    #[test]
    fn who_goes_beyond_the_target() {
        let swapped = Case {
            mechanism: Mechanism::Swap,
            ..SOFT
        };
        let shrinking = Case {
            private_max: Some(Pages(900)),
            ..SOFT
        };
        let capped = Case {
            private_max: Some(Pages(1020)),
            ..SOFT
        };
        let hard = Case {
            state: MemState::Hard,
            ..SOFT
        };
        let low = Case {
            state: MemState::Low,
            ..SOFT
        };
        // (case, asked, held, free, granted)
        let table = [
            (swapped, 64, 1000, 430, 30),
            (swapped, 64, 1000, 400, 0),
            (swapped, 64, 900, 64, 64),
            (shrinking, 64, 1000, 5000, 0),
            (shrinking, 64, 968, 5000, 32),
            (capped, 64, 1000, 5000, 20),
            (capped, 64, 990, 5000, 30),
            (capped, 64, 1000, 110, 10),
            (hard, 64, 968, 190, 32),
            (hard, 64, 1000, 190, 0),
            (low, 64, 900, 64, 64),
        ];
        for (case, asked, held, free, expected) in table {
            assert_eq!(
                granted(case, asked, held, free),
                expected,
                "{asked} {held} {free}"
            );
        }
    }

    #[test]
    fn before_the_first_plan_the_reservation_counts_as_target() {
        let allocation = Allocation {
            size: Pages(3000),
            reservation: Pages(200),
            limit: Pages(2000),
            shares: 1,
            dynamic_min: Pages(0),
            dynamic_max: Pages(3000),
        };
        let request = CreditRequest {
            asked: Pages(300),
            held: Pages::ZERO,
            credit: Pages::ZERO,
            allocation: &allocation,
            plan: None,
        };
        let thresholds = Thresholds::of_budget(Pages(10_000));
        let granted = |free| grant(&request, Pages(free), &thresholds, MemState::Soft);
        assert_eq!(granted(250), Pages(200));
        assert_eq!(granted(350), Pages(250));
        assert_eq!(granted(1000), Pages(300));
    }

    proptest! {
        #[test]
        fn never_more_than_asked_free_or_the_limit(asked in 0..3000_u64, held in 0..3000_u64, free in 0..3000_u64) {
            let pages = granted(SOFT, asked, held, free);
            prop_assert!(pages <= asked && pages <= free);
            prop_assert!(pages == 0 || held + pages <= 2000);
            // Beyond the target the low threshold stays free.
            prop_assert!(pages == 0 || held + pages <= 1000 || free - pages >= 100);
        }

        #[test]
        fn more_free_never_grants_less(asked in 0..3000_u64, held in 0..3000_u64, free in 0..3000_u64) {
            prop_assert!(granted(SOFT, asked, held, free) <= granted(SOFT, asked, held, free + 1));
        }
    }
}
