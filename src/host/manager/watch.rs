//! What the kernel says that VM processes have, against what they say and what they were told.
//!
//! A VM process is charged what it reports. One that lies about that, keeps credit that it does not
//! use, or gives back nothing when it is told to, would live on what the others give. So each process
//! is measured from outside ([`Footprint`], once a second, where there are more than 300 seldomer, and
//! twice a second while it is suspected), and:
//!
//! | what is seen | what follows |
//! |---|---|
//! | it has more than it says and was expected to need | it is charged the difference, as overhead |
//! | it has, or says that it has, more than its credit and a slack, for [`OVER_MAX`] | it is killed |
//! | credit that it does not use, beyond what a VM may keep | counts as what it holds |
//! | in hard or low, ordered below what it holds, it gives nothing for [`PATIENCE`], and somebody below its target waits for memory | what it holds counts as overhead: the others share the rest, and give no more than that takes |
//! | the same for [`IGNORES_MAX`] in which it ran, its swap file neither full nor failing | it is killed |
//! | the same for [`ABSENT_MAX`], whether it ran or not | the same |
//!
//! Time counts by looks, each for [`LOOK_AGAIN`] at most: a host manager that did not run has heard
//! nothing of what the VMs did meanwhile. A VM process that is stopped, or waits for its disk, does
//! not run; one that finds no room to swap says so in its reports. Neither is killed for it, but nobody
//! waits for them either.

use std::time::Duration;

use super::admission::{credit_batch, overhead_estimate};
use super::{Manager, Outgoing, Vm};
use crate::host::process::Footprint;
use crate::host::share::Reach;
use crate::policy::types::VmId;
use crate::units::Pages;
use crate::words::{Exit, ExitReason, MemState};

/// From one measurement of a process to the next.
const LOOK: Duration = Duration::from_secs(1);
/// The same while it may have to be killed.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// And from the measurement of one to that of another, on average, at least. Chosen: one takes 60 us.
const LOOKS_GAP: Duration = Duration::from_millis(3);
/// A process may have more than its credit for so long.
const OVER_MAX: Duration = Duration::from_secs(1);
/// A VM that gives nothing of what it was told to give is not waited for any longer than this.
const PATIENCE: Duration = Duration::from_secs(1);
/// And killed when it has run for so long since.
const IGNORES_MAX: Duration = Duration::from_secs(5);
/// Or when so much time has passed.
const ABSENT_MAX: Duration = Duration::from_secs(60);
/// A process runs while it uses this part of a CPU. Chosen: a fault thread that only serves its guest,
/// or a timer, uses less.
const RUNS_DIVISOR: u32 = 20;
/// Less than this is no progress. Chosen: what one write to a swap file takes.
const PROGRESS: Pages = Pages(64);
/// What a VM may keep above what it was told, before it counts as disobedient.
const OWED_MIN: Pages = Pages::mib(1);
/// Batches of credit that an honest VM keeps unused, at most: see `mem::credit`.
const BATCHES_KEPT: u64 = 8;
/// Beside a part of its size, what a process may have beyond its credit and what it is expected to need
/// for itself. Chosen: what all vCPUs write in the 10 ms until the VM process looks, and what is
/// staged.
const SLACK: Pages = Pages::mib(32);
const SLACK_DIVISOR: u64 = 16;
/// Kernel memory for mappings, which nothing outside of the process shows but a cgroup: 64 Ki of 0.3 KiB.
const MAPPINGS_MAX: Pages = Pages::mib(20);

/// What a process may have beyond its credit.
fn own_max(size: Pages) -> Pages {
    overhead_estimate(size) + SLACK + Pages(size.0 / SLACK_DIVISOR)
}

/// Where the kernel stops the process of a VM of `size` by itself: above all that it may have, however
/// fast it takes it. The second part is for files that the kernel has cached.
pub fn process_max(size: Pages) -> Pages {
    size + own_max(size) + own_max(size)
}

/// What is known of one VM process.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Watch {
    due: Duration,
    footprint: Option<Footprint>,
    /// When it was looked at last, and how long it has had more than it may.
    seen: Duration,
    over: Option<Duration>,
    owes: Option<Owing>,
    /// It gives nothing, and the others had to share what it leaves, since then.
    left_out: bool,
}

/// A VM that was told to give.
#[derive(Debug, Clone, Copy)]
struct Owing {
    /// The least that it has held since then.
    least: Pages,
    /// When it held that first, or was told.
    since: Duration,
    /// For how long it has had no excuse, and has run.
    waited: Duration,
    ran: Duration,
    /// Its CPU time, and failures of its swap file, when that was looked at.
    cpu: Duration,
    errors: u64,
}

impl Watch {
    /// Whether who decides does not wait for what it holds.
    pub fn is_left_out(&self) -> bool {
        self.left_out
    }

    /// Whether what it holds is not to be had.
    pub fn gives_nothing(&self, now: Duration) -> bool {
        self.owes
            .is_some_and(|owing| now.saturating_sub(owing.since) >= PATIENCE)
    }

    /// Whether the kernel has been asked, and what it said.
    pub fn memory(&self) -> Option<Pages> {
        self.footprint.map(|footprint| footprint.memory)
    }

    fn suspects(&self) -> bool {
        self.over.is_some() || self.owes.is_some()
    }
}

impl Vm {
    /// Swap failures that it has reported.
    fn swap_errors(&self) -> u64 {
        let measured = self.measured.as_ref();
        measured.map_or(0, |measured| measured.counters.swap_errors)
    }
}

impl Manager {
    /// A VM whose process is to be measured now: call [`Manager::measured`].
    pub fn unmeasured(&self, now: Duration) -> Option<VmId> {
        let mut vms = self.vms.iter();
        vms.find(|(_, vm)| vm.watch.due <= now).map(|(&id, _)| id)
    }

    /// Takes what the kernel says of a VM's process; nothing, if it says nothing.
    pub fn measured(&mut self, id: VmId, footprint: Option<Footprint>, now: Duration) {
        let all = LOOKS_GAP * u32::try_from(self.vms.len()).unwrap_or(u32::MAX);
        let Some(vm) = self.vms.get_mut(&id) else {
            return;
        };
        vm.watch.footprint = footprint;
        if let Some(footprint) = footprint {
            self.ledger.measured(id, footprint.memory);
        }
        let passed = now.saturating_sub(vm.watch.seen);
        vm.watch.seen = now;
        let guilty = self.has_too_much(id, passed);
        let guilty = guilty.or_else(|| self.has_given_nothing(id, passed));
        let vm = self.vms.get_mut(&id).expect("found above");
        let pause = if vm.watch.suspects() {
            LOOK_AGAIN
        } else {
            LOOK.max(all)
        };
        vm.watch.due = now + pause;
        if let Some(why) = guilty.filter(|_| vm.exit.is_none()) {
            vm.exit = Some(Exit {
                reason: ExitReason::Killed,
                code: 0,
                message: Some(why.clone()),
            });
            self.outgoing.push(Outgoing::Kill(id, why));
        }
    }

    /// Why a VM process that has more than it may is killed, if it has had that for too long.
    fn has_too_much(&mut self, id: VmId, passed: Duration) -> Option<String> {
        let vm = &self.vms[&id];
        let size = vm.allocation.size;
        let own = own_max(size);
        let credit = match vm.managed {
            true => self.ledger.credit(id),
            false => size,
        };
        let says = self.ledger.holding(id).total();
        let has = vm.watch.memory().unwrap_or_default().max(says);
        // Without a link it has nobody to ask.
        let over = vm.reach != Reach::Detached && has > credit + own;
        let watch = &mut self.vms.get_mut(&id).expect("found above").watch;
        let before = watch.over.map(|before| before + passed.min(LOOK_AGAIN));
        watch.over = over.then(|| before.unwrap_or_default());
        (watch.over? >= OVER_MAX)
            .then(|| format!("its process has {has}, and may have {credit} and {own} for itself"))
    }

    /// Why a VM that gives nothing of what it was told to give is killed, if it is.
    fn has_given_nothing(&mut self, id: VmId, passed: Duration) -> Option<String> {
        let vm = self.vms.get_mut(&id).expect("callers know the VM");
        let (full, errors) = (vm.swap_full(), vm.swap_errors());
        let (footprint, owing) = (vm.watch.footprint?, vm.watch.owes.as_mut()?);
        let runs = footprint.cpu.saturating_sub(owing.cpu) >= passed / RUNS_DIVISOR;
        let counted = passed.min(LOOK_AGAIN);
        owing.waited += counted;
        owing.ran += if runs { counted } else { Duration::ZERO };
        if full || errors != owing.errors {
            (owing.waited, owing.ran) = (Duration::ZERO, Duration::ZERO);
        }
        (owing.cpu, owing.errors) = (footprint.cpu, errors);
        (owing.ran >= IGNORES_MAX || owing.waited >= ABSENT_MAX).then(|| {
            let held = owing.least;
            format!("told to give memory back, it has kept all of {held}")
        })
    }

    /// Notes which VMs owe memory, and which have given some.
    pub(super) fn note_owed(&mut self, now: Duration) {
        let ids: Vec<VmId> = self.vms.keys().copied().collect();
        let thresholds = self.policy.thresholds(self.ledger.budget());
        let spare = self.unleased().saturating_sub(thresholds.high);
        for id in ids {
            let (part, beyond) = self.frames_to_give(id);
            let held = self.swappable(id) + part + beyond;
            let vm = self.vms.get_mut(&id).expect("it is one of them");
            let orders = vm.orders.as_ref();
            let told = orders.and_then(|orders| orders.private_max);
            let owes = told.is_some_and(|told| {
                let kept = held.saturating_sub(told);
                vm.managed && vm.reach == Reach::Open && kept > OWED_MIN && kept > spare
            });
            let short = orders.is_some_and(|orders| orders.state >= MemState::Hard);
            let footprint = vm.watch.footprint.unwrap_or_default();
            let begin = Owing {
                least: held,
                since: now,
                waited: Duration::ZERO,
                ran: Duration::ZERO,
                cpu: footprint.cpu,
                errors: vm.swap_errors(),
            };
            vm.watch.owes = match vm.watch.owes {
                _ if !owes => None,
                Some(owing) if held + PROGRESS > owing.least => Some(owing),
                None if !short => None,
                Some(_) | None => Some(begin),
            };
            if vm.watch.suspects() {
                vm.watch.due = vm.watch.due.min(now + LOOK_AGAIN);
            }
        }
        self.leave_out(now);
    }

    /// Notes whose memory is not waited for. As long as the others get what their targets let them have
    /// they keep these: the reserve is not filled from them for what somebody else owes.
    fn leave_out(&mut self, now: Duration) {
        let holds = |id: VmId| {
            let frames = Pages::in_bytes(self.shares.frame_part(id).bytes);
            self.counted(id) + frames
        };
        let mut others = self.vms.iter().filter(|(_, vm)| vm.watch.owes.is_none());
        let somebody_waits =
            others.any(|(&id, vm)| vm.asked > Pages::ZERO && holds(id) < vm.target());
        for vm in self.vms.values_mut() {
            let watch = &mut vm.watch;
            watch.left_out = watch.gives_nothing(now) && (watch.left_out || somebody_waits);
        }
    }

    /// Whether somebody's memory is waited for.
    pub(super) fn waits_for_somebody(&self) -> bool {
        self.vms.values().any(|vm| vm.watch.owes.is_some())
    }

    /// What a VM holds out of its credit: at least the credit that it keeps for nothing.
    pub(super) fn counted(&self, id: VmId) -> Pages {
        let kept = Pages(credit_batch(self.ledger.budget()).0 * BATCHES_KEPT);
        let hoarded = self.ledger.credit(id).saturating_sub(kept);
        self.ledger.holding(id).total().max(hoarded)
    }

    /// What of that its orders speak of.
    pub(super) fn swappable(&self, id: VmId) -> Pages {
        let orphaned = self.ledger.holding(id).orphaned;
        self.counted(id).saturating_sub(orphaned)
    }

    /// Of the frames of a hardened group, what the VM's part of them is, which it can give back by
    /// swapping; and how many pages more it has to swap for all of that.
    pub(super) fn frames_to_give(&self, id: VmId) -> (Pages, Pages) {
        if !self.shares.sharing(id).is_hardened() {
            return (Pages::ZERO, Pages::ZERO);
        }
        let part = Pages::in_bytes(self.shares.frame_part(id).bytes);
        let pages = Pages(self.shares.references_of(id));
        (part, pages.saturating_sub(part))
    }

    /// What a VM's word for its overhead is worth.
    pub(super) fn overhead_within(&self, id: VmId, told: Pages) -> Pages {
        let unseen = |seen: Footprint| match seen.whole {
            true => Pages::ZERO,
            false => MAPPINGS_MAX,
        };
        let seen = self.vms[&id].watch.footprint;
        seen.map_or(told, |seen| told.min(seen.memory + unseen(seen)))
    }
}
