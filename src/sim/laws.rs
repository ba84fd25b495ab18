//! What must hold at every decision of the host manager, in every scenario, under every policy.

use std::collections::BTreeMap;

use crate::policy::PolicyKind;
use crate::policy::settings::PolicySettings;
use crate::policy::state::Thresholds;
use crate::policy::types::{Plan, Snapshot, VmId, VmSnapshot};
use crate::units::Pages;

/// The laws of one host.
#[derive(Debug)]
pub(super) struct Laws {
    policy: PolicyKind,
    settings: PolicySettings,
    /// What the balloons were ordered to hold before.
    balloon_orders: BTreeMap<VmId, Pages>,
}

impl Laws {
    pub(super) fn new(policy: PolicyKind, settings: PolicySettings) -> Laws {
        Laws {
            policy,
            settings,
            balloon_orders: BTreeMap::new(),
        }
    }

    /// Checks one decision of the host manager.
    ///
    /// # Errors
    /// Which law was broken, and by whom.
    pub(super) fn check<'a>(
        &mut self,
        snapshot: &Snapshot,
        plan: &Plan,
        name: impl Fn(VmId) -> &'a str,
    ) -> Result<(), String> {
        budget_is_kept(snapshot)?;
        self.targets_fit(snapshot, plan)?;
        self.promises_are_kept(snapshot, plan, name)?;
        self.growth_is_paid_for(snapshot, plan)?;
        let orders = plan.vms.iter().map(|vm| (vm.id, vm.balloon_target));
        self.balloon_orders = orders.collect();
        Ok(())
    }

    /// The sum of the targets is at most the budget less overheads, and so is the sum of the promises.
    fn targets_fit(&self, snapshot: &Snapshot, plan: &Plan) -> Result<(), String> {
        let most = snapshot.budget.saturating_sub(snapshot.overhead);
        let promised = |vm: &VmSnapshot| self.policy.entitlement(&vm.allocation);
        let promised: Pages = snapshot.vms.iter().map(promised).sum();
        if promised > most {
            return Err(format!(
                "{promised} are promised, but the budget less overheads is {most}"
            ));
        }
        let targets: Pages = plan.vms.iter().map(|vm| vm.target).sum();
        if targets > most {
            return Err(format!(
                "the targets are {targets} in all, but the budget less overheads is {most}"
            ));
        }
        Ok(())
    }

    /// `reservation <= target <= limit`, and nothing is taken below the reservation.
    fn promises_are_kept<'a>(
        &self,
        snapshot: &Snapshot,
        plan: &Plan,
        name: impl Fn(VmId) -> &'a str,
    ) -> Result<(), String> {
        for (vm, order) in snapshot.vms.iter().zip(&plan.vms) {
            let limit = vm.allocation.ceiling();
            let floor = self.policy.entitlement(&vm.allocation).min(limit);
            let (name, target) = (name(vm.id), order.target);
            if target < floor {
                return Err(format!(
                    "{name} is promised {floor}, its target is {target}"
                ));
            }
            if target > limit.max(floor) {
                return Err(format!(
                    "the limit of {name} is {limit}, its target {target}"
                ));
            }
            if let Some(max) = order.private_max
                && max < vm.private.min(floor)
            {
                return Err(format!("{name} is promised {floor} and swapped to {max}"));
            }
        }
        Ok(())
    }

    /// Balloons that shrink do so out of memory that is free above the high threshold.
    fn growth_is_paid_for(&self, snapshot: &Snapshot, plan: &Plan) -> Result<(), String> {
        let high = Thresholds::on_scale(snapshot.budget, self.settings.min_free).high;
        let mut given = Pages::ZERO;
        for (vm, order) in snapshot.vms.iter().zip(&plan.vms) {
            let before = self.balloon_orders.get(&vm.id).copied();
            let before = before.unwrap_or_default().min(vm.ballooned);
            given += before.saturating_sub(order.balloon_target);
        }
        let room = snapshot.free.saturating_sub(high);
        if given > room {
            return Err(format!(
                "balloons give back {given} before it is free: there is room for {room}"
            ));
        }
        Ok(())
    }
}

/// What the VMs hold and what was measured of their processes never exceeds the budget.
fn budget_is_kept(snapshot: &Snapshot) -> Result<(), String> {
    let held = |vm: &VmSnapshot| vm.consumed + vm.overhead;
    let held: Pages = snapshot.vms.iter().map(held).sum();
    if held > snapshot.budget {
        let budget = snapshot.budget;
        return Err(format!(
            "the VMs hold {held} with their overheads, the budget is {budget}"
        ));
    }
    Ok(())
}
