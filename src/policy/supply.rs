//! What a policy has to distribute.
//!
//! `distributable = free + sum(consumed) - high`, where `high` is the free memory that state high
//! wants (6 %). In a snapshot whose books balance this is the budget less overheads, less that
//! reserve, less credit that VMs hold but do not use. Counting from what is free, not from the
//! budget, has a use: whenever free memory is below the reserve and a VM holds more than its
//! reservation, somebody is above the target, so there is always somebody to reclaim from.

use super::state::Thresholds;
use super::types::Snapshot;
use crate::units::Pages;

/// Memory that may be distributed among the VMs when it is short.
pub fn distributable(snapshot: &Snapshot, thresholds: &Thresholds) -> Pages {
    let consumed: Pages = snapshot.vms.iter().map(|vm| vm.consumed).sum();
    (snapshot.free + consumed)
        .min(snapshot.budget.saturating_sub(snapshot.overhead))
        .saturating_sub(thresholds.high)
}
