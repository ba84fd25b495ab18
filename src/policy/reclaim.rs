//! Which mechanism makes up the difference between what VMs hold and what they should.
//!
//! **How much.** When free memory is below the high threshold, `short = high - free` pages are
//! wanted back. They are taken from the VMs above their target, from each in proportion to how far
//! it is above, and never below its target: `take = ceil(short * excess / sum(excess))`. A VM above
//! its *limit* gives that part back in any state; one that waits for pages at its limit makes room
//! for them itself, by swapping, because a guest that waits for memory cannot serve its balloon.
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
//! **The balloon loop is closed.** A guest first gives pages that it never touched or that are free
//! anyway: those lower nothing. So the order is not "so many pages" once, but "that many more than
//! the balloon is measured to hold", again in every decision, until consumption falls or the balloon
//! is at its ceiling. The order never leads the measurement by more than `STEP_DIVISOR` allows, so
//! it ends as soon as the need does.
//!
//! **Ballooning is not possible** without a driver, at the ceiling, for a guest that says it has
//! nothing left, and when the balloon is *stuck*: below its order and not grown for
//! [`STUCK_AFTER`]. A stuck guest keeps its order; the first page it gives makes it innocent again.
//!
//! **Giving back** needs room (free above the high threshold by the low one, 7 % in all) for
//! [`ROOM_FOR`] without a break, uses only what is above that mark, and starts that wait anew.

use std::time::Duration;

use super::state::Thresholds;
use super::types::{Mechanism, MemState, Run, Snapshot, VmPlan, VmSnapshot};
use super::{PolicyState, Target};
use crate::units::Pages;

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
/// A balloon that is below its order and has not grown for so long is stuck (squeezed: 5 s).
pub const STUCK_AFTER: Duration = Duration::from_secs(5);
/// There must be room for so long before memory is given back. Chosen: ten reports of a VM.
pub const ROOM_FOR: Duration = Duration::from_secs(1);

/// What is remembered about one VM's balloon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BalloonRecord {
    /// The last order.
    pub(super) order: Pages,
    /// What the balloon held when it was last looked at.
    held: Pages,
    /// Whether it is stuck. Stays while memory is short, until the balloon grows.
    stuck: bool,
    /// When the balloon last grew, or was first asked to; `None` while nothing is asked.
    progress_at: Option<Duration>,
}

impl BalloonRecord {
    /// Notes what the balloon holds now, and whether that makes it stuck or innocent.
    fn observe(&mut self, ballooned: Pages, now: Duration) {
        if ballooned > self.held {
            self.stuck = false;
            self.progress_at = None;
        }
        // A balloon that shrank (deflate on out-of-memory) must only regain a page.
        self.held = ballooned;
        let since = *self.progress_at.get_or_insert(now);
        if ballooned < self.order && now.saturating_sub(since) >= STUCK_AFTER {
            self.stuck = true;
        }
    }
}

/// What is the same for all VMs of one decision.
struct Situation {
    state: MemState,
    /// Whether free memory is at the high threshold or above.
    enough: bool,
    now: Duration,
}

/// Pages wanted back from one VM.
#[derive(Debug, Clone, Copy, Default)]
struct Take {
    /// Towards the high threshold, and down to the limit: by ballooning.
    all: Pages,
    /// Towards the swap goal, once below the soft threshold: by swapping.
    urgent: Pages,
    /// The part above the limit, due in any state.
    over_limit: Pages,
    /// The part of it that the guest waits for. Its balloon cannot make that room: the driver
    /// waits, too.
    awaited: Pages,
}

/// The plan of every VM, in the order of the snapshot, which `targets` has too.
pub fn plan(
    snapshot: &Snapshot,
    thresholds: &Thresholds,
    targets: Vec<Target>,
    memory: &mut PolicyState,
) -> Vec<VmPlan> {
    memory
        .balloons
        .retain(|id, _| snapshot.vms.binary_search_by_key(id, |vm| vm.id).is_ok());
    let takes = takes(snapshot, thresholds, &targets);
    let deflates = deflations(snapshot, thresholds, &takes, memory);
    let situation = Situation {
        state: memory.mem_state,
        enough: !thresholds.near_soft(snapshot.free),
        now: snapshot.now,
    };
    let mut plans = Vec::with_capacity(snapshot.vms.len());
    for (((vm, target), take), deflate) in snapshot.vms.iter().zip(targets).zip(takes).zip(deflates)
    {
        let record = memory.balloons.entry(vm.id).or_default();
        plans.push(plan_vm(vm, target, take, deflate, &situation, record));
    }
    plans
}

fn takes(snapshot: &Snapshot, thresholds: &Thresholds, targets: &[Target]) -> Vec<Take> {
    let excess: Vec<Pages> = snapshot
        .vms
        .iter()
        .zip(targets)
        .map(|(vm, target)| vm.consumed.saturating_sub(target.pages))
        .collect();
    let total: Pages = excess.iter().copied().sum();
    let short = thresholds.high.saturating_sub(snapshot.free).min(total);
    let urgent = if snapshot.free < thresholds.soft {
        thresholds
            .swap_goal()
            .saturating_sub(snapshot.free)
            .min(total)
    } else {
        Pages::ZERO
    };
    let part = |of: Pages, excess: Pages| {
        let (of, excess) = (u128::from(of.0), u128::from(excess.0));
        let part = (of * excess).div_ceil(u128::from(total.0.max(1)));
        Pages(u64::try_from(part).expect("at most the excess, which is a u64"))
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
                all: part(short, excess).max(over_limit),
                urgent: part(urgent, excess),
                over_limit,
                awaited: over_limit.min(asked),
            }
        })
        .collect()
}

/// By how much each balloon may shrink now.
fn deflations(
    snapshot: &Snapshot,
    thresholds: &Thresholds,
    takes: &[Take],
    memory: &mut PolicyState,
) -> Vec<Pages> {
    let none = vec![Pages::ZERO; snapshot.vms.len()];
    let room = snapshot
        .free
        .saturating_sub(thresholds.high + thresholds.low);
    if memory.mem_state != MemState::High || room == Pages::ZERO {
        memory.room_since = None;
        return none;
    }
    let since = *memory.room_since.get_or_insert(snapshot.now);
    if snapshot.now.saturating_sub(since) < ROOM_FOR {
        return none;
    }
    memory.room_since = Some(snapshot.now);
    // What was ordered before and is not done yet will use free memory too.
    let pending: Pages = snapshot
        .vms
        .iter()
        .map(|vm| {
            let order = memory.balloons.get(&vm.id).map_or(Pages::ZERO, |r| r.order);
            vm.ballooned.saturating_sub(order)
        })
        .sum();
    let room = room.saturating_sub(pending);
    let wanted: Vec<Pages> = snapshot
        .vms
        .iter()
        .zip(takes)
        .map(|(vm, take)| {
            let limit = vm.allocation.limit.min(vm.allocation.size);
            let order = memory.balloons.get(&vm.id).map_or(Pages::ZERO, |r| r.order);
            let growth = limit.saturating_sub(vm.consumed);
            // A VM that may hold its whole size needs no check against its limit: what it holds
            // beside the balloon can never be more.
            let growth = if limit == vm.allocation.size && take.over_limit == Pages::ZERO {
                order
            } else {
                growth.min(order)
            };
            growth.min(vm.ballooned)
        })
        .collect();
    let total: u128 = wanted.iter().map(|pages| u128::from(pages.0)).sum();
    wanted
        .into_iter()
        .map(|pages| {
            let part = u128::from(room.0) * u128::from(pages.0) / total.max(1);
            Pages(u64::try_from(part).unwrap_or(u64::MAX)).min(pages)
        })
        .collect()
}

fn plan_vm(
    vm: &VmSnapshot,
    target: Target,
    take: Take,
    deflate: Pages,
    situation: &Situation,
    record: &mut BalloonRecord,
) -> VmPlan {
    let order = balloon_order(vm, take.all, deflate, situation, record);
    let cannot = cannot_balloon(vm, record);
    let swap = match (situation.state, cannot) {
        (MemState::High | MemState::Soft, None) => take.awaited,
        (MemState::High, Some(_)) => take.over_limit,
        (MemState::Soft, Some(_)) | (MemState::Hard | MemState::Low, _) => take
            .urgent
            .max(cannot.map_or(take.awaited, |_| take.over_limit)),
    };
    let above = vm.consumed > target.pages;
    VmPlan {
        id: vm.id,
        target: target.pages,
        balloon_target: order,
        private_max: (swap > Pages::ZERO).then(|| vm.private.saturating_sub(swap)),
        mechanism: cannot.map_or(Mechanism::Balloon, |_| Mechanism::Swap),
        run: if situation.state == MemState::Low && above {
            Run::Block
        } else {
            Run::Go
        },
        why: explain(target.why, take, cannot, swap),
    }
}

fn explain(mut why: String, take: Take, cannot: Option<&str>, swap: Pages) -> String {
    if take.over_limit > Pages::ZERO {
        why.push_str(&format!("; {} above its limit", take.over_limit));
    }
    if let Some(reason) = cannot.filter(|_| take.all > Pages::ZERO) {
        why.push_str(&format!("; {reason}"));
        if swap > Pages::ZERO {
            why.push_str(": swapped instead");
        }
    }
    why
}

/// What the balloon shall hold from now on.
fn balloon_order(
    vm: &VmSnapshot,
    take: Pages,
    deflate: Pages,
    situation: &Situation,
    record: &mut BalloonRecord,
) -> Pages {
    if !vm.balloon_driver {
        *record = BalloonRecord::default();
        return Pages::ZERO;
    }
    if take == Pages::ZERO {
        record.order = record.order.min(vm.ballooned).saturating_sub(deflate);
        record.progress_at = None;
        if situation.enough {
            // Only a host with enough memory forgets: guilt shall not be proven anew, five seconds
            // each time, for as long as memory is short.
            record.stuck = false;
        }
        return record.order;
    }
    record.observe(vm.ballooned, situation.now);
    let step_max = Pages(vm.allocation.size.0 / STEP_DIVISOR).max(STEP_MIN);
    let step = guest_spare(vm).map_or(step_max, |spare| spare.min(step_max));
    let step = take.max(STEP_MIN).min(step);
    // No order above the ceiling, but no deflation either while memory is wanted.
    let ceiling = balloon_ceiling(vm).max(vm.ballooned);
    record.order = (vm.ballooned + step).min(ceiling);
    record.order
}

/// Why this VM's balloon can take nothing more, if so.
fn cannot_balloon(vm: &VmSnapshot, record: &BalloonRecord) -> Option<&'static str> {
    if !vm.balloon_driver {
        Some("no balloon driver")
    } else if vm.ballooned >= balloon_ceiling(vm) {
        Some("balloon at its ceiling")
    } else if guest_spare(vm) == Some(Pages::ZERO) {
        Some("the guest says that it has no memory left to give")
    } else if record.stuck {
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

/// What the guest says that it can still give, if it says anything.
fn guest_spare(vm: &VmSnapshot) -> Option<Pages> {
    let available = Pages::in_bytes(vm.guest.available_bytes?);
    Some(available.saturating_sub(GUEST_AVAILABLE_MIN))
}
