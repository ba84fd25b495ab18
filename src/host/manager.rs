//! The host manager's decisions, without sockets: messages and time in, messages out.
//!
//! Owns the [`Ledger`], the share groups and the policy's state. The event
//! loop ([`super::server`]) owns descriptors and clocks, feeds [`Manager::message`] and
//! [`Manager::tick`], and delivers what [`Manager::take_outgoing`] yields.
//!
//! | file | does |
//! |---|---|
//! | `manager/admission.rs`, `manager/leases.rs` | what is promised, and to whom |
//! | `manager/credit.rs` | grants what is free |
//! | `manager/tick.rs` | asks the policy and sends its orders |
//! | `manager/watch.rs` | what the kernel says of VM processes, and who is killed for it |
//! | `manager/takeover.rs` | VMs that outlive a link or a host manager |
//! | `manager/figures.rs` | what people and tests are told |
//!
//! What a VM holds ends with its process ([`Manager::gone`]). Without a link it is *detached*: it keeps
//! everything, is sent nothing, and can join again (`manager/takeover.rs`). A VM that breaks the
//! protocol is told nothing: `message` returns the [`Violation`], and the event loop kills the process.

mod admission;
mod credit;
mod figures;
mod leases;
mod refused;
mod takeover;
mod tick;
mod watch;

use std::collections::BTreeMap;
use std::time::Duration;

pub use admission::credit_batch;
pub use leases::LeaseEnd;
pub use refused::{Kind, Refused};
pub use takeover::{HostRecord, Note, VmRecord, WayBack};
pub use watch::process_max;

use self::watch::Watch;
use super::accounts::{History, Peaks, VmFigures, VmState};
use super::ledger::{Ledger, Overdrawn};
use super::pool::FramePool;
use super::process::ProcessId;
use super::share::{ClaimError, GroupSource, KernelSource, Lent, NotHeld, Reach, ShareIndex};
use crate::link::message::{LIST_MAX, Orders, ToHost, ToVm, Welcome};
use crate::out::printable;
use crate::policy::lease::{LeaseBook, LeaseId, OwnerId};
use crate::policy::scan::ScanRates;
use crate::policy::settings::PolicySettings;
use crate::policy::types::{VmId, VmPlan};
use crate::policy::{PolicyKind, PolicyState};
use crate::units::{Gfn, PAGE_SIZE, Pages};
use crate::words::{
    Allocation, Exit, ExitReason, Measured, MemState, Report, Run, Sampling, Token,
};

/// Time between decisions.
pub const TICK: Duration = Duration::from_millis(100);
/// The same while there is nothing to decide. Chosen: what only time changes, the rates of the scans and
/// what has expired, may be so late.
pub const REST_TICK: Duration = Duration::from_secs(1);
/// VMs on one host, at most.
pub const VMS_MAX: usize = 4096;
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
    /// It joined twice.
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
    /// It claimed a frame that it cannot map.
    #[error(transparent)]
    Claim(#[from] ClaimError),
}

/// Something for the event loop to do.
#[derive(Debug, PartialEq)]
pub enum Outgoing {
    /// Send a message.
    Send(VmId, ToVm),
    /// Send a `Welcome` with the descriptor of [`Manager::pool`].
    Welcome(VmId, Welcome),
    /// Kill the process of a VM, for this reason.
    Kill(VmId, String),
    /// Tell the connection of a lease that it has ended, and close it.
    LeaseEnded(OwnerId, LeaseEnd),
}

#[derive(Debug)]
struct Vm {
    name: String,
    /// With which everything ends that it holds.
    process: ProcessId,
    reach: Reach,
    allocation: Allocation,
    /// Whether its memory follows orders; if not, it is promised all of it.
    managed: bool,
    /// How a host manager that has no link finds it, if it can.
    way: Option<WayBack>,
    /// From whom its memory was to come when it was admitted.
    admission: String,
    /// Its last report, less what the ledger has of it.
    measured: Option<Measured>,
    plan: Option<VmPlan>,
    orders: Option<Orders>,
    /// Credit asked for and not granted yet, and since which request.
    asked: Pages,
    asked_since: u64,
    /// What waits for it to be read.
    unread_bytes: u64,
    stopping: bool,
    exit: Option<Exit>,
    peak: Peaks,
    watch: Watch,
}

impl Vm {
    fn target(&self) -> Pages {
        let plan = self.plan.as_ref();
        plan.map_or(self.allocation.reservation, |plan| plan.target)
    }

    /// Whether its pages find no room where they are to be swapped to, as it says.
    fn swap_full(&self) -> bool {
        let measured = self.measured.as_ref();
        measured.is_some_and(|measured| measured.swap_full)
    }

    fn state(&self) -> VmState {
        let blocked = self
            .orders
            .as_ref()
            .is_some_and(|orders| orders.run == Run::Block);
        match &self.measured {
            _ if self.stopping || self.exit.is_some() => VmState::Stopping,
            _ if self.reach == Reach::Detached => VmState::Detached,
            None => VmState::Starting,
            Some(measured) if measured.stalled => VmState::Stalled,
            Some(measured) if measured.swap_full => VmState::SwapFull,
            Some(_) if blocked => VmState::Blocked,
            Some(_) => VmState::Running,
        }
    }
}

/// Retired frames wait until none has come for so long. Chosen: a storm over 64 MiB takes less, and a VM
/// that has credit releases what it has written seldom.
const RETIRED_SETTLE: Duration = Duration::from_millis(300);
/// But no longer than this.
const RETIRED_MAX: Duration = Duration::from_secs(2);
/// Memory that is held back for the host manager's own growth, beside an eighth of what it has.
const HOST_OVERHEAD_TO_COME: Pages = Pages(128);

/// The host manager without its sockets.
#[derive(Debug)]
pub struct Manager {
    settings: Settings,
    ledger: Ledger,
    shares: ShareIndex,
    leases: LeaseBook,
    /// By which leases are redeemed; some of them may be over.
    lease_tokens: Vec<(LeaseId, Token)>,
    policy: PolicyState,
    scan: ScanRates,
    history: History,
    vms: BTreeMap<VmId, Vm>,
    /// So many at most.
    vms_max: usize,
    next_vm: u32,
    next_request: u64,
    ended: Vec<VmFigures>,
    outgoing: Vec<Outgoing>,
    /// What is to be recorded before anything else is sent.
    notes: Vec<Note>,
    decided: Duration,
    urgent: bool,
    /// The last decision left nothing to do, and nothing has come since.
    rests: bool,
    /// Since when it does not: the first thing that came then.
    woken: Duration,
    /// When the first of the frames that wait to be given back retired, and the last.
    retired: Option<(Duration, Duration)>,
}

impl Manager {
    /// A host without VMs.
    pub fn new(settings: Settings) -> Manager {
        Manager::with_groups(settings, Box::new(KernelSource))
    }

    /// The same with share groups that are made out of `source`.
    pub fn with_groups(settings: Settings, source: Box<dyn GroupSource>) -> Manager {
        Manager {
            settings,
            ledger: Ledger::new(settings.budget),
            shares: ShareIndex::new(source),
            leases: LeaseBook::default(),
            lease_tokens: Vec::new(),
            policy: PolicyState::with_settings(settings.policy, settings.policy_settings),
            scan: ScanRates::default(),
            history: History::default(),
            vms: BTreeMap::new(),
            vms_max: VMS_MAX,
            next_vm: 0,
            next_request: 0,
            ended: Vec::new(),
            outgoing: Vec::new(),
            notes: Vec::new(),
            decided: Duration::ZERO,
            urgent: false,
            rests: false,
            woken: Duration::ZERO,
            retired: None,
        }
    }

    /// The frame pool of a live VM's share group.
    pub fn pool(&self, vm: VmId) -> Option<&FramePool> {
        self.shares.pool(vm)
    }

    /// Who holds how much of the budget.
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

    /// What a live VM is promised.
    pub fn allocation(&self, vm: VmId) -> Option<Allocation> {
        self.vms.get(&vm).map(|vm| vm.allocation)
    }

    /// Names of the live VMs.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.vms.values().map(|vm| vm.name.as_str())
    }

    /// Name of a live VM.
    pub fn name(&self, vm: VmId) -> Option<&str> {
        self.vms.get(&vm).map(|vm| vm.name.as_str())
    }

    /// VMs for which there are descriptors.
    pub fn vms_max(&self) -> usize {
        self.vms_max
    }

    /// Lets so many VMs in, and no more than [`VMS_MAX`].
    pub fn set_vms_max(&mut self, most: usize) {
        self.vms_max = most.min(VMS_MAX);
    }

    /// Notes the memory that the host manager's own process uses; what it keeps for VMs is theirs, and what its pools take beside their
    /// frames is added.
    pub fn set_host_overhead(&mut self, overhead: Pages) {
        // It grows with what it knows, and at once when it has not run for a while and finds its
        // mail. Chosen: seen to grow from 2.0 to 2.7 MiB.
        let to_come = Pages(overhead.0 / 8) + HOST_OVERHEAD_TO_COME;
        let own = overhead - self.charge_kept(overhead);
        self.ledger
            .set_host_overhead(own + self.shares.slack(), to_come);
    }

    /// Charges what is kept for VMs to them, altogether no more than the host manager has: how much.
    fn charge_kept(&mut self, most: Pages) -> Pages {
        self.shares.split_frames();
        let kept = |(&id, vm): (&VmId, &Vm)| (id, self.shares.bytes_of(id) + vm.unread_bytes);
        let kept: Vec<(VmId, u64)> = self.vms.iter().map(kept).collect();
        let all: u64 = kept.iter().map(|(_, bytes)| bytes).sum();
        let most = most.bytes();
        let mut charged = Pages::ZERO;
        for (id, bytes) in kept {
            let part = u128::from(bytes) * u128::from(most.min(all)) / u128::from(all.max(1));
            let part = Pages::in_bytes(u64::try_from(part).expect("it is a part of a u64"));
            self.ledger.set_kept(id, part);
            charged += part;
        }
        charged
    }

    /// Notes how many bytes of messages wait for a VM to read them.
    pub fn set_unread(&mut self, id: VmId, bytes: u64) {
        if let Some(vm) = self.vms.get_mut(&id) {
            vm.unread_bytes = bytes;
        }
    }

    /// Takes one message of a VM.
    ///
    /// # Errors
    /// When the VM breaks the protocol: kill its process, and call [`Manager::gone`] once it is dead.
    pub fn message(&mut self, id: VmId, message: ToHost, now: Duration) -> Result<(), Violation> {
        self.wake(now);
        let Some(vm) = self.vms.get_mut(&id) else {
            return Ok(());
        };
        if vm.exit.is_some() {
            return Err(Violation::AfterExit);
        }
        match message {
            ToHost::Hello | ToHost::Again { .. } => return Err(Violation::SecondHello),
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
                self.serve(None);
            }
            ToHost::Report(report) => self.report(id, *report),
            ToHost::Offer { pages } => {
                let answer = self.shares.offer(id, &pages, now);
                if !answer.candidates.is_empty() {
                    let pages = answer.candidates;
                    self.send(id, ToVm::Candidates { pages });
                }
                if !answer.wants.is_empty() {
                    let gfns = answer.wants;
                    self.send(id, ToVm::Want { gfns });
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
                let before = self.shares.has_leftovers();
                let (freed, result) = self.shares.release(id, &frames);
                self.note_retired(now, before);
                self.ledger.drop_frames(freed);
                // Its part of the frames is less now: it may have waited for that.
                let waits = self.vms[&id].asked > Pages::ZERO;
                if waits {
                    self.shares.split_frames();
                }
                if waits || freed > Pages::ZERO {
                    self.serve(None);
                }
                result?;
            }
            ToHost::Claim { frames } => self.shares.claim(id, &frames)?,
            ToHost::Claimed => {
                let freed = self.shares.end_claims(id)?;
                self.ledger.drop_frames(freed);
                self.serve(None);
            }
            ToHost::Exited(exit) => {
                // It is shown to people as it stands here.
                let message = exit.message.as_deref().map(printable);
                vm.exit = Some(Exit { message, ..exit });
            }
        }
        self.watch_thresholds();
        Ok(())
    }

    /// Gives the memory of some frames that nobody holds any more back to the host, who grants it to
    /// those who wait, and clears away some hints of VMs that have gone: a storm of writes to shared pages,
    /// or a large VM, leaves so much behind that nobody should have to wait for all of it. Returns when
    /// more is to be done, if more is left.
    pub fn give_back(&mut self, now: Duration) -> Option<Duration> {
        if self.leftovers_due()? > now {
            return self.leftovers_due();
        }
        let freed = self.shares.give_back();
        if freed > Pages::ZERO {
            self.ledger.drop_frames(freed);
            self.serve(None);
        }
        self.shares.sweep_hints();
        self.leftovers_due()
    }

    /// While memory is plenty, frames wait until no more of them come: those of a storm make one hole
    /// then, and the guests have none made under their hands.
    fn leftovers_due(&self) -> Option<Duration> {
        if !self.shares.has_leftovers() {
            return None;
        }
        let thresholds = self.policy.thresholds(self.ledger.budget());
        let hurries = self.policy.mem_state() > MemState::High || self.unleased() < thresholds.high;
        let due = self.retired.filter(|_| !hurries);
        Some(due.map_or(Duration::ZERO, |(first, last)| {
            (last + RETIRED_SETTLE).min(first + RETIRED_MAX)
        }))
    }

    /// Frames may have retired; where none waits to be given back, the next is the first.
    fn note_retired(&mut self, now: Duration, before: bool) {
        let first = self
            .retired
            .filter(|_| before)
            .map_or(now, |(first, _)| first);
        self.retired = Some((first, now));
    }

    /// A VM's process has ended: all it held returns at once.
    pub fn gone(&mut self, id: VmId) {
        let Some(mut vm) = self.vms.remove(&id) else {
            return;
        };
        self.notes.push(Note::Gone(vm.name.clone()));
        self.ledger.close(id);
        let freed = self.shares.leave(id);
        self.ledger.drop_frames(freed);
        vm.exit.get_or_insert(Exit {
            reason: ExitReason::Killed,
            code: 0,
            message: None,
        });
        if self.ended.len() == ENDED_MAX {
            // Whoever joins and leaves all the time pushes out its like, not those that ran.
            let idle = |vm: &VmFigures| vm.start_ms.is_none();
            let first = self.ended.iter().position(idle).unwrap_or(0);
            self.ended.remove(first);
        }
        let figures = self.ended_figures(id, &vm);
        self.ended.push(figures);
        self.serve(None);
        self.urgent = true;
    }

    /// Asks a VM to stop; one without a link is asked when it has joined again.
    pub fn stop(&mut self, id: VmId) {
        if let Some(vm) = self.vms.get_mut(&id) {
            vm.stopping = true;
            self.send(id, ToVm::Stop);
        }
    }

    /// Sends a message to a VM that has a link.
    fn send(&mut self, id: VmId, message: ToVm) {
        if self
            .vms
            .get(&id)
            .is_some_and(|vm| vm.reach != Reach::Detached)
        {
            self.outgoing.push(Outgoing::Send(id, message));
        }
    }

    /// Checks the ledger, the share groups and the VMs against each other.
    ///
    /// # Panics
    /// When they contradict each other: a bug.
    pub fn audit(&self) {
        self.ledger.audit();
        self.shares.audit();
        for (id, vm) in &self.vms {
            let reach = self.shares.reach(*id);
            assert_eq!(reach, Some(vm.reach), "reach of {id:?}");
            let waits = vm.reach == Reach::Detached && vm.asked > Pages::ZERO;
            assert!(!waits, "{id:?} waits for credit and has no link");
        }
        assert_eq!(
            self.ledger.frames(),
            Pages(self.shares.frames()),
            "frames in the ledger"
        );
    }

    fn report(&mut self, id: VmId, report: Report) {
        let vm = self.vms.get_mut(&id).expect("callers know the VM");
        let report = report.within(vm.allocation.size);
        vm.measured = Some(report.measured);
        let overhead = self.overhead_within(id, report.overhead);
        self.ledger.report(id, report.holding, overhead);
        self.history.consumes(self.consumed().bytes());
    }

    /// What all VMs hold, and the overheads.
    fn consumed(&self) -> Pages {
        self.ledger.held() + self.ledger.frames() + self.ledger.overhead()
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
                self.send(vm, ToVm::Candidates { pages });
            }
        }
    }
}

#[cfg(test)]
mod tests;
