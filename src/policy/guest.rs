//! What a guest uses, from its own figures as far as it has any, bounded by what is measured.
//!
//! The balloon's statistics queue has no `Committed_AS` and no "used". What stands for it, in order:
//!
//! | the guest reports | its use is |
//! |---|---|
//! | total and available | `total - available - balloon + swapped by itself` |
//! | total and free | `total - free - caches - balloon + swapped by itself` |
//! | nothing | what it is measured to hold, swapped pages included |
//!
//! The balloon counts as far as `total` contains it: Linux takes it out of its total unless the driver
//! deflates on out-of-memory (`adjust_managed_page_count` in `drivers/virtio/virtio_balloon.c`), and what
//! total and balloon have beyond the VM's size is in both.
//!
//! A guest is never believed to use more than it is measured to hold: who claims too much would be
//! paid by its neighbours.

use super::safeguard::{Safeguard, Safeguards};
use super::types::VmSnapshot;
use crate::units::Pages;

/// What a guest uses, and how that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Usage {
    /// In use.
    pub(super) pages: Pages,
    /// For people.
    pub(super) source: &'static str,
}

/// What the guest uses.
pub(super) fn usage(vm: &VmSnapshot, guards: Safeguards) -> Usage {
    let measured = Pages(vm.consumed.0.saturating_add(vm.swapped.0));
    let Some(claimed) = claimed(vm) else {
        return Usage {
            pages: measured,
            source: "measured: the guest reports nothing",
        };
    };
    if claimed > measured && guards.has(Safeguard::Measured) {
        return Usage {
            pages: measured,
            source: "measured: the guest says more",
        };
    }
    Usage {
        pages: claimed.min(vm.allocation.size),
        source: "as the guest says",
    }
}

fn claimed(vm: &VmSnapshot) -> Option<Pages> {
    let guest = &vm.guest;
    let unused = match (guest.available_bytes, guest.free_bytes) {
        (Some(available), _) => available,
        (None, Some(free)) => free.saturating_add(guest.caches_bytes.unwrap_or(0)),
        (None, None) => return None,
    };
    let own_swap = guest
        .swap_out_bytes
        .unwrap_or(0)
        .saturating_sub(guest.swap_in_bytes.unwrap_or(0));
    let total = guest.total_bytes?;
    let ballooned = vm.ballooned.bytes();
    let twice = total
        .saturating_add(ballooned)
        .saturating_sub(vm.allocation.size.bytes())
        .min(ballooned);
    let used = total.saturating_sub(unused).saturating_sub(twice);
    Some(Pages::in_bytes(used.saturating_add(own_swap)))
}
