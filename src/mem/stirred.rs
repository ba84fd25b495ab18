//! In which chunks something happened that the scan for sharing has to hear of.
//!
//! Six bytes a chunk of 2 MiB, and a list of those that are not zero: noting costs a few
//! instructions, and asking as much as has happened.

use crate::units::{CHUNK_PAGES, Gfn};

/// What happened in a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stir {
    /// Its first page.
    pub chunk: Gfn,
    /// Pages that were unbacked and that the guest touched.
    pub filled: u32,
    /// Shared pages that the guest was found to have written.
    pub broken: u32,
    /// Much of a large page could be shared.
    pub ripe: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    filled: u16,
    broken: u16,
    ripe: bool,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Stirred {
    of_chunk: Vec<Counts>,
    list: Vec<u32>,
}

impl Stirred {
    /// For gfns below `end`.
    pub fn new(end: Gfn) -> Stirred {
        Stirred {
            of_chunk: vec![Counts::default(); end.0.div_ceil(CHUNK_PAGES) as usize],
            list: Vec::new(),
        }
    }

    /// The guest touched an unbacked page.
    pub fn fill(&mut self, gfn: Gfn) {
        let counts = self.counts(gfn);
        counts.filled = counts.filled.saturating_add(1);
    }

    /// The guest was found to have written a shared page.
    pub fn break_page(&mut self, gfn: Gfn) {
        let counts = self.counts(gfn);
        counts.broken = counts.broken.saturating_add(1);
    }

    /// Much of a large page could be shared.
    pub fn ripen(&mut self, gfn: Gfn) {
        self.counts(gfn).ripe = true;
    }

    /// The chunk's counts, one of which the caller makes another than zero.
    fn counts(&mut self, gfn: Gfn) -> &mut Counts {
        let chunk = gfn.0 / CHUNK_PAGES;
        let counts = &mut self.of_chunk[chunk as usize];
        if *counts == Counts::default() {
            self.list.push(chunk);
        }
        counts
    }

    /// Whether there is nothing to take.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// What happened since this was called last, in the order in which it began.
    pub fn take(&mut self) -> Vec<Stir> {
        let list = std::mem::take(&mut self.list);
        let stir = |chunk: u32| {
            let counts = std::mem::take(&mut self.of_chunk[chunk as usize]);
            Stir {
                chunk: Gfn(chunk * CHUNK_PAGES),
                filled: counts.filled.into(),
                broken: counts.broken.into(),
                ripe: counts.ripe,
            }
        };
        list.into_iter().map(stir).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_chunk_is_told_of_once_with_all_that_happened() {
        let mut stirred = Stirred::new(Gfn(3 * CHUNK_PAGES + 1));
        assert!(stirred.is_empty());
        stirred.fill(Gfn(3 * CHUNK_PAGES));
        stirred.break_page(Gfn(5));
        stirred.break_page(Gfn(511));
        stirred.break_page(Gfn(3 * CHUNK_PAGES));
        let stir = |chunk, filled, broken| Stir {
            chunk: Gfn(chunk * CHUNK_PAGES),
            filled,
            broken,
            ripe: false,
        };
        assert!(!stirred.is_empty());
        assert_eq!(stirred.take(), [stir(3, 1, 1), stir(0, 0, 2)]);
        assert!(stirred.is_empty() && stirred.take().is_empty());
        stirred.fill(Gfn(6));
        stirred.ripen(Gfn(7));
        let ripe = true;
        let expected = Stir {
            ripe,
            ..stir(0, 1, 0)
        };
        assert_eq!(stirred.take(), [expected]);
    }

    #[test]
    fn a_count_that_is_full_stays_full() {
        let mut stirred = Stirred::new(Gfn(1));
        for _ in 0..=u32::from(u16::MAX) {
            stirred.break_page(Gfn(0));
        }
        let stir = stirred.take()[0];
        assert_eq!((stir.filled, stir.broken), (0, u16::MAX.into()));
        assert!(stirred.take().is_empty());
    }
}
