//! Keys that make no allocation.

use std::fmt;

use super::{AllocationKey, SHARES_MAX};
use crate::units::Pages;
use crate::words::Written;
use crate::words::size::SizeError;

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
    /// Less than all of the memory of a VM whose memory is not managed.
    Whole {
        /// What is less.
        operand: Operand,
        /// All of it.
        memory: Operand,
    },
    /// A limit under which a VM can hold nothing.
    Nothing(Operand),
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
            AllocationError::Whole { operand, memory } => write!(
                f,
                "{operand}: must be all of {memory}, which is not managed"
            ),
            AllocationError::Nothing(limit) => write!(
                f,
                "{limit}: must be a page at least; a VM without the key has no limit but its memory"
            ),
            AllocationError::Fixed(written) => {
                write!(f, "`memory = {written}`: is fixed while the VM runs")
            }
        }
    }
}
