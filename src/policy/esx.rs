//! Targets as VMware ESX sets them: shares within reservation and limit.
//!
//! `distributable = free + sum(consumed) - high`, where `high` is the free memory that state high
//! wants (6 %). In a snapshot whose books balance this is the budget less overheads, less that
//! reserve, less credit that VMs hold but do not use. Counting from what is free, not from the
//! budget, has a use: whenever free memory is below the reserve and a VM holds more than its
//! reservation, somebody is above the target, so there is always somebody to reclaim from.
//!
//! Each VM's part is `clamp(level * shares, reservation, min(limit, size))`, see [`fair`]. A VM that
//! uses less than its part keeps the claim on it but does not waste it: nothing is taken from
//! anybody before memory is short, and then only as much as is short (see
//! [`reclaim`](super::reclaim)).
//!
//! The idle-memory tax belongs in `weight`: in the equilibrium of min-funding revocation a VM
//! that is active on the fraction `f` of its memory holds pages in proportion to
//! `shares / (f + k * (1 - f))`, `k = 1 / (1 - tax)`. Here every page counts as active (`f = 1`).

use super::Target;
use super::fair::{self, Claim};
use super::state::Thresholds;
use super::types::{Snapshot, VmSnapshot};
use crate::units::Pages;

/// Memory that may be distributed among the VMs when it is short.
pub fn distributable(snapshot: &Snapshot, thresholds: &Thresholds) -> Pages {
    let consumed: Pages = snapshot.vms.iter().map(|vm| vm.consumed).sum();
    (snapshot.free + consumed)
        .min(snapshot.budget.saturating_sub(snapshot.overhead))
        .saturating_sub(thresholds.high)
}

/// One target for each VM, in the order of the snapshot.
///
/// `reservation <= target <= min(limit, size)`; their sum is at most [`distributable`], unless the
/// reservations alone are more.
pub fn targets(snapshot: &Snapshot, thresholds: &Thresholds) -> Vec<Target> {
    let total = distributable(snapshot, thresholds);
    let claims: Vec<Claim> = snapshot.vms.iter().map(claim).collect();
    let weights: u128 = claims.iter().map(|claim| u128::from(claim.weight)).sum();
    fair::split(total, &claims)
        .into_iter()
        .zip(&claims)
        .map(|(pages, claim)| Target {
            pages,
            why: explain(pages, claim, total, weights),
        })
        .collect()
}

fn claim(vm: &VmSnapshot) -> Claim {
    let ceiling = vm.allocation.limit.min(vm.allocation.size);
    Claim {
        floor: vm.allocation.reservation.min(ceiling),
        ceiling,
        weight: weight(vm),
    }
}

fn weight(vm: &VmSnapshot) -> u64 {
    vm.allocation.shares
}

fn explain(pages: Pages, claim: &Claim, total: Pages, weights: u128) -> String {
    if pages == claim.ceiling {
        format!("all it may have: {pages}")
    } else if pages == claim.floor {
        format!("its reservation: {pages}")
    } else {
        format!(
            "fair share {pages} of {total} ({} of {weights} shares)",
            claim.weight
        )
    }
}
