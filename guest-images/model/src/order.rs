//! Orders in which a set of pages is visited, each page at most once, without a table.

use crate::rng::mix;

/// In which order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// From the first page to the last.
    InOrder,
    /// Each page once, with no pattern.
    Random,
    /// One page of [`SPARSE_PAGES`], with no pattern: what a page costs whose neighbours are left alone.
    Sparse,
}

/// Neighbours of which a sparse order has one.
pub const SPARSE_PAGES: u32 = 128;

/// A visit to each of `count` pages, or to as many of them as the order has.
#[derive(Debug, Clone)]
pub struct Visits {
    order: Order,
    count: u32,
    /// Of so many pages one is visited.
    stride: u32,
    /// Bits of each half of a number that is at least `count`.
    half: u32,
    key: u64,
    next: u64,
}

impl Visits {
    /// Visits to `count` pages; a random order follows from `seed`.
    #[must_use]
    pub const fn new(order: Order, count: u32, seed: u64) -> Self {
        let stride = match order {
            Order::InOrder | Order::Random => 1,
            Order::Sparse => SPARSE_PAGES,
        };
        let count = count.div_ceil(stride);
        let bits = u32::BITS - count.saturating_sub(1).leading_zeros();
        Self {
            order,
            count,
            stride,
            half: bits.div_ceil(2),
            key: mix(seed),
            next: 0,
        }
    }

    /// Four rounds of a Feistel network: a bijection of the numbers of `2 * half` bits.
    const fn scramble(&self, number: u64) -> u64 {
        let mask = (1 << self.half) - 1;
        let (mut left, mut right) = (number >> self.half, number & mask);
        let mut round = 0;
        while round < 4 {
            let mixed = mix(self.key ^ right.wrapping_add(round << 32)) & mask;
            (left, right) = (right, left ^ mixed);
            round += 1;
        }
        left << self.half | right
    }
}

impl Iterator for Visits {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        // The numbers beyond the last page are passed over: fewer than four times as many as pages.
        loop {
            let number = self.next;
            let all = match self.order {
                Order::InOrder => u64::from(self.count),
                Order::Random | Order::Sparse => 1 << (2 * self.half),
            };
            if number >= all {
                return None;
            }
            self.next += 1;
            let index = match self.order {
                Order::InOrder => number,
                Order::Random | Order::Sparse => self.scramble(number),
            };
            if index < u64::from(self.count) {
                return Some(index as u32 * self.stride);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_visited_once() {
        for order in [Order::InOrder, Order::Random] {
            for count in [0, 1, 2, 3, 5, 64, 100, 1000, 4097] {
                let mut seen: Vec<u32> = Visits::new(order, count, 7).collect();
                seen.sort_unstable();
                assert!(seen.into_iter().eq(0..count), "{order:?} {count}");
            }
        }
    }

    #[test]
    fn a_sparse_order_has_one_page_of_each_run() {
        for count in [0, 1, 128, 129, 16_384] {
            let mut seen: Vec<u32> = Visits::new(Order::Sparse, count, 7).collect();
            seen.sort_unstable();
            assert!(seen.into_iter().eq((0..count).step_by(128)), "{count}");
        }
    }

    #[test]
    fn random_order_has_no_neighbours_and_no_stride() {
        let visits: Vec<i64> = Visits::new(Order::Random, 10_000, 3)
            .map(i64::from)
            .collect();
        let steps: Vec<i64> = visits.windows(2).map(|two| two[1] - two[0]).collect();
        assert!(steps.iter().filter(|step| step.abs() <= 32).count() < 200);
        let repeated = steps.windows(2).filter(|two| two[0] == two[1]).count();
        assert!(repeated < 20, "{repeated}");
    }

    #[test]
    fn another_seed_is_another_order() {
        let order = |seed| Visits::new(Order::Random, 1000, seed).collect::<Vec<_>>();
        assert_ne!(order(1), order(2));
        assert_eq!(order(1), order(1));
    }
}
