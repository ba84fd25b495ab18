//! The two ways of taking a page out of a guest.

use serde::{Deserialize, Serialize};

/// How a VM process takes pages out of its guest; the names of the JSON contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TakePath {
    /// UFFDIO_MOVE moves the page itself (Linux 6.8 and later).
    Move,
    /// Write-protect, copy, drop.
    Copy,
}

impl TakePath {
    /// `move` or `copy`.
    pub fn name(self) -> &'static str {
        match self {
            TakePath::Move => "move",
            TakePath::Copy => "copy",
        }
    }
}
