//! What a page must hold: a pure function of its identity, all 4096 bytes significant.
//!
//! Four interleaved xorshift64 sequences, each started from a scrambled identity. A sequence
//! started at zero stays zero, which is exactly the content of a zero page. About half a
//! microsecond a page.

use crate::rng::mix;

/// 64-bit words of a page.
pub const WORDS: usize = 512;
/// Words that [`Stream::next`] yields at once.
pub const LANES: usize = 4;

/// What a page is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Data no other guest has: depends on the seed.
    Unique = 0,
    /// Data that every guest has: independent of the seed.
    Duplicate = 1,
    /// All bytes zero.
    Zero = 2,
    /// Depends on the seed; may be dropped, because it can be generated again.
    Cache = 3,
}

impl Kind {
    /// Name for messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unique => "unique",
            Self::Duplicate => "duplicate",
            Self::Zero => "zero",
            Self::Cache => "cache",
        }
    }
}

/// Where a page differs from what it must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mismatch {
    /// Byte offset of the first word that differs.
    pub offset: usize,
    /// The word that belongs there.
    pub expected: u64,
    /// The word that is there.
    pub found: u64,
}

/// All that decides a page's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// What the page is for.
    pub kind: Kind,
    /// Its index in the guest's table of pages.
    pub index: u32,
    /// How often it was rewritten.
    pub version: u16,
    /// The guest's seed; ignored where the content is common to all guests.
    pub seed: u64,
}

impl Identity {
    /// The words of the page, in order.
    #[must_use]
    pub const fn stream(self) -> Stream {
        let seed = match self.kind {
            Kind::Zero => return Stream { lanes: [0; LANES] },
            Kind::Duplicate => 0,
            Kind::Unique | Kind::Cache => self.seed,
        };
        let page = (self.kind as u64) << 56 | (self.version as u64) << 32 | self.index as u64;
        let start = mix(mix(seed ^ 0x7469_6465_6d61_726b) ^ page);
        let mut lanes = [0; LANES];
        let mut lane = 0;
        while lane < LANES {
            // A xorshift sequence must not start at zero.
            lanes[lane] = mix(start.wrapping_add(lane as u64)) | 1;
            lane += 1;
        }
        Stream { lanes }
    }

    /// Gives each of the page's words, with its number, to `set_word`.
    #[inline(always)]
    pub fn write(self, mut set_word: impl FnMut(usize, u64)) {
        let mut stream = self.stream();
        for first in (0..WORDS).step_by(LANES) {
            for (lane, word) in stream.next().into_iter().enumerate() {
                set_word(first + lane, word);
            }
        }
    }

    /// Compares all of the page's words, which `word` reads by their numbers.
    ///
    /// **Errors**: the first word that differs.
    #[inline(always)]
    pub fn compare(self, mut word: impl FnMut(usize) -> u64) -> Result<(), Mismatch> {
        let mut stream = self.stream();
        for first in (0..WORDS).step_by(LANES) {
            for (lane, expected) in stream.next().into_iter().enumerate() {
                let found = word(first + lane);
                if found != expected {
                    return Err(Mismatch {
                        offset: (first + lane) * 8,
                        expected,
                        found,
                    });
                }
            }
        }
        Ok(())
    }

    /// The page's first word.
    #[must_use]
    pub fn first_word(self) -> u64 {
        self.stream().next()[0]
    }
}

/// The words of one page, [`LANES`] at a time.
#[derive(Debug, Clone)]
pub struct Stream {
    lanes: [u64; LANES],
}

impl Stream {
    /// The next [`LANES`] words. There are [`WORDS`] to take; more would follow.
    #[inline(always)]
    #[expect(
        clippy::should_implement_trait,
        reason = "it never ends, so it is no Iterator"
    )]
    pub fn next(&mut self) -> [u64; LANES] {
        for lane in &mut self.lanes {
            let mut x = *lane;
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            *lane = x;
        }
        self.lanes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn page(kind: Kind, index: u32, version: u16, seed: u64) -> Vec<u64> {
        let mut stream = Identity {
            kind,
            index,
            version,
            seed,
        }
        .stream();
        (0..WORDS / LANES).flat_map(|_| stream.next()).collect()
    }

    #[test]
    fn zero_pages_are_zero_in_every_version() {
        assert!(page(Kind::Zero, 5, 3, 9).iter().all(|word| *word == 0));
    }

    #[test]
    fn duplicate_pages_ignore_the_seed_and_unique_ones_do_not() {
        assert_eq!(
            page(Kind::Duplicate, 5, 3, 1),
            page(Kind::Duplicate, 5, 3, 2)
        );
        assert_ne!(page(Kind::Unique, 5, 3, 1), page(Kind::Unique, 5, 3, 2));
        assert_ne!(page(Kind::Cache, 5, 3, 1), page(Kind::Cache, 5, 3, 2));
    }

    #[test]
    fn every_part_of_the_identity_changes_every_word() {
        let base = page(Kind::Unique, 5, 3, 1);
        let others = [
            page(Kind::Cache, 5, 3, 1),
            page(Kind::Unique, 6, 3, 1),
            page(Kind::Unique, 5, 4, 1),
            page(Kind::Unique, 5, 3, 2),
        ];
        for other in others {
            let equal = base.iter().zip(&other).filter(|(a, b)| a == b).count();
            assert_eq!(equal, 0);
        }
    }

    #[test]
    fn a_page_that_was_written_compares_equal() {
        let identity = Identity {
            kind: Kind::Unique,
            index: 5,
            version: 3,
            seed: 1,
        };
        let mut words = [0; WORDS];
        identity.write(|at, word| words[at] = word);
        assert_eq!(words[..], page(Kind::Unique, 5, 3, 1));
        assert_eq!(identity.compare(|at| words[at]), Ok(()));
        words[WORDS - 1] ^= 1;
        let mismatch = identity.compare(|at| words[at]).expect_err("one bit");
        assert_eq!(mismatch.offset, 8 * (WORDS - 1));
        assert_eq!(mismatch.found ^ mismatch.expected, 1);
    }

    #[test]
    fn pages_do_not_repeat() {
        let mut seen = HashSet::new();
        for index in 0..2000 {
            for version in 0..5 {
                assert!(seen.insert(page(Kind::Unique, index, version, 7)));
            }
        }
    }

    #[test]
    fn first_word_is_the_first_of_the_stream() {
        let identity = Identity {
            kind: Kind::Unique,
            index: 1,
            version: 2,
            seed: 3,
        };
        assert_eq!(identity.first_word(), page(Kind::Unique, 1, 2, 3)[0]);
    }
}
