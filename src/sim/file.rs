//! From the text of a scenario file to a checked [`Scenario`]. Mistakes name file, key and reason.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

pub use crate::config::ConfigError as Mistake;
use crate::config::{Beside, Place, parse_toml};

use super::scenario::{Change, End, Expectation, Fleet, GuestSpec, Model, Reports, Scenario};
use crate::policy::PolicyKind;
use crate::policy::safeguard::{Safeguard, Safeguards};
use crate::policy::settings::{IdleTax, MinFree, PolicySettings};
use crate::policy::types::Conduct;
use crate::units::Pages;
use crate::words::size::parse_duration;
use crate::words::{Allocation, MemState, Sampling, Written};

/// Guests of one scenario, at most.
const GUESTS_MAX: usize = 10_000;
/// Hosts of a fleet, at most.
const HOSTS_MAX: u32 = 100_000;
/// VMs of one of its hosts, at most.
const HOST_VMS_MAX: u32 = 1000;
const NO_VM: &str = "no VM of this file has this name";
const DURATION_MAX: Duration = Duration::from_secs(24 * 3600);
/// Memory of a VM process beside its guest's RAM, unless said otherwise.
const OVERHEAD_DEFAULT: Pages = Pages::mib(4);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ScenarioFile {
    name: String,
    why: String,
    policies: Option<Vec<String>>,
    duration: Option<Written>,
    fails: Option<Vec<String>>,
    fails_with: Option<String>,
    without: Option<Vec<String>>,
    host: HostTable,
    fleet: Option<FleetTable>,
    #[serde(default)]
    vm: Vec<Beside<VmTable>>,
    #[serde(default)]
    change: Vec<Beside<ChangeTable>>,
    #[serde(default)]
    expect: Vec<ExpectTable>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HostTable {
    memory: Written,
    overhead: Option<Written>,
    idle_tax: Option<u8>,
    min_free: Option<String>,
    sample_period: Option<Written>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FleetTable {
    hosts: u32,
    seed: u64,
    vms_max: u32,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct VmTable {
    name: String,
    count: Option<u32>,
    overhead: Option<Written>,
    start: Option<Written>,
    guest: Option<String>,
    wants: Option<Written>,
    cache: Option<Written>,
    active: Option<Written>,
    upper: Option<Written>,
    misses: Option<Written>,
    reports: Option<String>,
    rate: Option<Written>,
    works: Option<Written>,
    period: Option<Written>,
    below: Option<Written>,
    at: Option<Written>,
    then: Option<Written>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChangeTable {
    at: Written,
    vm: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpectTable {
    policies: Option<Vec<String>>,
    vm: Option<String>,
    held_min: Option<Written>,
    held_max: Option<Written>,
    target_min: Option<Written>,
    target_max: Option<Written>,
    swapped_min: Option<Written>,
    swapped_max: Option<Written>,
    ballooned_min: Option<Written>,
    ballooned_max: Option<Written>,
    swap_ins_max: Option<Written>,
    conduct: Option<String>,
    end: Option<String>,
    free_min: Option<Written>,
    state_worst: Option<String>,
    after: Option<Written>,
    state_changes_max: Option<u64>,
    guaranteed: Option<bool>,
}

/// Checks the text of a scenario file; `path` is for messages.
///
/// # Errors
/// The first mistake: file, key and reason.
pub fn parse(text: &str, path: &Path) -> Result<Scenario, Mistake> {
    let file: ScenarioFile = parse_toml(text, path)?;
    let origin = path.display().to_string();
    let place = At::new(origin.clone());
    let scenario = Scenario {
        policies: match &file.policies {
            Some(names) => place.policies("policies", names)?,
            None => PolicyKind::ALL.to_vec(),
        },
        duration: place.duration("duration", file.duration.as_ref(), Duration::from_secs(60))?,
        fails: place.policies("fails", file.fails.as_deref().unwrap_or_default())?,
        fails_with: file.fails_with.clone().unwrap_or_default(),
        budget: Pages::ZERO,
        overhead: Pages::ZERO,
        settings: PolicySettings::default(),
        sampling: None,
        guests: Vec::new(),
        changes: Vec::new(),
        expectations: Vec::new(),
        fleet: None,
        name: file.name.clone(),
        why: file.why.clone(),
    };
    if scenario.duration > DURATION_MAX {
        let duration = file.duration.as_ref().map(Written::to_string);
        return Err(place.wrong(
            "duration",
            &duration.unwrap_or_default(),
            "must be up to 24h",
        ));
    }
    if !scenario.fails.is_empty() && scenario.fails_with.is_empty() {
        return Err(place.missing("`fails` without `fails_with`, words of the reason"));
    }
    let host = At::new(format!("{origin}: host"));
    Scenario {
        budget: host.size("memory", &file.host.memory)?,
        overhead: host.size_or("overhead", file.host.overhead.as_ref(), OVERHEAD_DEFAULT)?,
        settings: settings(&place, &host, &file)?,
        sampling: sampling(&host, &file)?,
        fleet: fleet(&origin, file.fleet.as_ref())?,
        ..scenario
    }
    .with_guests(&origin, &file.vm)?
    .with_changes(&origin, &file.change)?
    .with_expectations(&origin, &file.expect)
}

impl Scenario {
    fn with_guests(
        mut self,
        origin: &str,
        tables: &[Beside<VmTable>],
    ) -> Result<Scenario, Mistake> {
        let mut names = BTreeSet::new();
        for Beside { allocation, table } in tables {
            let place = At::new(format!("{origin}: vm {:?}", table.name));
            let count = table.count.unwrap_or(1) as usize;
            if count == 0 || self.guests.len() + count > GUESTS_MAX {
                let problem = format!("must be 1 to {GUESTS_MAX} in all");
                return Err(place.wrong("count", &count.to_string(), &problem));
            }
            let allocation = place.place.allocation(allocation.resolve())?;
            let spec = guest(&place, table, allocation)?;
            for number in 0..count {
                let name = match table.count {
                    Some(_) => format!("{}-{number}", table.name),
                    None => table.name.clone(),
                };
                if !names.insert(name.clone()) {
                    let name = format!("{name:?}");
                    let problem = "is used twice, must be one VM's alone";
                    return Err(place.wrong("name", &name, problem));
                }
                self.guests.push(GuestSpec {
                    name,
                    ..spec.clone()
                });
            }
        }
        if self.guests.is_empty() && self.fleet.is_none() {
            let place = At::new(origin.to_owned());
            return Err(place.missing("no VM: must have [[vm]] tables, or [fleet]"));
        }
        Ok(self)
    }

    /// Each change is checked on what the earlier ones have left, in the order of time.
    fn with_changes(
        mut self,
        origin: &str,
        tables: &[Beside<ChangeTable>],
    ) -> Result<Scenario, Mistake> {
        for Beside { allocation, table } in tables {
            let place = At::new(format!("{origin}: change of {:?}", table.vm));
            if !self.guests.iter().any(|guest| guest.name == table.vm) {
                return Err(place.wrong("vm", &format!("{:?}", table.vm), NO_VM));
            }
            self.changes.push(Change {
                at: place.duration("at", Some(&table.at), Duration::ZERO)?,
                vm: table.vm.clone(),
                keys: allocation.clone(),
            });
        }
        self.changes.sort_by_key(|change| change.at);
        let mut allocations: BTreeMap<&str, Allocation> = self
            .guests
            .iter()
            .map(|guest| (guest.name.as_str(), guest.allocation))
            .collect();
        for change in &self.changes {
            let place = At::new(format!("{origin}: change of {:?}", change.vm));
            if let Some(allocation) = allocations.get_mut(change.vm.as_str()) {
                *allocation = place.place.allocation(change.keys.change(allocation))?;
            }
        }
        Ok(self)
    }

    fn with_expectations(
        mut self,
        origin: &str,
        tables: &[ExpectTable],
    ) -> Result<Scenario, Mistake> {
        for (number, table) in tables.iter().enumerate() {
            let place = At::new(format!("{origin}: expect {}", number + 1));
            if let Some(vm) = &table.vm {
                let group = format!("{vm}-");
                let known = |guest: &GuestSpec| guest.name == *vm || guest.name.starts_with(&group);
                if !self.guests.iter().any(known) {
                    let name = format!("{vm:?}");
                    return Err(place.wrong("vm", &name, NO_VM));
                }
            }
            self.expectations.push(expectation(&place, table)?);
        }
        Ok(self)
    }
}

fn settings(place: &At, host: &At, file: &ScenarioFile) -> Result<PolicySettings, Mistake> {
    let mut settings = PolicySettings::default();
    if let Some(percent) = file.host.idle_tax {
        settings.idle_tax = IdleTax::new(percent).ok_or_else(|| {
            let problem = format!("must be 0 to {} percent", IdleTax::PERCENT_MAX);
            host.wrong("idle_tax", &percent.to_string(), &problem)
        })?;
    }
    if let Some(name) = &file.host.min_free {
        let scales: Vec<_> = MinFree::ALL.iter().map(|s| (s.name(), *s)).collect();
        settings.min_free = host.one_of("min_free", name, &scales)?;
    }
    let guards: Vec<_> = Safeguard::ALL.iter().map(|g| (g.name(), *g)).collect();
    let mut on = Safeguards::default();
    for name in file.without.as_deref().unwrap_or_default() {
        on = on.without(place.one_of("without", name, &guards)?);
    }
    settings.safeguards = on;
    Ok(settings)
}

fn sampling(host: &At, file: &ScenarioFile) -> Result<Option<Sampling>, Mistake> {
    let Some(period) = &file.host.sample_period else {
        return Ok(None);
    };
    let period = host.duration("sample_period", Some(period), Duration::ZERO)?;
    Ok(Some(Sampling {
        period,
        ..Sampling::default()
    }))
}

fn fleet(origin: &str, table: Option<&FleetTable>) -> Result<Option<Fleet>, Mistake> {
    let Some(table) = table else {
        return Ok(None);
    };
    let place = At::new(format!("{origin}: fleet"));
    if table.hosts == 0 || table.hosts > HOSTS_MAX {
        let problem = format!("must be 1 to {HOSTS_MAX}");
        return Err(place.wrong("hosts", &table.hosts.to_string(), &problem));
    }
    if table.vms_max == 0 || table.vms_max > HOST_VMS_MAX {
        let problem = format!("must be 1 to {HOST_VMS_MAX}");
        return Err(place.wrong("vms_max", &table.vms_max.to_string(), &problem));
    }
    Ok(Some(Fleet {
        hosts: table.hosts,
        seed: table.seed,
        vms_max: table.vms_max,
    }))
}

fn guest(place: &At, table: &VmTable, allocation: Allocation) -> Result<GuestSpec, Mistake> {
    let memory = allocation.size;
    let size = |key: &str, value: &Option<Written>, default: Pages| {
        place.size_or(key, value.as_ref(), default)
    };
    let wants = size("wants", &table.wants, memory)?.min(memory);
    let idle = table.guest.as_deref() == Some("idle");
    let reports = [
        ("truth", Reports::Truth),
        ("nothing", Reports::Nothing),
        ("lies", Reports::Lies),
    ];
    let lies = table.guest.as_deref() == Some("liar");
    let default = if lies { "lies" } else { "truth" };
    let said = table.reports.as_deref().unwrap_or(default);
    Ok(GuestSpec {
        name: table.name.clone(),
        allocation,
        overhead: size("overhead", &table.overhead, OVERHEAD_DEFAULT)?,
        start: place.duration("start", table.start.as_ref(), Duration::ZERO)?,
        model: model(place, table, memory)?,
        wants,
        cache: size("cache", &table.cache, Pages::ZERO)?,
        active: size(
            "active",
            &table.active,
            if idle { Pages::ZERO } else { wants },
        )?
        .min(wants),
        upper: size("upper", &table.upper, memory)?.min(memory),
        misses: size("misses", &table.misses, Pages::ZERO)?,
        reports: place.one_of("reports", said, &reports)?,
    })
}

fn model(place: &At, table: &VmTable, memory: Pages) -> Result<Model, Mistake> {
    /// Balloon speed of a slow guest, a second.
    const RATE_DEFAULT: Pages = Pages::mib(4);
    let time = |key: &str, value: &Option<Written>| match value {
        Some(_) => place.duration(key, value.as_ref(), Duration::ZERO),
        None => Err(place.missing(&format!("`{key}` is missing: this guest needs it"))),
    };
    let size = |key: &str, value: &Option<Written>| match value {
        Some(value) => place.size(key, value),
        None => Err(place.missing(&format!("`{key}` is missing: this guest needs it"))),
    };
    let name = table.guest.as_deref().unwrap_or("prompt");
    match name {
        "prompt" | "idle" | "liar" => Ok(Model::Prompt),
        "slow" => {
            let rate = place.size_or("rate", table.rate.as_ref(), RATE_DEFAULT)?;
            Ok(Model::Slow {
                step: Pages(rate.0.div_ceil(10)),
            })
        }
        "stuck" => Ok(Model::Stuck),
        "sometimes-stuck" => Ok(Model::SometimesStuck {
            works: time("works", &table.works)?,
            period: time("period", &table.period)?,
        }),
        "trickle" => Ok(Model::Trickle),
        "refuses" => Ok(Model::Refuses {
            below: size("below", &table.below)?,
        }),
        "greedy" => Ok(Model::Greedy),
        "dies" => Ok(Model::Dies {
            at: time("at", &table.at)?,
        }),
        "sleeper" => Ok(Model::Sleeps {
            at: time("at", &table.at)?,
        }),
        "sudden-need" => Ok(Model::SuddenNeed {
            at: time("at", &table.at)?,
            wants: size("then", &table.then)?.min(memory),
        }),
        _ => Err(place.wrong(
            "guest",
            &format!("{name:?}"),
            "must be one of prompt, slow, stuck, sometimes-stuck, trickle, refuses, greedy, liar, dies, sleeper, sudden-need, idle",
        )),
    }
}

fn expectation(place: &At, table: &ExpectTable) -> Result<Expectation, Mistake> {
    let size = |key: &str, value: &Option<Written>| {
        let value = value.as_ref().map(|value| place.size(key, value));
        value.transpose()
    };
    let conducts = [Conduct::Cooperative, Conduct::Stuck, Conduct::Uncooperative];
    let states = [
        MemState::High,
        MemState::Soft,
        MemState::Hard,
        MemState::Low,
    ];
    let ends = [End::Running, End::Died, End::Refused, End::Killed];
    let conducts: Vec<_> = conducts.iter().map(|c| (c.name(), *c)).collect();
    let states: Vec<_> = states.iter().map(|s| (s.name(), *s)).collect();
    let ends: Vec<_> = ends.iter().map(|e| (e.name(), *e)).collect();
    fn named<T: Copy>(
        place: &At,
        key: &str,
        name: &Option<String>,
        all: &[(&str, T)],
    ) -> Result<Option<T>, Mistake> {
        let name = name.as_ref().map(|name| place.one_of(key, name, all));
        name.transpose()
    }
    let of_host = table.free_min.is_some()
        || table.state_worst.is_some()
        || table.state_changes_max.is_some()
        || table.guaranteed.is_some();
    if of_host && table.vm.is_some() {
        return Err(place.missing(
            "`free_min`, `state_worst`, `state_changes_max` and `guaranteed` are about the host; must \
             not stand beside `vm`",
        ));
    }
    Ok(Expectation {
        policies: place.policies("policies", table.policies.as_deref().unwrap_or_default())?,
        vm: table.vm.clone(),
        held_min: size("held_min", &table.held_min)?,
        held_max: size("held_max", &table.held_max)?,
        target_min: size("target_min", &table.target_min)?,
        target_max: size("target_max", &table.target_max)?,
        swapped_min: size("swapped_min", &table.swapped_min)?,
        swapped_max: size("swapped_max", &table.swapped_max)?,
        ballooned_min: size("ballooned_min", &table.ballooned_min)?,
        ballooned_max: size("ballooned_max", &table.ballooned_max)?,
        swap_ins_max: size("swap_ins_max", &table.swap_ins_max)?,
        conduct: named(place, "conduct", &table.conduct, &conducts)?,
        end: named(place, "end", &table.end, &ends)?,
        free_min: size("free_min", &table.free_min)?,
        state_worst: named(place, "state_worst", &table.state_worst, &states)?,
        after: place.duration("after", table.after.as_ref(), Duration::ZERO)?,
        state_changes_max: table.state_changes_max,
        guaranteed: table.guaranteed.unwrap_or(false),
    })
}

/// A place in the file, for messages.
struct At {
    place: Place,
}

impl At {
    fn new(text: String) -> At {
        At {
            place: Place { text },
        }
    }

    fn wrong(&self, key: &str, value: &str, problem: &str) -> Mistake {
        self.place.wrong(key, value, problem)
    }

    fn missing(&self, problem: &str) -> Mistake {
        self.place.missing(problem)
    }

    fn size(&self, key: &str, value: &Written) -> Result<Pages, Mistake> {
        self.place.size(key, value)
    }

    fn size_or(
        &self,
        key: &str,
        value: Option<&Written>,
        default: Pages,
    ) -> Result<Pages, Mistake> {
        value.map_or(Ok(default), |value| self.size(key, value))
    }

    /// A whole number of steps.
    fn duration(
        &self,
        key: &str,
        value: Option<&Written>,
        default: Duration,
    ) -> Result<Duration, Mistake> {
        let Some(value) = value else {
            return Ok(default);
        };
        let wrong = |problem: &str| self.wrong(key, &value.to_string(), problem);
        let parsed = parse_duration(&value.text());
        let duration = parsed.map_err(|error| wrong(&error.to_string()))?;
        if duration.as_millis().is_multiple_of(50) {
            Ok(duration)
        } else {
            Err(wrong("must be a multiple of 50ms"))
        }
    }

    fn one_of<T: Copy>(&self, key: &str, name: &str, all: &[(&str, T)]) -> Result<T, Mistake> {
        match all.iter().find(|(other, _)| *other == name) {
            Some((_, found)) => Ok(*found),
            None => {
                let names: Vec<_> = all.iter().map(|(name, _)| *name).collect();
                let problem = format!("must be one of {}", names.join(", "));
                Err(self.wrong(key, &format!("{name:?}"), &problem))
            }
        }
    }

    fn policies(&self, key: &str, names: &[String]) -> Result<Vec<PolicyKind>, Mistake> {
        let all: Vec<_> = PolicyKind::ALL.iter().map(|p| (p.name(), *p)).collect();
        names
            .iter()
            .map(|name| self.one_of(key, name, &all))
            .collect()
    }
}
