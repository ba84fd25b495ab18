//! What would come of a large page if it were split for sharing.
//!
//! While memory is plenty a large page serves the guest better than the few pages that it would save,
//! so it stays whole until a quarter of it would go. What could go is noted until then: when memory is
//! not plenty any more, all of it does.

use crate::mem::memory::Memory;
use crate::units::{CHUNK_PAGES, Gfn};

/// Pages of a large one that make it worth a split while memory is plenty. Chosen: a quarter.
pub const WORTH_PAGES: u32 = CHUNK_PAGES / 4;

/// Which pages of a large one are zero, or would probably map a frame: a bit each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Worth {
    bits: [u64; CHUNK_PAGES as usize / 64],
}

impl Worth {
    fn place(gfn: Gfn) -> (usize, u64) {
        let place = gfn.0 - gfn.chunk_start().0;
        ((place / 64) as usize, 1 << (place % 64))
    }

    fn has(&self, gfn: Gfn) -> bool {
        let (word, bit) = Worth::place(gfn);
        self.bits[word] & bit != 0
    }

    fn set(&mut self, gfn: Gfn, goes: bool) {
        let (word, bit) = Worth::place(gfn);
        match goes {
            true => self.bits[word] |= bit,
            false => self.bits[word] &= !bit,
        }
    }

    fn pages(&self) -> u32 {
        self.bits.iter().map(|word| word.count_ones()).sum()
    }
}

impl Memory<'_> {
    /// Whether the page lies in a large one that stays whole, however much could be saved of it.
    pub fn keeps_large(&self, gfn: Gfn) -> bool {
        let worth = self.books.large.chunks.get(&gfn.chunk_start());
        self.is_plenty() && worth.is_some_and(|worth| worth.pages() < WORTH_PAGES)
    }

    /// Whether a page of a large one that stays whole is known to be one that could be saved.
    pub fn is_spared(&self, gfn: Gfn) -> bool {
        let worth = self.books.large.chunks.get(&gfn.chunk_start());
        worth.is_some_and(|worth| worth.has(gfn)) && self.keeps_large(gfn)
    }

    /// Notes whether this page could be saved, if it lies in a large one. When a quarter of that could
    /// be, the scan is to look at it again, and to save it.
    pub fn note_worth(&mut self, gfn: Gfn, goes: bool) {
        let kept = self.keeps_large(gfn);
        if let Some(worth) = self.books.large.chunks.get_mut(&gfn.chunk_start()) {
            worth.set(gfn, goes);
        }
        if kept && !self.keeps_large(gfn) {
            self.stir_ripe(gfn);
        }
    }

    /// Memory is not plenty any more: whatever could be saved of large pages is worth a look.
    pub fn ripen(&mut self) {
        let large = self.books.large.chunks.iter();
        let some = large.filter(|(_, worth)| worth.pages() > 0);
        let ripe: Vec<Gfn> = some.map(|(chunk, _)| *chunk).collect();
        for chunk in ripe {
            self.stir_ripe(chunk);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_page_counts_once_until_it_does_not_go() {
        let mut worth = Worth::default();
        let chunk = Gfn(3 * CHUNK_PAGES);
        let at = |place| Gfn(chunk.0 + place);
        for place in [0, 63, 64, 511, 0] {
            worth.set(at(place), true);
        }
        assert_eq!(worth.pages(), 4);
        assert!(worth.has(at(64)) && !worth.has(at(65)));
        worth.set(at(64), false);
        assert_eq!(worth.pages(), 3);
        assert!(!worth.has(at(64)));
    }
}
