//! What a page is compared by, first.

use serde::{Deserialize, Serialize};

/// A page's key: its seeded XXH3-64. A candidate for sharing, never proof of equality.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Key(pub u64);
