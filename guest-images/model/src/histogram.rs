//! Latencies by their logarithm: percentiles of any number of values in 8 KiB.
//!
//! A bucket is 1/32 of a power of two wide, so a percentile is off by at most 1/64 of itself. The
//! worst value is kept as it is.

/// Buckets of one power of two.
const STEPS: u64 = 32;
const STEP_BITS: u32 = STEPS.trailing_zeros();
/// Values below this have a bucket each.
const LINEAR: u64 = STEPS * 2;
/// Buckets in all: one for each small value, then equally many for each power of two up to 2^63.
pub const BUCKETS: usize = (LINEAR + STEPS * (63 - STEP_BITS as u64)) as usize;

/// Counts of values.
#[derive(Debug)]
pub struct Histogram<'a> {
    counts: &'a mut [u32],
    values: u64,
    sum: u64,
    worst: u64,
}

impl<'a> Histogram<'a> {
    /// One without values that counts in the first [`BUCKETS`] of these, whatever they hold.
    ///
    /// **Panics** if there are fewer.
    #[must_use]
    pub fn new(counts: &'a mut [u32]) -> Self {
        let mut histogram = Self {
            counts: &mut counts[..BUCKETS],
            values: 0,
            sum: 0,
            worst: 0,
        };
        histogram.clear();
        histogram
    }

    /// Forgets all values.
    pub fn clear(&mut self) {
        self.counts.fill(0);
        (self.values, self.sum, self.worst) = (0, 0, 0);
    }

    /// Counts a value.
    pub fn add(&mut self, value: u64) {
        let count = &mut self.counts[bucket(value)];
        *count = count.saturating_add(1);
        self.values += 1;
        self.sum = self.sum.saturating_add(value);
        self.worst = self.worst.max(value);
    }

    /// Number of values.
    #[must_use]
    pub const fn values(&self) -> u64 {
        self.values
    }

    /// Their sum.
    #[must_use]
    pub const fn sum(&self) -> u64 {
        self.sum
    }

    /// The largest one.
    #[must_use]
    pub const fn worst(&self) -> u64 {
        self.worst
    }

    /// The value that `permille` of 1000 values do not exceed, to 1/64 of itself; 0 without values.
    #[must_use]
    pub fn permille(&self, permille: u64) -> u64 {
        let wanted = (self.values * permille).div_ceil(1000).max(1);
        let mut below = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            below += u64::from(*count);
            if below >= wanted {
                return middle(bucket as u64).min(self.worst);
            }
        }
        self.worst
    }
}

/// The bucket of a value.
fn bucket(value: u64) -> usize {
    if value < LINEAR {
        return value as usize;
    }
    let shift = value.ilog2() - STEP_BITS;
    // The top bits of the value: STEPS to 2 * STEPS - 1.
    let step = value >> shift;
    (LINEAR + u64::from(shift - 1) * STEPS + (step - STEPS)) as usize
}

/// The value in the middle of a bucket.
fn middle(bucket: u64) -> u64 {
    if bucket < LINEAR {
        return bucket;
    }
    let shift = (bucket - LINEAR) / STEPS + 1;
    let step = (bucket - LINEAR) % STEPS + STEPS;
    (step << shift) + (1 << (shift - 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn buckets_follow_each_other_without_a_gap() {
        let mut last = 0;
        for value in 0..1 << 16 {
            let bucket = bucket(value);
            assert!(bucket == last || bucket == last + 1, "{value}");
            last = bucket;
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn a_bucket_stands_for_its_values_to_a_sixty_fourth() {
        let mut rng = Rng::new(1);
        for _ in 0..10_000 {
            let value = rng.next() >> rng.below(64);
            let stands = middle(bucket(value) as u64);
            assert!(value.abs_diff(stands) <= value / 64, "{value} {stands}");
        }
    }

    #[test]
    fn percentiles_are_those_of_the_sorted_values() {
        let mut rng = Rng::new(2);
        let mut values: Vec<u64> = (0..5000)
            .map(|_| rng.next() >> (20 + rng.below(30)))
            .collect();
        let mut counts = [7; BUCKETS];
        let mut histogram = Histogram::new(&mut counts);
        values.iter().for_each(|value| histogram.add(*value));
        values.sort_unstable();
        for permille in [1, 500, 900, 990, 999, 1000] {
            let exact = values[(values.len() * permille as usize).div_ceil(1000) - 1];
            let found = histogram.permille(permille);
            assert!(
                exact.abs_diff(found) <= exact / 32,
                "{permille}: {exact} {found}"
            );
        }
        assert_eq!(histogram.worst(), values[4999]);
        assert_eq!(histogram.values(), 5000);
        assert_eq!(histogram.sum(), values.iter().sum::<u64>());
    }

    #[test]
    fn without_values_everything_is_zero() {
        assert_eq!(Histogram::new(&mut [1; BUCKETS]).permille(990), 0);
    }
}
