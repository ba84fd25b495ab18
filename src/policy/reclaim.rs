//! Which mechanism makes up the difference between what VMs hold and what they should.
//!
//! **How much.** When free memory is below the high threshold, `short = high - free` pages are
//! wanted back. They are taken from the VMs above their target, from each in proportion to how far
//! it is above, and never below its target: `take = ceil(short * excess / sum(excess))`. What a balloon
//! keeps from a VM below its target counts as short too: its neighbours above theirs owe it that.
//! A VM above its *limit* gives that part back in any state; one that waits for pages at its limit
//! makes room for them itself, by swapping, because a guest that waits for memory cannot serve its
//! balloon.
//!
//! **By what.**
//!
//! | state | balloon | swap | vCPUs |
//! |---|---|---|---|
//! | high, free >= 6 % | deflates as room allows | - | run |
//! | high, free < 6 % | inflates towards 6 % free | - | run |
//! | soft | inflates towards 6 % free | below 4 % free, towards 5 %, where ballooning is not possible | run |
//! | hard | the same | the same, everybody | run |
//! | low | the same | the same | blocked above the target |
//!
//! That is the manner of ESX ([`Manner::OnDemand`]): who has more than its target keeps it until
//! somebody needs it. The policies of the Xen family are [`Manner::Directed`]: a balloon holds
//! `size - target` in every state, so that a guest can never use more. The table's columns for
//! swapping and blocking are the same; and a guest above its target that cannot be ballooned is
//! swapped in state high too, but only as far as neighbours, or the reserve, wait for what it does
//! not give.
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

use super::balloon::{BalloonRecord, Memory};
use super::deflate;
use super::safeguard::{Safeguard, Safeguards};
use super::state::Thresholds;
use super::types::{Mechanism, Snapshot, VmPlan, VmSnapshot};
use super::why::Why;
use super::{Manner, PolicyState, Target};
use crate::units::Pages;
use crate::words::{MemState, Run};

/// Largest balloon, percent of the VM's size (ESX `Mem.CtlMaxPercent`).
const BALLOON_MAX_PERCENT: u64 = 65;
/// Memory that ballooning always leaves a guest, whatever the percentage says. Chosen: a stock
/// Linux 6.12 guest lived with 6 MiB free and killed its workload with 2 MiB free.
const GUEST_MIN: Pages = Pages::mib(16);
/// Available memory, as the guest reports it, below which its balloon is not inflated further.
/// Chosen, above the measured 6 MiB.
const GUEST_AVAILABLE_MIN: Pages = Pages::mib(8);
/// A balloon order leads the measured balloon by at most size / this. Chosen: 16 MiB for a guest of
/// 256 MiB, about what a guest can give between two decisions.
const STEP_DIVISOR: u64 = 16;
/// And by at least this, so that small needs do not take many rounds. Chosen.
const STEP_MIN: Pages = Pages(64);
/// A directed balloon at rest gives back nothing when it should give back less (squeezed: 512 KiB)...
const DEAD_BAND: Pages = Pages(128);
/// ... and nearer than size / this, for small guests. Chosen.
const DEAD_BAND_DIVISOR: u64 = 512;
/// What is the same for all VMs of one decision.
struct Situation {
    state: MemState,
    manner: Manner,
    memory: Memory,
    now: Duration,
    guards: Safeguards,
}

/// Pages wanted back from one VM.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Take {
    /// Towards the high threshold, and down to the limit: by ballooning.
    all: Pages,
    /// Towards the swap goal, once below the soft threshold: by swapping.
    urgent: Pages,
    /// The part above the limit, due in any state.
    pub(super) over_limit: Pages,
    /// The part of it that the guest itself waits for. Its balloon cannot make that room: the
    /// driver waits, too.
    stalled: Pages,
    /// What neighbours wait for and this VM should give: by swapping if its balloon refuses.
    awaited: Pages,
}

/// The plan of every VM, in the order of the snapshot, which `targets` has too.
pub fn plan(
    snapshot: &Snapshot,
    thresholds: &Thresholds,
    targets: Vec<Target>,
    memory: &mut PolicyState,
) -> Vec<VmPlan> {
    let owed = deflate::owed(snapshot, &targets, memory);
    let takes = takes(snapshot, thresholds, &targets, owed.iter().copied().sum());
    let asks: Vec<Ask> = snapshot
        .vms
        .iter()
        .zip(&targets)
        .zip(takes)
        .map(|((vm, target), take)| Ask::new(vm, target, take, memory))
        .collect();
    let growth = deflate::plan(snapshot, thresholds, &targets, &asks, &owed, memory);
    let awaited = part_of(growth.unmet, snapshot, &targets);
    let situation = Situation {
        state: memory.mem_state,
        manner: memory.kind.manner(),
        memory: if thresholds.near_soft(snapshot.free) {
            Memory::Short
        } else {
            Memory::Enough
        },
        now: snapshot.now,
        guards: memory.settings.safeguards,
    };
    let mut plans = Vec::with_capacity(snapshot.vms.len());
    for (index, (target, mut ask)) in targets.into_iter().zip(asks).enumerate() {
        ask.take.awaited = awaited[index];
        let vm = &snapshot.vms[index];
        let record = memory.balloons.entry(vm.id).or_default();
        plans.push(plan_vm(
            vm,
            target,
            ask,
            growth.allowed[index],
            &situation,
            record,
        ));
    }
    plans
}

/// What is asked of one VM's balloon.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask {
    pub(super) take: Take,
    /// Whether the balloon cannot make up for it, as far as was known before this decision.
    pub(super) refuses: bool,
    /// Pages that the balloon should hold beyond what it does.
    inflate: Pages,
    /// Pages that the balloon holds, or was asked for, and need not: wanted back by the guest.
    pub(super) deflate: Pages,
    /// What the balloon is asked to hold in the end, at most.
    goal: Pages,
    /// What it may ever be asked to hold.
    ceiling: Pages,
}

impl Ask {
    fn new(vm: &VmSnapshot, target: &Target, take: Take, memory: &PolicyState) -> Ask {
        let order = memory.order(vm.id);
        let guards = memory.settings.safeguards;
        let known = memory.balloons.get(&vm.id).copied().unwrap_or_default();
        let refuses = |ceiling| cannot_balloon(vm, ceiling, &known, guards).is_some();
        match memory.kind.manner() {
            Manner::OnDemand => {
                let ceiling = ceiling(vm, guards);
                Ask {
                    take,
                    refuses: refuses(ceiling),
                    inflate: take.all,
                    deflate: deflate::wanted_on_demand(vm, take, order),
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

fn takes(
    snapshot: &Snapshot,
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
    let urgent = if snapshot.free < thresholds.soft {
        thresholds
            .swap_goal()
            .saturating_sub(snapshot.free)
            .min(total)
    } else {
        Pages::ZERO
    };
    snapshot
        .vms
        .iter()
        .zip(excess)
        .map(|(vm, excess)| {
            let limit = vm.allocation.limit.min(vm.allocation.size);
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

/// `ceil(of * excess / total)`.
fn part(of: Pages, excess: Pages, total: Pages) -> Pages {
    if of == Pages::ZERO {
        return Pages::ZERO;
    }
    let part = (u128::from(of.0) * u128::from(excess.0)).div_ceil(u128::from(total.0.max(1)));
    Pages(u64::try_from(part).expect("at most the excess, which is a u64"))
}

/// What neighbours wait for, as a part of what each VM holds above its target.
fn part_of(unmet: Pages, snapshot: &Snapshot, targets: &[Target]) -> Vec<Pages> {
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
    let swap = match (situation.state, cannot) {
        (MemState::High | MemState::Soft, None) => take.stalled,
        (MemState::High, Some(_)) => take.over_limit.max(take.awaited),
        (MemState::Soft, Some(_)) | (MemState::Hard | MemState::Low, _) => {
            let refused = take.over_limit.max(take.awaited);
            take.urgent.max(cannot.map_or(take.stalled, |_| refused))
        }
    };
    let above = vm.consumed > target.pages;
    // Whom a directed balloon should hold and does not, is held where it is: it would take at once
    // what was swapped out of it.
    let held =
        situation.manner == Manner::Directed && ask.inflate > Pages::ZERO && cannot.is_some();
    let cap = held.then(|| vm.private + target.pages.saturating_sub(vm.consumed));
    VmPlan {
        id: vm.id,
        target: target.pages,
        balloon_target: order,
        private_max: if swap > Pages::ZERO {
            Some(vm.private.saturating_sub(swap))
        } else {
            cap
        },
        mechanism: cannot.map_or(Mechanism::Balloon, |_| Mechanism::Swap),
        run: if situation.state == MemState::Low && above {
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
        record.rest(order, situation.memory, situation.now);
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

/// Why this VM's balloon can take nothing more, if so.
fn cannot_balloon(
    vm: &VmSnapshot,
    ceiling: Pages,
    record: &BalloonRecord,
    guards: Safeguards,
) -> Option<&'static str> {
    if !vm.balloon_driver {
        Some("no balloon driver")
    } else if vm.ballooned >= ceiling {
        Some("balloon at its ceiling")
    } else if guest_spare(vm, guards) == Some(Pages::ZERO) && guards.has(Safeguard::Measured) {
        Some("the guest says that it has no memory left to give")
    } else if record.is_stuck() {
        Some("balloon stuck")
    } else {
        None
    }
}

/// The most that this VM's balloon is asked to hold: 65 % of its size, and 16 MiB are left.
pub fn balloon_ceiling(vm: &VmSnapshot) -> Pages {
    let size = vm.allocation.size;
    Pages(size.0 * BALLOON_MAX_PERCENT / 100).min(size.saturating_sub(GUEST_MIN))
}

fn ceiling(vm: &VmSnapshot, guards: Safeguards) -> Pages {
    if guards.has(Safeguard::GuestMinimum) {
        balloon_ceiling(vm)
    } else {
        vm.allocation.size
    }
}

/// The most that a directed balloon is asked to hold: all but the policy's floor, or 16 MiB.
fn directed_ceiling(vm: &VmSnapshot, target: &Target, guards: Safeguards) -> Pages {
    let left = if guards.has(Safeguard::GuestMinimum) {
        target.floor.max(GUEST_MIN)
    } else {
        Pages::ZERO
    };
    vm.allocation.size.saturating_sub(left)
}

/// What the guest says that it can still give, if it says anything.
fn guest_spare(vm: &VmSnapshot, guards: Safeguards) -> Option<Pages> {
    if !guards.has(Safeguard::GuestMinimum) {
        return None;
    }
    let available = Pages::in_bytes(vm.guest.available_bytes?);
    Some(available.saturating_sub(GUEST_AVAILABLE_MIN))
}
