//! What a page is compared by, first.

use serde::{Deserialize, Serialize};

/// A page's key: its seeded XXH3-64. A candidate for sharing, never proof of equality.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Key(pub u64);

impl Key {
    /// Stands for no key in tables: a page whose key it is is not shared, one in 2^64.
    pub const NONE: Key = Key(0);
}
