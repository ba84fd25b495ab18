//! The key of a page: XXH3-64 of its 4096 bytes, seeded with the share group's secret.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::link::message::Key;
use crate::units::PAGE_SIZE;

/// The key of `page` under `seed`. Equal pages have equal keys; equal keys prove nothing, and an
/// adversary can make them, so that every use compares the pages in full.
pub fn key_of(page: &[u8; PAGE_SIZE], seed: u64) -> Key {
    Key(xxh3_64_with_seed(page, seed))
}

/// Whether every byte is zero. Pages that are not zero mostly show it in their first words.
pub fn is_zero(page: &[u8; PAGE_SIZE]) -> bool {
    let (words, rest) = page.as_chunks::<64>();
    debug_assert!(rest.is_empty());
    words.iter().all(|word| *word == [0; 64])
}
