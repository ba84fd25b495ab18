//! Policy: a snapshot of numbers in, a plan out. No I/O, no clock, no threads, no logging.
//!
//! The same code runs in the host manager, in the simulator and in the tests. Everything it knows
//! comes in as an argument ([`Snapshot`], time included) and everything it remembers stands in
//! [`PolicyState`], so the same input always gives the same plan. It cannot fail: settings are
//! checked by `config`, and what cannot be done is a value in the plan.
//!
//! One decision has three steps, each a module:
//!
//! | step | module | question |
//! |---|---|---|
//! | state | [`state`] | how short is the host of memory: high, soft, hard, low? |
//! | targets | [`esx`] (more policies may stand beside it), on [`fair`] | how much should each VM hold when memory is short? |
//! | reclaim | [`reclaim`] | which mechanism makes up the difference, and how fast? |
//!
//! Only the second step differs between policies. Two rules are asked between decisions:
//! [`grant`] (may this VM have more pages now?) and [`admission`] (may this VM start?).
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
pub mod esx;
pub mod fair;
pub mod grant;
pub mod reclaim;
pub mod state;
#[cfg(test)]
mod tests;
pub mod types;

use std::collections::BTreeMap;
use std::str::FromStr;

use self::reclaim::BalloonRecord;
use self::types::{MemState, Plan, Snapshot, VmId};
use crate::units::Pages;

/// The policies, by the names that a fleet file uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PolicyKind {
    /// Shares, reservation and limit, as VMware ESX.
    #[default]
    Esx,
}

impl PolicyKind {
    /// Every policy.
    pub const ALL: &[PolicyKind] = &[PolicyKind::Esx];

    /// The name in fleet files.
    pub fn name(self) -> &'static str {
        match self {
            PolicyKind::Esx => "esx",
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
    mem_state: MemState,
    balloons: BTreeMap<VmId, BalloonRecord>,
    /// Since when there has been room to give memory back without a break.
    room_since: Option<std::time::Duration>,
}

impl PolicyState {
    /// The state before the first decision: memory state high, no balloon known.
    pub fn new(kind: PolicyKind) -> PolicyState {
        PolicyState {
            kind,
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
        self.kind = kind;
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
    /// One line for people.
    pub why: String,
}

/// Decides what every VM shall do until the next decision.
///
/// The plan has one entry for each VM of the snapshot, in its order. VMs that are no longer in the
/// snapshot are forgotten.
pub fn decide(snapshot: &Snapshot, memory: &mut PolicyState) -> Plan {
    let thresholds = state::Thresholds::of_budget(snapshot.budget);
    memory.mem_state = thresholds.next(memory.mem_state, snapshot.free);
    let targets = match memory.kind {
        PolicyKind::Esx => esx::targets(snapshot, &thresholds),
    };
    let vms = reclaim::plan(snapshot, &thresholds, targets, memory);
    Plan {
        state: memory.mem_state,
        vms,
    }
}
