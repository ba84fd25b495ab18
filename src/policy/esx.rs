//! Targets as VMware ESX sets them: shares within reservation and limit.
//!
//! Each VM's part is `clamp(level * shares, reservation, min(limit, size))`, see [`fair`]. A VM that
//! uses less than its part keeps the claim on it but does not waste it: nothing is taken from
//! anybody before memory is short, or before a balloon keeps memory from a VM below its target, and
//! then only as much as is short (see [`reclaim`](super::reclaim)).
//!
//! **Idle-memory tax.** Memory that a VM is not using costs it more shares than memory in use:
//! `rho = S / (P * (f + k * (1 - f)))`, `k = 1 / (1 - tax)`, with shares `S`, pages `P`, active
//! fraction `f`; the victim is the VM with the lowest `rho` (min-funding revocation). The targets are
//! the fixed point of taking from the lowest `rho` until all pay the same, computed in
//! [`fair`]. The active memory `f * P` is what sampling estimates ([`sampling`](super::sampling)).
//! A VM that has not been sampled is not taxed: everything it holds counts as active.
//!
//! Default tax 75 %. Source: Waldspurger, sections 5.1 to 5.3.

use super::Target;
use super::fair::{self, Claim};
use super::safeguard::Safeguard;
use super::settings::PolicySettings;
use super::state::Thresholds;
use super::supply::distributable;
use super::types::{Snapshot, VmSnapshot};
use super::why::{Rule, Taxed, Why};
use crate::units::Pages;

/// One target for each VM, in the order of the snapshot.
///
/// `reservation <= target <= min(limit, size)`; their sum is at most what `supply` has, unless the
/// reservations alone are more.
pub fn targets(
    snapshot: &Snapshot,
    thresholds: &Thresholds,
    settings: &PolicySettings,
) -> Vec<Target> {
    let total = distributable(snapshot, thresholds);
    let claims: Vec<Claim> = snapshot.vms.iter().map(|vm| claim(vm, settings)).collect();
    let weights: u128 = claims.iter().map(|claim| u128::from(claim.weight)).sum();
    let tax = settings.idle_tax.percent();
    let rule = |pages: Pages, claim: &Claim, vm: &VmSnapshot| {
        if pages == claim.ceiling {
            Rule::Ceiling(pages)
        } else if pages == claim.floor {
            Rule::Reservation(pages)
        } else {
            Rule::Share {
                pages,
                total,
                shares: claim.weight,
                weights,
                taxed: match vm.active {
                    None => Taxed::NotSampled,
                    Some(_) if tax == 0 => Taxed::Untaxed,
                    Some(active) => Taxed::Active(active, tax),
                },
            }
        }
    };
    fair::split(total, &claims, settings.idle_tax)
        .into_iter()
        .zip(&claims)
        .zip(&snapshot.vms)
        .map(|((pages, claim), vm)| Target {
            pages,
            floor: claim.floor,
            why: Why::new(rule(pages, claim, vm)),
        })
        .collect()
}

fn claim(vm: &VmSnapshot, settings: &PolicySettings) -> Claim {
    let ceiling = vm.allocation.ceiling();
    let floor = if settings.safeguards.has(Safeguard::Floors) {
        vm.allocation.reservation.min(ceiling)
    } else {
        Pages::ZERO
    };
    Claim {
        floor,
        ceiling,
        weight: vm.allocation.shares,
        active: vm.active.unwrap_or(ceiling),
    }
}
