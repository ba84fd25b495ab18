//! Who may start, and what of the promises may change: the host manager's side of
//! [`crate::policy::admission`].

use super::{LeaseEnd, Manager, Note, Outgoing, Refused, Vm, WayBack};
use crate::host::process::ProcessId;
use crate::host::registration::Registration;
use crate::host::share::GroupTerms;
use crate::link::message::Welcome;
use crate::policy::PolicyKind;
use crate::policy::admission::{Admission, Promises, Request, admit};
use crate::policy::types::VmId;
use crate::units::Pages;
use crate::words::names::{NAME_FORMS, VM_NAME_FORMS, is_name, is_vm_name};
use crate::words::{Allocation, AllocationKeys};

impl Manager {
    /// Admits a VM of which its launcher said `registration`, and which runs in `process`: its
    /// `Welcome` is in the outgoing messages. One with a `door` gets a token besides, by which it and
    /// the next host manager will know each other.
    ///
    /// # Errors
    /// Why it is refused; nothing is changed.
    pub fn admit(
        &mut self,
        registration: Registration,
        process: ProcessId,
        door: Option<u32>,
    ) -> Result<VmId, Refused> {
        self.checked(&registration, process, door)?;
        let mut allocation = registration.allocation;
        let (leases, owner) = self.redeemed(registration.lease, &mut allocation)?;
        let way = match door {
            Some(door) => Some(WayBack {
                door,
                token: self.shares.token()?,
            }),
            None => None,
        };
        let overhead = overhead_estimate(allocation.size);
        let request = Request {
            name: registration.name.clone(),
            reservation: self.policy.kind().entitlement(&allocation),
            overhead,
        };
        let promises = leases.counted_in(&self.promises_to_vms(None));
        let admission = self.assess(&promises, &request)?;
        let id = VmId(self.next_vm);
        let group = GroupTerms {
            name: registration.share_group.as_deref(),
            sharing: registration.sharing,
        };
        let budget = self.ledger.budget();
        let key_seed = self.shares.join(id, allocation.size, group, budget)?;
        let pool_frames = self.pool(id).expect("it has joined").frames();
        self.leases = leases;
        if let Some(owner) = owner {
            let end = LeaseEnd::Redeemed(registration.name.clone());
            self.outgoing.push(Outgoing::LeaseEnded(owner, end));
        }
        self.next_vm += 1;
        self.ledger.open(id, Pages::ZERO, overhead);
        let said = admission.to_string();
        let mut vm = Vm::new(registration.name, process, allocation, said);
        (vm.managed, vm.way) = (registration.managed, way);
        self.vms.insert(id, vm);
        let welcome = Welcome {
            key_seed,
            pool_frames,
            sampling: self.settings.sampling,
            token: way.map(|way| way.token),
            credit: Pages::ZERO,
            credit_batch: credit_batch(self.ledger.budget()),
            hardened: registration.sharing.is_hardened(),
            adopted: false,
        };
        self.welcome(id, welcome);
        self.note(id);
        self.urgent = true;
        Ok(id)
    }

    /// Sends a `Welcome` with a first batch of credit on top of what the VM holds.
    pub(super) fn welcome(&mut self, id: VmId, mut welcome: Welcome) {
        let first = self.affordable(id, welcome.credit_batch);
        self.ledger.grant(id, first);
        welcome.credit += first;
        self.outgoing.push(Outgoing::Welcome(id, welcome));
    }

    /// Changes a VM's allocation: what `keys` do not say stays.
    ///
    /// # Errors
    /// What is wrong with it; nothing is changed.
    pub fn set(&mut self, id: VmId, keys: &AllocationKeys) -> Result<(), Refused> {
        let vm = self.vms.get(&id).ok_or(Refused::Ended)?;
        let old = vm.allocation;
        let shares_alone = AllocationKeys {
            shares: keys.shares.clone(),
            ..AllocationKeys::default()
        };
        if !vm.managed && *keys != shares_alone {
            let name = vm.name.clone();
            return Err(Refused::Unmanaged { name });
        }
        let new = keys.change(&old)?;
        let kind = self.policy.kind();
        if kind.entitlement(&new) > kind.entitlement(&old) {
            let request = Request {
                name: vm.name.clone(),
                reservation: kind.entitlement(&new),
                overhead: self.charged_overhead(id, vm),
            };
            admit(&self.promises(Some(id)), &request)?;
        }
        self.vms.get_mut(&id).expect("found above").allocation = new;
        self.note(id);
        self.urgent = true;
        Ok(())
    }

    /// Whether the policy lets a VM start, and whom that squeezes.
    pub(super) fn assess(
        &mut self,
        promises: &Promises,
        request: &Request,
    ) -> Result<Admission, Refused> {
        let snapshot = self.snapshot(self.decided);
        let name = |id: VmId| self.vms[&id].name.clone();
        Ok(self.policy.assess(promises, request, &snapshot, name)?)
    }

    /// Changes the budget, the policy, or both.
    ///
    /// # Errors
    /// When what the new policy promises, with leases and overheads, does not fit the new budget; nothing is
    /// changed.
    pub fn set_host(
        &mut self,
        budget: Option<Pages>,
        policy: Option<PolicyKind>,
    ) -> Result<(), Refused> {
        let policy = policy.filter(|kind| *kind != self.policy.kind());
        let ruling = policy.unwrap_or(self.policy.kind());
        let promises = Promises {
            budget: budget.unwrap_or(self.ledger.budget()),
            ..self.leases.counted_in(&self.promises_under(ruling, None))
        };
        let fits = promises.reserved + promises.overhead <= promises.budget;
        match policy {
            Some(policy) if !fits => return Err(Refused::Policy { policy, promises }),
            None if !fits && budget.is_some() => return Err(Refused::Budget(promises)),
            _ => {}
        }
        self.policy.set_kind(ruling);
        self.ledger.set_budget(promises.budget);
        self.notes.push(Note::Host(self.host_record()));
        self.urgent = true;
        Ok(())
    }

    /// What is promised to VMs and leases, without one VM.
    fn promises(&self, without: Option<VmId>) -> Promises {
        self.leases.counted_in(&self.promises_to_vms(without))
    }

    /// The same without leases.
    pub(super) fn promises_to_vms(&self, without: Option<VmId>) -> Promises {
        self.promises_under(self.policy.kind(), without)
    }

    /// The same as if that policy ruled.
    fn promises_under(&self, kind: PolicyKind, without: Option<VmId>) -> Promises {
        let others = || self.vms.iter().filter(|(id, _)| Some(**id) != without);
        let host = self.ledger.overhead()
            - self
                .vms
                .keys()
                .map(|&id| self.ledger.vm_overhead(id))
                .sum::<Pages>();
        Promises {
            budget: self.ledger.budget(),
            reserved: others()
                .map(|(_, vm)| kind.entitlement(&vm.allocation))
                .sum(),
            overhead: host
                + others()
                    .map(|(&id, vm)| self.charged_overhead(id, vm))
                    .sum(),
            vms: others().count(),
            free: self.ledger.free(),
        }
    }

    fn charged_overhead(&self, id: VmId, vm: &Vm) -> Pages {
        overhead_estimate(vm.allocation.size).max(self.ledger.vm_overhead(id))
    }

    /// A launcher may be mistaken.
    fn checked(
        &self,
        registration: &Registration,
        process: ProcessId,
        door: Option<u32>,
    ) -> Result<(), Refused> {
        check_names(&registration.name, registration.share_group.as_deref())?;
        self.check_new(&registration.name, process, door)?;
        if self.vms.len() >= self.vms_max {
            let most = self.vms_max;
            return Err(Refused::TooManyVms { most });
        }
        registration.allocation.check()?;
        let Allocation {
            size,
            reservation: reserved,
            limit,
            ..
        } = registration.allocation;
        if !registration.managed && (reserved < size || limit < size) {
            return Err(Refused::NotReserved { reserved, size });
        }
        Ok(())
    }

    /// Nobody has that name, that process or that door.
    pub(super) fn check_new(
        &self,
        name: &str,
        process: ProcessId,
        door: Option<u32>,
    ) -> Result<(), Refused> {
        if self.find(name).is_some() {
            let name = name.to_owned();
            return Err(Refused::NameTaken { name });
        }
        let door_of = |vm: &Vm| vm.way.map(|way| way.door);
        for vm in self.vms.values() {
            if vm.process == process {
                return Err(Refused::ProcessTaken {
                    pid: process.pid,
                    name: vm.name.clone(),
                });
            }
            if door.is_some() && door_of(vm) == door {
                let name = vm.name.clone();
                return Err(Refused::DoorTaken { name });
            }
        }
        Ok(())
    }
}

/// Credit asked for at a time: large enough that asking is rare, small enough that what all VMs
/// keep unused is nothing beside the budget.
pub fn credit_batch(budget: Pages) -> Pages {
    Pages((budget.0 / 512).clamp(64, 1024))
}

/// Memory of a VM process beside its guest's RAM before it is measured: page tables, the pager's
/// page map (about 16 bytes a page) and the program itself.
pub(super) fn overhead_estimate(size: Pages) -> Pages {
    Pages(384) + Pages(size.0 / 128)
}

pub(super) fn check_names(vm: &str, group: Option<&str>) -> Result<(), Refused> {
    let wrong = |name: &str, forms| {
        let name = name.to_owned();
        Err(Refused::Name { name, forms })
    };
    match group {
        _ if !is_vm_name(vm) => wrong(vm, VM_NAME_FORMS),
        Some(group) if !is_name(group) => wrong(group, NAME_FORMS),
        _ => Ok(()),
    }
}
