//! What a guest says of itself. Nobody trusts these figures.

use serde::{Deserialize, Serialize};

/// Figures of a built-in test guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestReport {
    /// Pages whose 4096 bytes were compared.
    pub pages_verified: u64,
    /// Pages that differed.
    pub pages_corrupt: u64,
}

/// The balloon statistics that policies read, in bytes or events, as the guest reports them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestMemoryStats {
    /// Memory swapped in by the guest, bytes since its boot.
    pub swap_in_bytes: Option<u64>,
    /// Memory swapped out by the guest, bytes since its boot.
    pub swap_out_bytes: Option<u64>,
    /// Major faults since boot.
    pub major_faults: Option<u64>,
    /// Minor faults since boot.
    pub minor_faults: Option<u64>,
    /// Free memory in bytes.
    pub free_bytes: Option<u64>,
    /// Usable memory in bytes.
    pub total_bytes: Option<u64>,
    /// Memory that can be had without swapping, bytes.
    pub available_bytes: Option<u64>,
    /// Disk caches, bytes.
    pub caches_bytes: Option<u64>,
}
