//! What launchers and operators do.

use std::time::Duration;

use tidemark::host::manager::{Manager, Note};
use tidemark::host::process::ProcessId;
use tidemark::host::registration::Registration;
use tidemark::policy::PolicyKind;
use tidemark::policy::lease::OwnerId;
use tidemark::units::Pages;
use tidemark::words::{Allocation, AllocationKey, AllocationKeys, Sharing, Token, Written};

use super::super::groups::Groups;
use super::super::input::Input;
use super::process::has;
use super::{VMS_MAX, Vm, World};

impl World {
    pub(super) fn join(&mut self, input: &mut Input<'_>) {
        if self.vms.len() >= VMS_MAX {
            return;
        }
        let kind = input.u8();
        let size = Pages::mib(1 + u64::from(kind % 32));
        let mut allocation = Allocation {
            shares: input.pick(&[0, 1, 500, 1000, 1_000_000_000, 1000]),
            ..Allocation::of(size)
        };
        match input.u8() {
            0..=159 => {}
            160..=239 => {
                allocation.reservation = Pages(input.u64() % (size.0 + 1));
                let above = size.0 - allocation.reservation.0;
                allocation.limit = allocation.reservation + Pages(input.u64() % (above + 1));
            }
            _ => {
                allocation.size = Pages(input.number(size.0));
                allocation.reservation = Pages(input.number(size.0));
                allocation.limit = Pages(input.number(size.0));
                allocation.dynamic_max = Pages(input.number(size.0));
                allocation.shares = input.number(1_000_000_000);
            }
        }
        let name = match input.u8() {
            0xff => "../../etc".to_owned(),
            0xfe => self.manager.names().next().unwrap_or_default().to_owned(),
            _ => format!("vm-{}", self.joined),
        };
        let groups = [Some("g"), Some("g"), Some("h"), None];
        let group = input.pick(&groups);
        // Most VMs of a group agree.
        let sharing = match (group, input.below(16)) {
            (_, 0) => input.pick(&Sharing::ALL),
            (Some("h"), _) => Sharing::Hardened,
            _ => Sharing::Plain,
        };
        let managed = kind < 0xf0;
        if !managed && input.bool() {
            (allocation.reservation, allocation.limit) = (size, size);
        }
        let registration = Registration {
            name,
            allocation,
            share_group: group.map(str::to_owned),
            sharing,
            managed,
            lease: match input.below(8) {
                0 => self.leases.pop(),
                1 => Some(Token::of([0, 1])),
                _ => None,
            },
        };
        self.joined += 1;
        let pid = i32::try_from(self.joined).expect("a few VMs");
        let process = ProcessId { pid, started: 1 };
        let door = input.bool().then_some(self.joined);
        let Ok(id) = self.manager.admit(registration, process, door) else {
            return;
        };
        let vm = Vm {
            process,
            way: self.manager.way_back(id),
            seed: 0,
            pool: None,
            has_link: true,
            claims: false,
            wants: Vec::new(),
            frames: Vec::new(),
            cpu: Duration::ZERO,
        };
        assert!(self.vms.insert(id, vm).is_none(), "a number is given twice");
    }

    pub(super) fn set(&mut self, input: &mut Input<'_>) {
        let Some(id) = self.any(input) else {
            return;
        };
        let mut keys = AllocationKeys::default();
        for _ in 0..=input.below(3) {
            let key = input.pick(&AllocationKey::ALL);
            let value = match key {
                AllocationKey::Shares => input.number(1_000_000_000),
                _ => Pages(input.number(4096)).bytes(),
            };
            keys.write(key, Written::from(value.to_string().as_str()));
        }
        // A refusal is as good.
        let _ = self.manager.set(id, &keys);
    }

    pub(super) fn set_host(&mut self, input: &mut Input<'_>) {
        let budget = input
            .bool()
            .then(|| Pages::mib(16 + u64::from(input.u8() % 64)));
        let kind = input.bool().then(|| input.pick(PolicyKind::ALL));
        if self.manager.set_host(budget, kind).is_ok() {
            self.kind = kind.unwrap_or(self.kind);
        }
    }

    pub(super) fn reserve(&mut self, input: &mut Input<'_>) {
        let least = Pages(input.number(4096));
        let most = input.bool().then(|| Pages(input.number(8192)));
        let end = match input.bool() {
            true => Duration::MAX,
            false => self.now + Duration::from_millis(input.u16().into()),
        };
        let owner = OwnerId(self.owners);
        self.owners += 1;
        if let Ok((_, token, _)) = self.manager.reserve(least, most, owner, end) {
            self.leases.push(token);
        }
    }

    /// `tidemark ps`: what is shown adds up.
    pub(super) fn look(&mut self) {
        let figures = self.manager.figures();
        let of_vms: u64 = figures.vms.iter().map(|vm| vm.memory.consumed_bytes).sum();
        let host = &figures.host;
        assert_eq!(of_vms + host.overhead_bytes, host.consumed_bytes);
        for vm in &figures.vms {
            let (now, size) = (&vm.memory, vm.memory_bytes);
            assert!(now.consumed_bytes <= 2 * size, "{vm:?}");
            assert!(now.credit_bytes <= size, "{vm:?}");
            assert!(now.active_bytes <= size, "{vm:?}");
        }
        let text = serde_json::to_string(&figures).expect("figures are JSON");
        assert!(!text.contains('\x1b'), "a terminal is steered: {text}");
    }

    /// Another host manager takes over by the record of this one.
    pub(super) fn restart(&mut self, input: &mut Input<'_>) {
        if input.u8() < 128 {
            return;
        }
        let notes = self.manager.all_notes();
        self.manager = Manager::with_groups(self.settings, Box::new(Groups::default()));
        self.kind = self.settings.policy;
        self.leases.clear();
        self.condemned.clear();
        let mut before = std::mem::take(&mut self.vms);
        for note in notes {
            match note {
                Note::Host(record) => {
                    self.manager.restore_host(&record);
                    self.kind = record.policy.parse().expect("a policy's name");
                }
                Note::Vm(record) => {
                    let text = serde_json::to_string(&record).expect("a record is JSON");
                    let back = serde_json::from_str(&text).expect("what was written");
                    assert_eq!(record, back);
                    let process = record.process;
                    let resident = has(input);
                    let id = self.manager.restore(record, resident);
                    let id = id.expect("what was admitted once");
                    let old = before.iter().find(|(_, vm)| vm.process == process);
                    let old = old.map(|(id, _)| *id).expect("the record's VMs live");
                    let mut vm = before.remove(&old).expect("found above");
                    (vm.has_link, vm.claims) = (false, false);
                    vm.wants.clear();
                    self.vms.insert(id, vm);
                }
                Note::Gone(name) => panic!("{name} has ended and is on record"),
            }
        }
    }
}
