//! The key of a page: the one hash that VM processes and the host manager share.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::link::message::Key;
use crate::units::PAGE_SIZE;

/// The key of a page's content under its share group's seed. A candidate for sharing, never proof.
pub fn key_of(content: &[u8; PAGE_SIZE], seed: u64) -> Key {
    Key(xxh3_64_with_seed(content, seed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_depend_on_content_and_seed() {
        let mut page = [0; PAGE_SIZE];
        let zero = key_of(&page, 7);
        assert_eq!(zero, key_of(&page, 7));
        assert_ne!(zero, key_of(&page, 8));
        page[PAGE_SIZE - 1] = 1;
        assert_ne!(zero, key_of(&page, 7));
    }
}
