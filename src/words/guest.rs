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

/// The balloon statistics, in bytes or events since the guest's boot, as the guest reports them.
/// Those of its own reclaim come with Linux 6.12. `None`: it does not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestMemoryStats {
    /// Memory swapped in by the guest, bytes.
    pub swap_in_bytes: Option<u64>,
    /// Memory swapped out by the guest, bytes.
    pub swap_out_bytes: Option<u64>,
    /// Major faults.
    pub major_faults: Option<u64>,
    /// Minor faults.
    pub minor_faults: Option<u64>,
    /// Free memory in bytes.
    pub free_bytes: Option<u64>,
    /// Usable memory in bytes.
    pub total_bytes: Option<u64>,
    /// Memory that can be had without swapping, bytes.
    pub available_bytes: Option<u64>,
    /// Disk caches, bytes.
    pub caches_bytes: Option<u64>,
    /// Processes that the guest killed because it had no memory left.
    pub oom_kills: Option<u64>,
    /// Allocations that had to wait until the guest had freed memory.
    pub alloc_stalls: Option<u64>,
    /// Memory that the guest looked through in the background for some to free, bytes.
    pub async_scan_bytes: Option<u64>,
    /// The same while an allocation waited, bytes.
    pub direct_scan_bytes: Option<u64>,
    /// What it freed in the background, bytes.
    pub async_reclaim_bytes: Option<u64>,
    /// What it freed while an allocation waited, bytes.
    pub direct_reclaim_bytes: Option<u64>,
}
