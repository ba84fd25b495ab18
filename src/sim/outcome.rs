//! How a scenario ended, and whether that is what was expected.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::host::{Fate, Host};
use super::scenario::{End, Expectation, Scenario};
use crate::host::accounts::{Figures, VmFigures};
use crate::policy::proportional::INACCURACY;
use crate::policy::state::Thresholds;
use crate::policy::types::{Conduct, Plan, Snapshot, VmId};
use crate::units::Pages;
use crate::words::MemState;

/// Decisions between two points of a curve.
const TRACE_EVERY: u64 = 5;

/// What a scenario came to under one policy.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// Name of the scenario.
    pub scenario: String,
    /// Name of the policy.
    pub policy: &'static str,
    /// Whether it ended as expected.
    pub ok: bool,
    /// What was expected and came, or what went wrong.
    pub why: String,
    /// Each VM at the end.
    pub vms: Vec<VmOutcome>,
    /// Sum of the numbers of VMs of all decisions.
    pub vm_decisions: u64,
    /// The least free memory in all steps, bytes.
    pub free_bytes_min: u64,
    /// The worst memory state.
    pub state_worst: MemState,
    /// How often the memory state changed.
    pub state_changes: u64,
    /// The curves, for the picture.
    #[serde(skip)]
    pub(super) trace: Trace,
}

/// One VM at the end.
#[derive(Debug, Clone, Serialize)]
pub struct VmOutcome {
    /// Its name.
    pub name: String,
    /// Its last target, bytes.
    pub target_bytes: u64,
    /// Host memory that backs it, bytes.
    pub held_bytes: u64,
    /// In its swap file, bytes.
    pub swapped_bytes: u64,
    /// Came back from its swap file since its start, pages.
    pub swap_in_pages: u64,
    /// In its balloon, bytes.
    pub ballooned_bytes: u64,
    /// How its balloon behaved at worst.
    pub conduct: Conduct,
    /// running, died, refused or killed.
    pub end: &'static str,
    /// Which rule set its target, or why it has ended.
    pub why: String,
}

/// What is noted of every decision.
#[derive(Debug, Clone, Default)]
pub(super) struct Trace {
    decisions: u64,
    vm_decisions: u64,
    /// The worst conduct of each guest.
    conduct: BTreeMap<usize, Conduct>,
    /// (time, free, state) of every decision.
    host: Vec<(Duration, Pages, MemState)>,
    /// Of every fifth decision.
    pub(super) curves: Vec<CurvePoint>,
}

/// Time, free memory, and what each guest holds.
pub(super) type CurvePoint = (Duration, Pages, Vec<(usize, Pages)>);

impl Trace {
    /// Notes a decision; `guest` says which guest of the scenario a VM is.
    pub(super) fn note(&mut self, snapshot: &Snapshot, plan: &Plan, guest: impl Fn(VmId) -> usize) {
        for order in &plan.vms {
            let worst = self.conduct.entry(guest(order.id)).or_default();
            *worst = order.conduct.max(*worst);
        }
        self.host.push((snapshot.now, snapshot.free, plan.state));
        if self.decisions.is_multiple_of(TRACE_EVERY) {
            let held = snapshot.vms.iter().map(|vm| (guest(vm.id), vm.consumed));
            self.curves
                .push((snapshot.now, snapshot.free, held.collect()));
        }
        self.decisions += 1;
        self.vm_decisions += plan.vms.len() as u64;
    }

    fn since(&self, after: Duration) -> impl Iterator<Item = &(Duration, Pages, MemState)> {
        self.host.iter().filter(move |(at, _, _)| *at >= after)
    }

    fn free_min(&self, after: Duration) -> Pages {
        let free = self.since(after).map(|(_, free, _)| *free);
        free.min().unwrap_or(Pages::ZERO)
    }

    fn state_worst(&self, after: Duration) -> MemState {
        let states = self.since(after).map(|(_, _, state)| *state);
        states.max().unwrap_or_default()
    }

    fn state_changes(&self, after: Duration) -> u64 {
        let states: Vec<MemState> = self.since(after).map(|(_, _, state)| *state).collect();
        states.windows(2).filter(|pair| pair[0] != pair[1]).count() as u64
    }
}

/// How everything stands at the end.
struct Standing<'a> {
    scenario: &'a Scenario,
    figures: Figures,
    trace: Trace,
    vms: Vec<VmOutcome>,
}

/// The outcome of a run that came to its end, or broke a law.
pub(super) fn judge(mut host: Host<'_>, run: Result<(), String>) -> Outcome {
    let (scenario, policy) = (host.scenario, host.policy);
    host.manager.audit();
    let figures = host.manager.figures();
    let vms = host.fates.iter().enumerate();
    let end = Standing {
        scenario,
        vms: vms.map(|(guest, _)| vm(&host, guest, &figures)).collect(),
        figures,
        trace: host.trace,
    };
    let checked = run.and_then(|()| {
        let mut expectations = scenario.expectations.iter();
        expectations.try_for_each(|expectation| {
            let meant = expectation.policies.is_empty() || expectation.policies.contains(&policy);
            if meant {
                end.check(expectation)
            } else {
                Ok(())
            }
        })
    });
    let must_fail = scenario.fails.contains(&policy);
    let (ok, why) = match checked {
        Ok(()) if must_fail => {
            let words = &scenario.fails_with;
            (
                false,
                format!("should have failed with {words:?}, but did not"),
            )
        }
        Ok(()) => (true, "as expected".into()),
        Err(why) if must_fail && why.contains(&scenario.fails_with) => {
            (true, format!("fails as expected: {why}"))
        }
        Err(why) => (false, why),
    };
    Outcome {
        scenario: scenario.name.clone(),
        policy: policy.name(),
        ok,
        why,
        vms: end.vms,
        vm_decisions: end.trace.vm_decisions,
        free_bytes_min: end.trace.free_min(Duration::ZERO).bytes(),
        state_worst: end.trace.state_worst(Duration::ZERO),
        state_changes: end.trace.state_changes(Duration::ZERO),
        trace: end.trace,
    }
}

/// A guest at the end, by the host manager's own figures.
fn vm(host: &Host<'_>, guest: usize, figures: &Figures) -> VmOutcome {
    let name = &host.spec(guest).name;
    let ended = |end: End, why: &str| VmOutcome {
        name: name.clone(),
        target_bytes: 0,
        held_bytes: 0,
        swapped_bytes: 0,
        swap_in_pages: 0,
        ballooned_bytes: 0,
        conduct: Conduct::Cooperative,
        end: end.name(),
        why: why.to_owned(),
    };
    match &host.fates[guest] {
        Fate::Waiting => ended(End::Refused, "its time has not come"),
        Fate::Leased(..) => ended(End::Refused, "its memory has not come free yet"),
        Fate::Ended(end, why) => ended(*end, why),
        Fate::Running(_) => {
            let own = |vm: &&VmFigures| vm.name == *name;
            let vm = figures.vms.iter().find(own);
            let vm = vm.expect("a running guest is a live VM of the host manager");
            VmOutcome {
                target_bytes: vm.memory.target_bytes,
                held_bytes: vm.memory.consumed_bytes,
                swapped_bytes: vm.memory.gauges.taken_out().bytes(),
                swap_in_pages: vm.counters.swap_in_pages,
                ballooned_bytes: vm.memory.gauges.ballooned.bytes(),
                conduct: host.trace.conduct.get(&guest).copied().unwrap_or_default(),
                ..ended(End::Running, &vm.memory.target_why)
            }
        }
    }
}

/// Whether `name` is the VM `wanted`, or one of its `count`.
fn is_meant(name: &str, wanted: &str) -> bool {
    name == wanted
        || name
            .strip_prefix(wanted)
            .and_then(|rest| rest.strip_prefix('-'))
            .is_some_and(|number| number.parse::<u32>().is_ok())
}

impl Standing<'_> {
    fn check(&self, expectation: &Expectation) -> Result<(), String> {
        let Some(wanted) = &expectation.vm else {
            return self.check_host(expectation);
        };
        let mut meant = self.vms.iter().filter(|vm| is_meant(&vm.name, wanted));
        meant.try_for_each(|vm| check_vm(vm, expectation))
    }

    fn check_host(&self, expectation: &Expectation) -> Result<(), String> {
        let after = expectation.after;
        let free = self.trace.free_min(after);
        if let Some(least) = expectation.free_min.filter(|least| free < *least) {
            return Err(format!(
                "free memory went down to {free}, expected at least {least}"
            ));
        }
        let worst = self.trace.state_worst(after);
        if let Some(most) = expectation.state_worst.filter(|most| worst > *most) {
            let (worst, most) = (worst.name(), most.name());
            return Err(format!(
                "the host was in state {worst}, expected {most} at worst"
            ));
        }
        let changes = self.trace.state_changes(after);
        if let Some(most) = expectation.state_changes_max.filter(|most| changes > *most) {
            return Err(format!(
                "the memory state changed {changes} times, expected at most {most}"
            ));
        }
        if expectation.guaranteed {
            self.guaranteed()?;
        }
        Ok(())
    }

    /// The high threshold stays free even if every guest rises to its target and its inaccuracy.
    fn guaranteed(&self) -> Result<(), String> {
        let budget = self.scenario.budget;
        let high = Thresholds::on_scale(budget, self.scenario.settings.min_free).high;
        let rise = |vm: &VmOutcome| {
            let most = Pages::in_bytes(vm.target_bytes) + INACCURACY;
            most.saturating_sub(Pages::in_bytes(vm.held_bytes))
        };
        let running = self.vms.iter().filter(|vm| vm.end == End::Running.name());
        let free = Pages::in_bytes(self.figures.host.free_bytes);
        let free = free.saturating_sub(running.map(rise).sum());
        if free < high {
            return Err(format!(
                "free memory is not guaranteed: {} pages are missing if every guest rises to its \
                 target and {INACCURACY}",
                (high - free).0
            ));
        }
        Ok(())
    }
}

fn check_vm(vm: &VmOutcome, expectation: &Expectation) -> Result<(), String> {
    let name = &vm.name;
    let figures = [
        (
            "held",
            vm.held_bytes,
            expectation.held_min,
            expectation.held_max,
        ),
        (
            "target",
            vm.target_bytes,
            expectation.target_min,
            expectation.target_max,
        ),
        (
            "swapped",
            vm.swapped_bytes,
            expectation.swapped_min,
            expectation.swapped_max,
        ),
        (
            "ballooned",
            vm.ballooned_bytes,
            expectation.ballooned_min,
            expectation.ballooned_max,
        ),
        (
            "swapped in",
            Pages(vm.swap_in_pages).bytes(),
            None,
            expectation.swap_ins_max,
        ),
    ];
    if let Some(end) = expectation.end
        && end.name() != vm.end
    {
        return Err(format!(
            "{name} is {} ({}), expected {}",
            vm.end,
            vm.why,
            end.name()
        ));
    }
    for (what, bytes, least, most) in figures {
        let pages = Pages::in_bytes(bytes);
        if let Some(least) = least.filter(|least| pages < *least) {
            return Err(format!("{name}: {what} {pages}, expected at least {least}"));
        }
        if let Some(most) = most.filter(|most| pages > *most) {
            return Err(format!("{name}: {what} {pages}, expected at most {most}"));
        }
    }
    match expectation.conduct {
        Some(conduct) if conduct != vm.conduct => Err(format!(
            "{name} is {}, expected {}",
            vm.conduct.name(),
            conduct.name()
        )),
        _ => Ok(()),
    }
}
