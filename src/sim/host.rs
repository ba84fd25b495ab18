//! The simulated host: the real host manager, driven by model guests one step after the other.
//!
//! [`Manager`] keeps the ledger, admits, leases, grants and decides, as on a live host; here are only
//! what stands around it there: the clock, the processes, and whoever starts VMs and changes them.

use std::time::Duration;

use super::groups::Unshared;
use super::guest::{Guest, PeriodClock, STEP};
use super::laws::Laws;
use super::outcome::{Outcome, Trace, judge};
use super::scenario::{End, GuestSpec, Scenario};
use crate::host::manager::{LeaseEnd, Manager, Outgoing, Refused, Settings};
use crate::host::process::ProcessId;
use crate::host::registration::Registration;
use crate::link::message::{ToHost, Welcome};
use crate::policy::PolicyKind;
use crate::policy::lease::{LeaseId, OwnerId};
use crate::policy::safeguard::Safeguard;
use crate::policy::types::VmId;
use crate::units::Pages;
use crate::words::{Sharing, Token};

/// A start waits so long for its memory to come free.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// What has become of one guest of the scenario.
#[derive(Debug)]
pub(super) enum Fate {
    Waiting,
    /// Its reservation and overhead are leased and have not come free yet.
    Leased(LeaseId, Token, Pages),
    Running(Box<Guest>),
    Ended(End, String),
}

/// A host in the middle of a scenario. Its guests go by their places in the scenario.
#[derive(Debug)]
pub(super) struct Host<'a> {
    pub(super) scenario: &'a Scenario,
    pub(super) policy: PolicyKind,
    pub(super) manager: Manager,
    now: Duration,
    pub(super) fates: Vec<Fate>,
    /// Of each VM that was admitted: its guest. VMs are numbered from zero.
    guest_of: Vec<usize>,
    laws: Laws,
    pub(super) trace: Trace,
}

/// Plays a scenario and judges its end.
pub(super) fn run(scenario: &Scenario, policy: PolicyKind) -> Outcome {
    let mut host = Host::new(scenario, policy);
    while host.now < scenario.duration {
        if let Err(breach) = host.step() {
            let breach = format!("after {:.1} s: {breach}", host.now.as_secs_f64());
            return judge(host, Err(breach));
        }
        host.now += STEP;
    }
    judge(host, Ok(()))
}

impl<'a> Host<'a> {
    fn new(scenario: &'a Scenario, policy: PolicyKind) -> Host<'a> {
        let settings = Settings {
            budget: scenario.budget,
            policy,
            policy_settings: scenario.settings,
            sampling: scenario.sampling.unwrap_or_default(),
            seed: 0,
        };
        let mut manager = Manager::with_groups(settings, Box::new(Unshared::default()));
        manager.set_host_overhead(scenario.overhead);
        Host {
            scenario,
            policy,
            manager,
            now: Duration::ZERO,
            fates: scenario.guests.iter().map(|_| Fate::Waiting).collect(),
            guest_of: Vec::new(),
            laws: Laws::new(policy, scenario.settings),
            trace: Trace::default(),
        }
    }

    /// What the scenario says about a guest.
    pub(super) fn spec(&self, guest: usize) -> &GuestSpec {
        &self.scenario.guests[guest]
    }

    fn step(&mut self) -> Result<(), String> {
        self.die()?;
        self.change()?;
        self.start();
        self.play()?;
        if self.manager.is_due(self.now) {
            self.decide()?;
        }
        // Nobody takes this host over.
        self.manager.take_notes();
        Ok(())
    }

    fn decide(&mut self) -> Result<(), String> {
        let (laws, trace) = (&mut self.laws, &mut self.trace);
        let (guest_of, guests) = (&self.guest_of, &self.scenario.guests);
        let guest = |vm: VmId| guest_of[vm.0 as usize];
        let name = |vm: VmId| guests[guest(vm)].name.as_str();
        let mut lawful = Ok(());
        self.manager.tick_watched(self.now, |snapshot, plan| {
            lawful = laws.check(snapshot, plan, name);
            trace.note(snapshot, plan, guest);
        });
        self.deliver();
        lawful
    }

    /// Processes end: the host manager learns it at once.
    fn die(&mut self) -> Result<(), String> {
        for fate in &mut self.fates {
            let Fate::Running(guest) = fate else {
                continue;
            };
            if let Some(left) = guest.starved_with() {
                let name = &guest.spec.name;
                let why = format!("its balloon left it {left}");
                let breach = Err(format!("{name} was killed: {why}"));
                self.manager.gone(guest.id);
                *fate = Fate::Ended(End::Killed, why);
                return breach;
            }
            if guest.has_died(self.now) {
                self.manager.gone(guest.id);
                *fate = Fate::Ended(End::Died, "its process died".into());
            }
        }
        self.deliver();
        Ok(())
    }

    fn change(&mut self) -> Result<(), String> {
        for change in &self.scenario.changes {
            let (true, Some(vm)) = (change.at == self.now, self.manager.find(&change.vm)) else {
                continue;
            };
            let refused = |why: Refused| format!("{} cannot be changed: {why}", change.vm);
            self.manager.set(vm, &change.keys).map_err(refused)?;
        }
        Ok(())
    }

    /// Starts guests whose time has come. A reservation is leased first, and the guest's VM says hello
    /// once that much memory is free. Where nothing is reserved, or admission is switched off, it says
    /// hello at once.
    fn start(&mut self) {
        for guest in 0..self.fates.len() {
            match self.fates[guest] {
                Fate::Waiting if self.now >= self.spec(guest).start => {
                    let reservation = self.spec(guest).allocation.reservation;
                    let guards = self.scenario.settings.safeguards;
                    if reservation == Pages::ZERO || !guards.has(Safeguard::Admission) {
                        self.hello(guest, None);
                    } else {
                        self.lease(guest, reservation);
                    }
                }
                Fate::Leased(lease, token, needed) => self.redeem(guest, lease, token, needed),
                _ => {}
            }
        }
    }

    fn lease(&mut self, guest: usize, reservation: Pages) {
        let expires_at = self.now + START_TIMEOUT;
        let leased = self
            .manager
            .reserve(reservation, None, owner(guest), expires_at);
        match leased {
            Ok((id, token, lease)) => {
                self.fates[guest] = Fate::Leased(id, token, lease.pages());
                self.redeem(guest, id, token, lease.pages());
            }
            Err(why) => self.fates[guest] = Fate::Ended(End::Refused, why.to_string()),
        }
    }

    fn redeem(&mut self, guest: usize, lease: LeaseId, token: Token, needed: Pages) {
        // Other leases wait for the same free memory: only the oldest may take it.
        let older = self.fates.iter().map(|fate| match *fate {
            Fate::Leased(other, _, pages) if other < lease => pages,
            _ => Pages::ZERO,
        });
        if self.manager.ledger().free() >= older.sum::<Pages>() + needed {
            self.hello(guest, Some(token));
        }
    }

    fn hello(&mut self, guest: usize, lease: Option<Token>) {
        let spec = self.spec(guest);
        let registration = Registration {
            name: spec.name.clone(),
            allocation: spec.allocation,
            share_group: None,
            sharing: Sharing::default(),
            managed: true,
            lease,
        };
        // No two of them have it in common. Nobody looks for the process.
        let process = ProcessId {
            pid: i32::MAX,
            started: guest as u64,
        };
        match self.manager.admit(registration, process, None) {
            Ok(_) => self.guest_of.push(guest),
            Err(why) => {
                // Whoever took the lease ends with the VM that it was for.
                self.manager.owner_gone(owner(guest));
                self.fates[guest] = Fate::Ended(End::Refused, why.to_string());
            }
        }
        self.deliver();
    }

    /// Every guest plays its step; who was first in the last step is last in this one.
    fn play(&mut self) -> Result<(), String> {
        let guards = self.scenario.settings.safeguards;
        let clock = if guards.has(Safeguard::SleepDecay) {
            PeriodClock::Free
        } else {
            PeriodClock::Busy
        };
        let count = self.guest_of.len();
        let first = usize::try_from(self.now.as_millis() / STEP.as_millis()).unwrap_or(0);
        for turn in 0..count {
            let guest = self.guest_of[(first + turn) % count];
            self.play_one(guest, clock)?;
        }
        Ok(())
    }

    fn play_one(&mut self, guest: usize, clock: PeriodClock) -> Result<(), String> {
        let now = self.now;
        let Some(running) = self.running(guest) else {
            return Ok(());
        };
        running.begin(now);
        // What it is granted comes at once, and it goes on with it.
        while let Some(said) = self.running(guest).and_then(Guest::go_on) {
            self.tell(guest, said)?;
        }
        let Some(running) = self.running(guest) else {
            return Ok(());
        };
        running.sample(clock);
        let report = running.report();
        self.tell(guest, ToHost::Report(Box::new(report)))
    }

    /// The running guest at that place.
    fn running(&mut self, guest: usize) -> Option<&mut Guest> {
        match &mut self.fates[guest] {
            Fate::Running(guest) => Some(guest),
            Fate::Waiting | Fate::Leased(..) | Fate::Ended(..) => None,
        }
    }

    /// A guest's VM process says something to the host manager.
    fn tell(&mut self, guest: usize, said: ToHost) -> Result<(), String> {
        let Some(id) = self.running(guest).map(|guest| guest.id) else {
            return Ok(());
        };
        let told = self.manager.message(id, said, self.now);
        told.map_err(|violation| format!("{}: {violation}", self.spec(guest).name))?;
        self.deliver();
        Ok(())
    }

    /// Delivers what the host manager has to say.
    fn deliver(&mut self) {
        for outgoing in self.manager.take_outgoing() {
            match outgoing {
                Outgoing::Send(vm, message) => {
                    if let Some(guest) = self.running(self.guest_of[vm.0 as usize]) {
                        guest.hear(message);
                    }
                }
                Outgoing::Welcome(vm, welcome) => self.run_guest(vm, &welcome),
                Outgoing::LeaseEnded(of, LeaseEnd::Expired) => {
                    let why = format!("its memory did not come free in {START_TIMEOUT:?}");
                    let mut guests = self.fates.iter_mut().enumerate();
                    if let Some((_, fate)) = guests.find(|(guest, _)| owner(*guest) == of) {
                        *fate = Fate::Ended(End::Refused, why);
                    }
                }
                // Model guests are not measured.
                Outgoing::Kill(..) | Outgoing::LeaseEnded(_, LeaseEnd::Redeemed(_)) => {}
            }
        }
    }

    fn run_guest(&mut self, vm: VmId, welcome: &Welcome) {
        let guest = self.guest_of[vm.0 as usize];
        let sampled = self.scenario.sampling.is_some();
        let running = Guest::new(self.spec(guest), vm, welcome, sampled, self.now);
        self.fates[guest] = Fate::Running(Box::new(running));
    }
}

/// Whoever starts a VM has a connection of its own for the lease.
fn owner(guest: usize) -> OwnerId {
    OwnerId(guest as u64)
}
