//! Whether a VM that asks for more pages gets them now.
//!
//! The host manager keeps the ledger `free = budget - credits - frames - overheads` and asks this
//! rule for every credit request, so the budget is enforced between decisions too:
//!
//! | the VM then holds | it gets the pages |
//! |---|---|
//! | at most its target or its reservation, whichever is more | as long as anything is free |
//! | more than that | as long as the low threshold (1 %) stays free |
//! | more than its limit | never |
//!
//! The last percent is so kept for those who are entitled to it, while a VM above its target waits
//! for reclamation. Grants may be partial.

use super::state::Thresholds;
use crate::units::Pages;

/// One request, and what the books say about the VM that makes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CreditRequest {
    /// Further pages wanted.
    pub asked: Pages,
    /// What the VM holds in the ledger: its whole credit, used or not, and its part of the frames.
    pub held: Pages,
    /// Its target in the last plan; before its first plan, its reservation.
    pub target: Pages,
    /// Its guaranteed minimum.
    pub reservation: Pages,
    /// Its maximum; `limit.min(size)`.
    pub limit: Pages,
}

/// How many of the asked pages the host hands out now, when `free` pages are free.
///
/// Never more than asked, than free, or than takes the VM to its limit.
pub fn grant(request: &CreditRequest, free: Pages, thresholds: &Thresholds) -> Pages {
    let to_limit = request.limit.saturating_sub(request.held);
    let asked = request.asked.min(to_limit);
    let to_target = request
        .target
        .max(request.reservation)
        .saturating_sub(request.held);
    let entitled = asked.min(to_target).min(free);
    let spare = (free - entitled).saturating_sub(thresholds.low);
    let beyond = if entitled < asked.min(to_target) {
        Pages::ZERO
    } else {
        (asked - entitled).min(spare)
    };
    entitled + beyond
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Budget 10000 pages: low threshold 100.
    fn granted(asked: u64, held: u64, free: u64) -> u64 {
        let request = CreditRequest {
            asked: Pages(asked),
            held: Pages(held),
            target: Pages(1000),
            reservation: Pages(200),
            limit: Pages(2000),
        };
        grant(&request, Pages(free), &Thresholds::of_budget(Pages(10_000))).0
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
                granted(asked, held, free),
                expected,
                "{asked} {held} {free}"
            );
        }
    }

    proptest! {
        #[test]
        fn never_more_than_asked_free_or_the_limit(asked in 0..3000_u64, held in 0..3000_u64, free in 0..3000_u64) {
            let pages = granted(asked, held, free);
            prop_assert!(pages <= asked && pages <= free);
            prop_assert!(pages == 0 || held + pages <= 2000);
            // Beyond the target the low threshold stays free.
            prop_assert!(pages == 0 || held + pages <= 1000 || free - pages >= 100);
        }

        #[test]
        fn more_free_never_grants_less(asked in 0..3000_u64, held in 0..3000_u64, free in 0..3000_u64) {
            prop_assert!(granted(asked, held, free) <= granted(asked, held, free + 1));
        }
    }
}
