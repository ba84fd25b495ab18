//! Who may start, and what of the promises may change: the host manager's side of
//! [`crate::policy::admission`].

use super::{LeaseEnd, Manager, Note, Outgoing, SHARES_MAX, VMS_MAX, Vm};
use crate::host::process::ProcessId;
use crate::link::message::{Hello, Welcome};
use crate::policy::PolicyKind;
use crate::policy::admission::{HostBooks, Request, admit};
use crate::policy::types::{Allocation, VmId};
use crate::units::{PAGES_MAX, Pages};

/// What `tidemark set` can change of a VM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Change {
    /// New weight.
    pub shares: Option<u64>,
    /// New guaranteed minimum.
    pub reservation: Option<Pages>,
    /// New maximum.
    pub limit: Option<Pages>,
    /// New lower end of the dynamic range.
    pub dynamic_min: Option<Pages>,
    /// New upper end of the dynamic range.
    pub dynamic_max: Option<Pages>,
}

impl Manager {
    /// Admits a VM that runs in `process`: its `Welcome` is in the outgoing messages.
    ///
    /// # Errors
    /// Why it is refused: one line with the arithmetic.
    pub fn admit(&mut self, hello: Hello, process: ProcessId) -> Result<VmId, String> {
        let mut allocation = self.checked(&hello)?;
        let (leases, owner) = self.redeemed(hello.lease, &mut allocation)?;
        let overhead = overhead_estimate(allocation.size);
        let request = Request {
            name: hello.name.clone(),
            reservation: self.policy.kind().entitlement(&allocation),
            overhead,
        };
        let books = leases.counted_in(&self.books_of_vms(None));
        let admission = self.assess(&books, &request)?;
        let id = VmId(self.next_vm);
        let group = hello.share_group.as_deref();
        let budget = self.ledger.budget();
        let key_seed = self
            .shares
            .join(id, allocation.size, group, budget)
            .map_err(|error| error.to_string())?;
        let pool_frames = self.pool(id).expect("it has joined").frames();
        self.leases = leases;
        if let Some(owner) = owner {
            let end = LeaseEnd::Redeemed(hello.name.clone());
            self.outgoing.push(Outgoing::LeaseEnded(owner, end));
        }
        self.next_vm += 1;
        self.ledger.open(id, hello.held, overhead);
        self.vms
            .insert(id, Vm::new(hello.name, process, allocation, admission));
        let welcome = Welcome {
            key_seed,
            pool_frames,
            sampling: self.settings.sampling,
            credit: hello.held,
            credit_batch: credit_batch(self.ledger.budget()),
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

    /// Changes a VM's allocation.
    ///
    /// # Errors
    /// What is wrong with it, in one line; nothing is changed.
    pub fn set(&mut self, id: VmId, change: Change) -> Result<(), String> {
        let vm = self.vms.get(&id).ok_or("the VM has ended")?;
        let old = vm.allocation;
        let new = Allocation {
            size: old.size,
            reservation: change.reservation.unwrap_or(old.reservation),
            limit: change.limit.unwrap_or(old.limit),
            shares: change.shares.unwrap_or(old.shares),
            dynamic_min: change.dynamic_min.unwrap_or(old.dynamic_min),
            dynamic_max: change.dynamic_max.unwrap_or(old.dynamic_max),
        };
        check_allocation(&new)?;
        let kind = self.policy.kind();
        if kind.entitlement(&new) > kind.entitlement(&old) {
            let request = Request {
                name: vm.name.clone(),
                reservation: kind.entitlement(&new),
                overhead: self.charged_overhead(id, vm),
            };
            admit(&self.books(Some(id)), &request).map_err(|refusal| refusal.to_string())?;
        }
        self.vms.get_mut(&id).expect("found above").allocation = new;
        self.note(id);
        self.urgent = true;
        Ok(())
    }

    /// Whether the policy lets a VM start, and whom that squeezes; one line either way.
    pub(super) fn assess(
        &mut self,
        books: &HostBooks,
        request: &Request,
    ) -> Result<String, String> {
        let snapshot = self.snapshot(self.decided);
        let name = |id: VmId| self.vms[&id].name.clone();
        let assessed = self.policy.assess(books, request, &snapshot, name);
        assessed
            .map(|admission| admission.to_string())
            .map_err(|refusal| refusal.to_string())
    }

    /// Changes the budget.
    ///
    /// # Errors
    /// When the reservations and overheads do not fit it, in one line; nothing is changed.
    pub fn set_budget(&mut self, budget: Pages) -> Result<(), String> {
        let books = self.books(None);
        let promised = books.reserved + books.overhead;
        if budget < promised {
            return Err(format!(
                "host memory {budget} is less than what is promised: {} are reserved by {} VMs and leases and \
                 {} are overhead",
                books.reserved, books.vms, books.overhead
            ));
        }
        self.ledger.set_budget(budget);
        self.notes.push(Note::Host(self.host_record()));
        self.urgent = true;
        Ok(())
    }

    /// Lets another policy set the targets.
    ///
    /// # Errors
    /// When that policy promises the VMs more than there is, in one line; nothing is changed.
    pub fn set_policy(&mut self, kind: PolicyKind) -> Result<(), String> {
        let books = self.leases.counted_in(&self.books_under(kind, None));
        let promised = books.reserved + books.overhead;
        if kind != self.policy.kind() && promised > books.budget {
            return Err(format!(
                "policy {} would promise {} to {} VMs and leases, and {} are overhead: more than the {} that the \
                 host has",
                kind.name(),
                books.reserved,
                books.vms,
                books.overhead,
                books.budget
            ));
        }
        self.policy.set_kind(kind);
        self.notes.push(Note::Host(self.host_record()));
        self.urgent = true;
        Ok(())
    }

    /// The books as admission sees them, without one VM.
    fn books(&self, without: Option<VmId>) -> HostBooks {
        self.leases.counted_in(&self.books_of_vms(without))
    }

    /// The same without leases.
    pub(super) fn books_of_vms(&self, without: Option<VmId>) -> HostBooks {
        self.books_under(self.policy.kind(), without)
    }

    /// The same as if that policy ruled.
    fn books_under(&self, kind: PolicyKind, without: Option<VmId>) -> HostBooks {
        let others = || self.vms.iter().filter(|(id, _)| Some(**id) != without);
        let host = self.ledger.overhead()
            - self
                .vms
                .keys()
                .map(|&id| self.ledger.vm_overhead(id))
                .sum::<Pages>();
        HostBooks {
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

    /// A `Hello` is as hostile as any other message.
    fn checked(&self, hello: &Hello) -> Result<Allocation, String> {
        for text in std::iter::once(&hello.name).chain(&hello.share_group) {
            check_name(text)?;
        }
        if self.find(&hello.name).is_some() {
            return Err(format!("a VM named {:?} runs already", hello.name));
        }
        if self.vms.len() == VMS_MAX {
            return Err(format!("{VMS_MAX} VMs run already"));
        }
        let allocation = Allocation {
            size: hello.size,
            reservation: hello.reservation,
            limit: hello.limit,
            shares: hello.shares,
            dynamic_min: hello.dynamic_min,
            dynamic_max: hello.dynamic_max,
        };
        check_allocation(&allocation)?;
        if hello.held > hello.size {
            return Err(format!("holds {} of {}", hello.held, hello.size));
        }
        Ok(allocation)
    }
}

/// Credit asked for at a time: large enough that asking is rare, small enough that what all VMs
/// keep unused is nothing beside the budget.
pub fn credit_batch(budget: Pages) -> Pages {
    Pages((budget.0 / 512).clamp(64, 1024))
}

/// Memory of a VM process beside its guest's RAM before it is measured: page tables, the pager's
/// books (about 16 bytes a page) and the program itself.
pub(super) fn overhead_estimate(size: Pages) -> Pages {
    Pages(384) + Pages(size.0 / 128)
}

pub(super) fn check_name(text: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    match text.is_empty() || text.len() > 64 || !text.chars().all(plain) {
        true => Err(format!(
            "name {text:?}: 1 to 64 of [A-Za-z0-9._-] are allowed"
        )),
        false => Ok(()),
    }
}

pub(super) fn check_allocation(a: &Allocation) -> Result<(), String> {
    let largest = Pages(PAGES_MAX);
    if a.size == Pages::ZERO || a.size > largest {
        return Err(format!("memory {}: 4 KiB to {largest} are allowed", a.size));
    }
    if a.reservation > a.limit {
        return Err(format!(
            "reservation {} exceeds the limit {}",
            a.reservation, a.limit
        ));
    }
    if a.limit > a.size {
        return Err(format!("limit {} exceeds the memory {}", a.limit, a.size));
    }
    if a.dynamic_min > a.dynamic_max {
        return Err(format!(
            "dynamic_min {} exceeds dynamic_max {}",
            a.dynamic_min, a.dynamic_max
        ));
    }
    if a.dynamic_max > a.size {
        return Err(format!(
            "dynamic_max {} exceeds the memory {}",
            a.dynamic_max, a.size
        ));
    }
    if a.shares > SHARES_MAX {
        return Err(format!(
            "shares {}: 0 to {SHARES_MAX} are allowed",
            a.shares
        ));
    }
    Ok(())
}
