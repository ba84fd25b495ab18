//! Runs of neighbouring pages, and the walk over a guest's RAM in parts.

use crate::sys::ram::Layout;
use crate::units::{Gfn, GfnRange};

/// The maximal runs of consecutive frames in `gfns`, in their order.
pub(super) fn runs(gfns: &[Gfn]) -> Vec<GfnRange> {
    let mut runs: Vec<GfnRange> = Vec::new();
    for &gfn in gfns {
        match runs.last_mut() {
            Some(run) if run.end() == gfn => run.count += 1,
            _ => runs.push(GfnRange::one(gfn)),
        }
    }
    runs
}

/// A place in the guest's RAM that goes on to its end and starts over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Walk {
    next: Gfn,
}

impl Walk {
    /// From `first` on, which is RAM.
    pub fn from(first: Gfn) -> Walk {
        Walk { next: first }
    }

    /// The next pages, at most `most` and of one chunk, and whether they are the last.
    pub fn advance(&mut self, layout: &Layout, most: u32) -> (GfnRange, bool) {
        let chunk = layout.chunk_of(self.next);
        let part = GfnRange::new(self.next, most.min(chunk.end().0 - self.next.0));
        let end = part.end();
        let following = if layout.contains_gfn(end) {
            Some(end)
        } else {
            let mut ranges = layout.ranges().iter();
            ranges.find(|ram| ram.start > end).map(|ram| ram.start)
        };
        self.next = following.unwrap_or(layout.ranges()[0].start);
        (part, following.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Pages;

    #[test]
    fn neighbours_become_runs() {
        let gfns: Vec<Gfn> = [1, 2, 3, 7, 9, 10].into_iter().map(Gfn).collect();
        let expected = [
            GfnRange::new(Gfn(1), 3),
            GfnRange::one(Gfn(7)),
            GfnRange::new(Gfn(9), 2),
        ];
        assert_eq!(runs(&gfns), expected);
        assert!(runs(&[]).is_empty());
    }

    #[test]
    fn a_walk_meets_every_page_once_and_starts_over() {
        let layout = Layout::new(Pages::mib(3 * 1024) + Pages(700));
        let mut walk = Walk::from(Gfn(0));
        let mut pages = 0;
        loop {
            let (part, last) = walk.advance(&layout, 300);
            assert!(layout.contains(part) && part.count <= 300);
            pages += u64::from(part.count);
            if last {
                break;
            }
        }
        assert_eq!(Pages(pages), layout.size());
        assert_eq!(walk.advance(&layout, 8).0.start, Gfn(0));
    }
}
