//! The keys, as users write them.

use std::fmt;

use super::{
    Allocation, AllocationError, MEMORY_DEFAULT, NORMAL, Operand, PRESETS, SHARES_MAX, Sizes,
    Source, dynamic_min, per_mib,
};
use crate::units::Pages;
use crate::words::Written;
use crate::words::size::parse_size;

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

    /// The allocation of a new VM that is promised all of its memory, since none of it can be taken
    /// back: what is not written is the memory's size.
    ///
    /// # Errors
    /// The first mistake, such as a written size that is less than the memory.
    pub fn resolve_whole(&self) -> Result<Allocation, AllocationError> {
        let memory = read(
            AllocationKey::Memory,
            &self.memory,
            MEMORY_DEFAULT,
            Source::Default,
        )?;
        let size = memory.in_range()?.pages;
        let mut keys = self.clone();
        for (key, place) in [
            (AllocationKey::Reservation, &mut keys.reservation),
            (AllocationKey::Limit, &mut keys.limit),
            (AllocationKey::DynamicMin, &mut keys.dynamic_min),
            (AllocationKey::DynamicMax, &mut keys.dynamic_max),
        ] {
            let operand = read(key, place, size, Source::Default)?;
            if operand.pages < size {
                let memory = memory.clone();
                return Err(AllocationError::Whole { operand, memory });
            }
            place.get_or_insert(Written::from(size));
        }
        keys.resolve()
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
