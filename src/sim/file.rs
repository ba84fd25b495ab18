//! From the text of a scenario file to a checked [`Scenario`]. Mistakes name file, key and reason.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

pub use crate::config::ConfigError as Mistake;
use crate::config::size::{DURATION_FORMS, parse_duration};
use crate::config::{Place, Value, parse_toml};

use super::scenario::{Change, End, Expectation, Fleet, GuestSpec, Model, Reports, Scenario};
use crate::policy::PolicyKind;
use crate::policy::safeguard::{Safeguard, Safeguards};
use crate::policy::settings::{IdleTax, MinFree, PolicySettings};
use crate::policy::types::{Allocation, Conduct};
use crate::units::Pages;
use crate::words::{MemState, Sampling};

/// Guests of one scenario, at most.
const GUESTS_MAX: usize = 10_000;
/// Hosts of a fleet, at most.
const HOSTS_MAX: u32 = 100_000;
const DURATION_MAX: Duration = Duration::from_secs(24 * 3600);
/// Memory of a VM process beside its guest's RAM, unless said otherwise.
const OVERHEAD_DEFAULT: Pages = Pages::mib(4);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ScenarioFile {
    name: String,
    why: String,
    policies: Option<Vec<String>>,
    duration: Option<Value>,
    fails: Option<Vec<String>>,
    fails_with: Option<String>,
    without: Option<Vec<String>>,
    host: HostTable,
    fleet: Option<FleetTable>,
    #[serde(default)]
    vm: Vec<VmTable>,
    #[serde(default)]
    change: Vec<ChangeTable>,
    #[serde(default)]
    expect: Vec<ExpectTable>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HostTable {
    memory: Value,
    overhead: Option<Value>,
    idle_tax: Option<u8>,
    min_free: Option<String>,
    sample_period: Option<Value>,
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
    memory: Value,
    overhead: Option<Value>,
    shares: Option<Value>,
    reservation: Option<Value>,
    limit: Option<Value>,
    dynamic_min: Option<Value>,
    dynamic_max: Option<Value>,
    start: Option<Value>,
    guest: Option<String>,
    wants: Option<Value>,
    cache: Option<Value>,
    active: Option<Value>,
    upper: Option<Value>,
    misses: Option<Value>,
    reports: Option<String>,
    rate: Option<Value>,
    works: Option<Value>,
    period: Option<Value>,
    below: Option<Value>,
    at: Option<Value>,
    then: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChangeTable {
    at: Value,
    vm: String,
    shares: Option<u64>,
    reservation: Option<Value>,
    limit: Option<Value>,
    dynamic_min: Option<Value>,
    dynamic_max: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpectTable {
    policies: Option<Vec<String>>,
    vm: Option<String>,
    held_min: Option<Value>,
    held_max: Option<Value>,
    target_min: Option<Value>,
    target_max: Option<Value>,
    swapped_min: Option<Value>,
    swapped_max: Option<Value>,
    ballooned_min: Option<Value>,
    ballooned_max: Option<Value>,
    swap_ins_max: Option<Value>,
    conduct: Option<String>,
    end: Option<String>,
    free_min: Option<Value>,
    state_worst: Option<String>,
    after: Option<Value>,
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
        return Err(place.wrong("duration", "it", "is too long", "up to 24h"));
    }
    if !scenario.fails.is_empty() && scenario.fails_with.is_empty() {
        return Err(place.missing("fails_with (words of the reason) is missing beside fails"));
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
    fn with_guests(mut self, origin: &str, tables: &[VmTable]) -> Result<Scenario, Mistake> {
        let mut names = BTreeSet::new();
        for table in tables {
            let place = At::new(format!("{origin}: vm {:?}", table.name));
            let count = table.count.unwrap_or(1) as usize;
            if count == 0 || self.guests.len() + count > GUESTS_MAX {
                let allowed = format!("1 to {GUESTS_MAX} in all");
                return Err(place.wrong("count", &count.to_string(), "is no number", &allowed));
            }
            let spec = guest(&place, table)?;
            for number in 0..count {
                let name = match table.count {
                    Some(_) => format!("{}-{number}", table.name),
                    None => table.name.clone(),
                };
                if !names.insert(name.clone()) {
                    let name = format!("{name:?}");
                    return Err(place.wrong("name", &name, "is used twice", "a name for each VM"));
                }
                self.guests.push(GuestSpec {
                    name,
                    ..spec.clone()
                });
            }
        }
        if self.guests.is_empty() && self.fleet.is_none() {
            let place = At::new(origin.to_owned());
            return Err(place.missing("no VM (allowed: [[vm]] tables, or [fleet])"));
        }
        Ok(self)
    }

    fn with_changes(mut self, origin: &str, tables: &[ChangeTable]) -> Result<Scenario, Mistake> {
        for table in tables {
            let place = At::new(format!("{origin}: change of {:?}", table.vm));
            let Some(spec) = self.guests.iter().find(|guest| guest.name == table.vm) else {
                let name = format!("{:?}", table.vm);
                return Err(place.wrong("vm", &name, "is no VM of this file", "a VM's name"));
            };
            let size = |key: &str, value: &Option<Value>| {
                let value = value.as_ref().map(|value| place.size(key, value));
                value.transpose()
            };
            let change = Change {
                at: place.duration("at", Some(&table.at), Duration::ZERO)?,
                vm: table.vm.clone(),
                shares: table.shares,
                reservation: size("reservation", &table.reservation)?,
                limit: size("limit", &table.limit)?,
                dynamic_min: size("dynamic_min", &table.dynamic_min)?,
                dynamic_max: size("dynamic_max", &table.dynamic_max)?,
            };
            let old = spec.allocation;
            place.check(&Allocation {
                reservation: change.reservation.unwrap_or(old.reservation),
                limit: change.limit.unwrap_or(old.limit),
                dynamic_min: change.dynamic_min.unwrap_or(old.dynamic_min),
                dynamic_max: change.dynamic_max.unwrap_or(old.dynamic_max),
                ..old
            })?;
            self.changes.push(change);
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
                    return Err(place.wrong("vm", &name, "is no VM of this file", "a VM's name"));
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
            let allowed = format!("0 to {} percent", IdleTax::PERCENT_MAX);
            host.wrong("idle_tax", &percent.to_string(), "is no tax", &allowed)
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
        let allowed = format!("1 to {HOSTS_MAX}");
        let hosts = table.hosts.to_string();
        return Err(place.wrong("hosts", &hosts, "is no number of hosts", &allowed));
    }
    if table.vms_max == 0 || table.vms_max > 1000 {
        let vms = table.vms_max.to_string();
        return Err(place.wrong("vms_max", &vms, "is no number of VMs", "1 to 1000"));
    }
    Ok(Some(Fleet {
        hosts: table.hosts,
        seed: table.seed,
        vms_max: table.vms_max,
    }))
}

fn guest(place: &At, table: &VmTable) -> Result<GuestSpec, Mistake> {
    let memory = place.size("memory", &table.memory)?;
    let size = |key: &str, value: &Option<Value>, default: Pages| {
        place.size_or(key, value.as_ref(), default)
    };
    let limit = size("limit", &table.limit, memory)?;
    let reservation = size("reservation", &table.reservation, Pages::ZERO)?;
    let dynamic_max = size("dynamic_max", &table.dynamic_max, limit)?;
    // A quarter: the least that XenServer supports for a VM of this size.
    let low = Pages(memory.0 / 4).max(reservation).min(dynamic_max);
    let allocation = Allocation {
        size: memory,
        reservation,
        limit,
        shares: place.place.shares(table.shares.as_ref(), memory)?,
        dynamic_min: size("dynamic_min", &table.dynamic_min, low)?,
        dynamic_max,
    };
    place.check(&allocation)?;
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
        model: model(place, table)?,
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

fn model(place: &At, table: &VmTable) -> Result<Model, Mistake> {
    /// Balloon speed of a slow guest, a second.
    const RATE_DEFAULT: Pages = Pages::mib(4);
    let time = |key: &str, value: &Option<Value>| match value {
        Some(_) => place.duration(key, value.as_ref(), Duration::ZERO),
        None => Err(place.missing(&format!("{key} is missing for this guest"))),
    };
    let size = |key: &str, value: &Option<Value>| match value {
        Some(value) => place.size(key, value),
        None => Err(place.missing(&format!("{key} is missing for this guest"))),
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
            wants: size("then", &table.then)?.min(place.size("memory", &table.memory)?),
        }),
        _ => Err(place.wrong(
            "guest",
            &format!("{name:?}"),
            "is no model guest",
            "prompt, slow, stuck, sometimes-stuck, trickle, refuses, greedy, liar, dies, sleeper, sudden-need, idle",
        )),
    }
}

fn expectation(place: &At, table: &ExpectTable) -> Result<Expectation, Mistake> {
    let size = |key: &str, value: &Option<Value>| {
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
        return Err(place.missing("free_min, state_worst, state_changes_max and guaranteed are about the host: not beside vm"));
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

    fn wrong(&self, key: &str, value: &str, problem: &str, allowed: &str) -> Mistake {
        self.place.wrong(key, value, problem, allowed)
    }

    fn missing(&self, problem: &str) -> Mistake {
        Mistake::Missing {
            place: self.place.text.clone(),
            problem: problem.to_owned(),
        }
    }

    fn size(&self, key: &str, value: &Value) -> Result<Pages, Mistake> {
        self.place.size(key, value)
    }

    fn size_or(&self, key: &str, value: Option<&Value>, default: Pages) -> Result<Pages, Mistake> {
        value.map_or(Ok(default), |value| self.size(key, value))
    }

    /// A whole number of steps.
    fn duration(
        &self,
        key: &str,
        value: Option<&Value>,
        default: Duration,
    ) -> Result<Duration, Mistake> {
        let Some(value) = value else {
            return Ok(default);
        };
        let wrong = |problem| self.wrong(key, &value.to_string(), problem, DURATION_FORMS);
        let duration = parse_duration(&value.text()).map_err(|_| wrong("is no duration"))?;
        if duration.as_millis().is_multiple_of(50) {
            Ok(duration)
        } else {
            Err(wrong("is no multiple of 50ms"))
        }
    }

    fn one_of<T: Copy>(&self, key: &str, name: &str, all: &[(&str, T)]) -> Result<T, Mistake> {
        match all.iter().find(|(other, _)| *other == name) {
            Some((_, found)) => Ok(*found),
            None => {
                let names: Vec<_> = all.iter().map(|(name, _)| *name).collect();
                let name = format!("{name:?}");
                Err(self.wrong(key, &name, "is not known", &names.join(", ")))
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

    /// `reservation <= limit <= size`, `dynamic_min <= dynamic_max <= size`.
    fn check(&self, of: &Allocation) -> Result<(), Mistake> {
        let order = [
            ("limit", of.limit, "memory", of.size),
            ("reservation", of.reservation, "limit", of.limit),
            ("dynamic_max", of.dynamic_max, "memory", of.size),
            ("dynamic_min", of.dynamic_min, "dynamic_max", of.dynamic_max),
        ];
        for (key, value, bound_key, bound) in order {
            if value > bound {
                let allowed = format!("up to {bound}, the {bound_key}");
                return Err(self.wrong(key, &value.to_string(), "is too large", &allowed));
            }
        }
        Ok(())
    }
}
