//! Which mechanism makes up the difference between what VMs hold and what they should.
//!
//! **How much.** When free memory is below the high threshold, `short = high - free` pages are
//! wanted back. They are taken from the VMs above their target, from each in proportion to how far
//! it is above, and never below its target: `take = ceil(short * excess / sum(excess))`. A VM above
//! its *limit* gives that part back in any state.
//!
//! **By what.**
//!
//! | state | balloon | swap | vCPUs |
//! |---|---|---|---|
//! | high, free >= 6 % | deflates as room allows | - | run |
//! | high, free < 6 % | inflates towards 6 % free | - | run |
//! | soft | inflates towards 6 % free | where ballooning is not possible | run |
//! | hard | the same | everybody, towards 4 % free | run |
//! | low | the same | the same | blocked above the target |
//!
//! **The balloon loop is closed.** A guest first gives pages that it never touched or that are free
//! anyway: those lower nothing. So the order is not "so many pages" once, but "that many more than
//! the balloon is measured to hold", again in every decision, until consumption falls or the balloon
//! is at its ceiling. The order never leads the measurement by more than [`STEP_DIVISOR`] allows, so
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
use super::types::{MemState, Run, Snapshot, VmPlan, VmSnapshot};
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
    /// The most that the balloon held since `progress_at`.
    held: Pages,
    /// When the balloon last grew, or was first asked to; `None` while nothing is asked.
    progress_at: Option<Duration>,
}

impl BalloonRecord {
    /// Notes what the balloon holds now and says whether it is stuck.
    fn observe(&mut self, ballooned: Pages, now: Duration) -> bool {
        match self.progress_at {
            Some(since) if ballooned <= self.held => {
                // A balloon that shrank (deflate on out-of-memory) must only regain a page.
                self.held = ballooned;
                ballooned < self.order && now.saturating_sub(since) >= STUCK_AFTER
            }
            _ => {
                self.held = ballooned;
                self.progress_at = Some(now);
                false
            }
        }
    }
}

/// Pages wanted back from one VM.
#[derive(Debug, Clone, Copy, Default)]
struct Take {
    /// Towards the high threshold, and down to the limit: by ballooning where possible.
    all: Pages,
    /// Towards the soft threshold: by swapping from hard on.
    urgent: Pages,
    /// The part above the limit, due in any state.
    over_limit: Pages,
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
    let state = memory.mem_state;
    let mut plans = Vec::with_capacity(snapshot.vms.len());
    for (((vm, target), take), deflate) in snapshot.vms.iter().zip(targets).zip(takes).zip(deflates)
    {
        let record = memory.balloons.entry(vm.id).or_default();
        plans.push(plan_vm(
            vm,
            target,
            take,
            deflate,
            state,
            snapshot.now,
            record,
        ));
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
    let urgent = thresholds.soft.saturating_sub(snapshot.free).min(total);
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
            let over_limit = vm.consumed.saturating_sub(limit);
            Take {
                all: part(short, excess).max(over_limit),
                urgent: part(urgent, excess),
                over_limit,
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
    state: MemState,
    now: Duration,
    record: &mut BalloonRecord,
) -> VmPlan {
    let mut why = target.why;
    let balloon = if take.all > Pages::ZERO {
        inflate(vm, take.all, now, record)
    } else {
        let order = record.order.min(vm.ballooned).saturating_sub(deflate);
        *record = BalloonRecord {
            order,
            ..BalloonRecord::default()
        };
        Ok(order)
    };
    let (balloon_target, cannot) = match balloon {
        Ok(order) => (order, None),
        Err(reason) => (record.order, Some(reason)),
    };
    // What must be swapped: everything where the balloon cannot, else what is urgent.
    let swap = match (state, cannot) {
        (MemState::High, None) => Pages::ZERO,
        (MemState::High, Some(_)) => take.over_limit,
        (_, Some(_)) => take.all,
        (MemState::Soft, None) => Pages::ZERO,
        (MemState::Hard | MemState::Low, None) => take.urgent,
    };
    if take.over_limit > Pages::ZERO {
        why.push_str(&format!("; {} above its limit", take.over_limit));
    }
    if let Some(reason) = cannot {
        why.push_str(&format!("; {reason}"));
        why.push_str(if swap > Pages::ZERO {
            ": swapped instead"
        } else {
            ""
        });
    }
    let above = vm.consumed > target.pages;
    VmPlan {
        id: vm.id,
        target: target.pages,
        balloon_target,
        private_max: (swap > Pages::ZERO).then(|| vm.private.saturating_sub(swap)),
        run: if state == MemState::Low && above {
            Run::Block
        } else {
            Run::Go
        },
        why,
    }
}

/// Orders the balloon to grow. `Err` says why it cannot; the order in `record` then stands.
fn inflate(
    vm: &VmSnapshot,
    take: Pages,
    now: Duration,
    record: &mut BalloonRecord,
) -> Result<Pages, &'static str> {
    if !vm.balloon_driver {
        *record = BalloonRecord::default();
        return Err("no balloon driver");
    }
    let stuck = record.observe(vm.ballooned, now);
    let ceiling = balloon_ceiling(vm);
    let step_max = Pages(vm.allocation.size.0 / STEP_DIVISOR).max(STEP_MIN);
    let step = take.clamp(STEP_MIN, step_max);
    // No order above the ceiling, but no deflation either while memory is wanted.
    record.order = (vm.ballooned + step).min(ceiling.max(vm.ballooned));
    if vm.ballooned >= ceiling {
        return Err("balloon at its ceiling");
    }
    if let Some(available) = guest_available(vm) {
        let spare = available.saturating_sub(GUEST_AVAILABLE_MIN);
        record.order = record.order.min(vm.ballooned + spare);
        if spare == Pages::ZERO {
            return Err("the guest says that it has no memory left to give");
        }
    }
    if stuck {
        return Err("balloon stuck");
    }
    Ok(record.order)
}

/// The most that this VM's balloon is asked to hold: 65 % of its size, and 16 MiB are left.
pub fn balloon_ceiling(vm: &VmSnapshot) -> Pages {
    let size = vm.allocation.size;
    Pages(size.0 * BALLOON_MAX_PERCENT / 100).min(size.saturating_sub(GUEST_MIN))
}

fn guest_available(vm: &VmSnapshot) -> Option<Pages> {
    vm.guest.available_bytes.map(Pages::in_bytes)
}
