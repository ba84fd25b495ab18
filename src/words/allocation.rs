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
//! | `limit` | a page to `memory` | `memory` |
//! | `shares` | 0 to 10^9, or `high`, `normal`, `low`: 20, 10, 5 for each MiB of `memory` | `normal` |
//! | `dynamic_max` | up to `memory` | `limit` |
//! | `dynamic_min` | up to `dynamic_max` | a quarter of `memory`, at least `reservation`, at most `dynamic_max` |
//!
//! Sources: the presets are ESX's. The quarter is the least that XenServer supports.

mod error;
mod keys;

use serde::{Deserialize, Serialize};

use super::Written;
use crate::units::{PAGES_MAX, Pages};

pub use self::error::{AllocationError, Operand, Source};
pub use self::keys::{AllocationKey, AllocationKeys};

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

/// What a VM is entitled to: `reservation <= limit <= size`, `limit > 0`, `dynamic_min <= dynamic_max <= size`. One that
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
    // Of a size that was not checked yet, too.
    shares.saturating_mul(size.bytes()) / Pages::mib(1).bytes()
}

fn dynamic_min(size: Pages, reservation: Pages, dynamic_max: Pages) -> Pages {
    Pages(size.0 / DYNAMIC_MIN_DIVISOR)
        .max(reservation)
        .min(dynamic_max)
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
        if self.limit.pages == Pages::ZERO {
            return Err(AllocationError::Nothing(self.limit.clone()));
        }
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
}

#[cfg(test)]
mod tests;
