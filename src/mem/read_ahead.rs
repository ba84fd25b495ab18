//! How much comes back from swap with a page that is touched.
//!
//! A VM has one *window*, in pages. It doubles with each touch that lies just behind (or just
//! before) what was read last, up to [`WINDOW_MAX`], and halves with each that does not, down to the
//! page alone. So memory that is gone through in order comes back in long reads, and a guest that
//! jumps about pays for no page that it does not touch.
//!
//! The touch of a page that was read ahead is served by the kernel alone, so that hits cannot be
//! counted as Linux does (`__swapin_nr_pages` in `mm/swap_state.c`, whose windows are 1 to 32 pages
//! too): that a guest goes on behind the window is all that is seen. A few places are remembered,
//! for vCPUs that go through different memory at the same time.

use crate::units::{Gfn, GfnRange};

/// Pages of the largest window: those of a cluster of victims, whose swap slots run.
pub const WINDOW_MAX: u32 = 32;
/// Reads that are remembered. Chosen: as many as fault threads there can be.
const RECENT_MAX: usize = 4;

/// The window of one VM. See the module documentation.
#[derive(Debug)]
pub(super) struct ReadAhead {
    /// A power of two.
    window: u32,
    most: u32,
    /// What was read last, the latest first.
    recent: Vec<GfnRange>,
}

impl Default for ReadAhead {
    fn default() -> ReadAhead {
        ReadAhead {
            window: 1,
            most: WINDOW_MAX,
            recent: Vec::with_capacity(RECENT_MAX),
        }
    }
}

impl ReadAhead {
    /// No more than so many pages come back at a time from now on; 1: none ahead.
    pub fn bound(&mut self, most: u32) {
        self.most = most.clamp(1, WINDOW_MAX);
    }

    /// The page is touched: the aligned pages around it that may come back with it, up to
    /// `pages_max` with it. What comes back is told to [`ReadAhead::reads`].
    pub fn around(&mut self, gfn: Gfn, pages_max: u32) -> GfnRange {
        let goes_on = self.recent.iter().position(|read| goes_on(*read, gfn));
        self.window = match goes_on {
            Some(index) => {
                self.recent.remove(index);
                (2 * self.window).min(WINDOW_MAX)
            }
            None => (self.window / 2).max(1),
        };
        let pages = self.window.min(self.most).min(pages_max).max(1);
        let aligned = 1 << pages.ilog2();
        GfnRange::new(Gfn(gfn.0 - gfn.0 % aligned), aligned)
    }

    /// These pages come back, and what lies between them.
    pub fn reads(&mut self, span: GfnRange) {
        self.recent.truncate(RECENT_MAX - 1);
        self.recent.insert(0, span);
    }

    /// Pages that were read ahead could not be: the window starts anew.
    pub fn fails(&mut self) {
        self.window = 1;
    }
}

/// Whether a touch goes on where this read ended, or began: no farther from it than it was long.
fn goes_on(read: GfnRange, gfn: Gfn) -> bool {
    let behind = gfn.0.checked_sub(read.end().0);
    let before = read.start.0.checked_sub(gfn.0 + 1);
    behind.or(before).is_some_and(|gap| gap < read.count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Touches each of `gfns` whose page is not back yet; the lengths of the reads.
    fn touch(gfns: impl Iterator<Item = u32>, pages_max: u32) -> Vec<u32> {
        let mut ahead = ReadAhead::default();
        let mut back = std::collections::HashSet::new();
        let mut reads = Vec::new();
        for gfn in gfns {
            if back.contains(&gfn) {
                continue;
            }
            let window = ahead.around(Gfn(gfn), pages_max);
            let new: Vec<Gfn> = window.iter().filter(|gfn| back.insert(gfn.0)).collect();
            let count = u32::try_from(new.len()).unwrap();
            let span = new.last().unwrap().0 + 1 - new[0].0;
            ahead.reads(GfnRange::new(new[0], span));
            reads.push(count);
        }
        reads
    }

    #[test]
    fn memory_in_order_comes_back_in_long_reads() {
        assert_eq!(touch(64..192, 32), [1, 1, 2, 4, 8, 16, 32, 32, 32]);
        let downwards = touch((64..192).rev(), 32);
        assert_eq!(downwards, [1, 1, 2, 4, 8, 16, 32, 32, 32]);
    }

    #[test]
    fn two_vcpus_do_not_disturb_each_other() {
        let both = (0..256).flat_map(|n| [n, 4096 + n]);
        let reads = touch(both, 32);
        assert_eq!(reads.iter().sum::<u32>(), 512);
        assert!(reads.len() < 24, "{reads:?}");
    }

    #[test]
    fn a_credit_that_is_short_bounds_the_window() {
        let reads = touch(0..64, 5);
        assert_eq!(reads.iter().max(), Some(&4), "{reads:?}");
    }

    #[test]
    fn where_memory_is_low_nothing_comes_ahead() {
        let mut ahead = ReadAhead::default();
        ahead.bound(0);
        for gfn in (0..40).map(Gfn) {
            assert_eq!(ahead.around(gfn, 32), GfnRange::one(gfn));
            ahead.reads(GfnRange::one(gfn));
        }
        ahead.bound(u32::MAX);
        assert_eq!(ahead.around(Gfn(40), 32).count, WINDOW_MAX);
        ahead.fails();
        assert_eq!(ahead.around(Gfn(4000), 32).count, 1);
    }

    proptest! {
        /// The page is in its window, the window is within all bounds and inside a cluster.
        #[test]
        fn a_window_keeps_its_bounds(
            touches in prop::collection::vec((0u32..200, 0u32..40, 0u32..70), 1..200)
        ) {
            let mut ahead = ReadAhead::default();
            for (gfn, pages_max, most) in touches {
                ahead.bound(most);
                let window = ahead.around(Gfn(gfn), pages_max);
                prop_assert!(window.contains(Gfn(gfn)));
                prop_assert!(window.count <= pages_max.max(1).min(most.max(1)).min(WINDOW_MAX));
                let cluster = gfn / WINDOW_MAX;
                prop_assert_eq!(window.start.0 / WINDOW_MAX, cluster);
                prop_assert_eq!((window.end().0 - 1) / WINDOW_MAX, cluster);
                ahead.reads(window);
            }
        }

        /// Touches that never go on anywhere find the page alone within a few touches, however
        /// large the window was.
        #[test]
        fn a_guest_that_jumps_reads_nothing_ahead(
            before in 0u32..200,
            jumps in prop::collection::vec(1u32..50, 10..40)
        ) {
            let mut ahead = ReadAhead::default();
            for gfn in (0..before).map(Gfn) {
                let window = ahead.around(gfn, 32);
                ahead.reads(window);
            }
            let mut gfn = 100_000;
            for (index, jump) in jumps.into_iter().enumerate() {
                gfn += 100 * jump;
                let window = ahead.around(Gfn(gfn), 32);
                prop_assert!(window.count <= (WINDOW_MAX >> index.min(5)).max(1) / 2 + 1);
                ahead.reads(window);
            }
        }
    }
}
