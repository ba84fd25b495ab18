//! Figures for people and programs: who consumes how much, exact to the byte.
//!
//! ```text
//! consumed(VM)   = private + compressed store + its part of the frames
//! its part       = shared - saved
//! consumed(host) = sum over the VMs + overhead
//! ```
//!
//! Each frame is split evenly among its references, so that the parts of all VMs add up to the
//! frames: see [`super::split`].

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::policy::types::Conduct;
use crate::units::Pages;
use crate::words::{Counters, Exit, Gauges, GuestMemoryStats, GuestReport, MemState, TakePath};

/// The object that `tidemark run --json` and `tidemark ps --json` print.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// The host.
    pub host: HostFigures,
    /// Its VMs.
    pub vms: Vec<VmFigures>,
}

/// The host's part of [`Figures`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostFigures {
    /// The budget.
    pub memory_bytes: u64,
    /// What all VMs consume, and the overhead.
    pub consumed_bytes: u64,
    /// The most that was ever consumed.
    pub consumed_bytes_peak: u64,
    /// Memory of the host manager and the VM processes beside guest RAM.
    pub overhead_bytes: u64,
    /// Memory that nobody holds: also less what VMs may take without asking.
    pub free_bytes: u64,
    /// Promised to VMs that do not exist yet; it may be free.
    pub leased_bytes: u64,
    /// Memory state.
    pub state: MemState,
    /// Time spent in each state.
    pub state_seconds: StateSeconds,
    /// How much later than it was due a decision was made, on average, in milliseconds.
    pub tick_late_ms: f64,
    /// And at most.
    pub tick_late_ms_peak: f64,
    /// Frames in use.
    pub frames_shared: u64,
    /// References to them.
    pub pages_sharing: u64,
    /// Seed of the run.
    pub seed: u64,
    /// Which policy sets the targets.
    pub policy: String,
}

/// Seconds in each memory state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct StateSeconds {
    /// In high.
    pub high: f64,
    /// In soft.
    pub soft: f64,
    /// In hard.
    pub hard: f64,
    /// In low.
    pub low: f64,
}

/// What a VM is doing, for people.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmState {
    /// Joined, and has not reported yet.
    #[default]
    Starting,
    /// Runs.
    Running,
    /// Its vCPUs wait for memory.
    Blocked,
    /// What is to be swapped finds no room in its folder; the guest runs.
    #[serde(rename = "swap full")]
    SwapFull,
    /// So the guest does not get on.
    Stalled,
    /// Its process lives and has no link: it hears nothing, and what it holds stays charged.
    Detached,
    /// Was told to stop, or has said how it ended.
    Stopping,
    /// Has ended.
    Ended,
}

impl VmState {
    /// Lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            VmState::Starting => "starting",
            VmState::Running => "running",
            VmState::Blocked => "blocked",
            VmState::SwapFull => "swap full",
            VmState::Stalled => "stalled",
            VmState::Detached => "detached",
            VmState::Stopping => "stopping",
            VmState::Ended => "ended",
        }
    }
}

/// One VM's part of [`Figures`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct VmFigures {
    /// Name.
    pub name: String,
    /// What it is doing.
    pub state: VmState,
    /// How it ended.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub exit: Option<Exit>,
    /// Configured memory.
    pub memory_bytes: u64,
    /// What it needed when it was admitted, and from whom that was to come.
    #[serde(default)]
    pub admission: String,
    /// Its memory at this moment.
    #[serde(flatten)]
    pub memory: VmMemory,
    /// Present, and false, where the host's kernel manages its memory and not tidemark.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub memory_management: Option<bool>,
    /// How its pages are taken out, once it has said so.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub take_path: Option<TakePath>,
    /// What was done to its pages since its start.
    #[serde(flatten)]
    pub counters: Counters,
    /// The most of each that was reported.
    pub peak: Peaks,
    /// Milliseconds from the start of its program to the guest's first instruction.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub start_ms: Option<f64>,
    /// Milliseconds from the start of its process to the first byte on its console, where that
    /// could be seen.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub boot_ms: Option<f64>,
    /// What a built-in test guest reported.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub guest: Option<GuestReport>,
    /// What the guest's balloon driver said last, once it has said anything.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub guest_memory: Option<GuestMemoryStats>,
}

/// The part of [`VmFigures`] that is about one moment: the closing table shows the moment before
/// the VM was stopped.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct VmMemory {
    /// What it should consume at most when memory is short.
    pub target_bytes: u64,
    /// Why.
    pub target_why: String,
    /// Host memory behind its RAM, its part of shared frames included.
    pub consumed_bytes: u64,
    /// Private pages, and what it still maps of a host manager that is gone.
    pub private_bytes: u64,
    /// Guest pages for which it holds a frame.
    pub shared_bytes: u64,
    /// What sharing saves: `shared_bytes` less its part of the frames.
    pub saved_bytes: u64,
    /// Its guest's pages that have no memory.
    #[serde(flatten)]
    pub gauges: Gauges,
    /// Estimated working set; zero while it is not sampled.
    pub active_bytes: u64,
    /// The estimate is within this of the truth 19 times of 20.
    pub active_error_bytes: u64,
    /// How its balloon behaves.
    pub balloon: Conduct,
    /// Memory of its process beside the guest's RAM.
    pub overhead_bytes: u64,
    /// Of that, what the host manager keeps for it in its own: hints, references, unread messages.
    #[serde(default)]
    pub kept_bytes: u64,
    /// Private pages it may hold.
    pub credit_bytes: u64,
    /// What the kernel says that its process has, frames aside; zero while nobody has asked.
    #[serde(default)]
    pub process_bytes: u64,
}

/// The highest figures that a VM ever had.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peaks {
    /// Of `consumed_bytes`.
    pub consumed_bytes: u64,
    /// Of `saved_bytes`.
    pub saved_bytes: u64,
    /// Of `ballooned_bytes`.
    pub ballooned_bytes: u64,
    /// Of `swapped_bytes` and `compressed_bytes` together.
    pub swapped_bytes: u64,
}

impl Peaks {
    /// Raises each peak that `now` exceeds.
    pub fn raise(&mut self, now: &Peaks) {
        let Peaks {
            consumed_bytes,
            saved_bytes,
            ballooned_bytes,
            swapped_bytes,
        } = *now;
        self.consumed_bytes = self.consumed_bytes.max(consumed_bytes);
        self.saved_bytes = self.saved_bytes.max(saved_bytes);
        self.ballooned_bytes = self.ballooned_bytes.max(ballooned_bytes);
        self.swapped_bytes = self.swapped_bytes.max(swapped_bytes);
    }
}

/// What is remembered of the host's past.
#[derive(Debug, Clone, Default)]
pub struct History {
    seen: Duration,
    state: MemState,
    seconds: StateSeconds,
    peak_bytes: u64,
    decisions: u32,
    late: Duration,
    late_peak: Duration,
}

impl History {
    /// Notes what the host consumes at `now`.
    pub fn consumes(&mut self, consumed_bytes: u64) {
        self.peak_bytes = self.peak_bytes.max(consumed_bytes);
    }

    /// Notes that the host is in `state` from `now` on.
    pub fn enters(&mut self, state: MemState, now: Duration) {
        let past = now.saturating_sub(self.seen).as_secs_f64();
        match self.state {
            MemState::High => self.seconds.high += past,
            MemState::Soft => self.seconds.soft += past,
            MemState::Hard => self.seconds.hard += past,
            MemState::Low => self.seconds.low += past,
        }
        self.seen = self.seen.max(now);
        self.state = state;
    }

    /// Notes a decision that was late by so much.
    pub fn decides_late(&mut self, by: Duration) {
        self.decisions = self.decisions.saturating_add(1);
        self.late += by;
        self.late_peak = self.late_peak.max(by);
    }

    /// How late decisions were on average, and at most.
    pub fn lateness(&self) -> (Duration, Duration) {
        (self.late / self.decisions.max(1), self.late_peak)
    }

    /// The most that was consumed.
    pub fn peak_bytes(&self) -> u64 {
        self.peak_bytes
    }

    /// Time in each state.
    pub fn state_seconds(&self) -> StateSeconds {
        self.seconds
    }
}

/// One VM's part of the frames.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FramePart {
    /// Bytes it answers for; never more than it refers to.
    pub bytes: u64,
    /// Its references.
    pub references: Pages,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::ExitReason;
    use serde_json::Value;

    #[test]
    fn the_readme_explains_every_figure_of_a_vm() {
        let figures = VmFigures {
            exit: Some(Exit {
                reason: ExitReason::Shutdown,
                code: 0,
                message: Some(String::new()),
            }),
            take_path: Some(TakePath::Move),
            start_ms: Some(0.0),
            boot_ms: Some(0.0),
            guest: Some(GuestReport::default()),
            guest_memory: Some(GuestMemoryStats::default()),
            ..VmFigures::default()
        };
        let readme = include_str!("../../README.md");
        let (_, table) = readme.split_once("| `vms[]` | |").unwrap();
        let (table, _) = table.split_once("\n\n").unwrap();
        let mut names = Vec::new();
        names_of(&serde_json::to_value(figures).unwrap(), &mut names);
        assert!(names.len() > 30, "{names:?}");
        for name in names {
            assert!(table.contains(&format!("`{name}`")), "{name} has no row");
        }
    }

    fn names_of(value: &Value, names: &mut Vec<String>) {
        for (name, value) in value.as_object().into_iter().flatten() {
            names.push(name.clone());
            names_of(value, names);
        }
    }

    #[test]
    fn lateness_is_an_average_and_a_peak() {
        let ms = Duration::from_millis;
        let mut history = History::default();
        assert_eq!(history.lateness(), (ms(0), ms(0)));
        for late in [0, 2, 40, 2] {
            history.decides_late(ms(late));
        }
        assert_eq!(history.lateness(), (ms(11), ms(40)));
    }

    #[test]
    fn time_is_booked_on_the_state_that_passes() {
        let mut history = History::default();
        history.enters(MemState::Soft, Duration::from_secs(2));
        history.enters(MemState::High, Duration::from_secs(5));
        history.enters(MemState::High, Duration::from_secs(6));
        let seconds = history.state_seconds();
        assert_eq!((seconds.high, seconds.soft, seconds.hard), (3.0, 3.0, 0.0));
    }
}
