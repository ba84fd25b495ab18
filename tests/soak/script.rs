//! What happens to a fleet, and when: drawn from a seed and nothing else, so that the same seed is
//! the same script again.

use std::time::Duration;

/// Longest time for which anything is stopped, full or away.
const TROUBLE_MAX: Duration = Duration::from_secs(20);
/// Time between two changes of a limit or of shares.
const SET_PERIOD: Duration = Duration::from_secs(1);
const SECOND: Duration = Duration::from_secs(1);

/// How many VMs of each kind a script is about.
#[derive(Debug, Clone, Copy)]
pub struct Cast {
    /// VMs of `tidemark host`.
    pub vms: usize,
    /// VMs of `tidemark run`.
    pub run_vms: usize,
}

/// A process of the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    Host,
    Run,
    Vm(usize),
    RunVm(usize),
}

/// One thing that happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// SIGSTOP.
    Stop(Target),
    /// SIGCONT.
    Continue(Target),
    /// SIGKILL of the host manager.
    KillHost,
    /// A new one on the same socket.
    StartHost,
    /// SIGKILL of a VM; a new one takes its place.
    ReplaceVm(usize),
    /// The host's kernel moves pages about.
    Compact,
    /// Nothing more can be written to the swap folder.
    FillSwap,
    /// Room again.
    FreeSwap,
    /// `tidemark set`.
    Set {
        target: Target,
        key: &'static str,
        value: String,
    },
}

impl Action {
    /// Its kind, for the count of events; `None` for what only ends another.
    pub fn kind(&self) -> Option<&'static str> {
        match self {
            Action::Stop(Target::Host) => Some("host stopped"),
            Action::Stop(Target::Run) => Some("run stopped"),
            Action::Stop(_) => Some("VM stopped"),
            Action::KillHost => Some("host killed"),
            Action::ReplaceVm(_) => Some("VM killed"),
            Action::Compact => Some("compaction"),
            Action::FillSwap => Some("swap full"),
            Action::Set { .. } => Some("set"),
            Action::Continue(_) | Action::StartHost | Action::FreeSwap => None,
        }
    }
}

/// An action and its time from the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub at: Duration,
    pub action: Action,
}

/// The whole script, in the order of time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    pub length: Duration,
    pub steps: Vec<Step>,
}

impl Script {
    /// The script of a seed. Whatever it starts has ended by `length`.
    pub fn draw(seed: u64, length: Duration, cast: Cast) -> Script {
        let mut draw = Draw {
            rng: fastrand::Rng::with_seed(seed),
            length,
            longest: TROUBLE_MAX.min(length / 2),
            steps: Vec::new(),
        };
        draw.host();
        draw.stops(Target::Run);
        for vm in 0..cast.vms {
            draw.vm(vm);
        }
        for vm in 0..cast.run_vms {
            draw.stops(Target::RunVm(vm));
        }
        draw.compactions();
        draw.swap();
        draw.settings(cast);
        let mut steps = draw.steps;
        // Stable: of two actions at one moment the one that was drawn first is first.
        steps.sort_by_key(|step| step.at);
        Script { length, steps }
    }
}

/// A script in the making: one lane after another, so that nothing happens twice to one process at
/// a time, and anything to different ones.
struct Draw {
    rng: fastrand::Rng,
    length: Duration,
    longest: Duration,
    steps: Vec<Step>,
}

impl Draw {
    fn add(&mut self, at: Duration, action: Action) {
        self.steps.push(Step { at, action });
    }

    fn between(&mut self, least: Duration, most: Duration) -> Duration {
        let span = u64::try_from(most.saturating_sub(least).as_millis()).expect("a short span");
        least + Duration::from_millis(self.rng.u64(0..=span))
    }

    /// A pause of this lane that begins at `at`.
    fn pause(&mut self, at: Duration) -> Duration {
        at + self.between(SECOND, self.longest)
    }

    /// When a trouble that begins at `at` ends; `None` when too little time is left for it.
    fn trouble(&mut self, at: Duration) -> Option<Duration> {
        let end = at + self.between(self.longest / 8, self.longest);
        (at + SECOND < self.length).then_some(end.min(self.length))
    }

    fn host(&mut self) {
        let mut at = Duration::ZERO;
        loop {
            at += self.between(SECOND, self.longest / 2);
            let Some(end) = self.trouble(at) else { return };
            if self.rng.u32(0..5) < 3 {
                self.add(at, Action::Stop(Target::Host));
                self.add(end, Action::Continue(Target::Host));
                at = end;
            } else {
                // Without a host manager VMs have no limits: it is not away for long.
                let gap = self.between(Duration::ZERO, 2 * SECOND);
                at = (at + gap).min(self.length);
                self.add(at.saturating_sub(gap), Action::KillHost);
                self.add(at, Action::StartHost);
                // Time to bring the fleet back into its budget, before the next trouble.
                at += self.longest;
            }
        }
    }

    fn stops(&mut self, target: Target) {
        let mut at = Duration::ZERO;
        loop {
            at = self.pause(at);
            let Some(end) = self.trouble(at) else { return };
            self.add(at, Action::Stop(target));
            self.add(end, Action::Continue(target));
            at = self.pause(end);
        }
    }

    fn vm(&mut self, vm: usize) {
        let mut at = Duration::ZERO;
        loop {
            at = self.pause(at);
            at = self.pause(at);
            let Some(end) = self.trouble(at) else { return };
            if self.rng.bool() {
                self.add(at, Action::Stop(Target::Vm(vm)));
                self.add(end, Action::Continue(Target::Vm(vm)));
                at = end;
            } else {
                self.add(at, Action::ReplaceVm(vm));
                at += self.longest / 2;
            }
        }
    }

    fn compactions(&mut self) {
        let mut at = self.between(SECOND, 3 * SECOND);
        while at < self.length {
            self.add(at, Action::Compact);
            at += self.between(SECOND / 2, 3 * SECOND);
        }
    }

    fn swap(&mut self) {
        let mut at = Duration::ZERO;
        loop {
            at = self.pause(at);
            at = self.pause(at);
            let Some(end) = self.trouble(at) else { return };
            self.add(at, Action::FillSwap);
            self.add(end, Action::FreeSwap);
            at = end;
        }
    }

    fn settings(&mut self, cast: Cast) {
        let mut at = SET_PERIOD;
        while at < self.length {
            let vm = self.rng.usize(0..cast.vms + cast.run_vms);
            let target = match vm.checked_sub(cast.vms) {
                None => Target::Vm(vm),
                Some(vm) => Target::RunVm(vm),
            };
            let (key, value) = if self.rng.bool() {
                ("shares", self.rng.u32(100..5000).to_string())
            } else {
                // From what hardly lets a guest run to no limit at all.
                ("limit", format!("{}M", self.rng.u32(24..=48)))
            };
            self.add(at, Action::Set { target, key, value });
            at += SET_PERIOD;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const CAST: Cast = Cast { vms: 4, run_vms: 2 };

    #[test]
    fn a_seed_is_a_script() {
        let length = Duration::from_secs(180);
        let script = Script::draw(7, length, CAST);
        assert_eq!(script, Script::draw(7, length, CAST));
        assert_ne!(script, Script::draw(8, length, CAST));
    }

    /// Whatever a script stops goes on, and whatever it ends comes back, before its end.
    #[test]
    fn troubles_end() {
        for (seed, seconds) in (0..200).zip([30, 45, 180, 600].into_iter().cycle()) {
            let length = Duration::from_secs(seconds);
            let script = Script::draw(seed, length, CAST);
            let (mut stopped, mut away, mut full) = (Vec::new(), false, false);
            for step in &script.steps {
                assert!(step.at <= length, "seed {seed}: {step:?}");
                match &step.action {
                    Action::Stop(target) => {
                        assert!(!stopped.contains(target), "seed {seed}: {step:?}");
                        stopped.push(*target);
                    }
                    Action::Continue(target) => stopped.retain(|other| other != target),
                    Action::KillHost => away = true,
                    Action::StartHost => away = false,
                    Action::FillSwap => full = true,
                    Action::FreeSwap => full = false,
                    Action::ReplaceVm(_) | Action::Compact | Action::Set { .. } => {}
                }
            }
            assert!(stopped.is_empty() && !away && !full, "seed {seed}");
        }
    }

    /// The only round of `make test` has every kind of event, and its long stops are longer than
    /// anybody's patience.
    #[test]
    fn the_short_round_has_everything() {
        let stop = |script: &Script, target| {
            let at = |action| script.steps.iter().filter(move |it| it.action == action);
            let (from, to) = (Action::Stop(target), Action::Continue(target));
            let lengths = at(from).zip(at(to)).map(|(from, to)| to.at - from.at);
            lengths.max().unwrap_or_default()
        };
        let has_all = |seed: &u64| {
            let script = Script::draw(*seed, crate::SHORT, CAST);
            let of_kind: BTreeSet<_> = script
                .steps
                .iter()
                .filter_map(|it| it.action.kind())
                .collect();
            let long = 11 * SECOND;
            let killed = script.steps.iter().find(|it| it.action == Action::KillHost);
            of_kind.len() == 8
                && stop(&script, Target::Host) > long
                && stop(&script, Target::Run) > long
                && killed.is_some_and(|it| it.at < crate::SHORT / 2)
        };
        let would_do = || (0..100_000).find(has_all);
        assert!(
            has_all(&crate::SEED),
            "this seed would do: {:?}",
            would_do()
        );
    }

    /// A round of the soak has every kind of event, whatever the seed.
    #[test]
    fn nothing_is_missing() {
        for seed in 0..200 {
            let script = Script::draw(seed, Duration::from_secs(180), CAST);
            let mut kinds: Vec<_> = script
                .steps
                .iter()
                .filter_map(|it| it.action.kind())
                .collect();
            kinds.sort_unstable();
            kinds.dedup();
            assert!(kinds.len() >= 7, "seed {seed}: {kinds:?}");
        }
    }
}
