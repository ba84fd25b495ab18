//! The slots of one VM's swap file: which are taken, and the checksum of what each holds.
//!
//! Slots are handed out round about, in a ring that is some times as long as there are slots in use.
//! A guest that comes back to its pages at random frees slots anywhere in the ring, so what lies behind
//! the last run has been freed the longer the ring is: at [`RING`] times, all but a fiftieth, and runs
//! are as long as batches. In a ring of twice, the fifth that is left cuts them to five slots.
//! (A page out of `n` is freed with `1/n` a step, so `f = exp(-RING (1 - f))` are left after a round.)

use crate::units::{PAGES_MAX, Pages, SwapSlot};

/// A bitmap of slots that grows with use, and a checksum for each.
#[derive(Debug)]
pub struct SwapMap {
    /// One bit a slot, set when it is taken.
    words: Vec<u64>,
    checksums: Vec<u64>,
    slots_max: u32,
    taken: u32,
    /// Where the next search starts, so that batches lie one after another in the file.
    cursor: u32,
}

const WORD: u32 = u64::BITS;
/// Slots of the ring for each slot in use.
const RING: u32 = 4;
/// Slots of the shortest ring. Chosen: 16 MiB.
const RING_MIN: u32 = 4096;

impl SwapMap {
    /// The map of a VM with `size` of memory: twice as many slots as it has pages, so that there are
    /// runs of free ones still when all its memory is out.
    pub fn of_vm(size: Pages) -> SwapMap {
        let slots = (2 * size.0).min(PAGES_MAX);
        SwapMap::new(u32::try_from(slots).expect("what an entry of the page map names"))
    }

    /// A map of at most `slots_max` slots, all free.
    pub fn new(slots_max: u32) -> SwapMap {
        SwapMap {
            words: Vec::new(),
            checksums: Vec::new(),
            slots_max,
            taken: 0,
            cursor: 0,
        }
    }

    /// Slots in use.
    pub fn taken(&self) -> u32 {
        self.taken
    }

    /// Takes up to `count` slots in one run and returns the run's first slot and length, or `None`
    /// when every slot is taken. Searches from behind the last run, once around.
    pub fn take_run(&mut self, count: u32) -> Option<(SwapSlot, u32)> {
        if count == 0 || self.taken == self.slots_max {
            return None;
        }
        let ring = self.taken.saturating_mul(RING).max(RING_MIN);
        if self.cursor >= ring {
            self.cursor = 0;
        }
        let start = self
            .first_free(self.cursor, self.slots_max)
            .or_else(|| self.first_free(0, self.cursor))?;
        let mut len = 0;
        while len < count && start + len < self.slots_max && !self.is_taken(SwapSlot(start + len)) {
            self.set(SwapSlot(start + len));
            len += 1;
        }
        self.cursor = (start + len) % self.slots_max;
        Some((SwapSlot(start), len))
    }

    /// The first free slot of a range, found 64 slots at a time.
    fn first_free(&self, from: u32, to: u32) -> Option<u32> {
        let mut slot = from;
        while slot < to {
            // What the bitmap has not grown to is free.
            let word = self.words.get((slot / WORD) as usize).copied().unwrap_or(0);
            let free = !word >> (slot % WORD);
            if free != 0 {
                return Some(slot + free.trailing_zeros()).filter(|slot| *slot < to);
            }
            slot = (slot / WORD + 1) * WORD;
        }
        None
    }

    /// Searches from the first slot again: the file could not grow, but slots that were written
    /// before can be written again.
    pub fn start_over(&mut self) {
        self.cursor = 0;
    }

    /// Whether the slot is in use.
    pub fn is_taken(&self, slot: SwapSlot) -> bool {
        let word = self
            .words
            .get(slot.index() / WORD as usize)
            .copied()
            .unwrap_or(0);
        word & (1 << (slot.0 % WORD)) != 0
    }

    fn set(&mut self, slot: SwapSlot) {
        let index = slot.index() / WORD as usize;
        if index >= self.words.len() {
            self.words.resize(index + 1, 0);
        }
        self.words[index] |= 1 << (slot.0 % WORD);
        self.taken += 1;
    }

    /// Frees a slot.
    ///
    /// # Panics
    /// When it is free already: two owners believed to have it.
    pub fn free(&mut self, slot: SwapSlot) {
        assert!(self.is_taken(slot), "{slot:?} is freed twice");
        self.words[slot.index() / WORD as usize] &= !(1 << (slot.0 % WORD));
        self.taken -= 1;
    }

    /// Records what a taken slot holds.
    pub fn set_checksum(&mut self, slot: SwapSlot, checksum: u64) {
        assert!(self.is_taken(slot), "{slot:?} is free");
        if slot.index() >= self.checksums.len() {
            self.checksums.resize(slot.index() + 1, 0);
        }
        self.checksums[slot.index()] = checksum;
    }

    /// What [`SwapMap::set_checksum`] recorded.
    ///
    /// # Panics
    /// When nothing was recorded.
    pub fn checksum(&self, slot: SwapSlot) -> u64 {
        assert!(self.is_taken(slot), "{slot:?} is free");
        self.checksums[slot.index()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn a_full_map_says_so() {
        let mut map = SwapMap::new(3);
        assert_eq!(map.take_run(2), Some((SwapSlot(0), 2)));
        assert_eq!(map.take_run(2), Some((SwapSlot(2), 1)));
        assert_eq!(map.take_run(1), None);
        map.free(SwapSlot(1));
        assert_eq!(map.take_run(9), Some((SwapSlot(1), 1)));
    }

    #[test]
    fn a_file_that_cannot_grow_is_used_from_the_start() {
        let mut map = SwapMap::new(9);
        map.take_run(6);
        map.free(SwapSlot(1));
        map.start_over();
        assert_eq!(map.take_run(3), Some((SwapSlot(1), 1)));
    }

    #[test]
    #[should_panic(expected = "twice")]
    fn freeing_twice_stops() {
        let mut map = SwapMap::new(3);
        map.take_run(1);
        map.free(SwapSlot(0));
        map.free(SwapSlot(0));
    }

    proptest! {
        /// Against a plain map: no slot is handed out twice, checksums stay with their slots.
        #[test]
        fn slots_have_one_owner(steps in prop::collection::vec((any::<bool>(), 1u32..20), 1..200)) {
            let mut map = SwapMap::new(100);
            let mut model: HashMap<u32, u64> = HashMap::new();
            for (step, (take, amount)) in steps.into_iter().enumerate() {
                if take {
                    if let Some((first, count)) = map.take_run(amount) {
                        for slot in first.0..first.0 + count {
                            let checksum = step as u64 * 1000 + u64::from(slot);
                            prop_assert!(model.insert(slot, checksum).is_none());
                            map.set_checksum(SwapSlot(slot), checksum);
                        }
                    } else {
                        prop_assert_eq!(model.len(), 100);
                    }
                } else if let Some(&slot) = model.keys().nth(amount as usize % model.len().max(1)) {
                    prop_assert_eq!(map.checksum(SwapSlot(slot)), model[&slot]);
                    map.free(SwapSlot(slot));
                    model.remove(&slot);
                }
                prop_assert_eq!(map.taken() as usize, model.len());
            }
        }
    }
}
