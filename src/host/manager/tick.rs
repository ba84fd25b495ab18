//! The tick: what the policy is told of the host, and what becomes of its plan.

use std::collections::HashMap;
use std::time::Duration;

use super::{Manager, REST_TICK, TICK, Vm};
use crate::host::share::Reach;
use crate::link::message::{Orders, ToVm};
use crate::policy::decide;
use crate::policy::scan::{Scanned, Yield};
use crate::policy::types::{Plan, Snapshot, VmId, VmSnapshot};
use crate::units::Pages;
use crate::words::Run;

/// Time between decisions that cannot wait for the tick, at least: a VM must not be able to keep
/// the host manager deciding. Chosen.
const URGENT_GAP: Duration = Duration::from_millis(10);
/// Frames of an earlier host manager that are read for their keys in one tick: some milliseconds.
const ADOPTED_A_TICK: usize = 2048;

impl Manager {
    /// Whether a decision is due at `now`.
    pub fn is_due(&self, now: Duration) -> bool {
        now >= self.next_decision()
    }

    /// When the next decision is due.
    pub fn next_decision(&self) -> Duration {
        match (self.urgent, self.rests) {
            (true, _) => self.decided + URGENT_GAP,
            (false, true) => self.decided + REST_TICK,
            (false, false) => (self.decided + TICK).max(self.woken),
        }
    }

    /// Something has come that a decision may depend on.
    pub(super) fn wake(&mut self, now: Duration) {
        if std::mem::take(&mut self.rests) {
            self.woken = now;
        }
    }

    /// Whether the next decision waits for something to come.
    pub fn rests(&self) -> bool {
        self.rests && !self.urgent
    }

    /// Decides: new targets, orders to those VMs whose orders changed, credit to those who wait.
    pub fn tick(&mut self, now: Duration) {
        self.tick_watched(now, |_, _| {});
    }

    /// The same; `watch` sees what was decided, and from what.
    pub fn tick_watched(&mut self, now: Duration, watch: impl FnOnce(&Snapshot, &Plan)) {
        self.decided = now;
        self.urgent = false;
        self.shares.expire(now);
        let adopted = self.shares.read_adopted(ADOPTED_A_TICK);
        self.expire_leases(now);
        self.give_back(now);
        self.note_owed(now);
        let snapshot = self.snapshot(now);
        let plan = decide(&snapshot, &mut self.policy);
        watch(&snapshot, &plan);
        self.rests = !adopted && self.is_settled(&snapshot, &plan);
        let Plan { state, vms } = plan;
        let rates = self.scan_rates(now);
        for plan in vms {
            let scan_pages_per_second = rates[&plan.id];
            let (_, beyond) = self.frames_to_give(plan.id);
            let vm = self
                .vms
                .get_mut(&plan.id)
                .expect("the plan is about the snapshot's VMs");
            // A guest is blocked until its pages are out. Where they find no room it would be for ever:
            // it goes on with what it has, and its balloon can give.
            let run = if vm.swap_full() { Run::Go } else { plan.run };
            let orders = Orders {
                state,
                balloon_target: plan.balloon_target,
                hint_rounds: plan.hint_rounds,
                private_max: plan.private_max.map(|most| most + beyond),
                run,
                scan_pages_per_second,
            };
            let id = plan.id;
            vm.plan = Some(plan);
            self.order(id, orders);
        }
        self.order_the_deaf();
        self.passed(now);
        // Who was not granted everything now waits for the next tick: the plan knows of it.
        self.serve(None);
        self.urgent = false;
        self.observe();
    }

    /// Sends a VM its orders, if they have changed.
    fn order(&mut self, id: VmId, orders: Orders) {
        let vm = self.vms.get_mut(&id).expect("callers know the VM");
        if vm.orders.as_ref() != Some(&orders) {
            vm.orders = Some(orders.clone());
            self.send(id, ToVm::Orders(orders));
        }
    }

    /// What a VM was told that is left out of the snapshot stands, but that a guest whose pages find no
    /// room is not blocked.
    fn order_the_deaf(&mut self) {
        let deaf = |vm: &Vm| vm.watch.is_left_out() && vm.swap_full();
        let deaf = self.vms.iter().filter(|(_, vm)| deaf(vm));
        let orders = deaf.filter_map(|(&id, vm)| Some((id, vm.orders.clone()?)));
        for (id, orders) in orders.collect::<Vec<_>>() {
            self.order(
                id,
                Orders {
                    run: Run::Go,
                    ..orders
                },
            );
        }
    }

    /// Whether there is nothing to decide until something comes: see [`is_settled`], and nobody is
    /// expected.
    ///
    /// [`is_settled`]: crate::policy::PolicyState::is_settled
    fn is_settled(&self, snapshot: &Snapshot, plan: &Plan) -> bool {
        let all_open = self.vms.values().all(|vm| vm.reach == Reach::Open);
        all_open
            && !self.waits_for_somebody()
            && self.leases.iter().next().is_none()
            && self.policy.is_settled(snapshot, plan)
    }

    /// It is `now`: books the time that has passed on the memory state.
    pub fn passed(&mut self, now: Duration) {
        self.history.enters(self.policy.mem_state(), now);
    }

    /// The decision that is made now is late by so much.
    pub fn is_late(&mut self, by: Duration) {
        self.history.decides_late(by);
    }

    /// How fast each VM may scan.
    fn scan_rates(&mut self, now: Duration) -> HashMap<VmId, u32> {
        let yielded = |vm: &Vm| {
            let counters = vm.measured.as_ref().map(|measured| measured.counters);
            let counters = counters.unwrap_or_default();
            Yield {
                merged: counters.merged_pages,
                broken: counters.cow_breaks,
            }
        };
        let vms: Vec<Scanned> = self
            .vms
            .iter()
            .map(|(&id, vm)| Scanned {
                id,
                size: vm.allocation.size,
                yielded: yielded(vm),
            })
            .collect();
        let rates = self.scan.decide(now, &vms);
        vms.iter().map(|vm| vm.id).zip(rates).collect()
    }

    /// A state threshold crossed downward does not wait for the tick.
    pub(super) fn watch_thresholds(&mut self) {
        let state = self.policy.mem_state();
        let thresholds = self.policy.thresholds(self.ledger.budget());
        self.urgent |= thresholds.next(state, self.unleased()) > state;
    }

    /// The host as the policy sees it: without VMs for whose memory nobody waits.
    /// What they hold is overhead.
    pub(super) fn snapshot(&mut self, now: Duration) -> Snapshot {
        self.shares.split_frames();
        let frames = |id| Pages::in_bytes(self.shares.frame_part(id).bytes);
        let (deaf, vms): (Vec<_>, Vec<_>) =
            self.vms.iter().partition(|(_, vm)| vm.watch.is_left_out());
        let kept: Pages = deaf
            .into_iter()
            .map(|(&id, _)| self.counted(id) + frames(id))
            .sum();
        let vms = vms.into_iter().map(|(&id, vm)| {
            let measured = vm.measured.clone().unwrap_or_default();
            let frames = frames(id);
            let (to_give, _) = self.frames_to_give(id);
            VmSnapshot {
                id,
                allocation: vm.allocation,
                consumed: self.counted(id) + frames,
                frames,
                private: self.swappable(id) + to_give,
                ballooned: measured.gauges.ballooned,
                swapped: measured.gauges.taken_out(),
                swap_in_pages: measured.counters.swap_in_pages,
                asked: vm.asked,
                balloon_driver: measured.balloon_driver,
                active: measured.active,
                overhead: self.ledger.vm_overhead(id),
                guest: measured.guest_memory,
            }
        });
        Snapshot {
            now,
            budget: self.ledger.budget(),
            free: self.unleased(),
            overhead: self.ledger.overhead()
                + self.ledger.overhead_to_come()
                + self.leases.reserved()
                + kept,
            vms: vms.collect(),
        }
    }
}
