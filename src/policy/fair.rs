//! Splits memory among claims in proportion to weights, within a floor and a ceiling each.
//!
//! The split is the fixed point of min-funding revocation (Waldspurger, section 5.1): taking a page
//! from whoever pays the fewest shares per page, until all pay the same price. At a price of
//! `1/level` shares a page, a claim of weight `w` holds `clamp(level * w, floor, ceiling)`; the level
//! is raised until the total is used up.
//!
//! Exact in whole pages: the page that comes next always goes to the claim with the smallest
//! `(pages + 1) / weight`, the one in front on a tie (the divisor method of D'Hondt). Unlike giving
//! the remainders of a division to the largest fractions, this is monotone: more memory, or more
//! weight, never means fewer pages.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use crate::units::Pages;

/// Bits behind the binary point of a level (pages per unit of weight).
const LEVEL_SHIFT: u32 = 32;

/// One claim on the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// It gets this in any case.
    pub floor: Pages,
    /// It gets no more than this; below `floor` it counts as `floor`.
    pub ceiling: Pages,
    /// In proportion to this; zero pins the claim at its floor, as in ESX.
    pub weight: u64,
}

impl Claim {
    fn at(&self, level: u128) -> u64 {
        let fair = (level.saturating_mul(u128::from(self.weight))) >> LEVEL_SHIFT;
        let fair = u64::try_from(fair).unwrap_or(u64::MAX);
        fair.min(self.ceiling.0).max(self.floor.0)
    }
}

/// Splits `total` among `claims`; the result has their order.
///
/// The sum is at most `total`, unless the floors alone are more. It is exactly `total`, unless the
/// ceilings (or floors of claims without weight) leave less to be given.
pub fn split(total: Pages, claims: &[Claim]) -> Vec<Pages> {
    let level = highest_level(total, claims);
    let mut pages: Vec<u64> = claims.iter().map(|claim| claim.at(level)).collect();
    let sum: u64 = pages.iter().sum();
    give_one_by_one(total.0.saturating_sub(sum), claims, &mut pages);
    pages.into_iter().map(Pages).collect()
}

/// The highest level at which the claims together hold at most `total`, or zero.
fn highest_level(total: Pages, claims: &[Claim]) -> u128 {
    let largest = claims.iter().map(|claim| claim.ceiling.0).max();
    let fits = |level: u128| {
        let sum: u128 = claims.iter().map(|claim| u128::from(claim.at(level))).sum();
        sum <= u128::from(total.0)
    };
    // At this level a weight of one alone reaches the largest ceiling: nothing grows any more.
    let top = (u128::from(largest.unwrap_or(0)) + 1) << LEVEL_SHIFT;
    if fits(top) {
        return top;
    }
    let (mut below, mut above) = (0, top);
    while above - below > 1 {
        let middle = below + (above - below) / 2;
        if fits(middle) {
            below = middle;
        } else {
            above = middle;
        }
    }
    below
}

/// Gives the few pages that are less than one step of the level.
fn give_one_by_one(mut left: u64, claims: &[Claim], pages: &mut [u64]) {
    if left == 0 {
        return;
    }
    let next = |index: usize, pages: u64| {
        let claim = &claims[index];
        (claim.weight > 0 && pages < claim.ceiling.0).then(|| {
            Reverse(Next {
                pages: pages + 1,
                weight: claim.weight,
                index,
            })
        })
    };
    let mut heap: BinaryHeap<_> = pages
        .iter()
        .enumerate()
        .filter_map(|(index, &pages)| next(index, pages))
        .collect();
    while left > 0 {
        let Some(Reverse(winner)) = heap.pop() else {
            return;
        };
        pages[winner.index] = winner.pages;
        heap.extend(next(winner.index, winner.pages));
        left -= 1;
    }
}

/// A claim in the queue for the next page, ordered by `pages / weight`, then by index.
#[derive(Debug, PartialEq, Eq)]
struct Next {
    pages: u64,
    weight: u64,
    index: usize,
}

impl Ord for Next {
    fn cmp(&self, other: &Next) -> Ordering {
        let ours = u128::from(self.pages) * u128::from(other.weight);
        let theirs = u128::from(other.pages) * u128::from(self.weight);
        ours.cmp(&theirs).then(self.index.cmp(&other.index))
    }
}

impl PartialOrd for Next {
    fn partial_cmp(&self, other: &Next) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn claim(floor: u64, ceiling: u64, weight: u64) -> Claim {
        Claim {
            floor: Pages(floor),
            ceiling: Pages(ceiling),
            weight,
        }
    }

    fn numbers(total: u64, claims: &[Claim]) -> Vec<u64> {
        split(Pages(total), claims).iter().map(|p| p.0).collect()
    }

    #[test]
    fn examples() {
        let even = [claim(0, 100, 10), claim(0, 100, 10), claim(0, 100, 10)];
        assert_eq!(numbers(100, &even), [34, 33, 33]);
        assert_eq!(numbers(1000, &even), [100, 100, 100]);
        assert_eq!(numbers(0, &even), [0, 0, 0]);
        // 4:2:1, then what the ceiling of the first leaves goes to the others.
        let ladder = [claim(0, 700, 4), claim(0, 700, 2), claim(0, 700, 1)];
        assert_eq!(numbers(700, &ladder), [400, 200, 100]);
        let capped = [claim(0, 100, 4), claim(0, 700, 2), claim(0, 700, 1)];
        assert_eq!(numbers(700, &capped), [100, 400, 200]);
        // A floor above the fair part is paid by the others; floors hold even beyond the total.
        let floored = [claim(300, 700, 1), claim(0, 700, 1)];
        assert_eq!(numbers(400, &floored), [300, 100]);
        assert_eq!(numbers(200, &floored), [300, 0]);
        // No shares: pinned at the floor.
        assert_eq!(
            numbers(400, &[claim(5, 400, 0), claim(0, 200, 1)]),
            [5, 200]
        );
        assert_eq!(numbers(10, &[]), [0; 0]);
    }

    #[test]
    fn a_terabyte_with_huge_weights_does_not_overflow() {
        let huge = claim(0, 1 << 28, u64::MAX);
        assert_eq!(numbers(1 << 28, &[huge, huge]), [1 << 27, 1 << 27]);
    }

    fn claims() -> impl Strategy<Value = Vec<Claim>> {
        let one = (0..500_u64, 0..1000_u64, 0..50_u64)
            .prop_map(|(floor, more, weight)| claim(floor, floor + more, weight));
        proptest::collection::vec(one, 1..12)
    }

    proptest! {
        #[test]
        fn the_total_is_kept_and_used_up(total in 0..10_000_u64, claims in claims()) {
            let parts = numbers(total, &claims);
            let sum: u64 = parts.iter().sum();
            let floors: u64 = claims.iter().map(|c| c.floor.0).sum();
            prop_assert!(sum <= total.max(floors));
            for (part, claim) in parts.iter().zip(&claims) {
                prop_assert!((claim.floor.0..=claim.ceiling.0).contains(part));
            }
            let all_full = parts.iter().zip(&claims)
                .all(|(part, c)| c.weight == 0 || *part == c.ceiling.0);
            prop_assert!(sum >= total || all_full);
        }

        #[test]
        fn more_memory_never_means_less(total in 0..10_000_u64, more in 0..50_u64, claims in claims()) {
            for (before, after) in numbers(total, &claims).iter().zip(numbers(total + more, &claims)) {
                prop_assert!(*before <= after);
            }
        }

        #[test]
        fn more_weight_never_means_less(
            total in 0..10_000_u64, claims in claims(), which in any::<prop::sample::Index>(),
            more in 0..50_u64,
        ) {
            let which = which.index(claims.len());
            let mut heavier = claims.clone();
            heavier[which].weight += more;
            prop_assert!(numbers(total, &claims)[which] <= numbers(total, &heavier)[which]);
        }

        #[test]
        fn equal_claims_differ_by_one_page_at_most(total in 0..10_000_u64, n in 1..9_usize, weight in 1..99_u64) {
            let parts = numbers(total, &vec![claim(0, 1000, weight); n]);
            prop_assert!(parts[0] - parts[n - 1] <= 1);
        }
    }
}
