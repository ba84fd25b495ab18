//! Policy `self`: each VM follows the memory that its guest has committed, as Xen's self-ballooning.
//!
//! ```text
//! goal    = max(committed, floor)
//! target += (goal - target) / up_hysteresis      when the goal is above    (1: all at once)
//! target -= (target - goal) / down_hysteresis    when the goal is below    (10: a tenth)
//! ```
//!
//! once in `interval` (1 s): fast up, slow down. The floor depends on the VM's size alone, in pieces
//! (xenballoond, `MINMEM=0`). No look at the other VMs, unless the host has less than all goals.
//!
//! `committed` is `Committed_AS` of /proc/meminfo for xenballoond; the balloon's statistics have no such
//! figure. Use as the guest says, or as measured, stands for it (see `guest`), plus an
//! eighth: use alone can never rise above what the balloon has left, so nobody could grow.
//!
//! Sources: Xen 3.3 `tools/xenballoon/xenballoond` and its `xenballoon.conf`; Linux
//! `drivers/xen/xen-selfballoon.c` (which adds `totalreserve_pages`, for the same reason).

use std::collections::BTreeMap;
use std::time::Duration;

use super::Target;
use super::guest::usage;
use super::settings::PolicySettings;
use super::state::Thresholds;
use super::supply::distributable;
use super::types::{Snapshot, VmId, VmSnapshot};
use super::why::Rule;
use super::wish::{self, Wish};
use crate::units::Pages;

/// Part of the gap that is given up in one interval (xenballoond DOWNHYSTERESIS).
const DOWN_HYSTERESIS: u64 = 10;
/// Part of the gap that is gained in one interval (xenballoond UPHYSTERESIS: all).
const UP_HYSTERESIS: u64 = 1;
/// Time between two steps (xenballoond XENBALLOON_INTERVAL).
pub const INTERVAL: Duration = Duration::from_secs(1);
/// Committed but not used, as a part of what is used. Chosen.
const HEADROOM_DIVISOR: u64 = 8;

/// What is remembered of one VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    target: Pages,
    stepped_at: Duration,
}

/// The least that a VM of `size` is left, in the pieces of xenballoond.
pub fn floor(size: Pages) -> Pages {
    let mib = size.bytes() >> 20;
    let pages = size.0;
    let floor = match mib {
        0..125 => 8 + (pages >> 9),
        125..500 => 40 + (pages >> 10),
        500..2000 => 104 + (pages >> 11),
        _ => 296 + (pages >> 13),
    };
    Pages::mib(floor).min(size)
}

/// One target for each VM, in the order of the snapshot.
pub fn targets(
    snapshot: &Snapshot,
    thresholds: &Thresholds,
    settings: &PolicySettings,
    records: &mut BTreeMap<VmId, Record>,
) -> Vec<Target> {
    let guards = settings.safeguards;
    let wishes = snapshot
        .vms
        .iter()
        .map(|vm| {
            let usage = usage(vm, guards);
            let committed = Pages(
                usage
                    .pages
                    .0
                    .saturating_add(usage.pages.0 / HEADROOM_DIVISOR),
            );
            let floor = floor(vm.allocation.size);
            let target = step(vm, committed.max(floor), snapshot.now, records);
            let rule = Rule::Committed {
                committed,
                source: usage.source,
                floor,
            };
            Wish::new(vm, target, floor, rule)
        })
        .collect();
    wish::fit(distributable(snapshot, thresholds), wishes, guards)
}

/// Moves the VM's target towards its goal, once in an interval.
fn step(
    vm: &VmSnapshot,
    goal: Pages,
    now: Duration,
    records: &mut BTreeMap<VmId, Record>,
) -> Pages {
    let ceiling = vm.allocation.ceiling();
    let goal = goal.min(ceiling);
    // A VM that is seen for the first time is let go on from where it is.
    let record = records.entry(vm.id).or_insert(Record {
        target: goal.max(vm.consumed).min(ceiling),
        stepped_at: now,
    });
    if now.saturating_sub(record.stepped_at) >= INTERVAL {
        record.stepped_at = now;
        if goal >= record.target {
            record.target += Pages((goal - record.target).0.div_ceil(UP_HYSTERESIS));
        } else {
            record.target -= Pages((record.target - goal).0.div_ceil(DOWN_HYSTERESIS));
        }
    }
    record.target
}
