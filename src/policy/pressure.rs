//! Policy `pressure`: tighten slowly until the guest feels it, back off fast, as Meta's senpai.
//!
//! ```text
//! each second:  R += pages that came in          (refaults, see below)
//! R > R_max:    target *= 1 + min(1, 0.1 * (R / R_max)^2)          and start a new interval
//! else, each 6 s without it:  target *= 1 - 0.01 * (1 - R / R_max)^2
//! ```
//!
//! Tightening is at most 1 % in 6 s and vanishes as `R` nears `R_max`; backing off is up to a doubling
//! each second. The floor is 100 MiB.
//!
//! senpai reads the PSI stall total of a cgroup (10 ms in 6 s). The balloon's statistics have no PSI,
//! so refaults stand for it: pages that the VM process had to bring back (measured), major faults
//! and swap-ins of the guest (it says so), and pages that the guest took anew (measured), which is
//! how a guest without figures shows that it needs more. A hundred page-ins of 100 us are 10 ms.
//!
//! Source: `facebookincubator/senpai` (interval 6 s, 1 % down, at most 100 % up, 100 MiB floor). The
//! back-off coefficient and `R_max` are chosen.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Target;
use super::settings::PolicySettings;
use super::state::Thresholds;
use super::supply::distributable;
use super::types::{Snapshot, VmId, VmSnapshot};
use super::why::Rule;
use super::wish::{self, Wish};
use crate::units::Pages;

/// Refaults are read so often.
const POLL: Duration = Duration::from_secs(1);
/// Time between two tightenings (senpai).
const INTERVAL: Duration = Duration::from_secs(6);
/// Refaults in an interval that are no harm. Chosen: 10 ms of stalls at 100 us each.
pub const REFAULTS_MAX: u64 = 100;
/// Largest tightening, target / this (senpai: 1 %).
const TIGHTEN_DIVISOR: u64 = 100;
/// Back-off at `R = R_max`, target / this. Chosen.
const BACK_OFF_DIVISOR: u64 = 10;
/// The least that a VM is left (senpai).
pub const FLOOR: Pages = Pages::mib(100);

/// What is remembered of one VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    target: Pages,
    /// Refaults in the running interval.
    refaults: u64,
    interval_since: Duration,
    polled_at: Duration,
    /// Counters and consumption at the last poll.
    events: u64,
    consumed: Pages,
}

/// One target for each VM, in the order of the snapshot.
pub fn targets(
    snapshot: &Snapshot,
    thresholds: &Thresholds,
    settings: &PolicySettings,
    records: &mut BTreeMap<VmId, Record>,
) -> Vec<Target> {
    let wishes = snapshot
        .vms
        .iter()
        .map(|vm| {
            let record = records
                .entry(vm.id)
                .or_insert_with(|| Record::new(vm, snapshot.now));
            record.poll(vm, snapshot.now);
            let source = if vm.guest.major_faults.is_some() {
                "measured and as the guest says"
            } else {
                "measured: the guest reports nothing"
            };
            let rule = Rule::Refaults {
                count: record.refaults,
                source,
            };
            Wish::new(vm, record.target, FLOOR, rule)
        })
        .collect();
    wish::fit(
        distributable(snapshot, thresholds),
        wishes,
        settings.safeguards,
    )
}

impl Record {
    fn new(vm: &VmSnapshot, now: Duration) -> Record {
        let ceiling = vm.allocation.ceiling();
        Record {
            target: vm.consumed.max(FLOOR).min(ceiling),
            refaults: 0,
            interval_since: now,
            polled_at: now,
            events: events(vm),
            consumed: vm.consumed,
        }
    }

    fn poll(&mut self, vm: &VmSnapshot, now: Duration) {
        if now.saturating_sub(self.polled_at) < POLL {
            return;
        }
        self.polled_at = now;
        let events = events(vm);
        let taken_anew = vm.consumed.saturating_sub(self.consumed).0;
        self.refaults = self
            .refaults
            .saturating_add(events.saturating_sub(self.events))
            .saturating_add(taken_anew);
        self.events = events;
        self.consumed = vm.consumed;
        let target = self.target.0;
        if self.refaults > REFAULTS_MAX {
            let by = growth(target, self.refaults);
            self.target = Pages(target.saturating_add(by));
            self.start_interval(now);
        } else if now.saturating_sub(self.interval_since) >= INTERVAL {
            let spare = REFAULTS_MAX - self.refaults;
            let by = target / TIGHTEN_DIVISOR * spare * spare / (REFAULTS_MAX * REFAULTS_MAX);
            self.target = Pages(target - by);
            self.start_interval(now);
        }
        let ceiling = vm.allocation.ceiling();
        self.target = self.target.max(FLOOR).min(ceiling);
    }

    fn start_interval(&mut self, now: Duration) {
        self.interval_since = now;
        self.refaults = 0;
    }
}

/// `target * min(1, (refaults / max)^2 / 10)`.
fn growth(target: u64, refaults: u64) -> u64 {
    let squared = u128::from(refaults) * u128::from(refaults);
    let of = u128::from(REFAULTS_MAX * REFAULTS_MAX * BACK_OFF_DIVISOR);
    let by = u128::from(target).saturating_mul(squared) / of;
    u64::try_from(by).unwrap_or(u64::MAX).min(target)
}

/// Pages brought back so far, by the VM process and by the guest itself.
fn events(vm: &VmSnapshot) -> u64 {
    let guest_swap_ins = Pages::in_bytes(vm.guest.swap_in_bytes.unwrap_or(0)).0;
    vm.swap_in_pages
        .saturating_add(vm.guest.major_faults.unwrap_or(0))
        .saturating_add(guest_swap_ins)
}
