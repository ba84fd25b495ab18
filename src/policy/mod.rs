//! Policy: a snapshot of numbers in, a plan out. No I/O, no clock, no threads, no logging.
//!
//! The same code runs in the host manager, in the simulator and in the tests. Everything it knows
//! comes in as an argument ([`Snapshot`], time included) and everything it remembers stands in
//! [`PolicyState`], so the same input always gives the same plan. It cannot fail: settings are
//! checked by `config`, and what cannot be done is a value in the plan.
//!
//! | policy | reads | promises | choose it when |
//! |---|---|---|---|
//! | [`esx`] | shares, reservation, limit; the sampled working set | reservations always; the rest by shares, idle memory taxed; nothing is taken before memory is short | guests differ in worth, or you do not know better |
//! | [`proportional`] | the dynamic range alone | everybody at the same fraction of its range; reacts to no guest | you plan memory yourself and want to be able to compute it |
//! | [`self`](own) | the guest's use | a guest holds little more than it uses, also when the host has plenty; grows at once, shrinks slowly | guests are honest and mostly idle, and free host memory is worth something |
//! | [`pref`] | the guest's use | 1.3 times what each uses; what is left in proportion | desktops: few guests, whose need changes suddenly |
//! | [`pressure`] | refaults | the smallest size at which a guest does not suffer, found by trying | long-running guests whose caches hide what they need |
//!
//! One decision has three steps, each a module:
//!
//! | step | module | question |
//! |---|---|---|
//! | state | [`state`] | how short is the host of memory: high, soft, hard, low? |
//! | targets | one of the policies above, on `supply`, `wish` and [`fair`] | how much should each VM hold? |
//! | reclaim | [`reclaim`], on [`balloon`], `ask`, `deflate` | which mechanism makes up the difference, and how fast? |
//!
//! Only the second step differs between policies, and in one respect the third ([`Manner`]). Rules asked
//! between decisions: [`grant`] (may this VM have more pages now?), [`admission`] (may this VM
//! start?), [`lease`] (what is promised before it starts?), [`scan`] (how fast does it look for pages to
//! share?). [`sampling`] estimates working sets.
//!
//! **No guest falls below its floor or its reservation.** `reservation <= target <= limit` under every
//! policy; `proportional` adds `dynamic_min`, the others have floors that hold while they fit the host.
//!
//! **Shrinks before growths.** A plan lets a VM grow (deflates a balloon) only out of memory that
//! is free *in the snapshot*, above the high threshold; it never counts on a shrink that the same
//! plan orders. What a shrink yields is seen in a later snapshot.
//!
//! **Measured, not claimed.** Residency as measured in the VM process decides. What a guest says
//! about itself can only make the policy gentler with its balloon, and a guest that escapes its
//! balloon that way is swapped instead.
//!
//! Sources: Waldspurger, "Memory Resource Management in VMware ESX Server", OSDI 2002 (states,
//! shares, min-funding); "Understanding Memory Resource Management in VMware ESX Server" (65 %
//! balloon ceiling, thresholds); xen-api `squeezed` (5 s until a balloon counts as stuck).

pub mod admission;
mod ask;
pub mod balloon;
mod ceiling;
mod deflate;
pub mod esx;
pub mod fair;
pub mod grant;
mod guest;
mod hint;
pub mod lease;
pub mod own;
pub mod pref;
pub mod pressure;
pub mod proportional;
pub mod reclaim;
pub mod safeguard;
pub mod sampling;
pub mod scan;
pub mod settings;
pub mod state;
mod supply;
#[cfg(test)]
mod tests;
pub mod types;
mod why;
mod wish;

use std::collections::BTreeMap;
use std::str::FromStr;

use self::admission::{Admission, Holder, Promises, Refusal, Request, Squeeze};
use self::balloon::BalloonRecord;
use self::hint::HintRecord;
use self::safeguard::Safeguard;
use self::settings::PolicySettings;
use self::state::Thresholds;
use self::types::{Conduct, Plan, Snapshot, VmId, VmPlan, VmSnapshot};
use crate::units::Pages;
use crate::words::{Allocation, MemState, Run};

pub use self::why::Why;

/// The policies, by the names that a fleet file uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PolicyKind {
    /// Shares, reservation and limit, as VMware ESX.
    #[default]
    Esx,
    /// The same fraction of every dynamic range, as XenServer's squeezed.
    Proportional,
    /// What the guest has committed, as Xen's self-ballooning.
    Own,
    /// What the guest prefers, as Qubes' qmemman.
    Pref,
    /// What the guest can do without, as senpai.
    Pressure,
}

/// How a policy's targets are enforced while memory is not short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Not: who holds more than its target keeps it until somebody needs it.
    OnDemand,
    /// A balloon holds what is above the target, always.
    Directed,
}

impl PolicyKind {
    /// Every policy.
    pub const ALL: &[PolicyKind] = &[
        PolicyKind::Esx,
        PolicyKind::Proportional,
        PolicyKind::Own,
        PolicyKind::Pref,
        PolicyKind::Pressure,
    ];

    /// The name in fleet files.
    pub fn name(self) -> &'static str {
        match self {
            PolicyKind::Esx => "esx",
            PolicyKind::Proportional => "proportional",
            PolicyKind::Own => "self",
            PolicyKind::Pref => "pref",
            PolicyKind::Pressure => "pressure",
        }
    }

    /// The names of all, for messages.
    pub fn names() -> String {
        let names: Vec<&str> = PolicyKind::ALL.iter().map(|kind| kind.name()).collect();
        names.join(", ")
    }

    /// Whether its targets are what each guest seems to need, rather than a part of the host's memory.
    pub fn follows_guest(self) -> bool {
        match self {
            PolicyKind::Esx | PolicyKind::Proportional => false,
            PolicyKind::Own | PolicyKind::Pref | PolicyKind::Pressure => true,
        }
    }

    /// Whether its targets move with time alone, while nothing that it reads does.
    fn keeps_time(self) -> bool {
        match self {
            PolicyKind::Esx | PolicyKind::Proportional | PolicyKind::Pref => false,
            PolicyKind::Own | PolicyKind::Pressure => true,
        }
    }

    /// How its targets are enforced.
    pub fn manner(self) -> Manner {
        match self {
            PolicyKind::Esx => Manner::OnDemand,
            PolicyKind::Proportional
            | PolicyKind::Own
            | PolicyKind::Pref
            | PolicyKind::Pressure => Manner::Directed,
        }
    }

    /// What a VM is promised under this policy: admission keeps the sum of it payable.
    pub fn entitlement(self, allocation: &Allocation) -> Pages {
        match self {
            PolicyKind::Proportional => proportional::floor(allocation),
            PolicyKind::Esx | PolicyKind::Own | PolicyKind::Pref | PolicyKind::Pressure => {
                allocation.reservation
            }
        }
    }
}

/// No policy has this name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no policy has this name")]
pub struct UnknownPolicy;

impl FromStr for PolicyKind {
    type Err = UnknownPolicy;

    fn from_str(name: &str) -> Result<PolicyKind, UnknownPolicy> {
        PolicyKind::ALL
            .iter()
            .copied()
            .find(|kind| kind.name() == name)
            .ok_or(UnknownPolicy)
    }
}

/// What a policy remembers from one decision to the next.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PolicyState {
    kind: PolicyKind,
    settings: PolicySettings,
    mem_state: MemState,
    balloons: BTreeMap<VmId, BalloonRecord>,
    hints: BTreeMap<VmId, HintRecord>,
    /// Since when there has been room to give memory back without a break.
    room_since: Option<std::time::Duration>,
    records: Records,
}

/// What single policies remember; forgotten when another takes over.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Records {
    own: BTreeMap<VmId, own::Record>,
    pref: pref::Record,
    pressure: BTreeMap<VmId, pressure::Record>,
}

impl PolicyState {
    /// The state before the first decision, with default settings: memory state high, no balloon
    /// known.
    pub fn new(kind: PolicyKind) -> PolicyState {
        PolicyState::with_settings(kind, PolicySettings::default())
    }

    /// The state before the first decision.
    pub fn with_settings(kind: PolicyKind, settings: PolicySettings) -> PolicyState {
        PolicyState {
            kind,
            settings,
            ..PolicyState::default()
        }
    }

    /// Which policy sets the targets.
    pub fn kind(&self) -> PolicyKind {
        self.kind
    }

    /// Lets another policy set the targets from the next decision on. Memory state and balloon
    /// records stay: they describe the host, not the policy.
    pub fn set_kind(&mut self, kind: PolicyKind) {
        if kind != self.kind {
            self.kind = kind;
            self.records = Records::default();
            self.room_since = None;
        }
    }

    /// The settings.
    pub fn settings(&self) -> PolicySettings {
        self.settings
    }

    /// Changes the settings from the next decision on.
    pub fn set_settings(&mut self, settings: PolicySettings) {
        self.settings = settings;
    }

    /// The thresholds that hold for a budget under these settings: for [`grant`].
    pub fn thresholds(&self, budget: Pages) -> Thresholds {
        Thresholds::on_scale(budget, self.settings.min_free)
    }

    /// How a VM's balloon behaves.
    pub fn conduct(&self, vm: VmId) -> Conduct {
        let record = self.balloons.get(&vm);
        record.map_or(Conduct::Cooperative, BalloonRecord::conduct)
    }

    /// Whether a VM may start, and from whom its memory comes; `promises` with the leases counted.
    ///
    /// # Errors
    /// The arithmetic.
    pub fn assess(
        &self,
        promises: &Promises,
        request: &Request,
        snapshot: &Snapshot,
        name: impl Fn(VmId) -> String,
    ) -> Result<Admission, Refusal> {
        if !self.settings.safeguards.has(Safeguard::Admission) {
            return Ok(Admission {
                needed: request.needed(),
                free: promises.free,
                squeezed: Vec::new(),
                stubborn: Vec::new(),
            });
        }
        let surplus_only = self.kind == PolicyKind::Pref;
        let holder = |vm: &VmSnapshot| Holder {
            name: name(vm.id),
            consumed: vm.consumed,
            keeps: if surplus_only {
                pref::keeps(vm, &self.settings)
            } else {
                self.kind.entitlement(&vm.allocation)
            },
            conduct: self.conduct(vm.id),
        };
        let holders: Vec<Holder> = snapshot.vms.iter().map(holder).collect();
        let squeeze = if surplus_only {
            Squeeze::Surplus
        } else {
            Squeeze::Promises
        };
        admission::assess(promises, request, &holders, squeeze)
    }

    /// The last order to a VM's balloon.
    fn order(&self, vm: VmId) -> Pages {
        self.balloons.get(&vm).map_or(Pages::ZERO, |r| r.order)
    }

    /// Forgets who has gone, and gets to know who has come.
    fn meet(&mut self, snapshot: &Snapshot) {
        let lives = |id: &VmId| snapshot.vms.binary_search_by_key(id, |vm| vm.id).is_ok();
        self.balloons.retain(|id, _| lives(id));
        self.hints.retain(|id, _| lives(id));
        // A balloon that is seen for the first time (a VM that joins again after the host manager
        // was restarted) is where it is: giving it all back at once would not be paid for.
        for vm in &snapshot.vms {
            let seen = || BalloonRecord::resting(vm.ballooned);
            self.balloons.entry(vm.id).or_insert_with(seen);
        }
        self.records.own.retain(|id, _| lives(id));
        self.records.pressure.retain(|id, _| lives(id));
    }

    /// Whether the next decision can differ from the last one, which came to `plan`, only by what it is
    /// told: there is memory to spare, nobody owes or is owed anything, and time alone changes nothing.
    pub fn is_settled(&self, snapshot: &Snapshot, plan: &Plan) -> bool {
        let owes_nothing = |vm: &VmSnapshot, plan: &VmPlan| {
            let at_rest = plan.run == Run::Go && plan.private_max.is_none();
            let no_balloon = vm.ballooned == Pages::ZERO && plan.balloon_target == Pages::ZERO;
            at_rest
                && no_balloon
                && vm.asked == Pages::ZERO
                && self.conduct(vm.id) == Conduct::Cooperative
        };
        let mut vms = snapshot.vms.iter().zip(&plan.vms);
        plan.state == MemState::High
            && !self.kind.keeps_time()
            && vms.all(|(vm, plan)| owes_nothing(vm, plan))
    }

    /// The memory state after the last decision.
    pub fn mem_state(&self) -> MemState {
        self.mem_state
    }
}

/// A VM's target and the rule that set it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Memory that the VM should consume at most when memory is short.
    pub pages: Pages,
    /// A balloon leaves the VM at least this.
    pub floor: Pages,
    /// Which rule set it.
    pub why: Why,
}

/// Decides what every VM shall do until the next decision.
///
/// The plan has one entry for each VM of the snapshot, in its order. VMs that are no longer in the
/// snapshot are forgotten.
pub fn decide(snapshot: &Snapshot, state: &mut PolicyState) -> Plan {
    state.meet(snapshot);
    let settings = state.settings;
    let thresholds = state.thresholds(snapshot.budget);
    // Without hysteresis every decision starts from state high.
    let from = if settings.safeguards.has(Safeguard::Hysteresis) {
        state.mem_state
    } else {
        MemState::High
    };
    state.mem_state = thresholds.next(from, snapshot.free);
    let records = &mut state.records;
    let targets = match state.kind {
        PolicyKind::Esx => esx::targets(snapshot, &thresholds, &settings),
        PolicyKind::Proportional => proportional::targets(snapshot, &thresholds, &settings),
        PolicyKind::Own => own::targets(snapshot, &thresholds, &settings, &mut records.own),
        PolicyKind::Pref => pref::targets(snapshot, &thresholds, &settings, &mut records.pref),
        PolicyKind::Pressure => {
            pressure::targets(snapshot, &thresholds, &settings, &mut records.pressure)
        }
    };
    let vms = reclaim::plan(snapshot, &thresholds, targets, state);
    Plan {
        state: state.mem_state,
        vms,
    }
}
