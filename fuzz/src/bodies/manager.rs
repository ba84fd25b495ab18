//! The host manager without its sockets: VM processes that keep to the protocol and others that do
//! not, people who change their minds, time, and a restart. After each step its books are audited.

mod people;
mod process;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tidemark::host::manager::{Manager, Outgoing, Settings, WayBack};
use tidemark::host::process::{Footprint, ProcessId};
use tidemark::link::message::ToVm;
use tidemark::policy::PolicyKind;
use tidemark::policy::lease::OwnerId;
use tidemark::policy::settings::{MinFree, PolicySettings};
use tidemark::policy::types::{Plan, Snapshot, VmId};
use tidemark::units::{FrameId, Gfn, Pages};
use tidemark::words::{Sampling, Token};

use super::groups::Groups;
use super::input::Input;
use super::messages;
use process::has;

const STEPS_MAX: usize = 160;
const VMS_MAX: usize = 6;

/// A VM process.
struct Vm {
    process: ProcessId,
    /// None of those without a door.
    way: Option<WayBack>,
    seed: u64,
    pool: Option<OwnedFd>,
    has_link: bool,
    /// It goes on with its pool and has to say what it maps.
    claims: bool,
    wants: Vec<Gfn>,
    frames: Vec<FrameId>,
    cpu: Duration,
}

struct World {
    settings: Settings,
    manager: Manager,
    kind: PolicyKind,
    now: Duration,
    vms: BTreeMap<VmId, Vm>,
    /// VM processes to be killed.
    condemned: Vec<VmId>,
    joined: u32,
    owners: u64,
    leases: Vec<Token>,
    /// Pages that were granted on request, and references that were lent.
    given: u64,
}

/// Whether a VM was given memory that it asked for, or a frame.
pub fn body(data: &[u8]) -> bool {
    let mut input = Input::new(data);
    let kind = input.pick(PolicyKind::ALL);
    let settings = Settings {
        budget: Pages::mib(16 + u64::from(input.u8() % 64)),
        policy: kind,
        policy_settings: PolicySettings {
            min_free: input.pick(MinFree::ALL),
            ..PolicySettings::default()
        },
        sampling: Sampling::default(),
        seed: 1,
    };
    let mut world = World {
        settings,
        manager: Manager::with_groups(settings, Box::new(Groups::default())),
        kind,
        now: Duration::ZERO,
        vms: BTreeMap::new(),
        condemned: Vec::new(),
        joined: 0,
        owners: 0,
        leases: Vec::new(),
        given: 0,
    };
    let mut steps = 0;
    while !input.is_empty() && steps < STEPS_MAX {
        world.step(&mut input);
        steps += 1;
    }
    world.end();
    world.given > 0
}

impl World {
    fn step(&mut self, input: &mut Input<'_>) {
        let before = self.manager.ledger().in_use();
        let handed_out_alone = self.act(input);
        let ledger = self.manager.ledger();
        let most = before.max(ledger.budget());
        let now = ledger.in_use();
        assert!(
            !handed_out_alone || now <= most,
            "{now:?} of {:?}",
            ledger.budget()
        );
        self.manager.audit();
        self.hear();
        self.check_promises();
    }

    /// Does something; whether the only way in which more is in use afterwards is that the host manager
    /// has given it.
    fn act(&mut self, input: &mut Input<'_>) -> bool {
        match input.below(40) {
            0..=4 => self.join(input),
            5 => self.end_process(input),
            6 => self.detach(input),
            7 => self.rejoin(input),
            8..=18 => return self.proper_message(input),
            19..=22 => {
                if let Some(id) = self.any(input) {
                    let message = messages::to_host(input);
                    self.tell(id, message);
                }
                return false;
            }
            23..=28 => {
                self.tick(input);
                return true;
            }
            29 => self.set(input),
            30 => self.set_host(input),
            31 => self.reserve(input),
            32 => {
                let owner = OwnerId(u64::from(input.u8()) % self.owners.max(1));
                self.manager.owner_gone(owner);
                return true;
            }
            33 | 34 => self.measure(input),
            35 => {
                if let Some(id) = self.any(input) {
                    self.manager.set_behind(id, input.bool());
                }
                return true;
            }
            36 => {
                if let Some(id) = self.any(input) {
                    self.manager.stop(id);
                }
                return true;
            }
            37 => self.look(),
            38 => self
                .manager
                .set_host_overhead(Pages(u64::from(input.u16()) % 1024)),
            _ => self.restart(input),
        }
        false
    }

    fn any(&self, input: &mut Input<'_>) -> Option<VmId> {
        let number = usize::from(input.u8());
        let count = self.vms.len();
        let mut ids = self.vms.keys().copied();
        (count > 0).then(|| ids.nth(number % count)).flatten()
    }

    fn end_process(&mut self, input: &mut Input<'_>) {
        let condemned = self.condemned.pop();
        if let Some(id) = condemned.or_else(|| self.any(input)) {
            self.vms.remove(&id);
            self.manager.gone(id);
        }
    }

    fn detach(&mut self, input: &mut Input<'_>) {
        if let Some(id) = self.any(input) {
            self.manager.detach(id);
            let vm = self.vms.get_mut(&id).expect("it is one of them");
            vm.has_link = false;
        }
    }

    /// Time passes; a decision, if one is due.
    fn tick(&mut self, input: &mut Input<'_>) {
        let passed = match input.u8() {
            long @ 0xf0.. => u64::from(long) * 250,
            short => u64::from(short) * 4,
        };
        self.now += Duration::from_millis(passed);
        let _ = self.manager.give_back(self.now);
        if self.manager.is_due(self.now) {
            let kind = self.kind;
            self.manager
                .tick_watched(self.now, |host, plan| check_plan(kind, host, plan));
        }
        self.manager.passed(self.now);
    }

    /// The kernel says what a process has.
    fn measure(&mut self, input: &mut Input<'_>) {
        let Some(id) = self.manager.unmeasured(self.now) else {
            return;
        };
        let credit = self.manager.ledger().credit(id);
        let vm = self.vms.get_mut(&id).expect("a VM of this host");
        vm.cpu += Duration::from_millis(input.u8().into());
        let footprint = input.bool().then(|| Footprint {
            memory: match input.bool() {
                true => credit + Pages(input.u8().into()),
                false => has(input),
            },
            whole: input.bool(),
            cpu: vm.cpu,
        });
        self.manager.measured(id, footprint, self.now);
    }

    /// Takes what the host manager sends.
    fn hear(&mut self) {
        for outgoing in self.manager.take_outgoing() {
            match outgoing {
                Outgoing::Welcome(id, welcome) => {
                    let pool = self.manager.pool(id).expect("who is welcome has a pool");
                    let vm = self.vms.get_mut(&id).expect("it has joined");
                    vm.pool = Some(pool.reader().expect("a descriptor can be had"));
                    (vm.seed, vm.claims) = (welcome.key_seed, welcome.adopted);
                    if !welcome.adopted {
                        vm.frames.clear();
                    }
                }
                Outgoing::Send(id, message) => {
                    message.check().expect("what is sent keeps its bounds");
                    self.hear_one(id, message);
                }
                Outgoing::Kill(id, _) => self.condemned.push(id),
                Outgoing::LeaseEnded(..) => {}
            }
        }
        self.manager.take_notes();
    }

    fn hear_one(&mut self, id: VmId, message: ToVm) {
        // It may have ended since.
        let Some(vm) = self.vms.get_mut(&id) else {
            return;
        };
        match message {
            ToVm::Credit { pages } => self.given += pages.0,
            ToVm::Candidates { pages } => {
                self.given += pages.len() as u64;
                vm.frames.extend(pages.into_iter().map(|(_, frame)| frame));
            }
            ToVm::Want { gfns } => vm.wants.extend(gfns),
            _ => {}
        }
    }

    /// Nobody is charged more than its size, and what is reserved fits the budget.
    fn check_promises(&self) {
        let ledger = self.manager.ledger();
        let mut reserved = Pages::ZERO;
        for &id in self.vms.keys() {
            let allocation = self.manager.allocation(id).expect("it lives");
            let (size, charge) = (allocation.size, ledger.charge(id));
            assert!(charge <= size, "charged {charge:?} of {size:?}");
            reserved += allocation.reservation;
        }
        let budget = ledger.budget();
        assert!(reserved <= budget, "reserved {reserved:?} of {budget:?}");
    }

    /// All processes end: everything is back.
    fn end(&mut self) {
        for id in std::mem::take(&mut self.vms).into_keys() {
            self.manager.gone(id);
        }
        self.manager.audit();
        let ledger = self.manager.ledger();
        assert_eq!(
            ledger.held() + ledger.frames(),
            Pages::ZERO,
            "held by nobody"
        );
        let host = ledger.overhead() + ledger.overhead_to_come();
        assert_eq!(ledger.in_use(), host, "charged to nobody");
        assert_eq!(self.manager.live(), 0);
    }
}

/// What every plan keeps: nobody's target below its reservation or above its limit, and all of them
/// together within the budget.
fn check_plan(kind: PolicyKind, host: &Snapshot, plan: &Plan) {
    assert_eq!(host.vms.len(), plan.vms.len());
    let mut entitled = Pages::ZERO;
    let mut targets = Pages::ZERO;
    for (vm, order) in host.vms.iter().zip(&plan.vms) {
        let allocation = &vm.allocation;
        assert!(allocation.reservation <= order.target, "{vm:?} {order:?}");
        assert!(order.target <= allocation.limit, "{vm:?} {order:?}");
        assert!(order.balloon_target <= allocation.size, "{vm:?} {order:?}");
        assert!(!order.why.to_string().is_empty());
        entitled += kind.entitlement(allocation);
        targets += order.target;
    }
    let most = host.budget.saturating_sub(host.overhead).max(entitled);
    assert!(targets <= most, "targets {targets:?} of {most:?}");
}
