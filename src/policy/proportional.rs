//! Targets as XenServer's squeezed sets them: everybody at the same fraction of its dynamic range.
//!
//! ```text
//! surplus = max(0, free + sum(actual) - sum(dynamic_min) - 2 * inaccuracy * n - host_target)
//! gamma   = clamp(surplus / sum(dynamic_max - dynamic_min), 0, 1)
//! target  = dynamic_min + gamma * (dynamic_max - dynamic_min)
//! ```
//!
//! `actual` is what a VM consumes, `n` the number of VMs, `host_target` the high threshold (squeezed
//! has 72 MiB), `inaccuracy` one page. squeezed adds `max(0, actual - dynamic_min - 2 * inaccuracy)`
//! for each VM instead, because its domains own all their memory from the start; here a VM that
//! has not touched its minimum yet still has a right to it.
//!
//! Reads nothing from the guests and does not react to their need. A VM's floor is the larger of
//! `dynamic_min` (up to its limit) and `reservation`, its ceiling the smaller of `dynamic_max` and `limit`. Shrinking
//! before growing: `deflate`. Stuck guests: [`balloon`](super::balloon).
//!
//! Admission keeps the sum of the floors payable. If it is not (another policy ruled when the VMs
//! were admitted), floors count down to the reservations, and the plan says so.
//!
//! Source: xen-api `ocaml/squeezed/lib/squeeze.ml`, policy `Proportional`.

use super::Target;
use super::safeguard::Safeguard;
use super::settings::PolicySettings;
use super::state::Thresholds;
use super::supply::distributable;
use super::types::{Snapshot, VmSnapshot};
use super::why::{Rule, Why};
use super::wish::{self, Wish};
use crate::units::Pages;
use crate::words::Allocation;

/// A guest misses its target by at most this (squeezed: 4 KiB a domain).
pub const INACCURACY: Pages = Pages(1);

/// The least that a VM is squeezed to. A limit may be set below `dynamic_min`: it counts.
pub fn floor(allocation: &Allocation) -> Pages {
    let least = allocation.dynamic_min.min(allocation.ceiling());
    least.max(allocation.reservation)
}

/// The most that a VM is given.
fn ceiling(allocation: &Allocation) -> Pages {
    let most = allocation.dynamic_max.min(allocation.ceiling());
    most.max(floor(allocation))
}

/// One target for each VM, in the order of the snapshot.
pub fn targets(
    snapshot: &Snapshot,
    thresholds: &Thresholds,
    settings: &PolicySettings,
) -> Vec<Target> {
    let guards = settings.safeguards;
    let total = distributable(snapshot, thresholds);
    let floors: Pages = snapshot.vms.iter().map(|vm| floor(&vm.allocation)).sum();
    if floors > snapshot.budget.saturating_sub(snapshot.overhead) && guards.has(Safeguard::Floors) {
        let wish = |vm: &VmSnapshot| {
            let floor = floor(&vm.allocation);
            Wish::new(vm, floor, floor, Rule::DynamicMinimum)
        };
        return wish::fit(total, snapshot.vms.iter().map(wish).collect(), guards);
    }
    let inaccuracy = if guards.has(Safeguard::Inaccuracy) {
        Pages(2 * INACCURACY.0 * snapshot.vms.len() as u64)
    } else {
        Pages::ZERO
    };
    let surplus = total.saturating_sub(floors).saturating_sub(inaccuracy);
    let range: u64 = snapshot
        .vms
        .iter()
        .map(|vm| (ceiling(&vm.allocation) - floor(&vm.allocation)).0)
        .sum();
    let surplus = surplus.0.min(range);
    let percent = surplus * 100 / range.max(1);
    snapshot
        .vms
        .iter()
        .map(|vm| {
            let (floor, ceiling) = (floor(&vm.allocation), ceiling(&vm.allocation));
            let part =
                u128::from((ceiling - floor).0) * u128::from(surplus) / u128::from(range.max(1));
            let part = u64::try_from(part).expect("at most the VM's own range");
            Target {
                pages: floor + Pages(part),
                floor,
                why: Why::new(Rule::Range {
                    percent,
                    floor,
                    ceiling,
                }),
            }
        })
        .collect()
}
