//! A hash table for entries that need not hold their keys, and that grows without a pause.
//!
//! It is many small tables. One that grows or shrinks moves its own entries only, and each does it at
//! another number of entries, so that the room that is not used is about the same at all times. Keys are
//! a VM's to choose, so the hash has a secret of its own: nobody makes long chains in it.

use std::hash::{BuildHasher, Hash, RandomState};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

/// Small tables. Chosen: of 4 Mi entries (16 GiB of pages) one that grows moves 32 Ki; an empty one takes
/// 32 bytes.
const PARTS: usize = 128;

/// A hash table of `T`, each of which has a key of its own that callers know how to find.
#[derive(Debug)]
pub(super) struct Tables<T> {
    secret: RandomState,
    /// None before the first entry.
    parts: Vec<HashTable<T>>,
}

impl<T> Default for Tables<T> {
    fn default() -> Tables<T> {
        Tables {
            secret: RandomState::new(),
            parts: Vec::new(),
        }
    }
}

impl<T> Tables<T> {
    /// Number of entries.
    pub fn len(&self) -> usize {
        self.parts.iter().map(HashTable::len).sum()
    }

    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(HashTable::allocation_size).sum()
    }

    /// All entries.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.parts.iter().flatten()
    }

    /// All entries; their keys stay as they are.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.parts.iter_mut().flatten()
    }

    /// The entry with this key that `is` meant.
    pub fn find(&self, key: impl Hash, is: impl FnMut(&T) -> bool) -> Option<&T> {
        let hash = self.secret.hash_one(key);
        self.parts.get(part_of(hash))?.find(hash, is)
    }

    /// The same, to be changed; its key stays as it is.
    pub fn find_mut(&mut self, key: impl Hash, is: impl FnMut(&T) -> bool) -> Option<&mut T> {
        let hash = self.secret.hash_one(key);
        self.parts.get_mut(part_of(hash))?.find_mut(hash, is)
    }

    /// Enters `value` with this key in the place of the entry that `is` meant, which is returned. The
    /// keys of other entries are `key_of`'s to say.
    pub fn replace<K: Hash>(
        &mut self,
        key: K,
        value: T,
        is: impl FnMut(&T) -> bool,
        key_of: impl Fn(&T) -> K,
    ) -> Option<T> {
        if self.parts.is_empty() {
            self.parts.resize_with(PARTS, HashTable::new);
        }
        let hash = self.secret.hash_one(key);
        let hasher = |other: &T| self.secret.hash_one(key_of(other));
        match self.parts[part_of(hash)].entry(hash, is, hasher) {
            Entry::Occupied(mut entry) => Some(std::mem::replace(entry.get_mut(), value)),
            Entry::Vacant(entry) => {
                entry.insert(value);
                None
            }
        }
    }

    /// Removes the entry with this key that `is` meant.
    pub fn remove<K: Hash>(
        &mut self,
        key: K,
        is: impl FnMut(&T) -> bool,
        key_of: impl Fn(&T) -> K,
    ) -> Option<T> {
        let hash = self.secret.hash_one(key);
        let part = self.parts.get_mut(part_of(hash))?;
        let (value, _) = part.find_entry(hash, is).ok()?.remove();
        if part.len() < part.capacity() / 4 {
            let hasher = |other: &T| self.secret.hash_one(key_of(other));
            part.shrink_to(2 * part.len(), hasher);
        }
        Some(value)
    }
}

/// Which small table a hash belongs to. The last gets nearly twice as much as the first, in even steps.
/// The tables themselves use the lowest and the highest bits.
fn part_of(hash: u64) -> usize {
    const COUNT: u64 = PARTS as u64;
    // Part n has the share COUNT + n: the parts before it have n * (2 * COUNT - 1 + n) / 2.
    const OFFSET: u64 = 2 * COUNT - 1;
    const ALL: u64 = COUNT * (OFFSET + COUNT) / 2;
    let place = (((hash >> 24) & u64::from(u32::MAX)) * ALL) >> 32;
    let part = ((OFFSET * OFFSET + 8 * place).isqrt() - OFFSET) / 2;
    usize::try_from(part).expect("there are few")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is(wanted: u64) -> impl Fn(&u64) -> bool {
        move |&value| value == wanted
    }

    fn insert(tables: &mut Tables<u64>, value: u64) {
        assert_eq!(tables.replace(value, value, is(value), |&v| v), None);
    }

    #[test]
    fn parts_have_the_shares_that_were_meant_for_them() {
        const STEPS: u64 = 1 << 20;
        let mut shares = [0_u64; PARTS];
        let mut last = 0;
        for step in 0..STEPS {
            let part = part_of(step << 36);
            assert!(part == last || part == last + 1, "{part} behind {last}");
            last = part;
        }
        for step in 0..STEPS {
            shares[part_of(step << 36)] += 1;
        }
        let all: u64 = (0..PARTS as u64).map(|part| PARTS as u64 + part).sum();
        for (part, &share) in (0..).zip(&shares) {
            let meant = STEPS * (PARTS as u64 + part) / all;
            assert!(
                share.abs_diff(meant) <= 1,
                "part {part}: {share}, not {meant}"
            );
        }
    }

    #[test]
    fn what_goes_in_is_found_and_comes_out() {
        let mut tables = Tables::default();
        assert_eq!(tables.find(1_u64, is(1)), None);
        assert_eq!(tables.remove(1_u64, is(1), |&v| v), None);
        (0..100_000).for_each(|value| insert(&mut tables, value));
        assert_eq!(tables.len(), 100_000);
        assert_eq!(tables.replace(7_u64, 7, is(7), |&v| v), Some(7));
        for value in 0..100_000_u64 {
            assert_eq!(tables.find(value, is(value)), Some(&value));
            assert_eq!(tables.find_mut(value, is(value)), Some(&mut value.clone()));
        }
        let mut all: Vec<u64> = tables.iter().copied().collect();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..100_000));
        for value in 0..100_000_u64 {
            assert_eq!(tables.remove(value, is(value), |&v| v), Some(value));
            assert_eq!(tables.find(value, is(value)), None);
        }
        assert_eq!(tables.len(), 0);
    }

    /// Room for all, in entries.
    fn capacity(tables: &Tables<u64>) -> usize {
        tables.parts.iter().map(HashTable::capacity).sum()
    }

    #[test]
    fn room_follows_the_number_of_entries_in_small_steps() {
        let mut tables = Tables::default();
        let mut before = 0;
        for value in 0..200_000_u64 {
            insert(&mut tables, value);
            let room = capacity(&tables);
            if value > 20_000 {
                assert!(
                    room - before <= room / 64,
                    "{before} to {room} entries at once"
                );
                assert!(
                    room * 10 <= tables.len() * 17,
                    "{room} for {}",
                    tables.len()
                );
            }
            before = room;
        }
        for value in 0..200_000_u64 {
            tables.remove(value, is(value), |&v| v);
            let room = capacity(&tables);
            assert!(
                room <= 8 * tables.len() + 16 * PARTS,
                "{room} for {}",
                tables.len()
            );
        }
    }
}
