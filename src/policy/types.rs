//! What policies read and what they decide.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Why;
use crate::units::Pages;
use crate::words::{Allocation, GuestMemoryStats, MemState, Run};

/// Names a VM for as long as the host manager runs; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmId(pub u32);

/// The whole host at one instant.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Time since the host manager started.
    pub now: Duration,
    /// Memory that all guests and their overheads may use together.
    pub budget: Pages,
    /// Memory that nobody holds: budget - credits - frames - overheads.
    pub free: Pages,
    /// Overhead of the host manager and all VM processes.
    pub overhead: Pages,
    /// In ascending order of `id`.
    pub vms: Vec<VmSnapshot>,
}

/// One VM at that instant. Measured unless it says that the guest says so.
#[derive(Debug, Clone, PartialEq)]
pub struct VmSnapshot {
    /// Which.
    pub id: VmId,
    /// What it is entitled to.
    pub allocation: Allocation,
    /// Memory that backs it: private pages, compressed store, its part of the shared frames.
    pub consumed: Pages,
    /// Its part of the shared frames (contained in `consumed`).
    pub frames: Pages,
    /// Private pages and compressed store, what its credit is for (contained in `consumed`).
    pub private: Pages,
    /// Pages its balloon holds.
    pub ballooned: Pages,
    /// Pages swapped or compressed.
    pub swapped: Pages,
    /// Counter: pages read or decompressed back on touch, since its start.
    pub swap_in_pages: u64,
    /// Further pages that it has asked for and was not granted.
    pub asked: Pages,
    /// Whether the guest's balloon driver is up.
    pub balloon_driver: bool,
    /// Estimated working set, once sampled.
    pub active: Option<Pages>,
    /// Memory of its VM process beside the guest's RAM (not contained in `consumed`).
    pub overhead: Pages,
    /// What the guest says about its memory.
    pub guest: GuestMemoryStats,
}

/// What shall happen until the next decision.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The host's memory state.
    pub state: MemState,
    /// One for each VM of the snapshot, in its order.
    pub vms: Vec<VmPlan>,
}

/// What one VM shall do.
#[derive(Debug, Clone, PartialEq)]
pub struct VmPlan {
    /// Which.
    pub id: VmId,
    /// Memory that it should consume at most when memory is short.
    pub target: Pages,
    /// Pages that its balloon should hold.
    pub balloon_target: Pages,
    /// How often its guest was asked for the memory that it has free.
    pub hint_rounds: u32,
    /// Swap or compress until private pages and compressed store together are at most this;
    /// `None`: do not swap. While it is set, the VM gives back the credit that it does not use, but for
    /// a quarter of a batch.
    pub private_max: Option<Pages>,
    /// What takes memory from it when memory is short.
    pub mechanism: Mechanism,
    /// Whether its vCPUs may run.
    pub run: Run,
    /// How its balloon behaves.
    pub conduct: Conduct,
    /// Which rule set the target.
    pub why: Why,
}

/// How a guest's balloon behaves.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
#[serde(rename_all = "lowercase")]
pub enum Conduct {
    /// It obeys, or nothing is asked of it: innocent until proven guilty.
    #[default]
    Cooperative,
    /// No progress for 5 s.
    Stuck,
    /// It has not done within 20 s what it was asked for.
    Uncooperative,
}

impl Conduct {
    /// Lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            Conduct::Cooperative => "cooperative",
            Conduct::Stuck => "stuck",
            Conduct::Uncooperative => "uncooperative",
        }
    }
}

/// What takes memory from a VM in state soft.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mechanism {
    /// Its balloon.
    Balloon,
    /// Swapping, because ballooning is not possible.
    Swap,
}
