//! How far a balloon can go: what it may ever hold, and why it can take nothing more now.

use std::fmt;

use super::Target;
use super::balloon::BalloonRecord;
use super::safeguard::{Safeguard, Safeguards};
use super::types::VmSnapshot;
use crate::units::Pages;

/// Largest balloon, percent of the VM's size (ESX `Mem.CtlMaxPercent`).
const BALLOON_MAX_PERCENT: u64 = 65;
/// Memory that ballooning always leaves a guest, whatever the percentage says. Chosen: a stock
/// Linux 6.12 guest lived with 6 MiB free and killed its workload with 2 MiB free.
const GUEST_MIN: Pages = Pages::mib(16);
/// Available memory, as the guest reports it, below which its balloon is not inflated further.
/// Chosen, above the measured 6 MiB.
const GUEST_AVAILABLE_MIN: Pages = Pages::mib(8);

/// Why a balloon can take nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    NoDriver,
    AtCeiling,
    /// By the guest's own statistics.
    GuestSpent,
    Stuck,
}

impl fmt::Display for Refusal {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(match self {
            Refusal::NoDriver => "no balloon driver",
            Refusal::AtCeiling => "balloon at its ceiling",
            Refusal::GuestSpent => "the guest says that it has no memory left to give",
            Refusal::Stuck => "balloon stuck",
        })
    }
}

/// Why this VM's balloon can take nothing more, if so.
pub(super) fn cannot_balloon(
    vm: &VmSnapshot,
    ceiling: Pages,
    record: &BalloonRecord,
    guards: Safeguards,
) -> Option<Refusal> {
    if !vm.balloon_driver {
        Some(Refusal::NoDriver)
    } else if vm.ballooned >= ceiling {
        Some(Refusal::AtCeiling)
    } else if guest_spare(vm, guards) == Some(Pages::ZERO) && guards.has(Safeguard::Measured) {
        Some(Refusal::GuestSpent)
    } else if record.is_stuck() {
        Some(Refusal::Stuck)
    } else {
        None
    }
}

/// The most that this VM's balloon is asked to hold: 65 % of its size, and 16 MiB are left.
pub(super) fn balloon_ceiling(vm: &VmSnapshot) -> Pages {
    let size = vm.allocation.size;
    Pages(size.0 * BALLOON_MAX_PERCENT / 100).min(size.saturating_sub(GUEST_MIN))
}

pub(super) fn ceiling(vm: &VmSnapshot, guards: Safeguards) -> Pages {
    if guards.has(Safeguard::GuestMinimum) {
        balloon_ceiling(vm)
    } else {
        vm.allocation.size
    }
}

/// The most that a directed balloon is asked to hold: all but the policy's floor, or 16 MiB.
pub(super) fn directed_ceiling(vm: &VmSnapshot, target: &Target, guards: Safeguards) -> Pages {
    let left = if guards.has(Safeguard::GuestMinimum) {
        target.floor.max(GUEST_MIN)
    } else {
        Pages::ZERO
    };
    vm.allocation.size.saturating_sub(left)
}

/// What the guest says that it can still give, if it says anything.
pub(super) fn guest_spare(vm: &VmSnapshot, guards: Safeguards) -> Option<Pages> {
    if !guards.has(Safeguard::GuestMinimum) {
        return None;
    }
    let available = Pages::in_bytes(vm.guest.available_bytes?);
    Some(available.saturating_sub(GUEST_AVAILABLE_MIN))
}
