//! What the guest `meter` is told to do: phases, and kinds of pages.

use crate::content::Kind;
use crate::order::Order;

/// Phases of one command line, at most.
pub const PHASES_MAX: usize = 16;
/// Longest time of a phase: ten hours.
const MS_MAX: u64 = 36_000_000;

/// One thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// `word`: writes one word into each page, in order.
    TouchWords,
    /// `page`: writes each page in full, one value, in order.
    TouchPages,
    /// `fill`: gives each page its content, in order.
    Fill,
    /// `sleep:MS`: rests.
    Sleep {
        /// For how long, milliseconds.
        ms: u64,
    },
    /// `ops:MS`: reads and rewrites pages at random, comparing all it reads.
    Operations {
        /// For how long, milliseconds.
        ms: u64,
    },
    /// `write`, `write_seq`, `write_sparse`: writes a word into each page, or into one in so many.
    Write(Order),
    /// `read`, `read_seq`: reads a word of each page; `read_sparse`: of one in
    /// [`SPARSE_PAGES`](crate::order::SPARSE_PAGES).
    Read(Order),
    /// `verify`: compares all pages.
    Verify,
}

impl Phase {
    /// Parses one phase.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (name, time) = match text.split_once(':') {
            Some((name, time)) => (name, Some(time)),
            None => (text, None),
        };
        let ms = || time?.parse().ok().filter(|ms| *ms <= MS_MAX);
        let phase = match name {
            "sleep" => return ms().map(|ms| Self::Sleep { ms }),
            "ops" => return ms().map(|ms| Self::Operations { ms }),
            "word" => Self::TouchWords,
            "page" => Self::TouchPages,
            "fill" => Self::Fill,
            "write" => Self::Write(Order::Random),
            "write_seq" => Self::Write(Order::InOrder),
            "write_sparse" => Self::Write(Order::Sparse),
            "read" => Self::Read(Order::Random),
            "read_seq" => Self::Read(Order::InOrder),
            "read_sparse" => Self::Read(Order::Sparse),
            "verify" => Self::Verify,
            _ => return None,
        };
        time.is_none().then_some(phase)
    }

    /// As it is written.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TouchWords => "word",
            Self::TouchPages => "page",
            Self::Fill => "fill",
            Self::Sleep { .. } => "sleep",
            Self::Operations { .. } => "ops",
            Self::Write(Order::Random) => "write",
            Self::Write(Order::InOrder) => "write_seq",
            Self::Write(Order::Sparse) => "write_sparse",
            Self::Read(Order::Random) => "read",
            Self::Read(Order::InOrder) => "read_seq",
            Self::Read(Order::Sparse) => "read_sparse",
            Self::Verify => "verify",
        }
    }
}

/// The phases of a list such as `fill,sleep:500,read`, in order; `None` if one is none, there are too
/// many, one needs content that was never filled in, or one spoils it.
#[must_use]
pub fn phases(list: &str) -> Option<([Phase; PHASES_MAX], usize)> {
    let mut phases = [Phase::Verify; PHASES_MAX];
    let mut count = 0;
    let mut filled = false;
    for text in list.split(',') {
        let phase = Phase::parse(text)?;
        let fits = match phase {
            Phase::TouchWords | Phase::TouchPages => !filled,
            Phase::Operations { .. } | Phase::Write(_) | Phase::Verify => filled,
            Phase::Fill | Phase::Sleep { .. } | Phase::Read(_) => true,
        };
        *phases.get_mut(count).filter(|_| fits)? = phase;
        filled |= phase == Phase::Fill;
        count += 1;
    }
    Some((phases, count))
}

/// Which kind of page stands at which index: runs of equal length, the kinds in turn. The same in
/// every guest, so that common pages meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kinds {
    kinds: [Kind; Self::MAX],
    count: usize,
    run: u32,
}

impl Kinds {
    /// Kinds in turn, at most.
    const MAX: usize = 8;
    /// Nothing but unique pages.
    pub const UNIQUE: Self = Self {
        kinds: [Kind::Unique; Self::MAX],
        count: 1,
        run: 1,
    };

    /// Parses a text such as `cuz`, a letter a kind: common to all guests, unique, zero. `run` pages
    /// in a row have the same kind.
    #[must_use]
    pub fn parse(text: &str, run: u32) -> Option<Self> {
        let mut kinds = [Kind::Unique; Self::MAX];
        for (at, letter) in text.bytes().enumerate() {
            *kinds.get_mut(at)? = match letter {
                b'c' => Kind::Duplicate,
                b'u' => Kind::Unique,
                b'z' => Kind::Zero,
                _ => return None,
            };
        }
        (!text.is_empty() && run > 0).then_some(Self {
            kinds,
            count: text.len(),
            run,
        })
    }

    /// The kind of the page with this index.
    #[must_use]
    pub const fn at(&self, index: u32) -> Kind {
        self.nth(index / self.run)
    }

    /// The kind with this number, counted round and round.
    #[must_use]
    pub const fn nth(&self, number: u32) -> Kind {
        self.kinds[number as usize % self.count]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_phases_is_read_in_order() {
        let (phases, count) = phases("page,fill,sleep:1500,ops:20,read_seq,verify").expect("valid");
        assert_eq!(
            phases[..count],
            [
                Phase::TouchPages,
                Phase::Fill,
                Phase::Sleep { ms: 1500 },
                Phase::Operations { ms: 20 },
                Phase::Read(Order::InOrder),
                Phase::Verify
            ]
        );
    }

    #[test]
    fn every_phase_is_written_by_its_name() {
        for text in [
            "word",
            "page",
            "fill",
            "sleep:1",
            "ops:1",
            "write",
            "write_seq",
            "read",
            "read_seq",
            "verify",
        ] {
            let phase = Phase::parse(text).expect(text);
            assert_eq!(phase.name(), text.split(':').next().expect("a name"));
        }
    }

    #[test]
    fn what_is_no_phase_is_refused() {
        for list in [
            "",
            "fill,",
            "fil",
            "sleep",
            "sleep:",
            "sleep:-1",
            "sleep:99999999999",
            "fill:3",
            "verify",
            "page,ops:5",
            "write,fill",
            "fill,page",
        ] {
            assert_eq!(phases(list), None, "{list}");
        }
        assert_eq!(phases(&["fill"; PHASES_MAX + 1].join(",")), None);
    }

    #[test]
    fn kinds_stand_in_runs_and_in_turn() {
        let kinds = Kinds::parse("cuz", 2).expect("valid");
        let found: Vec<Kind> = (0..8).map(|index| kinds.at(index)).collect();
        use Kind::{Duplicate, Unique, Zero};
        let expected = [
            Duplicate, Duplicate, Unique, Unique, Zero, Zero, Duplicate, Duplicate,
        ];
        assert_eq!(found, expected);
        assert_eq!(Kinds::parse("u", 1), Some(Kinds::UNIQUE));
        for (text, run) in [("", 1), ("x", 1), ("u", 0), ("uuuuuuuuu", 1)] {
            assert_eq!(Kinds::parse(text, run), None, "{text} {run}");
        }
    }
}
