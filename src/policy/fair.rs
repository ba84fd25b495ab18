//! Splits memory among claims in proportion to weights, within a floor and a ceiling each.
//!
//! The split is the fixed point of min-funding revocation (Waldspurger, section 5.1): taking a page
//! from whoever pays the fewest shares per page, until all pay the same price. At a price of
//! `1/level` shares a page, a claim of weight `w` holds `clamp(level * w, floor, ceiling)`; the level
//! is raised until the total is used up.
//!
//! **The idle-memory tax** (section 5.2) makes an idle page cost `k = 1 / (1 - tax)` active ones. A
//! claim of `P` pages with `A` active ones pays `S / (A + k * (P - A))` shares a page, which is the
//! paper's `S / (P * (f + k * (1 - f)))` with `f = A / P`. Without a tax `k` is 1.
//!
//! Exact in whole pages: the page that comes next always goes to the claim with the smallest
//! `cost(pages + 1) / weight`, the one in front on a tie (the divisor method of D'Hondt). Unlike
//! giving the remainders of a division to the largest fractions, this is monotone: more memory, or
//! more weight, never means fewer pages.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use super::settings::IdleTax;
use crate::units::Pages;

/// Bits behind the binary point of a level (cost per unit of weight).
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
    /// This much of it is in use and not taxed.
    pub active: Pages,
}

impl Claim {
    /// What the first `pages` pages cost.
    fn cost(&self, pages: u64, tax: IdleTax) -> u64 {
        let active = pages.min(self.active.0);
        active * tax.active_cost() + (pages - active) * tax.idle_cost()
    }

    /// The pages that it can pay for at `level`, within its bounds.
    fn at(&self, level: u128, tax: IdleTax) -> u64 {
        let pays = level.saturating_mul(u128::from(self.weight)) >> LEVEL_SHIFT;
        let pays = u64::try_from(pays).unwrap_or(u64::MAX);
        let active_cost = self.active.0.saturating_mul(tax.active_cost());
        let fair = match pays.checked_sub(active_cost) {
            Some(rest) => self.active.0.saturating_add(rest / tax.idle_cost()),
            None => pays / tax.active_cost(),
        };
        fair.min(self.ceiling.0).max(self.floor.0)
    }
}

/// Splits `total` among `claims`; the result has their order.
///
/// The sum is at most `total`, unless the floors alone are more. It is exactly `total`, unless the
/// ceilings (or floors of claims without weight) leave less to be given.
pub fn split(total: Pages, claims: &[Claim], tax: IdleTax) -> Vec<Pages> {
    let level = high_level(total, claims, tax);
    let mut pages: Vec<u64> = claims.iter().map(|claim| claim.at(level, tax)).collect();
    let sum: u64 = pages.iter().sum();
    give_one_by_one(total.0.saturating_sub(sum), claims, tax, &mut pages);
    pages.into_iter().map(Pages).collect()
}

/// A level at which the claims together hold at most `total` and almost all of it, or zero.
fn high_level(total: Pages, claims: &[Claim], tax: IdleTax) -> u128 {
    let sum_at = |level: u128| -> u128 {
        let pages = claims.iter().map(|claim| claim.at(level, tax));
        pages.map(u128::from).sum()
    };
    let total = u128::from(total.0);
    // At this level the lightest claim alone reaches the largest ceiling: nothing grows any more.
    let weights = claims.iter().map(|claim| claim.weight);
    let lightest = weights.filter(|&weight| weight > 0).min().unwrap_or(1);
    let largest = claims.iter().map(|claim| claim.ceiling.0).max();
    let largest_cost = u128::from(largest.unwrap_or(0)) * u128::from(tax.idle_cost());
    let top = ((largest_cost + 1) << LEVEL_SHIFT) / u128::from(lightest) + 1;
    if sum_at(top) <= total {
        return top;
    }
    // What the level leaves is given page by page, in the same order as the level gives it: so
    // the search may end as soon as that is little work.
    let little = (claims.len() / 4) as u128;
    let (mut below, mut above) = (0, top);
    while above - below > 1 {
        let middle = below + (above - below) / 2;
        let sum = sum_at(middle);
        if sum <= total {
            below = middle;
            if total - sum <= little {
                break;
            }
        } else {
            above = middle;
        }
    }
    below
}

/// Gives the few pages that are less than one step of the level.
fn give_one_by_one(mut left: u64, claims: &[Claim], tax: IdleTax, pages: &mut [u64]) {
    if left == 0 {
        return;
    }
    let next = |index: usize, pages: u64| {
        let claim = &claims[index];
        (claim.weight > 0 && pages < claim.ceiling.0).then(|| {
            Reverse(Next {
                pages: pages + 1,
                cost: claim.cost(pages + 1, tax),
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

/// A claim in the queue for the next page, ordered by `cost / weight`, then by index.
#[derive(Debug, PartialEq, Eq)]
struct Next {
    pages: u64,
    cost: u64,
    weight: u64,
    index: usize,
}

impl Ord for Next {
    fn cmp(&self, other: &Next) -> Ordering {
        let ours = u128::from(self.cost) * u128::from(other.weight);
        let theirs = u128::from(other.cost) * u128::from(self.weight);
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
            active: Pages::ZERO,
        }
    }

    fn numbers(total: u64, claims: &[Claim]) -> Vec<u64> {
        taxed(total, claims, 0)
    }

    fn taxed(total: u64, claims: &[Claim], percent: u8) -> Vec<u64> {
        let tax = IdleTax::new(percent).expect("below 100");
        let parts = split(Pages(total), claims, tax);
        parts.iter().map(|p| p.0).collect()
    }

    /// The page that comes next goes to the cheapest, from the floors up: the definition.
    fn greedy(total: u64, claims: &[Claim], percent: u8) -> Vec<u64> {
        let tax = IdleTax::new(percent).expect("below 100");
        let mut pages: Vec<u64> = claims.iter().map(|c| c.floor.0).collect();
        let left = total.saturating_sub(pages.iter().sum());
        give_one_by_one(left, claims, tax, &mut pages);
        pages
    }

    /// Waldspurger, figure 7: two VMs of equal shares, one idle and one active.
    #[test]
    fn the_tax_moves_idle_memory_to_who_uses_it() {
        let idle = claim(0, 65_536, 2560);
        let busy = Claim {
            active: Pages(65_536),
            ..idle
        };
        assert_eq!(taxed(92_160, &[idle, busy], 0), [46_080, 46_080]);
        // k = 4: the idle one may hold a quarter of what the active one holds.
        assert_eq!(taxed(80_000, &[idle, busy], 75), [16_000, 64_000]);
        assert_eq!(taxed(92_160, &[idle, busy], 75), [26_624, 65_536]);
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
        let one = (0..500_u64, 0..1000_u64, 0..50_u64, 0..1500_u64).prop_map(
            |(floor, more, weight, active)| Claim {
                active: Pages(active),
                ..claim(floor, floor + more, weight)
            },
        );
        proptest::collection::vec(one, 1..12)
    }

    proptest! {
        #[test]
        fn the_level_is_a_short_cut_and_nothing_else(total in 0..10_000_u64, claims in claims(), tax in 0..100_u8) {
            prop_assert_eq!(taxed(total, &claims, tax), greedy(total, &claims, tax));
        }

        #[test]
        fn more_activity_never_means_less(
            total in 0..10_000_u64, claims in claims(), which in any::<prop::sample::Index>(),
            more in 0..500_u64, tax in 0..100_u8,
        ) {
            let which = which.index(claims.len());
            let mut busier = claims.clone();
            busier[which].active += Pages(more);
            prop_assert!(taxed(total, &claims, tax)[which] <= taxed(total, &busier, tax)[which]);
        }

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
        fn more_memory_never_means_less(total in 0..10_000_u64, more in 0..50_u64, claims in claims(), tax in 0..100_u8) {
            for (before, after) in taxed(total, &claims, tax).iter().zip(taxed(total + more, &claims, tax)) {
                prop_assert!(*before <= after);
            }
        }

        #[test]
        fn more_weight_never_means_less(
            total in 0..10_000_u64, claims in claims(), which in any::<prop::sample::Index>(),
            more in 0..50_u64, tax in 0..100_u8,
        ) {
            let which = which.index(claims.len());
            let mut heavier = claims.clone();
            heavier[which].weight += more;
            prop_assert!(taxed(total, &claims, tax)[which] <= taxed(total, &heavier, tax)[which]);
        }

        #[test]
        fn equal_claims_differ_by_one_page_at_most(total in 0..10_000_u64, n in 1..9_usize, weight in 1..99_u64) {
            let parts = numbers(total, &vec![claim(0, 1000, weight); n]);
            prop_assert!(parts[0] - parts[n - 1] <= 1);
        }
    }
}
