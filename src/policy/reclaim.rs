//! Which mechanism makes up the difference between what VMs hold and what they should.
//!
//! **How much.** When free memory is below the high threshold, `short = high - free` pages are
//! wanted back. They are taken from the VMs above their target, from each in proportion to how far
//! it is above, and never below its target: `take = ceil(short * excess / sum(excess))`. What a balloon
//! keeps from a VM that is below its target counts as short too: it is taken from the VMs above theirs.
//! A VM above its *limit* gives that part back in any state; one that waits for pages at its limit
//! makes room for them itself, by swapping, because a guest that waits for memory cannot serve its
//! balloon. One that cannot be ballooned is capped before it gets there: it would ask on, and be told
//! to swap what it asked for, in every second decision.
//!
//! **By what.**
//!
//! | state | balloon | swap | vCPUs |
//! |---|---|---|---|
//! | high, free >= 6 % | deflates as room allows | - | run |
//! | high, free < 6 % | inflates towards 6 % free | below 4.5 %: no growth where ballooning is not possible | run |
//! | soft | inflates towards 6 % free | towards 6 %, where ballooning is not possible | run |
//! | hard | the same | towards 5 %, everybody | run |
//! | low | the same | the same | blocked above the target |
//!
//! Below 8 % free, whatever the state, guests are also asked for what they have free, see
//! `hint`.
//!
//! That is the manner of ESX ([`Manner::OnDemand`]): who has more than its target keeps it until
//! somebody needs it. The policies of the Xen family are [`Manner::Directed`]: a balloon holds
//! `size - target` in every state, so that a guest can never use more. The table's columns for
//! swapping and blocking are the same, but that swapping in state soft begins below 4 % and ends at 5;
//! and a guest above its target that cannot be ballooned is
//! swapped in state high too, but only as far as neighbours, or the reserve, wait for what it does
//! not give. Beyond that it is kept at what it holds.
//!
//! **The balloon loop is closed.** A guest first gives pages that it never touched or that are free
//! anyway: those lower nothing. So the order is not "so many pages" once, but "that many more than
//! the balloon is measured to hold", again in every decision, until consumption falls or the balloon
//! is at its ceiling. The order never leads the measurement by more than `STEP_DIVISOR` allows, so
//! it ends as soon as the need does.
//!
//! **Ballooning is not possible** without a driver, at the ceiling, for a guest that says it has
//! nothing left, and when the balloon is *stuck* (see [`balloon`](super::balloon)). A stuck guest
//! keeps its order.
//!
//! **Giving back** never counts on a shrink that is merely ordered, see `deflate`.

use std::time::Duration;

use super::ask::{self, Ask};
use super::balloon::{BalloonRecord, Shortage};
use super::ceiling::{Refusal, cannot_balloon, guest_spare};
use super::deflate;
use super::safeguard::Safeguards;
use super::state::Thresholds;
use super::types::{Mechanism, Snapshot, VmPlan, VmSnapshot};
use super::why::Why;
use super::{Manner, PolicyState, Target};
use crate::units::Pages;
use crate::words::{MemState, Run};

/// A balloon order leads the measured balloon by at most size / this. Chosen: 16 MiB for a guest of
/// 256 MiB, about what a guest can give between two decisions.
const STEP_DIVISOR: u64 = 16;
/// And by at least this, so that small needs do not take many rounds. Chosen.
const STEP_MIN: Pages = Pages(64);
/// Whoever comes so near to its limit, as a part of it, is capped there. Chosen: more than is asked for
/// at a time.
const NEAR_LIMIT_DIVISOR: u64 = 64;

/// What is the same for all VMs of one decision.
struct Situation {
    mem_state: MemState,
    manner: Manner,
    follows_guest: bool,
    shortage: Shortage,
    /// Memory is so short that nobody grows beyond its target who cannot be ballooned.
    pressed: bool,
    now: Duration,
    guards: Safeguards,
}

/// The plan of every VM, in the order of the snapshot, which `targets` has too.
pub fn plan(
    snapshot: &Snapshot,
    thresholds: &Thresholds,
    targets: Vec<Target>,
    state: &mut PolicyState,
) -> Vec<VmPlan> {
    let owed = deflate::owed(snapshot, &targets, state);
    let takes = ask::takes(
        snapshot,
        swapped_to(snapshot, thresholds, state),
        thresholds,
        &targets,
        owed.iter().copied().sum(),
    );
    let asks: Vec<Ask> = snapshot
        .vms
        .iter()
        .zip(&targets)
        .zip(takes)
        .map(|((vm, target), take)| Ask::new(vm, target, take, state))
        .collect();
    let growth = deflate::plan(snapshot, thresholds, &targets, &asks, &owed, state);
    let awaited = ask::awaited(growth.unmet, snapshot, &targets);
    let situation = Situation {
        mem_state: state.mem_state,
        manner: state.kind.manner(),
        follows_guest: state.kind.follows_guest(),
        pressed: state.mem_state > MemState::High || snapshot.free < thresholds.hold_below(),
        shortage: if thresholds.near_soft(snapshot.free) {
            Shortage::Near
        } else {
            Shortage::None
        },
        now: snapshot.now,
        guards: state.settings.safeguards,
    };
    let mut plans = Vec::with_capacity(snapshot.vms.len());
    for (index, (target, mut ask)) in targets.into_iter().zip(asks).enumerate() {
        ask.take.awaited = awaited[index];
        let vm = &snapshot.vms[index];
        let record = state.balloons.entry(vm.id).or_default();
        let hints = state.hints.entry(vm.id).or_default();
        let hint_rounds = hints.round(vm, snapshot, thresholds);
        plans.push(VmPlan {
            hint_rounds,
            ..plan_vm(vm, target, ask, growth.allowed[index], &situation, record)
        });
    }
    plans
}

/// Free memory that swapping works towards.
fn swapped_to(snapshot: &Snapshot, thresholds: &Thresholds, state: &PolicyState) -> Pages {
    match (state.kind.manner(), state.mem_state) {
        (_, MemState::High) => Pages::ZERO,
        (Manner::OnDemand, MemState::Soft) => thresholds.high,
        (Manner::OnDemand, MemState::Hard | MemState::Low) => thresholds.swap_goal(),
        // Its balloons see to the rest.
        (Manner::Directed, _) if snapshot.free < thresholds.soft => thresholds.swap_goal(),
        (Manner::Directed, _) => Pages::ZERO,
    }
}

fn plan_vm(
    vm: &VmSnapshot,
    target: Target,
    ask: Ask,
    deflate: Pages,
    situation: &Situation,
    record: &mut BalloonRecord,
) -> VmPlan {
    let take = ask.take;
    let order = balloon_order(vm, ask, deflate, situation, record);
    let cannot = cannot_balloon(vm, ask.ceiling, record, situation.guards);
    let limit = vm.allocation.ceiling();
    // What a VM at its cap waits for, it makes room for itself.
    let refused = vm.consumed.saturating_sub(limit).max(take.awaited);
    let swap = match (situation.mem_state, cannot) {
        (MemState::High | MemState::Soft, None) => take.stalled,
        (MemState::High, Some(_)) => refused,
        (MemState::Soft, Some(_)) | (MemState::Hard | MemState::Low, _) => {
            take.urgent.max(cannot.map_or(take.stalled, |_| refused))
        }
    };
    let above = vm.consumed > target.pages;
    // A VM whose balloon refuses is kept at what it holds: it would at once take again what was swapped
    // out of it, or of others for it. But where targets follow the guest and memory is not scarce, the
    // target of a guest that has nothing left rises with its next figures: until then it need not swap.
    let held = match situation.manner {
        Manner::OnDemand => situation.pressed && above && cannot.is_some(),
        Manner::Directed => {
            let scarce = situation.shortage == Shortage::Near || take.awaited > Pages::ZERO;
            let soon_follows = |refusal| situation.follows_guest && refusal == Refusal::GuestSpent;
            ask.inflate > Pages::ZERO
                && cannot.is_some_and(|refusal| scarce || !soon_follows(refusal))
        }
    };
    let most = match (held, cannot) {
        (true, _) => Some(target.pages.min(limit)),
        (false, Some(_)) if is_near_limit(vm) => Some(limit),
        _ => None,
    };
    let cap = most.map(|most| vm.private + most.saturating_sub(vm.consumed));
    VmPlan {
        id: vm.id,
        target: target.pages,
        balloon_target: order,
        hint_rounds: 0,
        private_max: if swap > Pages::ZERO {
            Some(vm.private.saturating_sub(swap))
        } else {
            cap
        },
        mechanism: cannot.map_or(Mechanism::Balloon, |_| Mechanism::Swap),
        run: if situation.mem_state == MemState::Low && above {
            Run::Block
        } else {
            Run::Go
        },
        conduct: record.conduct(),
        why: Why {
            over_limit: take.over_limit,
            cannot: cannot.filter(|_| take.all.max(take.awaited) > Pages::ZERO),
            swapped: swap > Pages::ZERO,
            ..target.why
        },
    }
}

/// Whether the VM's limit is less than its size, and all but reached.
fn is_near_limit(vm: &VmSnapshot) -> bool {
    let limit = vm.allocation.limit;
    let near = Pages(limit.0 - limit.0 / NEAR_LIMIT_DIVISOR);
    limit < vm.allocation.size && vm.consumed.0.saturating_add(vm.asked.0) >= near.0
}

/// What the balloon shall hold from now on.
fn balloon_order(
    vm: &VmSnapshot,
    ask: Ask,
    deflate: Pages,
    situation: &Situation,
    record: &mut BalloonRecord,
) -> Pages {
    if !vm.balloon_driver {
        *record = BalloonRecord::default();
        return Pages::ZERO;
    }
    if ask.inflate == Pages::ZERO {
        let order = record.order.min(vm.ballooned).saturating_sub(deflate);
        record.rest(order, situation.shortage, situation.now);
        return order;
    }
    record.observe(vm.ballooned, situation.now, situation.guards);
    let step_max = Pages(vm.allocation.size.0 / STEP_DIVISOR).max(STEP_MIN);
    let step = guest_spare(vm, situation.guards).map_or(step_max, |spare| spare.min(step_max));
    let step = ask.inflate.max(STEP_MIN).min(step);
    // No order above the goal, but no deflation either while memory is wanted.
    let order = (vm.ballooned + step).min(ask.goal.max(vm.ballooned));
    record.ask(order);
    order
}
