//! Safeguards, and the switches that turn them off.
//!
//! A rule that nobody can see working is soon taken for dead weight. So each of these can be
//! switched off, by a scenario of the simulator only, and a shipped scenario must then fail. (The
//! idea is squeezed's "fist points": `test/squeeze_test.ml` runs with its two phases or its inaccuracy
//! switched off and expects a failure.) The live host always runs with all of them.

/// A rule that keeps guests or the host from harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Safeguard {
    /// A guest grows only out of memory that is free already, never out of a shrink that is
    /// merely ordered.
    TwoPhase,
    /// `proportional` keeps room for guests that miss their target by a page.
    Inaccuracy,
    /// A balloon without progress is stuck, and its guest is swapped instead.
    StuckDetection,
    /// A few pages in five seconds are no progress.
    TrickleRule,
    /// A memory state is left only at the threshold above the one that entered it.
    Hysteresis,
    /// A balloon never takes a guest's last pages.
    GuestMinimum,
    /// What is measured decides, whatever the guest says about itself.
    Measured,
    /// Nobody is asked to go below its reservation or dynamic minimum.
    Floors,
    /// Who cannot be paid for is not started.
    Admission,
    /// The working set of a VM that sleeps decays; without it a sample's period is time that the VM
    /// was busy.
    SleepDecay,
}

impl Safeguard {
    /// Every safeguard.
    pub const ALL: &[Safeguard] = &[
        Safeguard::TwoPhase,
        Safeguard::Inaccuracy,
        Safeguard::StuckDetection,
        Safeguard::TrickleRule,
        Safeguard::Hysteresis,
        Safeguard::GuestMinimum,
        Safeguard::Measured,
        Safeguard::Floors,
        Safeguard::Admission,
        Safeguard::SleepDecay,
    ];

    /// The name in scenario files.
    pub fn name(self) -> &'static str {
        match self {
            Safeguard::TwoPhase => "two-phase",
            Safeguard::Inaccuracy => "inaccuracy",
            Safeguard::StuckDetection => "stuck-detection",
            Safeguard::TrickleRule => "trickle-rule",
            Safeguard::Hysteresis => "hysteresis",
            Safeguard::GuestMinimum => "guest-minimum",
            Safeguard::Measured => "measured",
            Safeguard::Floors => "floors",
            Safeguard::Admission => "admission",
            Safeguard::SleepDecay => "sleep-decay",
        }
    }

    /// The safeguard of that name.
    pub fn named(name: &str) -> Option<Safeguard> {
        Safeguard::ALL
            .iter()
            .copied()
            .find(|guard| guard.name() == name)
    }
}

/// Which safeguards are switched off; by default none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Safeguards {
    off: u16,
}

impl Safeguards {
    /// The same, with this one off.
    #[must_use]
    pub fn without(self, guard: Safeguard) -> Safeguards {
        Safeguards {
            off: self.off | (1 << guard as u16),
        }
    }

    /// Whether this one works.
    pub fn has(self, guard: Safeguard) -> bool {
        self.off & (1 << guard as u16) == 0
    }
}
