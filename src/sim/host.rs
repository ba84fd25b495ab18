//! The simulated host: its ledger, its starts and events, one step after the other.

use std::collections::BTreeMap;
use std::time::Duration;

use super::guest::{Guest, PeriodClock, STEP};
use super::laws;
use super::outcome::{Outcome, Trace, judge};
use super::scenario::{End, GuestSpec, Scenario};
use crate::policy::admission::{HostBooks, Request};
use crate::policy::grant::{CreditRequest, grant};
use crate::policy::lease::{LeaseBook, LeaseId, OwnerId};
use crate::policy::safeguard::Safeguard;
use crate::policy::types::{Plan, Snapshot, VmId};
use crate::policy::{PolicyKind, PolicyState, decide};
use crate::units::Pages;

/// A start waits so long for its memory to come free.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const OWNER: OwnerId = OwnerId(0);

/// What has become of one guest of the scenario.
#[derive(Debug)]
pub(super) enum Fate {
    Waiting,
    Leased(LeaseId),
    Running(Box<Guest>),
    Ended(End, String),
}

/// A host in the middle of a scenario.
#[derive(Debug)]
pub(super) struct Host<'a> {
    pub(super) scenario: &'a Scenario,
    pub(super) state: PolicyState,
    pub(super) now: Duration,
    /// By position in the scenario, which is the VM's id.
    pub(super) fates: BTreeMap<VmId, Fate>,
    pub(super) plan: Option<Plan>,
    leases: LeaseBook,
    pub(super) trace: Trace,
    pub(super) decisions: u64,
}

/// Plays a scenario and judges its end.
pub(super) fn run(scenario: &Scenario, policy: PolicyKind) -> Outcome {
    let mut host = Host::new(scenario, policy);
    while host.now < scenario.duration {
        if let Err(breach) = host.step() {
            return judge(&host, Err(breach));
        }
    }
    judge(&host, Ok(()))
}

impl<'a> Host<'a> {
    fn new(scenario: &'a Scenario, policy: PolicyKind) -> Host<'a> {
        let fates = (0..).map(VmId).zip(&scenario.guests);
        Host {
            scenario,
            state: PolicyState::with_settings(policy, scenario.settings),
            now: Duration::ZERO,
            fates: fates.map(|(id, _)| (id, Fate::Waiting)).collect(),
            plan: None,
            leases: LeaseBook::default(),
            trace: Trace::default(),
            decisions: 0,
        }
    }

    /// What the scenario says about a guest.
    pub(super) fn spec(&self, id: VmId) -> &GuestSpec {
        &self.scenario.guests[id.0 as usize]
    }

    pub(super) fn running(&self) -> impl Iterator<Item = (VmId, &Guest)> {
        self.fates.iter().filter_map(|(&id, fate)| match fate {
            Fate::Running(guest) => Some((id, guest.as_ref())),
            _ => None,
        })
    }

    fn vm_overhead(&self) -> Pages {
        self.running().map(|(_, guest)| guest.spec.overhead).sum()
    }

    fn overhead(&self) -> Pages {
        self.scenario.overhead + self.vm_overhead()
    }

    /// What nobody holds, leases included.
    pub(super) fn free(&self) -> Pages {
        let held: Pages = self.running().map(|(_, guest)| guest.held()).sum();
        self.scenario.budget.saturating_sub(held + self.overhead())
    }

    fn step(&mut self) -> Result<(), String> {
        self.die();
        self.change();
        self.start();
        let snapshot = self.snapshot();
        let plan = decide(&snapshot, &mut self.state);
        self.decisions += snapshot.vms.len() as u64;
        laws::check(self, &snapshot, &plan)?;
        self.trace.note(&snapshot, &plan);
        for order in &plan.vms {
            if let Some(Fate::Running(guest)) = self.fates.get_mut(&order.id) {
                guest.obey(order, self.now);
            }
        }
        self.touch(&plan);
        self.plan = Some(plan);
        self.now += STEP;
        Ok(())
    }

    fn snapshot(&self) -> Snapshot {
        // A lease is memory in need that no VM holds yet: policies squeeze for it.
        let leased = self.leases.reserved();
        Snapshot {
            now: self.now,
            budget: self.scenario.budget,
            free: self.free().saturating_sub(leased),
            overhead: self.overhead() + leased,
            vms: self
                .running()
                .map(|(id, guest)| guest.snapshot(id))
                .collect(),
        }
    }

    fn die(&mut self) {
        for fate in self.fates.values_mut() {
            let Fate::Running(guest) = fate else {
                continue;
            };
            if guest.has_died(self.now) {
                *fate = Fate::Ended(End::Died, "its process died".into());
            } else if guest.is_starved() {
                let left = guest.allocation.size - Pages(guest.ballooned);
                let why = format!("its balloon left it {left}");
                *fate = Fate::Ended(End::Killed, why);
            }
        }
    }

    fn change(&mut self) {
        let (scenario, now) = (self.scenario, self.now);
        for change in scenario.changes.iter().filter(|change| change.at == now) {
            for fate in self.fates.values_mut() {
                let Fate::Running(guest) = fate else {
                    continue;
                };
                if guest.spec.name != change.vm {
                    continue;
                }
                // Refused, as `set` would, where an earlier change came before the guest's start.
                if let Ok(changed) = change.keys.change(&guest.allocation) {
                    guest.allocation = changed;
                }
            }
        }
    }

    fn books(&self) -> HostBooks {
        let kind = self.state.kind();
        let promised = |guest: &Guest| kind.entitlement(&guest.allocation);
        HostBooks {
            budget: self.scenario.budget,
            reserved: self.running().map(|(_, guest)| promised(guest)).sum(),
            overhead: self.overhead(),
            vms: self.running().count(),
            free: self.free(),
        }
    }

    /// Who wants to start takes a lease, and starts when that much is free.
    fn start(&mut self) {
        let ids: Vec<VmId> = self.fates.keys().copied().collect();
        for id in ids {
            let next = match self.fates[&id] {
                Fate::Waiting if self.now >= self.spec(id).start => self.admit(id),
                Fate::Leased(lease) => self.redeem(id, lease),
                _ => None,
            };
            if let Some(next) = next {
                self.fates.insert(id, next);
            }
        }
    }

    fn admit(&mut self, id: VmId) -> Option<Fate> {
        let spec = self.spec(id);
        if !self.state.settings().safeguards.has(Safeguard::Admission) {
            return Some(Fate::Running(Box::new(Guest::new(
                spec,
                self.scenario.sampling,
                self.now,
            ))));
        }
        let request = Request {
            name: spec.name.clone(),
            reservation: self.state.kind().entitlement(&spec.allocation),
            overhead: spec.overhead,
        };
        let books = self.leases.counted_in(&self.books());
        let name = |id| self.spec(id).name.clone();
        let assessed = self.state.assess(&books, &request, &self.snapshot(), name);
        if let Err(refusal) = assessed {
            return Some(Fate::Ended(End::Refused, refusal.to_string()));
        }
        let until = self.now + START_TIMEOUT;
        match self.leases.take(&self.books(), &request, OWNER, until) {
            Ok(lease) => {
                let next = self.redeem(id, lease);
                Some(next.unwrap_or(Fate::Leased(lease)))
            }
            Err(error) => Some(Fate::Ended(End::Refused, error.to_string())),
        }
    }

    fn redeem(&mut self, id: VmId, lease: LeaseId) -> Option<Fate> {
        // Other leases wait for the same free memory: only the oldest may take it.
        let older: Pages = self
            .leases
            .iter()
            .take_while(|(other, _)| *other != lease)
            .map(|(_, older)| older.pages())
            .sum();
        let needed = self.leases.get(lease, OWNER)?.pages();
        if self.free() >= older + needed {
            self.leases.redeem(lease, OWNER, self.now).ok()?;
            let guest = Guest::new(self.spec(id), self.scenario.sampling, self.now);
            return Some(Fate::Running(Box::new(guest)));
        }
        if self.leases.get(lease, OWNER)?.expires_at <= self.now {
            self.leases.cancel(lease, OWNER).ok()?;
            let why = format!("{needed} did not come free in {START_TIMEOUT:?}");
            return Some(Fate::Ended(End::Refused, why));
        }
        None
    }

    /// Everybody touches memory; who was first in the last step is last in this one.
    fn touch(&mut self, plan: &Plan) {
        let thresholds = self.state.thresholds(self.scenario.budget);
        let mut free = self.free().saturating_sub(self.leases.reserved());
        let (state, now) = (plan.state, self.now);
        let count = plan.vms.len();
        let guards = self.state.settings().safeguards;
        let clock = if guards.has(Safeguard::SleepDecay) {
            PeriodClock::Free
        } else {
            PeriodClock::Busy
        };
        let first = usize::try_from(now.as_millis() / STEP.as_millis()).unwrap_or(0);
        for index in (0..count).map(|index| (first + index) % count) {
            let order = &plan.vms[index];
            let Some(Fate::Running(guest)) = self.fates.get_mut(&order.id) else {
                continue;
            };
            guest.touch(now, |guest, asked| {
                let request = CreditRequest {
                    asked: Pages(asked),
                    held: guest.held(),
                    allocation: &guest.allocation,
                    plan: Some(order),
                };
                let granted = grant(&request, free, &thresholds, state);
                free -= granted;
                granted.0
            });
            guest.sample(clock);
        }
    }
}
