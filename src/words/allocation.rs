//! What a VM is entitled to, and the keys in which a user says so.
//!
//! The keys are the same wherever they are written: a `[[vm]]` table of a fleet file or a scenario, flags,
//! `tidemark set`, a scenario's `[[change]]`. All of them become [`AllocationKeys`], and only that
//! type makes an [`Allocation`] of them: [`AllocationKeys::resolve`] for a new VM,
//! [`AllocationKeys::change`] for one that runs.
//!
//! | key | allowed | default |
//! |---|---|---|
//! | `memory` | 1M to 512G; fixed while the VM runs | 256M |
//! | `reservation` | up to `limit` | 0 |
//! | `limit` | up to `memory` | `memory` |
//! | `shares` | 0 to 10^9, or `high`, `normal`, `low`: 20, 10, 5 for each MiB of `memory` | `normal` |
//! | `dynamic_max` | up to `memory` | `limit` |
//! | `dynamic_min` | up to `dynamic_max` | a quarter of `memory`, at least `reservation`, at most `dynamic_max` |
//!
//! Sources: the presets are ESX's. The quarter is the least that XenServer supports.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::size::{SizeError, parse_size};
use super::written::Written;
use crate::units::{PAGES_MAX, Pages};

/// Configured memory of a VM unless said otherwise.
const MEMORY_DEFAULT: Pages = Pages::mib(256);
const MEMORY_MIN: Pages = Pages::mib(1);
/// What the page map can name.
const MEMORY_MAX: Pages = Pages(PAGES_MAX);
/// Largest weight: the sum over all VMs, times a number of pages, stays far from overflow.
const SHARES_MAX: u64 = 1_000_000_000;
/// The preset weights, for each MiB of memory (ESX).
const PRESETS: [(&str, u64); 3] = [("high", 20), ("normal", NORMAL), ("low", 5)];
const NORMAL: u64 = 10;
/// Least part of the memory that a dynamic range begins with: memory / this (XenServer).
const DYNAMIC_MIN_DIVISOR: u64 = 4;

/// What a VM is entitled to: `reservation <= limit <= size`, `dynamic_min <= dynamic_max <= size`. One that
/// comes from a peer or a record is checked with [`Allocation::check`] first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    /// Configured memory (static maximum).
    pub size: Pages,
    /// Guaranteed minimum.
    pub reservation: Pages,
    /// Maximum.
    pub limit: Pages,
    /// Weight.
    pub shares: u64,
    /// Lower end of the dynamic range.
    pub dynamic_min: Pages,
    /// Upper end of the dynamic range.
    pub dynamic_max: Pages,
}

impl Allocation {
    /// What a VM of that size is entitled to when only its size is said.
    pub fn of(size: Pages) -> Allocation {
        Allocation {
            size,
            reservation: Pages::ZERO,
            limit: size,
            shares: per_mib(NORMAL, size),
            dynamic_min: dynamic_min(size, Pages::ZERO, size),
            dynamic_max: size,
        }
    }

    /// The most that the VM may hold.
    pub fn ceiling(&self) -> Pages {
        self.limit.min(self.size)
    }

    /// Whether a peer's allocation is one.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn check(&self) -> Result<(), AllocationError> {
        let given = |key, pages| Operand {
            key,
            pages,
            source: Source::Given,
        };
        let sizes = Sizes {
            memory: given(AllocationKey::Memory, self.size),
            reservation: given(AllocationKey::Reservation, self.reservation),
            limit: given(AllocationKey::Limit, self.limit),
            dynamic_min: given(AllocationKey::DynamicMin, self.dynamic_min),
            dynamic_max: given(AllocationKey::DynamicMax, self.dynamic_max),
        };
        sizes.allocation(self.shares)?;
        match self.shares {
            0..=SHARES_MAX => Ok(()),
            shares => Err(AllocationError::Shares(Written::Text(shares.to_string()))),
        }
    }
}

fn per_mib(shares: u64, size: Pages) -> u64 {
    shares * size.bytes() / Pages::mib(1).bytes()
}

fn dynamic_min(size: Pages, reservation: Pages, dynamic_max: Pages) -> Pages {
    Pages(size.0 / DYNAMIC_MIN_DIVISOR)
        .max(reservation)
        .min(dynamic_max)
}

/// One of the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AllocationKey {
    /// [`Allocation::size`].
    Memory,
    /// [`Allocation::shares`].
    Shares,
    /// [`Allocation::reservation`].
    Reservation,
    /// [`Allocation::limit`].
    Limit,
    /// [`Allocation::dynamic_min`].
    DynamicMin,
    /// [`Allocation::dynamic_max`].
    DynamicMax,
}

impl AllocationKey {
    /// Every key.
    pub const ALL: [AllocationKey; 6] = [
        AllocationKey::Memory,
        AllocationKey::Shares,
        AllocationKey::Reservation,
        AllocationKey::Limit,
        AllocationKey::DynamicMin,
        AllocationKey::DynamicMax,
    ];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            AllocationKey::Memory => "memory",
            AllocationKey::Shares => "shares",
            AllocationKey::Reservation => "reservation",
            AllocationKey::Limit => "limit",
            AllocationKey::DynamicMin => "dynamic_min",
            AllocationKey::DynamicMax => "dynamic_max",
        }
    }

    /// The key of that name.
    pub fn named(name: &str) -> Option<AllocationKey> {
        AllocationKey::ALL
            .into_iter()
            .find(|key| key.name() == name)
    }
}

impl fmt::Display for AllocationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a user wrote of an allocation. Flags, too: they are checked like a file, not by clap, so that a
/// mistake reads the same.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct AllocationKeys {
    /// Configured memory [default: 256M]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub memory: Option<Written>,
    /// Weight: high, normal, low or a number [default: normal]
    #[arg(long, allow_hyphen_values = true)]
    pub shares: Option<Written>,
    /// Memory that is never taken from it [default: 0]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub reservation: Option<Written>,
    /// Memory that it never gets more than [default: all]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub limit: Option<Written>,
    /// Lower end of the dynamic range
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub dynamic_min: Option<Written>,
    /// Upper end of the dynamic range
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub dynamic_max: Option<Written>,
}

impl AllocationKeys {
    /// Writes `key = value`.
    pub fn write(&mut self, key: AllocationKey, value: Written) {
        let place = match key {
            AllocationKey::Memory => &mut self.memory,
            AllocationKey::Shares => &mut self.shares,
            AllocationKey::Reservation => &mut self.reservation,
            AllocationKey::Limit => &mut self.limit,
            AllocationKey::DynamicMin => &mut self.dynamic_min,
            AllocationKey::DynamicMax => &mut self.dynamic_max,
        };
        *place = Some(value);
    }

    /// The allocation of a new VM: what is not written has its default.
    ///
    /// # Errors
    /// The first mistake.
    pub fn resolve(&self) -> Result<Allocation, AllocationError> {
        let read =
            |key, value: &Option<Written>, default| read(key, value, default, Source::Default);
        let memory = read(AllocationKey::Memory, &self.memory, MEMORY_DEFAULT)?;
        let size = memory.in_range()?.pages;
        let limit = read(AllocationKey::Limit, &self.limit, size)?;
        let reservation = read(AllocationKey::Reservation, &self.reservation, Pages::ZERO)?;
        let dynamic_max = read(AllocationKey::DynamicMax, &self.dynamic_max, limit.pages)?;
        let low = dynamic_min(size, reservation.pages, dynamic_max.pages);
        let sizes = Sizes {
            dynamic_min: read(AllocationKey::DynamicMin, &self.dynamic_min, low)?,
            memory,
            reservation,
            limit,
            dynamic_max,
        };
        sizes.allocation(self.shares(size)?.unwrap_or(per_mib(NORMAL, size)))
    }

    /// The allocation of a VM that had `old`: what is not written stays.
    ///
    /// # Errors
    /// The first mistake.
    pub fn change(&self, old: &Allocation) -> Result<Allocation, AllocationError> {
        if let Some(memory) = &self.memory {
            return Err(AllocationError::Fixed(memory.clone()));
        }
        let read = |key, value: &Option<Written>, old| read(key, value, old, Source::Given);
        let sizes = Sizes {
            memory: read(AllocationKey::Memory, &None, old.size)?,
            limit: read(AllocationKey::Limit, &self.limit, old.limit)?,
            reservation: read(
                AllocationKey::Reservation,
                &self.reservation,
                old.reservation,
            )?,
            dynamic_max: read(
                AllocationKey::DynamicMax,
                &self.dynamic_max,
                old.dynamic_max,
            )?,
            dynamic_min: read(
                AllocationKey::DynamicMin,
                &self.dynamic_min,
                old.dynamic_min,
            )?,
        };
        sizes.allocation(self.shares(old.size)?.unwrap_or(old.shares))
    }

    fn shares(&self, size: Pages) -> Result<Option<u64>, AllocationError> {
        let Some(written) = &self.shares else {
            return Ok(None);
        };
        let text = written.text();
        let preset = PRESETS.iter().find(|(name, _)| *name == text);
        let shares = match preset {
            Some((_, shares)) => Some(per_mib(*shares, size)),
            None => text.parse().ok().filter(|shares| *shares <= SHARES_MAX),
        };
        match shares {
            Some(_) => Ok(shares),
            None => Err(AllocationError::Shares(written.clone())),
        }
    }
}

/// The size that is written, or the one that stands for it.
fn read(
    key: AllocationKey,
    written: &Option<Written>,
    otherwise: Pages,
    source: Source,
) -> Result<Operand, AllocationError> {
    let Some(written) = written else {
        let pages = otherwise;
        return Ok(Operand { key, pages, source });
    };
    match parse_size(&written.text()) {
        Ok(pages) => Ok(Operand {
            key,
            pages,
            source: Source::Written(written.clone()),
        }),
        Err(source) => Err(AllocationError::Size {
            key,
            written: written.clone(),
            source,
        }),
    }
}

/// The sizes of an allocation that is still to be checked.
struct Sizes {
    memory: Operand,
    reservation: Operand,
    limit: Operand,
    dynamic_min: Operand,
    dynamic_max: Operand,
}

impl Sizes {
    /// The rules; nobody else has them.
    fn allocation(&self, shares: u64) -> Result<Allocation, AllocationError> {
        self.memory.in_range()?;
        self.limit.at_most(&self.memory)?;
        self.reservation.at_most(&self.limit)?;
        self.dynamic_max.at_most(&self.memory)?;
        self.dynamic_min.at_most(&self.dynamic_max)?;
        Ok(Allocation {
            size: self.memory.pages,
            reservation: self.reservation.pages,
            limit: self.limit.pages,
            shares,
            dynamic_min: self.dynamic_min.pages,
            dynamic_max: self.dynamic_max.pages,
        })
    }
}

/// One size of an allocation, for a message. Displays as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operand {
    /// Which.
    pub key: AllocationKey,
    /// How much.
    pub pages: Pages,
    /// Where it comes from.
    pub source: Source,
}

/// Where a size comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A user wrote it.
    Written(Written),
    /// It stands for what no user wrote.
    Default,
    /// The VM has it already, or a peer says so.
    Given,
}

impl Operand {
    fn at_most(&self, bound: &Operand) -> Result<(), AllocationError> {
        match self.pages <= bound.pages {
            true => Ok(()),
            false => Err(AllocationError::Order {
                low: self.clone(),
                high: bound.clone(),
            }),
        }
    }

    /// Whether memory is as large as a VM's may be.
    fn in_range(&self) -> Result<&Operand, AllocationError> {
        match (MEMORY_MIN..=MEMORY_MAX).contains(&self.pages) {
            true => Ok(self),
            false => Err(AllocationError::Memory(self.clone())),
        }
    }

    fn is_written(&self) -> bool {
        matches!(self.source, Source::Written(_))
    }
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Operand { key, pages, source } = self;
        match source {
            Source::Written(written) => write!(f, "`{key} = {written}`"),
            Source::Default => write!(f, "`{key}` ({pages} by default)"),
            Source::Given => write!(f, "`{key}` ({pages})"),
        }
    }
}

/// Keys that make no allocation. Displays as one line that names what the user wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllocationError {
    /// A text is not a size.
    Size {
        /// Which key.
        key: AllocationKey,
        /// As the user wrote it.
        written: Written,
        /// What is wrong with it.
        source: SizeError,
    },
    /// A text is not a weight, or the weight is too large.
    Shares(Written),
    /// The memory is less than any VM's or more.
    Memory(Operand),
    /// One size exceeds another that it must not exceed.
    Order {
        /// The one that should be less.
        low: Operand,
        /// The one that bounds it.
        high: Operand,
    },
    /// The memory of a VM that runs.
    Fixed(Written),
}

impl std::error::Error for AllocationError {}

impl fmt::Display for AllocationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AllocationError::Size {
                key,
                written,
                source,
            } => write!(f, "`{key} = {written}`: {source}"),
            AllocationError::Shares(written) => write!(
                f,
                "`shares = {written}`: must be high, normal, low or 0 to {SHARES_MAX}"
            ),
            AllocationError::Memory(memory) => write!(f, "{memory}: must be 1M to 512G"),
            // The user is told of the key that the user wrote.
            AllocationError::Order { low, high } if high.is_written() && !low.is_written() => {
                write!(f, "{high}: must be at least {low}")
            }
            AllocationError::Order { low, high } => write!(f, "{low}: must be at most {high}"),
            AllocationError::Fixed(written) => {
                write!(f, "`memory = {written}`: is fixed while the VM runs")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(pairs: &[(&str, &str)]) -> AllocationKeys {
        let mut keys = AllocationKeys::default();
        for (key, value) in pairs {
            keys.write(AllocationKey::named(key).unwrap(), Written::from(*value));
        }
        keys
    }

    #[test]
    fn defaults_follow_what_is_written() {
        assert_eq!(keys(&[]).resolve(), Ok(Allocation::of(MEMORY_DEFAULT)));
        let allocation = keys(&[("memory", "100M"), ("limit", "60M"), ("reservation", "40M")]);
        let expected = Allocation {
            size: Pages::mib(100),
            reservation: Pages::mib(40),
            limit: Pages::mib(60),
            shares: 1000,
            dynamic_min: Pages::mib(40),
            dynamic_max: Pages::mib(60),
        };
        assert_eq!(allocation.resolve(), Ok(expected));
        let low = keys(&[("memory", "100M"), ("dynamic_max", "20M")]).resolve();
        assert_eq!(low.unwrap().dynamic_min, Pages::mib(20));
    }

    #[test]
    fn presets_weigh_a_vm_by_its_memory_to_the_page() {
        // 25.5 MiB.
        for (preset, shares) in [("high", 510), ("normal", 255), ("low", 127)] {
            let new = keys(&[("memory", "26112K"), ("shares", preset)]).resolve();
            assert_eq!(new.unwrap().shares, shares);
            let old = Allocation::of(Pages(6528));
            let changed = keys(&[("shares", preset)]).change(&old).unwrap();
            assert_eq!(changed.shares, shares);
        }
    }

    #[test]
    fn a_change_leaves_the_rest() {
        let old = Allocation::of(Pages::mib(64));
        let new = keys(&[("limit", "32M")]).change(&old).unwrap();
        let limit = Pages::mib(32);
        assert_eq!(new, Allocation { limit, ..old });
    }

    #[test]
    fn mistakes_name_what_was_written() {
        let over = "must be at most";
        // (keys, line)
        let table: &[(&[(&str, &str)], String)] = &[
            (
                &[("limit", "128M"), ("reservation", "512M")],
                format!("`reservation = \"512M\"`: {over} `limit = \"128M\"`"),
            ),
            (
                &[("limit", "1G")],
                format!("`limit = \"1G\"`: {over} `memory` (256.0 MiB by default)"),
            ),
            (
                &[("memory", "4K")],
                "`memory = \"4K\"`: must be 1M to 512G".to_owned(),
            ),
            (
                &[("shares", "1000000001")],
                "`shares = \"1000000001\"`: must be high, normal, low or 0 to 1000000000"
                    .to_owned(),
            ),
        ];
        for (pairs, line) in table {
            assert_eq!(keys(pairs).resolve().unwrap_err().to_string(), *line);
        }
    }

    #[test]
    fn a_change_is_blamed_on_the_key_that_was_written() {
        let old = Allocation {
            reservation: Pages::mib(20),
            ..Allocation::of(Pages::mib(64))
        };
        let line = |pairs: &[(&str, &str)]| keys(pairs).change(&old).unwrap_err().to_string();
        assert_eq!(
            line(&[("limit", "10M")]),
            "`limit = \"10M\"`: must be at least `reservation` (20.0 MiB)"
        );
        assert_eq!(
            line(&[("limit", "65M")]),
            "`limit = \"65M\"`: must be at most `memory` (64.0 MiB)"
        );
        assert_eq!(
            line(&[("memory", "65M")]),
            "`memory = \"65M\"`: is fixed while the VM runs"
        );
    }

    #[test]
    fn a_peer_is_held_to_the_same_rules() {
        let good = Allocation::of(Pages::mib(64));
        assert_eq!(good.check(), Ok(()));
        let above = Pages::mib(65);
        let bad = [
            Allocation {
                limit: above,
                ..good
            },
            Allocation {
                reservation: above,
                ..good
            },
            Allocation {
                dynamic_min: above,
                ..good
            },
            Allocation {
                dynamic_max: above,
                ..good
            },
            Allocation {
                shares: SHARES_MAX + 1,
                ..good
            },
            Allocation {
                size: Pages::ZERO,
                ..good
            },
            Allocation {
                size: Pages(u64::MAX),
                ..good
            },
        ];
        for allocation in bad {
            assert!(allocation.check().is_err(), "{allocation:?}");
        }
        let limit = Allocation {
            limit: above,
            ..good
        };
        assert_eq!(
            limit.check().unwrap_err().to_string(),
            "`limit` (65.0 MiB): must be at most `memory` (64.0 MiB)"
        );
    }
}
