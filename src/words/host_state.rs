//! How short the host is of memory, and what that means for a VM's vCPUs.

use serde::{Deserialize, Serialize};

/// The free-memory states of the host, as ESX names them.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
#[serde(rename_all = "lowercase")]
pub enum MemState {
    /// Enough is free: nothing is reclaimed.
    #[default]
    High,
    /// Ballooning.
    Soft,
    /// Ballooning and swapping.
    Hard,
    /// And VMs above their target are blocked.
    Low,
}

impl MemState {
    /// Lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            MemState::High => "high",
            MemState::Soft => "soft",
            MemState::Hard => "hard",
            MemState::Low => "low",
        }
    }
}

/// Whether a VM's vCPUs may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Run {
    /// They run.
    Go,
    /// They wait: the host is in state low and the VM is above its target.
    Block,
}
