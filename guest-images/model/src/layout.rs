//! Which kind of page stands at which index.
//!
//! The same percentages give the same layout in every guest, so duplicate pages of sister guests
//! have the same index, hence the same content. Half of the stretches are single pages and half are
//! runs of 8 to 64, so that sharing is exercised both ways.

use crate::content::Kind;
use crate::rng::Rng;

/// Shares of the kinds, in percent; the rest is unique data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mix {
    /// Pages of zeros.
    pub zero: u32,
    /// Pages that every guest has.
    pub duplicate: u32,
    /// Pages that may be dropped.
    pub cache: u32,
}

impl Mix {
    /// Nothing but unique data.
    pub const UNIQUE: Self = Self {
        zero: 0,
        duplicate: 0,
        cache: 0,
    };

    /// Whether the shares leave zero or more percent for unique data.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.zero <= 100 && self.duplicate <= 100 && self.cache <= 100 && {
            self.zero + self.duplicate + self.cache <= 100
        }
    }
}

/// The kinds of the pages, in index order, without end.
#[derive(Debug, Clone)]
pub struct Layout {
    mix: Mix,
    rng: Rng,
    kind: Kind,
    left: u32,
}

impl Layout {
    /// The layout for these shares.
    #[must_use]
    pub const fn new(mix: Mix) -> Self {
        Self {
            mix,
            rng: Rng::new(0x6c61_796f_7574),
            kind: Kind::Unique,
            left: 0,
        }
    }

    /// The kind of the next page.
    pub const fn next(&mut self) -> Kind {
        if self.left == 0 {
            self.kind = self.draw_kind();
            let run = 8 + self.rng.below(57);
            self.left = if self.rng.chance(50) { 1 } else { run };
        }
        self.left -= 1;
        self.kind
    }

    const fn draw_kind(&mut self) -> Kind {
        let drawn = self.rng.below(100);
        let Mix {
            zero,
            duplicate,
            cache,
        } = self.mix;
        if drawn < zero {
            Kind::Zero
        } else if drawn < zero + duplicate {
            Kind::Duplicate
        } else if drawn < zero + duplicate + cache {
            Kind::Cache
        } else {
            Kind::Unique
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIX: Mix = Mix {
        zero: 10,
        duplicate: 15,
        cache: 20,
    };

    fn kinds(count: usize) -> Vec<Kind> {
        let mut layout = Layout::new(MIX);
        (0..count).map(|_| layout.next()).collect()
    }

    #[test]
    fn shares_are_near_the_wanted_ones() {
        let kinds = kinds(50_000);
        for (kind, percent) in [
            (Kind::Zero, 10),
            (Kind::Duplicate, 15),
            (Kind::Cache, 20),
            (Kind::Unique, 55),
        ] {
            let count = kinds.iter().filter(|k| **k == kind).count();
            let got = count * 100 / kinds.len();
            assert!(
                got.abs_diff(percent) <= 3,
                "{kind:?}: {got} percent, wanted {percent}"
            );
        }
    }

    #[test]
    fn duplicates_stand_alone_and_in_runs() {
        let kinds = kinds(50_000);
        let runs: Vec<usize> = kinds
            .chunk_by(|a, b| a == b)
            .filter(|run| run[0] == Kind::Duplicate)
            .map(<[Kind]>::len)
            .collect();
        assert!(runs.iter().filter(|run| **run == 1).count() > 50);
        assert!(runs.iter().filter(|run| **run >= 8).count() > 50);
    }

    #[test]
    fn all_of_one_kind() {
        let mut layout = Layout::new(Mix {
            zero: 0,
            duplicate: 100,
            cache: 0,
        });
        assert!((0..1000).all(|_| layout.next() == Kind::Duplicate));
        let mut layout = Layout::new(Mix::UNIQUE);
        assert!((0..1000).all(|_| layout.next() == Kind::Unique));
    }

    #[test]
    fn too_much_is_invalid() {
        assert!(MIX.is_valid());
        assert!(
            !Mix {
                zero: 50,
                duplicate: 50,
                cache: 1
            }
            .is_valid()
        );
        assert!(
            !Mix {
                zero: u32::MAX,
                duplicate: 1,
                cache: 1
            }
            .is_valid()
        );
    }
}
