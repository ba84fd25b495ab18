//! What is wanted back from each VM, and what of that is asked of its balloon.
//!
//! The rule is told in [`reclaim`](super::reclaim), which turns it into a plan.

use super::ceiling::{cannot_balloon, ceiling, directed_ceiling};
use super::state::Thresholds;
use super::types::{Snapshot, VmSnapshot};
use super::{Manner, PolicyState, Target};
use crate::units::Pages;

/// A directed balloon at rest gives back nothing when it should give back less (squeezed: 512 KiB)...
const DEAD_BAND: Pages = Pages(128);
/// ... and nearer than size / this, for small guests. Chosen.
const DEAD_BAND_DIVISOR: u64 = 512;

/// Pages wanted back from one VM.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Take {
    /// Towards the high threshold, and down to the limit: by ballooning.
    pub(super) all: Pages,
    /// What of that is taken by swapping if need be: nothing in state high.
    pub(super) urgent: Pages,
    /// The part above the limit, due in any state.
    pub(super) over_limit: Pages,
    /// The part of it that the guest itself waits for. Its balloon cannot make that room: the
    /// driver waits, too.
    pub(super) stalled: Pages,
    /// What neighbours wait for and this VM should give: by swapping if its balloon refuses.
    pub(super) awaited: Pages,
}

/// What is wanted back from each VM, in the order of the snapshot; `swapped_to` is the free memory that
/// swapping works towards, `owed` what balloons keep from VMs below their targets.
pub(super) fn takes(
    snapshot: &Snapshot,
    swapped_to: Pages,
    thresholds: &Thresholds,
    targets: &[Target],
    owed: Pages,
) -> Vec<Take> {
    let excess: Vec<Pages> = snapshot
        .vms
        .iter()
        .zip(targets)
        .map(|(vm, target)| vm.consumed.saturating_sub(target.pages))
        .collect();
    let total: Pages = excess.iter().copied().sum();
    let short = (thresholds.high + owed)
        .saturating_sub(snapshot.free)
        .min(total);
    let urgent = swapped_to.saturating_sub(snapshot.free).min(total);
    snapshot
        .vms
        .iter()
        .zip(excess)
        .map(|(vm, excess)| {
            let limit = vm.allocation.ceiling();
            // Who may hold its whole size never has to make room for more.
            let asked = if limit < vm.allocation.size {
                vm.asked
            } else {
                Pages::ZERO
            };
            let over_limit = Pages(vm.consumed.0.saturating_add(asked.0))
                .saturating_sub(limit)
                .min(vm.consumed);
            Take {
                all: part(short, excess, total).max(over_limit),
                urgent: part(urgent, excess, total),
                over_limit,
                stalled: over_limit.min(asked),
                awaited: Pages::ZERO,
            }
        })
        .collect()
}

/// What neighbours wait for, as a part of what each VM holds above its target.
pub(super) fn awaited(unmet: Pages, snapshot: &Snapshot, targets: &[Target]) -> Vec<Pages> {
    let excess = |index: usize| {
        snapshot.vms[index]
            .consumed
            .saturating_sub(targets[index].pages)
    };
    let total: Pages = (0..targets.len()).map(excess).sum();
    let unmet = unmet.min(total);
    (0..targets.len())
        .map(|index| part(unmet, excess(index), total))
        .collect()
}

/// `ceil(of * excess / total)`.
fn part(of: Pages, excess: Pages, total: Pages) -> Pages {
    if of == Pages::ZERO {
        return Pages::ZERO;
    }
    let part = (u128::from(of.0) * u128::from(excess.0)).div_ceil(u128::from(total.0.max(1)));
    Pages(u64::try_from(part).expect("at most the excess, which is a u64"))
}

/// What is asked of one VM's balloon.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask {
    pub(super) take: Take,
    /// Whether the balloon cannot make up for it, as far as was known before this decision.
    pub(super) refuses: bool,
    /// Pages that the balloon should hold beyond what it does.
    pub(super) inflate: Pages,
    /// Pages that the balloon holds, or was asked for, and need not: wanted back by the guest.
    pub(super) deflate: Pages,
    /// What the balloon is asked to hold in the end, at most.
    pub(super) goal: Pages,
    /// What it may ever be asked to hold.
    pub(super) ceiling: Pages,
}

impl Ask {
    pub(super) fn new(vm: &VmSnapshot, target: &Target, take: Take, state: &PolicyState) -> Ask {
        let order = state.order(vm.id);
        let guards = state.settings.safeguards;
        let known = state.balloons.get(&vm.id).copied().unwrap_or_default();
        let refuses = |ceiling| cannot_balloon(vm, ceiling, &known, guards).is_some();
        match state.kind.manner() {
            Manner::OnDemand => {
                let ceiling = ceiling(vm, guards);
                Ask {
                    take,
                    refuses: refuses(ceiling),
                    inflate: take.all,
                    deflate: wanted_on_demand(vm, take, order),
                    goal: ceiling,
                    ceiling,
                }
            }
            Manner::Directed => {
                let ceiling = directed_ceiling(vm, target, guards);
                let size = vm.allocation.size;
                let goal = size.saturating_sub(target.pages).min(ceiling);
                // A balloon at rest does not give back next to nothing.
                let rests = vm.ballooned == order && goal < order;
                let near =
                    order.saturating_sub(goal).0 <= DEAD_BAND.0.min(size.0 / DEAD_BAND_DIVISOR);
                let goal = if rests && near { order } else { goal };
                Ask {
                    take,
                    refuses: refuses(ceiling),
                    inflate: goal.saturating_sub(vm.ballooned),
                    deflate: order.min(vm.ballooned).saturating_sub(goal),
                    goal,
                    ceiling,
                }
            }
        }
    }
}

/// How much an on-demand balloon may give back: all of it, as far as the VM's limit allows.
fn wanted_on_demand(vm: &VmSnapshot, take: Take, order: Pages) -> Pages {
    let limit = vm.allocation.ceiling();
    // A VM that may hold its whole size needs no check against its limit: what it holds beside
    // the balloon can never be more.
    let growth = if limit == vm.allocation.size && take.over_limit == Pages::ZERO {
        order
    } else {
        limit.saturating_sub(vm.consumed).min(order)
    };
    growth.min(vm.ballooned)
}
