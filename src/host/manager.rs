//! The host manager's decisions, without sockets: messages and time in, messages out.
//!
//! Owns the books ([`Ledger`]), the share groups and the policy's memory. The event
//! loop ([`super::server`]) owns descriptors and clocks, feeds [`Manager::message`] and
//! [`Manager::tick`], and delivers what [`Manager::take_outgoing`] yields.
//!
//! A VM that breaks the protocol is told nothing: `message` returns the [`Violation`], the event
//! loop ends the link and calls [`Manager::gone`], and everything the VM held is returned.

mod leases;

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::time::Duration;

pub use leases::LeaseEnd;

use super::accounts::{
    Figures, FramePart, History, HostFigures, Peaks, VmFigures, VmState, split_frames,
};
use super::ledger::{Ledger, Overdrawn};
use super::pool::FramePool;
use super::share::{Lent, NotHeld, ShareIndex};
use crate::link::message::{
    Exit, ExitReason, Hello, LIST_MAX, Orders, Report, ToHost, ToVm, Welcome,
};
use crate::policy::admission::{self, HostBooks};
use crate::policy::grant::{CreditRequest, grant};
use crate::policy::lease::{LeaseBook, OwnerId};
use crate::policy::sampling::Sampling;
use crate::policy::settings::PolicySettings;
use crate::policy::types::{Allocation, Plan, Run, Snapshot, VmId, VmPlan, VmSnapshot};
use crate::policy::{PolicyKind, PolicyState, decide};
use crate::units::{Gfn, PAGE_SIZE, PAGES_MAX, Pages};

/// Time between decisions.
pub const TICK: Duration = Duration::from_millis(100);
/// Time between decisions that cannot wait for the tick, at least: a VM must not be able to keep
/// the host manager deciding. Chosen.
const URGENT_GAP: Duration = Duration::from_millis(10);
/// Pages that each VM scans for sharing in a second. Chosen: 256 MiB in 8 s.
const SCAN_PAGES_PER_SECOND: u32 = 8192;
/// Largest weight: the sum over all VMs, times a number of pages, stays far from overflow.
const SHARES_MAX: u64 = 1 << 40;
/// VMs on one host, at most.
const VMS_MAX: usize = 4096;
/// Ended VMs whose figures are kept, at most.
const ENDED_MAX: usize = 1024;

/// What the host manager starts with.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Memory that all guests and their overheads may use together.
    pub budget: Pages,
    /// Which policy sets the targets.
    pub policy: PolicyKind,
    /// And with which settings.
    pub policy_settings: PolicySettings,
    /// How the VMs' working sets are estimated.
    pub sampling: Sampling,
    /// Seed of the run, for the record.
    pub seed: u64,
}

/// A VM broke the protocol.
#[derive(Debug, thiserror::Error)]
pub enum Violation {
    /// It said hello twice, or to the wrong listener.
    #[error("second Hello")]
    SecondHello,
    /// It spoke after its `Exited`.
    #[error("message after Exited")]
    AfterExit,
    /// It returned more credit than it has.
    #[error(transparent)]
    Overdrawn(#[from] Overdrawn),
    /// It released a frame that it does not hold.
    #[error(transparent)]
    NotHeld(#[from] NotHeld),
}

/// Something for the event loop to do.
#[derive(Debug, PartialEq)]
pub enum Outgoing {
    /// Send a message.
    Send(VmId, ToVm),
    /// Send a `Welcome` with the descriptor of [`Manager::pool`].
    Welcome(VmId, Welcome),
    /// Tell the connection of a lease that it has ended, and close it.
    LeaseEnded(OwnerId, LeaseEnd),
}

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

#[derive(Debug)]
struct Vm {
    name: String,
    allocation: Allocation,
    report: Option<Report>,
    plan: Option<VmPlan>,
    orders: Option<Orders>,
    /// Credit asked for and not granted yet, and since which request.
    asked: Pages,
    asked_since: u64,
    stopping: bool,
    exit: Option<Exit>,
    peak: Peaks,
}

impl Vm {
    fn target(&self) -> Pages {
        let plan = self.plan.as_ref();
        plan.map_or(self.allocation.reservation, |plan| plan.target)
    }

    fn state(&self) -> VmState {
        let blocked = self
            .orders
            .as_ref()
            .is_some_and(|orders| orders.run == Run::Block);
        match &self.report {
            _ if self.stopping => VmState::Stopping,
            None => VmState::Starting,
            Some(_) if blocked => VmState::Blocked,
            Some(_) => VmState::Running,
        }
    }
}

/// The host manager without its sockets.
#[derive(Debug)]
pub struct Manager {
    settings: Settings,
    ledger: Ledger,
    shares: ShareIndex,
    leases: LeaseBook,
    policy: PolicyState,
    history: History,
    vms: BTreeMap<VmId, Vm>,
    next_vm: u32,
    next_request: u64,
    ended: Vec<VmFigures>,
    outgoing: Vec<Outgoing>,
    /// Each VM's part of the frames, as of a generation of the share index.
    frame_parts: (u64, HashMap<VmId, FramePart>),
    decided: Duration,
    urgent: bool,
}

impl Manager {
    /// A host without VMs.
    pub fn new(settings: Settings) -> Manager {
        Manager {
            settings,
            ledger: Ledger::new(settings.budget),
            shares: ShareIndex::default(),
            leases: LeaseBook::default(),
            policy: PolicyState::with_settings(settings.policy, settings.policy_settings),
            history: History::default(),
            vms: BTreeMap::new(),
            next_vm: 0,
            next_request: 0,
            ended: Vec::new(),
            outgoing: Vec::new(),
            frame_parts: (0, HashMap::new()),
            decided: Duration::ZERO,
            urgent: false,
        }
    }

    /// The frame pool of a live VM's share group.
    pub fn pool(&self, vm: VmId) -> Option<&FramePool> {
        self.shares.pool(vm)
    }

    /// The books.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Number of VMs that have joined and not ended.
    pub fn live(&self) -> usize {
        self.vms.len()
    }

    /// What is to be sent since the last call, in order.
    pub fn take_outgoing(&mut self) -> Vec<Outgoing> {
        std::mem::take(&mut self.outgoing)
    }

    /// The live VM of that name.
    pub fn find(&self, name: &str) -> Option<VmId> {
        self.vms
            .iter()
            .find(|(_, vm)| vm.name == name)
            .map(|(&id, _)| id)
    }

    /// Configured memory of a live VM.
    pub fn size(&self, vm: VmId) -> Option<Pages> {
        self.vms.get(&vm).map(|vm| vm.allocation.size)
    }

    /// Names of the live VMs.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.vms.values().map(|vm| vm.name.as_str())
    }

    /// Name of a live VM.
    pub fn name(&self, vm: VmId) -> Option<&str> {
        self.vms.get(&vm).map(|vm| vm.name.as_str())
    }

    /// Notes the memory that the host manager's own process uses.
    pub fn set_host_overhead(&mut self, overhead: Pages) {
        self.ledger.set_host_overhead(overhead);
    }

    /// Admits a VM: its `Welcome` is in the outgoing messages.
    ///
    /// # Errors
    /// Why it is refused: one line with the arithmetic.
    pub fn join(&mut self, hello: Hello) -> Result<VmId, String> {
        let mut allocation = self.checked(&hello)?;
        let (leases, owner) = self.redeemed(hello.lease, &mut allocation)?;
        let overhead = overhead_estimate(allocation.size);
        let request = admission::Request {
            name: hello.name.clone(),
            reservation: self.policy.kind().entitlement(&allocation),
            overhead,
        };
        let books = leases.counted_in(&self.books_of_vms(None));
        admission::admit(&books, &request).map_err(|refusal| refusal.to_string())?;
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
        let vm = Vm {
            name: hello.name,
            allocation,
            report: None,
            plan: None,
            orders: None,
            asked: Pages::ZERO,
            asked_since: 0,
            stopping: false,
            exit: None,
            peak: Peaks::default(),
        };
        self.vms.insert(id, vm);
        let batch = credit_batch(self.ledger.budget());
        let first = self.affordable(id, batch);
        self.ledger.grant(id, first);
        self.outgoing.push(Outgoing::Welcome(
            id,
            Welcome {
                key_seed,
                pool_frames,
                sampling: self.settings.sampling,
                credit: first + hello.held,
                credit_batch: batch,
            },
        ));
        self.urgent = true;
        Ok(id)
    }

    /// Takes one message of a VM.
    ///
    /// # Errors
    /// When the VM breaks the protocol: end its link and call [`Manager::gone`].
    pub fn message(&mut self, id: VmId, message: ToHost, now: Duration) -> Result<(), Violation> {
        let Some(vm) = self.vms.get_mut(&id) else {
            return Ok(());
        };
        if vm.exit.is_some() {
            return Err(Violation::AfterExit);
        }
        match message {
            ToHost::Hello(_) => return Err(Violation::SecondHello),
            ToHost::CreditRequest { pages } => {
                if vm.asked == Pages::ZERO {
                    vm.asked_since = self.next_request;
                    self.next_request += 1;
                }
                vm.asked = Pages(vm.asked.0.saturating_add(pages.0)).min(vm.allocation.size);
                self.serve(Some(id));
            }
            ToHost::CreditReturn { pages } => {
                self.ledger.give_back(id, pages)?;
                // What it gave up others may have in a moment: its last report says otherwise, and
                // both would count. It uses no more than the credit that it keeps.
                let credit = self.ledger.credit(id);
                if let Some(report) = &mut vm.report {
                    let over = report.own().saturating_sub(credit);
                    report.private = report.private.saturating_sub(over);
                }
                self.serve(None);
            }
            ToHost::Report(report) => self.report(id, *report),
            ToHost::Offer { pages } => {
                let answer = self.shares.offer(id, &pages, now);
                if !answer.candidates.is_empty() {
                    let pages = answer.candidates;
                    self.outgoing
                        .push(Outgoing::Send(id, ToVm::Candidates { pages }));
                }
                if !answer.wants.is_empty() {
                    let gfns = answer.wants;
                    self.outgoing.push(Outgoing::Send(id, ToVm::Want { gfns }));
                }
            }
            ToHost::Content { pages } => {
                let pages = pages.iter().filter_map(|(gfn, bytes)| {
                    let content: Result<&[u8; PAGE_SIZE], _> = bytes.as_slice().try_into();
                    Some((*gfn, content.ok()?))
                });
                let room = self.ledger.free();
                let (answer, failed) = self.shares.content(id, pages, room);
                self.ledger.add_frames(Pages(u64::from(answer.made)));
                self.lend(answer.lent);
                if let Some(error) = failed {
                    log::warn!("{error}: {}", error.source);
                }
            }
            ToHost::Release { frames } => {
                let (freed, result) = self.shares.release(id, &frames);
                self.ledger.drop_frames(freed);
                if freed > Pages::ZERO {
                    self.serve(None);
                }
                result?;
            }
            ToHost::Exited(exit) => vm.exit = Some(exit),
        }
        self.watch_thresholds();
        Ok(())
    }

    /// A VM's link has closed, or its process has died: all it held returns at once.
    pub fn gone(&mut self, id: VmId) {
        let Some(mut vm) = self.vms.remove(&id) else {
            return;
        };
        self.ledger.close(id);
        let freed = self.shares.leave(id);
        self.ledger.drop_frames(freed);
        vm.exit.get_or_insert(Exit {
            reason: ExitReason::Killed,
            code: 0,
            message: None,
        });
        if self.ended.len() == ENDED_MAX {
            self.ended.remove(0);
        }
        let figures = self.vm_figures(id, &vm, Life::Ended);
        self.ended.push(figures);
        self.serve(None);
        self.urgent = true;
    }

    /// Whether a decision is due at `now`.
    pub fn is_due(&self, now: Duration) -> bool {
        let since = now.saturating_sub(self.decided);
        since >= TICK || (self.urgent && since >= URGENT_GAP)
    }

    /// When the next decision is due.
    pub fn next_decision(&self) -> Duration {
        self.decided + if self.urgent { URGENT_GAP } else { TICK }
    }

    /// Decides: new targets, orders to those VMs whose orders changed, credit to those who wait.
    pub fn tick(&mut self, now: Duration) {
        self.decided = now;
        self.urgent = false;
        self.shares.expire(now);
        self.expire_leases(now);
        let snapshot = self.snapshot(now);
        let Plan { state, vms } = decide(&snapshot, &mut self.policy);
        for plan in vms {
            let orders = Orders {
                state,
                balloon_target: plan.balloon_target,
                private_max: plan.private_max,
                run: plan.run,
                scan_pages_per_second: SCAN_PAGES_PER_SECOND,
            };
            let vm = self
                .vms
                .get_mut(&plan.id)
                .expect("the plan is about the snapshot's VMs");
            if vm.orders.as_ref() != Some(&orders) {
                vm.orders = Some(orders.clone());
                self.outgoing
                    .push(Outgoing::Send(plan.id, ToVm::Orders(orders)));
            }
            vm.plan = Some(plan);
        }
        self.history.enters(state, now);
        // Who was not granted everything now waits for the next tick: the plan knows of it.
        self.serve(None);
        self.urgent = false;
        self.observe();
    }

    /// Asks a VM to stop.
    pub fn stop(&mut self, id: VmId) {
        if let Some(vm) = self.vms.get_mut(&id) {
            vm.stopping = true;
            self.outgoing.push(Outgoing::Send(id, ToVm::Stop));
        }
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
            let request = admission::Request {
                name: vm.name.clone(),
                reservation: kind.entitlement(&new),
                overhead: self.charged_overhead(id, vm),
            };
            admission::admit(&self.books(Some(id)), &request)
                .map_err(|refusal| refusal.to_string())?;
        }
        self.vms.get_mut(&id).expect("found above").allocation = new;
        self.urgent = true;
        Ok(())
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
        self.urgent = true;
        Ok(())
    }

    /// Lets another policy set the targets.
    pub fn set_policy(&mut self, kind: PolicyKind) {
        self.policy.set_kind(kind);
        self.urgent = true;
    }

    /// All figures at this moment; of ended VMs, how they ended and their counters.
    pub fn figures(&mut self) -> Figures {
        self.count_frames();
        let live = self
            .vms
            .iter()
            .map(|(&id, vm)| self.vm_figures(id, vm, Life::Live));
        let vms: Vec<VmFigures> = self.ended.iter().cloned().chain(live).collect();
        let overhead_bytes = self.ledger.overhead().bytes();
        let consumed_bytes = vms.iter().map(|vm| vm.consumed_bytes).sum::<u64>() + overhead_bytes;
        self.history.consumes(consumed_bytes);
        let host = HostFigures {
            memory_bytes: self.ledger.budget().bytes(),
            consumed_bytes,
            consumed_bytes_peak: self.history.peak_bytes(),
            overhead_bytes,
            free_bytes: self.ledger.free().bytes(),
            leased_bytes: self.leases.reserved().bytes(),
            state: self.policy.mem_state(),
            state_seconds: self.history.state_seconds(),
            frames_shared: self.shares.frames(),
            pages_sharing: self.shares.references(),
            seed: self.settings.seed,
            policy: self.policy.kind().name().to_owned(),
        };
        Figures { host, vms }
    }

    /// Checks all books.
    ///
    /// # Panics
    /// When they contradict each other: a bug.
    pub fn audit(&self) {
        self.ledger.audit();
        self.shares.audit();
        assert_eq!(
            self.ledger.frames(),
            Pages(self.shares.frames()),
            "frames in the ledger"
        );
    }

    fn report(&mut self, id: VmId, report: Report) {
        let vm = self.vms.get_mut(&id).expect("callers know the VM");
        let report = plausible(report, vm.allocation.size);
        self.ledger.set_held(id, report.own());
        self.ledger.set_vm_overhead(id, report.overhead);
        vm.report = Some(report);
        let own = |vm: &Vm| vm.report.as_ref().map_or(Pages::ZERO, Report::own);
        let private = self.vms.values().map(own).sum::<Pages>();
        let consumed = private + self.ledger.frames() + self.ledger.overhead();
        self.history.consumes(consumed.bytes());
    }

    /// Raises the VMs' peaks.
    fn observe(&mut self) {
        let figures = self.figures();
        let live = figures.vms.iter().skip(self.ended.len());
        for (vm, figures) in self.vms.values_mut().zip(live) {
            vm.peak.observe(figures);
        }
    }

    /// Splits the frames again if any reference has changed.
    fn count_frames(&mut self) {
        if self.frame_parts.0 != self.shares.generation() {
            self.frame_parts = (
                self.shares.generation(),
                split_frames(self.shares.holders()),
            );
        }
    }

    fn frame_part(&self, id: VmId) -> FramePart {
        self.frame_parts.1.get(&id).copied().unwrap_or_default()
    }

    /// What a VM holds in the books: its credit and its part of the frames.
    fn held(&self, id: VmId) -> Pages {
        self.ledger.charge(id) + Pages::in_bytes(self.frame_part(id).bytes)
    }

    /// What the grant rule gives a VM now.
    fn affordable(&self, id: VmId, asked: Pages) -> Pages {
        let vm = &self.vms[&id];
        let request = CreditRequest {
            asked,
            held: self.held(id),
            allocation: &vm.allocation,
            plan: vm.plan.as_ref(),
        };
        let thresholds = self.policy.thresholds(self.ledger.budget());
        grant(
            &request,
            self.unleased(),
            &thresholds,
            self.policy.mem_state(),
        )
    }

    /// Grants to those who wait: first who is at or below its target, then in order of asking.
    /// With `only`, to that VM alone, unless others wait before it.
    fn serve(&mut self, only: Option<VmId>) {
        let mut waiting: Vec<(bool, u64, VmId)> = self
            .vms
            .iter()
            .filter(|(_, vm)| vm.asked > Pages::ZERO)
            .map(|(&id, vm)| (self.held(id) > vm.target(), vm.asked_since, id))
            .collect();
        if only.is_some() && waiting.len() > 1 {
            // Someone waits already because nothing more could be granted; nothing was returned
            // since, but this one may be entitled where they are not.
            waiting.retain(|&(above, _, id)| Some(id) == only && !above);
            self.urgent = true;
        }
        waiting.sort_unstable();
        for (_, _, id) in waiting {
            let asked = self.vms[&id].asked;
            let pages = self.affordable(id, asked);
            if pages > Pages::ZERO {
                self.ledger.grant(id, pages);
                self.outgoing
                    .push(Outgoing::Send(id, ToVm::Credit { pages }));
            }
            self.vms.get_mut(&id).expect("waiting VMs are live").asked -= pages;
            self.urgent |= pages < asked;
        }
    }

    /// A state threshold crossed downward does not wait for the tick.
    fn watch_thresholds(&mut self) {
        let state = self.policy.mem_state();
        let thresholds = self.policy.thresholds(self.ledger.budget());
        self.urgent |= thresholds.next(state, self.unleased()) > state;
    }

    /// Sends references to the VMs they were lent to, in ascending gfn order so that runs stay runs.
    fn lend(&mut self, lent: Vec<Lent>) {
        let mut of_vm: BTreeMap<VmId, Vec<(Gfn, crate::units::FrameId)>> = BTreeMap::new();
        for Lent { vm, gfn, frame } in lent {
            of_vm.entry(vm).or_default().push((gfn, frame));
        }
        for (vm, mut pages) in of_vm {
            pages.sort_unstable();
            for part in pages.chunks(LIST_MAX) {
                let pages = part.to_vec();
                self.outgoing
                    .push(Outgoing::Send(vm, ToVm::Candidates { pages }));
            }
        }
    }

    fn snapshot(&mut self, now: Duration) -> Snapshot {
        self.count_frames();
        let vms = self.vms.iter().map(|(&id, vm)| {
            let report = vm.report.clone().unwrap_or_default();
            let frames = Pages::in_bytes(self.frame_part(id).bytes);
            VmSnapshot {
                id,
                allocation: vm.allocation,
                consumed: report.own() + frames,
                frames,
                private: report.private,
                ballooned: report.ballooned,
                swapped: report.swapped + report.compressed,
                swap_in_pages: report.swap_in_pages,
                asked: vm.asked,
                balloon_driver: report.balloon_driver,
                active: report.active,
                overhead: self.ledger.vm_overhead(id),
                guest: report.guest_memory,
            }
        });
        Snapshot {
            now,
            budget: self.ledger.budget(),
            free: self.unleased(),
            overhead: self.ledger.overhead() + self.leases.reserved(),
            vms: vms.collect(),
        }
    }

    fn vm_figures(&self, id: VmId, vm: &Vm, life: Life) -> VmFigures {
        let report = vm.report.clone().unwrap_or_default();
        // The memory of an ended VM is back: only its counters are left.
        let held = |pages: Pages| if life == Life::Live { pages.bytes() } else { 0 };
        // By our own index, which is what the frames are split by: a VM's report is a little older,
        // and the figures would not add up.
        let frames = match life {
            Life::Live => self.frame_part(id),
            Life::Ended => FramePart::default(),
        };
        VmFigures {
            name: vm.name.clone(),
            state: if life == Life::Live {
                vm.state()
            } else {
                VmState::Ended
            },
            exit: vm.exit.clone().filter(|_| life == Life::Ended),
            memory_bytes: vm.allocation.size.bytes(),
            target_bytes: vm.target().bytes(),
            target_why: vm
                .plan
                .as_ref()
                .map(|plan| plan.why.clone())
                .unwrap_or_default(),
            consumed_bytes: held(report.own()) + frames.bytes,
            private_bytes: held(report.private + report.orphaned),
            shared_bytes: frames.references.bytes(),
            saved_bytes: frames.references.bytes() - frames.bytes,
            zero_bytes: held(report.zero),
            ballooned_bytes: held(report.ballooned),
            compressed_bytes: held(report.compressed),
            swapped_bytes: held(report.swapped),
            active_bytes: held(report.active.unwrap_or_default()),
            active_error_bytes: held(report.active_error),
            take_path: report.take_path,
            balloon: vm
                .plan
                .as_ref()
                .map(|plan| plan.conduct)
                .unwrap_or_default(),
            overhead_bytes: held(self.ledger.vm_overhead(id)),
            credit_bytes: held(self.ledger.charge(id)),
            swap_in_pages: report.swap_in_pages,
            swap_out_pages: report.swap_out_pages,
            cow_breaks: report.cow_breaks,
            swap_errors: report.swap_errors,
            peak: vm.peak,
            start_ms: report.start_us.map(|start| f64::from(start) / 1e3),
            boot_ms: None,
            guest: report.guest,
        }
    }

    /// The books as admission sees them, without one VM.
    fn books(&self, without: Option<VmId>) -> HostBooks {
        self.leases.counted_in(&self.books_of_vms(without))
    }

    /// The same without leases.
    fn books_of_vms(&self, without: Option<VmId>) -> HostBooks {
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
                .map(|(_, vm)| self.policy.kind().entitlement(&vm.allocation))
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
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            if text.is_empty() || text.len() > 64 || !text.chars().all(plain) {
                return Err(format!(
                    "name {text:?}: 1 to 64 of [A-Za-z0-9._-] are allowed"
                ));
            }
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

#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    Live,
    Ended,
}

/// Credit asked for at a time: large enough that asking is rare, small enough that what all VMs
/// keep unused is nothing beside the budget.
pub fn credit_batch(budget: Pages) -> Pages {
    Pages((budget.0 / 512).clamp(64, 1024))
}

/// Memory of a VM process beside its guest's RAM before it is measured: page tables, the pager's
/// books (about 16 bytes a page) and the program itself.
fn overhead_estimate(size: Pages) -> Pages {
    Pages::mib(1) + Pages(size.0 / 128)
}

fn check_allocation(a: &Allocation) -> Result<(), String> {
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

/// A VM process can report what it likes; figures beyond its size would only confuse the sums.
fn plausible(mut report: Report, size: Pages) -> Report {
    let most_overhead = Pages::mib(64) + Pages(size.0 / 4);
    for figure in [
        &mut report.private,
        &mut report.shared,
        &mut report.orphaned,
        &mut report.zero,
        &mut report.ballooned,
        &mut report.compressed,
        &mut report.compressed_store,
        &mut report.swapped,
        &mut report.balloon_actual,
    ] {
        *figure = (*figure).min(size);
    }
    report.overhead = report.overhead.min(most_overhead);
    report
}

#[cfg(test)]
mod tests;
