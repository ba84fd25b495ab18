//! Which balloons may shrink now: growths come after the shrinks that pay for them.
//!
//! | manner | room | wait |
//! |---|---|---|
//! | on demand | free above the high threshold by the low one (7 % in all) | [`ROOM_FOR`] without a break, then anew |
//! | on demand, up to the VM's target | free above the high threshold | none |
//! | directed | free above the high threshold, and not promised to guests that may still grow into it | none |
//!
//! Both count memory that is free *in the snapshot*, less what was ordered before and is not done
//! yet. A directed balloon gives its guest the right to grow, so memory counts as promised from
//! then on, whether the guest has touched it or not: the allotment of a guest is `size - balloon`.
//! The room is split in proportion to what each VM wants.
//!
//! Source: squeezed's two phases (all shrinkers first, growers when no shrinker is outstanding).

use std::time::Duration;

use super::ask::Ask;
use super::safeguard::Safeguard;
use super::state::Thresholds;
use super::types::{Snapshot, VmSnapshot};
use super::{Manner, PolicyState, Target};
use crate::units::Pages;
use crate::words::MemState;

/// There must be room for so long before memory is given back. Chosen: ten reports of a VM.
pub const ROOM_FOR: Duration = Duration::from_secs(1);

/// What grows now, and what should but cannot.
pub(super) struct Growth {
    /// By how much each balloon may shrink.
    pub(super) allowed: Vec<Pages>,
    /// What balloons should give back and there is no room for; for directed ones also what is
    /// short: neighbours wait for it.
    pub(super) unmet: Pages,
}

/// What an on-demand balloon keeps from a VM that is below its target: others owe it that.
pub(super) fn owed(snapshot: &Snapshot, targets: &[Target], state: &PolicyState) -> Vec<Pages> {
    let owed = |(vm, target): (&VmSnapshot, &Target)| match state.kind.manner() {
        Manner::OnDemand => target
            .pages
            .saturating_sub(vm.consumed)
            .min(state.order(vm.id))
            .min(vm.ballooned),
        Manner::Directed => Pages::ZERO,
    };
    snapshot.vms.iter().zip(targets).map(owed).collect()
}

/// By how much each balloon may shrink now.
pub(super) fn plan(
    snapshot: &Snapshot,
    thresholds: &Thresholds,
    targets: &[Target],
    asks: &[Ask],
    owed: &[Pages],
    state: &mut PolicyState,
) -> Growth {
    let manner = state.kind.manner();
    let total_owed: Pages = owed.iter().copied().sum();
    let mut wants: Vec<Pages> = asks.iter().map(|ask| ask.deflate).collect();
    let mut unmet = total_owed;
    let room = match manner {
        Manner::OnDemand => match waited_for(snapshot, thresholds, state) {
            Pages::ZERO if total_owed > Pages::ZERO => {
                wants = owed.to_vec();
                let room = snapshot.free.saturating_sub(thresholds.high);
                unmet = total_owed.saturating_sub(room);
                room
            }
            room => room,
        },
        Manner::Directed => unpromised(snapshot, thresholds, targets, asks),
    };
    // What was ordered before and is not done yet will use free memory too.
    let pending: Pages = snapshot
        .vms
        .iter()
        .map(|vm| vm.ballooned.saturating_sub(state.order(vm.id)))
        .sum();
    let room = room.saturating_sub(pending);
    let wanted: Pages = wants.iter().copied().sum();
    let two_phase = state.settings.safeguards.has(Safeguard::TwoPhase);
    let allowed = wants.iter().map(|&want| {
        if two_phase {
            share(room, want, wanted)
        } else {
            want
        }
    });
    Growth {
        allowed: allowed.collect(),
        unmet: match manner {
            Manner::OnDemand => unmet,
            Manner::Directed => {
                wanted.saturating_sub(room) + thresholds.high.saturating_sub(snapshot.free)
            }
        },
    }
}

fn share(room: Pages, wanted: Pages, total: Pages) -> Pages {
    let part = u128::from(room.0) * u128::from(wanted.0) / u128::from(total.0.max(1));
    Pages(u64::try_from(part).unwrap_or(u64::MAX)).min(wanted)
}

/// On demand: what is free beyond both thresholds, once it has been for long enough.
fn waited_for(snapshot: &Snapshot, thresholds: &Thresholds, state: &mut PolicyState) -> Pages {
    let room = snapshot
        .free
        .saturating_sub(thresholds.high + thresholds.low);
    if state.mem_state != MemState::High || room == Pages::ZERO {
        state.room_since = None;
        return Pages::ZERO;
    }
    let since = *state.room_since.get_or_insert(snapshot.now);
    if snapshot.now.saturating_sub(since) < ROOM_FOR {
        return Pages::ZERO;
    }
    state.room_since = Some(snapshot.now);
    room
}

/// Directed: what is free and not promised.
fn unpromised(
    snapshot: &Snapshot,
    thresholds: &Thresholds,
    targets: &[Target],
    asks: &[Ask],
) -> Pages {
    let promised: Pages = snapshot
        .vms
        .iter()
        .zip(targets)
        .zip(asks)
        .map(|((vm, target), ask)| {
            let allotment = vm.allocation.size.saturating_sub(vm.ballooned);
            // A VM whose balloon refuses is swapped down to its target: more is not promised to it.
            let allotment = if ask.refuses {
                allotment.min(target.pages)
            } else {
                allotment
            };
            allotment.max(vm.consumed)
        })
        .sum();
    let unpromised = snapshot
        .budget
        .saturating_sub(snapshot.overhead)
        .saturating_sub(thresholds.high)
        .saturating_sub(promised);
    snapshot
        .free
        .saturating_sub(thresholds.high)
        .min(unpromised)
}
