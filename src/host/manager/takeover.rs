//! VMs that outlive a link, or the host manager itself.
//!
//! | what happens | the VM is | what it holds |
//! |---|---|---|
//! | its link closes | detached | stays |
//! | it joins again, from the same process | claiming, then joined | what it says, once it has said it all |
//! | a new host manager finds it in the record | detached | its promises, what its process has resident, and the frames of its group's pool |
//! | its process ends | ended | returns |
//!
//! What a VM was promised (its allocation, a lease that it redeemed, whatever `set` changed) comes from
//! the host manager's own accounts and record, never from the VM.
//!
//! A new host manager reads the record of the old one ([`crate::host::record`]): a journal,
//! written before anybody is answered. VM processes in it that still live are *expected*: promised
//! to, and their pools remembered. Each is asked to join again at its door. A VM that does hands its pool's
//! descriptor back; the
//! pool is known by device and inode from the record alone, and opened for writing by its owner.
//! Then the VM *claims* the frames that it maps (in the pager's `claims`), a part at a time. A
//! frame that is claimed has a reference and a key again; what nobody claims is punched when the
//! last process of the group that the record names has claimed or died. The record names every VM
//! before it is welcomed: a VM that cannot be recorded is refused, and with a damaged record
//! promises count and pools are left alone. The same claims replace a VM's references when its
//! link is replaced. A VM whose pool is not known gets a new one; the frames it still maps are
//! *orphaned*: charged to it in full, and shared and swapped like its own pages.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use super::admission::{check_names, credit_batch, overhead_estimate};
use super::watch::Watch;
use super::{Manager, Refused, Vm};
use crate::host::accounts::Peaks;
use crate::host::pool::PoolId;
use crate::host::process::ProcessId;
use crate::host::share::{GroupTerms, Reach};
use crate::link::message::{ToVm, Welcome};
use crate::policy::PolicyKind;
use crate::policy::types::VmId;
use crate::units::Pages;
use crate::words::budget::BUDGETS;
use crate::words::{Allocation, Measured, Sharing, Token};

/// What the next host manager has to know of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRecord {
    /// Its name.
    pub name: String,
    /// With which it ends.
    pub process: ProcessId,
    /// What it is promised.
    pub allocation: Allocation,
    /// Whether its memory follows orders.
    #[serde(default = "managed")]
    pub managed: bool,
    /// Its share group, if it named one.
    pub share_group: Option<String>,
    /// How the pages of that group are shared.
    #[serde(default)]
    pub sharing: Sharing,
    /// The pool that it maps.
    pub pool: PoolId,
    /// How it is found; who has none joins no other host manager.
    #[serde(default)]
    pub way: Option<WayBack>,
}

/// How a host manager finds a VM to which it has no link, and how the two know each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WayBack {
    /// Number of the [door](crate::link::door) at which the VM's process listens.
    pub door: u32,
    /// A secret of the two.
    pub token: Token,
}

/// Every VM of a host manager that knew nothing else.
fn managed() -> bool {
    true
}

impl VmRecord {
    /// Whether it can be true.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), Refused> {
        check_names(&self.name, self.share_group.as_deref())?;
        self.allocation.check()?;
        match self.pool.is_sound() {
            true => Ok(()),
            false => Err(Refused::PoolSize {
                frames: self.pool.frames,
            }),
        }
    }
}

/// What the next host manager has to know of this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecord {
    /// With which budget it was started.
    pub started_budget: Pages,
    /// With which policy.
    pub started_policy: String,
    /// What `set` has made of the budget.
    pub budget: Pages,
    /// And of the policy.
    pub policy: String,
}

/// Something to be recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Note {
    /// The host's settings.
    Host(HostRecord),
    /// A VM, new or changed.
    Vm(VmRecord),
    /// The VM of that name has ended.
    Gone(String),
}

impl Vm {
    pub(super) fn new(
        name: String,
        process: ProcessId,
        allocation: Allocation,
        admission: String,
    ) -> Vm {
        Vm {
            name,
            process,
            reach: Reach::Open,
            allocation,
            managed: true,
            way: None,
            admission,
            measured: None,
            plan: None,
            orders: None,
            asked: Pages::ZERO,
            asked_since: 0,
            unread_bytes: 0,
            stopping: false,
            exit: None,
            peak: Peaks::default(),
            watch: Watch::default(),
        }
    }
}

impl Manager {
    /// Whose process that is.
    pub fn vm_of(&self, process: ProcessId) -> Option<VmId> {
        let found = self.vms.iter().find(|(_, vm)| vm.process == process);
        found.map(|(&id, _)| id)
    }

    /// How a VM is found without a link.
    pub fn way_back(&self, id: VmId) -> Option<WayBack> {
        self.vms.get(&id)?.way
    }

    /// Whether a VM that lives listens at that door.
    pub fn has_door(&self, door: u32) -> bool {
        let mut doors = self.vms.values().filter_map(|vm| vm.way);
        doors.any(|way| way.door == door)
    }

    /// The VMs without a link that can be found.
    pub fn to_be_found(&self) -> Vec<VmId> {
        let lost = |vm: &Vm| vm.reach == Reach::Detached && vm.way.is_some() && vm.exit.is_none();
        let lost = self.vms.iter().filter(|(_, vm)| lost(vm));
        lost.map(|(&id, _)| id).collect()
    }

    /// A VM's link has closed; its process lives.
    pub fn detach(&mut self, id: VmId) {
        if let Some(vm) = self.vms.get_mut(&id) {
            vm.asked = Pages::ZERO;
            self.set_reach(id, Reach::Detached);
            self.urgent = true;
        }
    }

    /// A VM that does not read what it is sent is lent nothing more until it has.
    pub fn set_behind(&mut self, id: VmId, behind: bool) {
        let joined = self
            .vms
            .get(&id)
            .is_some_and(|vm| vm.reach != Reach::Detached);
        if joined {
            self.set_reach(id, if behind { Reach::Behind } else { Reach::Open });
        }
    }

    fn set_reach(&mut self, id: VmId, reach: Reach) {
        if let Some(vm) = self.vms.get_mut(&id) {
            vm.reach = reach;
            self.shares.set_reach(id, reach);
        }
    }

    /// A VM has a new link, over which it said its `token`, that it holds `held`, and handed back
    /// `handed`. Its process has `resident` anonymous memory: it cannot hold more. Its `Welcome` is in
    /// the outgoing messages; an earlier link is of no use any more.
    ///
    /// # Errors
    /// Why it is refused; nothing is changed.
    pub fn rejoin(
        &mut self,
        id: VmId,
        token: Token,
        [held, resident]: [Pages; 2],
        handed: Option<&OwnedFd>,
    ) -> Result<(), Refused> {
        let vm = self.vms.get(&id).ok_or(Refused::Ended)?;
        if vm.exit.is_some() {
            return Err(Refused::Exited);
        }
        if vm.way.is_none_or(|way| way.token != token) {
            return Err(Refused::Token);
        }
        let size = vm.allocation.size;
        if held > size {
            return Err(Refused::HeldTooMuch { held, size });
        }
        let held = held.min(resident);
        let budget = self.ledger.budget();
        let rejoined = self.shares.rejoin(id, handed, budget)?;
        self.ledger.adopt_frames(rejoined.frames);
        self.ledger.restart(id, held);
        let vm = self.vms.get_mut(&id).expect("found above");
        vm.reach = Reach::Open;
        (vm.orders, vm.asked) = (None, Pages::ZERO);
        let stopping = vm.stopping;
        let pool = self.pool(id).expect("it has joined");
        let welcome = Welcome {
            key_seed: rejoined.seed,
            pool_frames: pool.frames(),
            sampling: self.settings.sampling,
            token: Some(token),
            credit: held,
            credit_batch: credit_batch(budget),
            hardened: self.shares.sharing(id).is_hardened(),
            adopted: rejoined.adopted,
        };
        self.welcome(id, welcome);
        if stopping {
            self.send(id, ToVm::Stop);
        }
        self.note(id);
        self.urgent = true;
        Ok(())
    }

    /// Takes in a VM of an earlier host manager. Its process has `resident` anonymous memory.
    ///
    /// # Errors
    /// What is wrong with the record; nothing is changed.
    pub fn restore(&mut self, record: VmRecord, resident: Pages) -> Result<VmId, Refused> {
        record.check()?;
        let door = record.way.map(|way| way.door);
        self.check_new(&record.name, record.process, door)?;
        if self.vms.len() >= self.vms_max {
            let most = self.vms_max;
            return Err(Refused::TooManyVms { most });
        }
        let id = VmId(self.next_vm);
        let size = record.allocation.size;
        let group = GroupTerms {
            name: record.share_group.as_deref(),
            sharing: record.sharing,
        };
        self.shares.expect(id, size, group, record.pool)?;
        self.next_vm += 1;
        let overhead = overhead_estimate(size);
        let private = resident.saturating_sub(overhead).min(size);
        self.ledger.open(id, private, overhead);
        let mut vm = Vm::new(
            record.name,
            record.process,
            record.allocation,
            "admitted by an earlier host manager".to_owned(),
        );
        (vm.managed, vm.way) = (record.managed, record.way);
        vm.reach = Reach::Detached;
        // An earlier host manager has heard of it: it does not start.
        vm.measured = Some(Measured::default());
        self.vms.insert(id, vm);
        self.note(id);
        self.urgent = true;
        Ok(id)
    }

    /// Takes over what `set` made of the host's settings, where this host manager was started with
    /// the same ones as the earlier one: who starts it with others wants others.
    pub fn restore_host(&mut self, record: &HostRecord) {
        let ours = self.host_record();
        if (record.started_budget, &record.started_policy)
            != (ours.started_budget, &ours.started_policy)
        {
            return;
        }
        if let Ok(policy) = record.policy.parse::<PolicyKind>() {
            self.policy.set_kind(policy);
        }
        if BUDGETS.contains(&record.budget) {
            self.ledger.set_budget(record.budget);
        }
    }

    pub(super) fn host_record(&self) -> HostRecord {
        HostRecord {
            started_budget: self.settings.budget,
            started_policy: self.settings.policy.name().to_owned(),
            budget: self.ledger.budget(),
            policy: self.policy.kind().name().to_owned(),
        }
    }

    pub(super) fn note(&mut self, id: VmId) {
        self.notes.extend(self.vm_note(id));
    }

    fn vm_note(&self, id: VmId) -> Option<Note> {
        let vm = self.vms.get(&id)?;
        Some(Note::Vm(VmRecord {
            name: vm.name.clone(),
            process: vm.process,
            allocation: vm.allocation,
            managed: vm.managed,
            share_group: self.shares.group_name(id).map(str::to_owned),
            sharing: self.shares.sharing(id),
            pool: self.shares.pool_id(id)?,
            way: vm.way,
        }))
    }

    /// What is to be recorded since the last call, before anything is sent.
    pub fn take_notes(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.notes)
    }

    /// Everything that is to be known of this host manager, from the start.
    pub fn all_notes(&self) -> Vec<Note> {
        let host = std::iter::once(Note::Host(self.host_record()));
        host.chain(self.vms.keys().filter_map(|&id| self.vm_note(id)))
            .collect()
    }
}
