//! The key of a page: XXH3-64 of its 4096 bytes, seeded with the share group's secret.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::units::PAGE_SIZE;
use crate::words::Key;

/// The key of `page` under `seed`. Equal pages have equal keys; equal keys prove nothing, and an
/// adversary can make them, so that every use compares the pages in full.
pub fn key_of(page: &[u8; PAGE_SIZE], seed: u64) -> Key {
    Key(xxh3_64_with_seed(page, seed))
}

/// Whether every byte is zero. Pages that are not zero mostly show it in their first words.
pub fn is_zero(page: &[u8; PAGE_SIZE]) -> bool {
    let (blocks, rest) = page.as_chunks::<128>();
    debug_assert!(rest.is_empty());
    // A fold over bytes becomes a few vector instructions; comparing with an array is a call.
    blocks
        .iter()
        .all(|block| block.iter().fold(0, |bits, byte| bits | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_make_different_keys_of_one_page() {
        let page = [7u8; PAGE_SIZE];
        assert_eq!(key_of(&page, 1), key_of(&page, 1));
        assert_ne!(key_of(&page, 1), key_of(&page, 2));
    }

    #[test]
    fn a_last_byte_counts() {
        let mut page = [0u8; PAGE_SIZE];
        assert!(is_zero(&page));
        page[PAGE_SIZE - 1] = 1;
        assert!(!is_zero(&page));
    }
}
