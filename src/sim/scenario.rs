//! What a scenario is, checked.

use std::time::Duration;

use super::guest::STEP;
use crate::policy::PolicyKind;
use crate::policy::settings::PolicySettings;
use crate::policy::types::Conduct;
use crate::units::Pages;
use crate::words::{Allocation, AllocationKeys, MemState, Sampling};

/// One scenario: a host, its guests, what happens to them, and how it shall end.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Its name.
    pub name: String,
    /// What it shows.
    pub why: String,
    /// The policies it is played under unless others are asked for.
    pub policies: Vec<PolicyKind>,
    pub(super) duration: Duration,
    pub(super) budget: Pages,
    /// Overhead of the host manager.
    pub(super) overhead: Pages,
    pub(super) settings: PolicySettings,
    /// How guests' working sets are estimated; `None`: they are known.
    pub(super) sampling: Option<Sampling>,
    /// Policies under which it must fail, and words of the reason.
    pub(super) fails: Vec<PolicyKind>,
    pub(super) fails_with: String,
    pub(super) guests: Vec<GuestSpec>,
    pub(super) changes: Vec<Change>,
    pub(super) expectations: Vec<Expectation>,
    pub(super) fleet: Option<Fleet>,
}

impl Scenario {
    /// Steps of all guests that one run takes, at most.
    pub fn guest_steps(&self) -> u64 {
        let steps = self.duration.as_millis() / STEP.as_millis();
        let guests = match self.fleet {
            Some(fleet) => u64::from(fleet.hosts) * u64::from(fleet.vms_max),
            None => self.guests.len() as u64,
        };
        u64::try_from(steps)
            .unwrap_or(u64::MAX)
            .saturating_mul(guests)
    }
}

/// One model guest.
#[derive(Debug, Clone)]
pub(super) struct GuestSpec {
    pub(super) name: String,
    pub(super) allocation: Allocation,
    /// Overhead of its VM process.
    pub(super) overhead: Pages,
    pub(super) start: Duration,
    pub(super) model: Model,
    /// Data that it touches in the end.
    pub(super) wants: Pages,
    /// Cache that it fills with what is left.
    pub(super) cache: Pages,
    /// Data that it touches all the time.
    pub(super) active: Pages,
    /// Never deflates its balloon to hold more than this.
    pub(super) upper: Pages,
    /// By how much its balloon always falls short.
    pub(super) misses: Pages,
    pub(super) reports: Reports,
}

/// Whether a guest reports statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reports {
    Nothing,
    Truth,
    /// That all its memory is in use and nothing is left.
    Lies,
}

/// How a model guest behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Model {
    /// Its balloon follows at once.
    Prompt,
    /// Its balloon moves so many pages in a step.
    Slow { step: Pages },
    /// Its balloon never moves.
    Stuck,
    /// Its balloon moves for `works` of each `period`.
    SometimesStuck { works: Duration, period: Duration },
    /// Its balloon gives one page every five seconds.
    Trickle,
    /// Its balloon leaves it at least this.
    Refuses { below: Pages },
    /// Its VM process asks for credit as if nobody swapped it.
    Greedy,
    /// Its process dies.
    Dies { at: Duration },
    /// It touches nothing from some time on, and serves its balloon.
    Sleeps { at: Duration },
    /// It wants and uses more from some time on.
    SuddenNeed { at: Duration, wants: Pages },
}

/// A change of a VM's allocation while it runs.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) at: Duration,
    pub(super) vm: String,
    pub(super) keys: AllocationKeys,
}

/// How a VM is at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Running,
    /// Its process died, as the scenario says.
    Died,
    /// It was refused.
    Refused,
    /// It was left too little memory.
    Killed,
}

impl End {
    pub(super) fn name(self) -> &'static str {
        match self {
            End::Running => "running",
            End::Died => "died",
            End::Refused => "refused",
            End::Killed => "killed",
        }
    }
}

/// Something that shall be true at the end. All that is given must hold.
#[derive(Debug, Clone, Default)]
pub(super) struct Expectation {
    /// Only under these policies; empty: under all.
    pub(super) policies: Vec<PolicyKind>,
    /// A VM, or all of a `count`; `None`: the host.
    pub(super) vm: Option<String>,
    pub(super) held_min: Option<Pages>,
    pub(super) held_max: Option<Pages>,
    pub(super) target_min: Option<Pages>,
    pub(super) target_max: Option<Pages>,
    pub(super) swapped_min: Option<Pages>,
    pub(super) swapped_max: Option<Pages>,
    pub(super) ballooned_min: Option<Pages>,
    pub(super) ballooned_max: Option<Pages>,
    /// Pages that came back from its swap file, from the start.
    pub(super) swap_ins_max: Option<Pages>,
    pub(super) conduct: Option<Conduct>,
    pub(super) end: Option<End>,
    /// The host's free memory, in every step after `after`.
    pub(super) free_min: Option<Pages>,
    pub(super) state_worst: Option<MemState>,
    pub(super) after: Duration,
    pub(super) state_changes_max: Option<u64>,
    /// That the high threshold stays free even if every guest rises to its target and a page.
    pub(super) guaranteed: bool,
}

/// Many hosts like this one, with guests from a seed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fleet {
    pub(super) hosts: u32,
    pub(super) seed: u64,
    pub(super) vms_max: u32,
}
