//! The one line that a configuration mistake gets.

use std::path::PathBuf;

use super::open::Unfit;
use crate::words::allocation::AllocationError;

/// Where flags are written, in messages.
pub const COMMAND_LINE: &str = "command line";

/// A configuration mistake. Displays as one line: where, key, value, what it must be.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The fleet file cannot be read.
    #[error("{}: cannot read the fleet file: {source}", path.display())]
    Read {
        /// The fleet file.
        path: PathBuf,
        /// Why.
        source: Unfit,
    },
    /// The fleet file is no TOML, or a key is unknown or of the wrong type.
    #[error("{}:{line}: {problem}", path.display())]
    Syntax {
        /// The fleet file.
        path: PathBuf,
        /// Line number from 1.
        line: usize,
        /// Key and what is allowed.
        problem: String,
    },
    /// A value is not allowed.
    #[error("{place}: `{key} = {value}`: {problem}")]
    Value {
        /// The file or "command line", and the table.
        place: String,
        /// Which key.
        key: String,
        /// As the user wrote it.
        value: String,
        /// What is wrong with it, and what would be right.
        problem: String,
    },
    /// The allocation keys of a VM do not fit together.
    #[error("{place}: {source}")]
    Allocation {
        /// The file or "command line", and the table.
        place: String,
        /// Why.
        source: AllocationError,
    },
    /// A key that must be there is not.
    #[error("{place}: {problem}")]
    Missing {
        /// The file or "command line", and the table.
        place: String,
        /// What is missing, and what is allowed.
        problem: String,
    },
}
