//! The slots of one VM's swap file: which are taken, and the checksum of what each holds.
//!
//! Slots are handed out round about, in a ring that is some times as long as there are slots in use.
//! A guest that comes back to its pages at random frees slots anywhere in the ring, so what lies behind
//! the last run has been freed the longer the ring is: at `RING` times, all but a fiftieth, and runs
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
    /// The file could not grow to this slot when that was tried last.
    file_end: u32,
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
            file_end: u32::MAX,
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
        let ring = ring.min(self.slots_max).min(self.file_end);
        if self.cursor >= ring {
            self.cursor = 0;
        }
        let in_ring = self
            .first_free(self.cursor, ring)
            .or_else(|| self.first_free(0, self.cursor));
        let (start, end) = match in_ring {
            Some(start) => (start, ring),
            // Perhaps the file can grow again.
            None => {
                self.file_end = u32::MAX;
                (self.first_free(ring, self.slots_max)?, self.slots_max)
            }
        };
        let mut len = 0;
        while len < count && start + len < end && !self.is_taken(SwapSlot(start + len)) {
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

    /// The file could not grow to this slot: as long as others are free that were written before, those
    /// are written again.
    pub fn ends_before(&mut self, slot: SwapSlot) {
        self.file_end = slot.0;
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
        for slot in [1, 4, 5] {
            map.free(SwapSlot(slot));
        }
        map.ends_before(SwapSlot(6));
        assert_eq!(map.take_run(3), Some((SwapSlot(1), 1)));
        assert_eq!(map.take_run(3), Some((SwapSlot(4), 2)));
        // When all of it is in use, what lies behind is tried again.
        assert_eq!(map.take_run(1), Some((SwapSlot(6), 1)));
        map.free(SwapSlot(2));
        assert_eq!(map.take_run(9), Some((SwapSlot(7), 2)));
        map.free(SwapSlot(7));
        map.ends_before(SwapSlot(7));
        assert_eq!(map.take_run(9), Some((SwapSlot(2), 1)));
    }

    #[test]
    fn the_ring_follows_what_is_in_use() {
        let mut map = SwapMap::of_vm(Pages(100_000));
        let mut at = 0;
        for _ in 0..10_000 {
            let (first, count) = map.take_run(32).unwrap();
            (0..count).for_each(|slot| map.free(SwapSlot(first.0 + slot)));
            at = at.max(first.0 + count);
        }
        assert_eq!(at, RING_MIN, "nothing stays in use");
        // Pages that come back at random leave runs that are about as long as what is written.
        let mut rng = fastrand::Rng::with_seed(1);
        let mut taken: Vec<SwapSlot> = Vec::new();
        let mut runs = Vec::new();
        for _ in 0..20_000 {
            let (first, count) = map.take_run(32).unwrap();
            taken.extend((first.0..first.0 + count).map(SwapSlot));
            runs.push(count);
            while taken.len() > 20_000 {
                map.free(taken.swap_remove(rng.usize(..taken.len())));
            }
            at = at.max(first.0 + count);
        }
        let late = &runs[10_000..];
        let mean = late.iter().sum::<u32>() / u32::try_from(late.len()).unwrap();
        assert!(mean > 20, "{mean}");
        assert!(at <= RING * 20_032 + 32, "{at}");
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
