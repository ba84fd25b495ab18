//! What must hold in every step of every scenario, under every policy.

use super::host::{Fate, Host};
use super::scenario::End;
use crate::policy::PolicyKind;
use crate::policy::types::{Plan, Snapshot};
use crate::units::Pages;

/// Checks the plan of one step.
///
/// # Errors
/// Which law was broken, when and by whom.
pub(super) fn check(host: &Host<'_>, snapshot: &Snapshot, plan: &Plan) -> Result<(), String> {
    let at = format!("after {:.1} s", snapshot.now.as_secs_f64());
    nobody_is_killed(host).map_err(|law| format!("{at}: {law}"))?;
    targets_fit(host.state.kind(), snapshot, plan).map_err(|law| format!("{at}: {law}"))?;
    promises_are_kept(host, snapshot, plan).map_err(|law| format!("{at}: {law}"))?;
    growth_is_paid_for(host, snapshot, plan).map_err(|law| format!("{at}: {law}"))
}

fn nobody_is_killed(host: &Host<'_>) -> Result<(), String> {
    for (id, fate) in &host.fates {
        if let Fate::Ended(End::Killed, why) = fate {
            return Err(format!("{} was killed: {why}", host.spec(*id).name));
        }
    }
    Ok(())
}

/// The sum of the targets is at most the budget less overheads, and so is the sum of the promises.
fn targets_fit(kind: PolicyKind, snapshot: &Snapshot, plan: &Plan) -> Result<(), String> {
    let most = snapshot.budget.saturating_sub(snapshot.overhead);
    let promised: Pages = snapshot
        .vms
        .iter()
        .map(|vm| kind.entitlement(&vm.allocation))
        .sum();
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
fn promises_are_kept(host: &Host<'_>, snapshot: &Snapshot, plan: &Plan) -> Result<(), String> {
    let kind = host.state.kind();
    for (vm, order) in snapshot.vms.iter().zip(&plan.vms) {
        let name = &host.spec(vm.id).name;
        let limit = vm.allocation.ceiling();
        let floor = kind.entitlement(&vm.allocation).min(limit);
        if order.target < floor {
            let target = order.target;
            return Err(format!(
                "{name} is promised {floor}, its target is {target}"
            ));
        }
        if order.target > limit.max(floor) {
            let target = order.target;
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
fn growth_is_paid_for(host: &Host<'_>, snapshot: &Snapshot, plan: &Plan) -> Result<(), String> {
    let high = host.state.thresholds(snapshot.budget).high;
    let Some(before) = &host.plan else {
        return Ok(());
    };
    let mut given = Pages::ZERO;
    for (vm, order) in snapshot.vms.iter().zip(&plan.vms) {
        let old = before.vms.binary_search_by_key(&vm.id, |plan| plan.id);
        let old = old.map_or(Pages::ZERO, |index| before.vms[index].balloon_target);
        given += old.min(vm.ballooned).saturating_sub(order.balloon_target);
    }
    let room = snapshot.free.saturating_sub(high);
    if given > room {
        return Err(format!(
            "balloons give back {given} before it is free: there is room for {room}"
        ));
    }
    Ok(())
}
