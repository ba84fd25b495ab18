//! Rules about a host and its VMs together: budget, `count`, unique names and files, seeds.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::args::VmArgs;
use super::check::{Place, SWAP_DIR};
use super::error::{COMMAND_LINE, ConfigError};
use super::file::{self, FleetFile, HostTable};
use super::open::read_text;
use super::spec::{Boot, FleetSpec, HostSpec, VmSpec};
use crate::policy::PolicyKind;
use crate::policy::settings::{IdleTax, MinFree, PolicySettings};
use crate::units::Pages;
use crate::words::budget::{BUDGET_FORMS, BUDGETS};
use crate::words::size::parse_duration;
use crate::words::{Sampling, Written};

/// VMs of one fleet, at most.
const VMS_MAX: usize = 10_000;
/// Pages of a sample, at most: what a VM process can keep taken out at a time.
const SAMPLE_PAGES_MAX: u32 = 128;
const SAMPLE_PERIODS: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(3600);
/// Memory that `memory = "auto"` leaves the rest of the host, at least. Chosen.
const AUTO_SPARE_MIN: Pages = Pages::mib(256);
/// And at least available memory / this. Chosen.
const AUTO_SPARE_DIVISOR: u64 = 10;
const SEED_DEFAULT: u64 = 1;

/// What the host computer has, as far as configuration depends on it.
#[derive(Debug, Clone, Copy)]
pub struct Resources<'a> {
    /// Memory that programs could take now (MemAvailable).
    pub available: Pages,
    /// Names of the built-in test guests.
    pub guests: &'a [&'a str],
}

/// The host's settings, as flags.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct HostArgs {
    /// Memory for all guests and their overheads [default: auto]
    #[arg(id = "host_memory", long = "host-memory", value_name = "SIZE")]
    pub memory: Option<String>,
    /// Which policy sets the targets [default: esx]
    #[arg(long, value_name = "NAME")]
    pub policy: Option<String>,
}

impl HostArgs {
    /// The checked host settings.
    ///
    /// # Errors
    /// The first mistake.
    pub fn to_spec(
        &self,
        swap_dir: Option<PathBuf>,
        resources: &Resources<'_>,
    ) -> Result<HostSpec, ConfigError> {
        let table = HostTable {
            memory: self.memory.as_deref().map(Written::from),
            policy: self.policy.clone(),
            idle_tax: None,
            min_free: None,
            sample_pages: None,
            sample_period: None,
            swap_dir,
            seed: None,
        };
        check_host(&table, COMMAND_LINE, Path::new(""), resources)
    }
}

impl FleetSpec {
    /// Reads and checks a fleet file.
    ///
    /// # Errors
    /// The first mistake.
    pub fn load(path: &Path, resources: &Resources<'_>) -> Result<FleetSpec, ConfigError> {
        let text = read_text(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        FleetSpec::parse(&text, path, resources)
    }

    /// Checks the text of a fleet file; paths in it are relative to the folder of `path`.
    ///
    /// # Errors
    /// The first mistake.
    pub fn parse(
        text: &str,
        path: &Path,
        resources: &Resources<'_>,
    ) -> Result<FleetSpec, ConfigError> {
        let origin = path.display().to_string();
        let folder = path.parent().unwrap_or(Path::new(""));
        let file: FleetFile = file::parse(text, path)?;
        let host = check_host(&file.host, &origin, folder, resources)?;
        let mut fleet = FleetSpec {
            host,
            vms: Vec::new(),
        };
        for (number, vm) in file.vm.into_iter().enumerate() {
            let vm = VmArgs {
                allocation: vm.allocation,
                swap_dir: file.host.swap_dir.clone(),
                ..vm.table
            };
            // As on the command line.
            let Some(name) = vm.name.clone().or_else(|| vm.guest.clone()) else {
                return Err(ConfigError::Missing {
                    place: origin,
                    problem: format!("[[vm]] number {} has no `name`", number + 1),
                });
            };
            let vm = VmArgs {
                name: Some(name),
                ..vm
            };
            fleet.add(&vm, &origin, folder, resources)?;
        }
        if fleet.vms.is_empty() {
            return Err(ConfigError::Missing {
                place: origin,
                problem: "no VM: must have a [[vm]] table or more".into(),
            });
        }
        fleet.check_together(&origin)?;
        Ok(fleet)
    }

    /// The fleet of `tidemark run --kernel ...`: `count` VMs of one description.
    ///
    /// # Errors
    /// The first mistake.
    pub fn from_args(
        host: &HostArgs,
        vm: &VmArgs,
        count: Option<&str>,
        resources: &Resources<'_>,
    ) -> Result<FleetSpec, ConfigError> {
        let host = host.to_spec(vm.swap_dir.clone(), resources)?;
        let mut fleet = FleetSpec {
            host,
            vms: Vec::new(),
        };
        let vm = VmArgs {
            name: Some(vm.own_name()),
            count: count.map(Written::from),
            ..vm.clone()
        };
        fleet.add(&vm, COMMAND_LINE, Path::new(""), resources)?;
        fleet.check_together(COMMAND_LINE)?;
        Ok(fleet)
    }

    /// Adds the VMs of one description: `name`, or `name-0` to `name-(count - 1)`.
    fn add(
        &mut self,
        vm: &VmArgs,
        origin: &str,
        folder: &Path,
        resources: &Resources<'_>,
    ) -> Result<(), ConfigError> {
        let name = vm.name.as_deref().unwrap_or_default();
        let place = Place {
            text: format!("{origin}: vm {name:?}"),
        };
        let instances = match &vm.count {
            None => vec![None],
            Some(value) => match value.text().parse::<usize>() {
                Ok(count) if (1..=VMS_MAX - self.vms.len()).contains(&count) => {
                    (0..count).map(Some).collect()
                }
                _ => {
                    let problem = format!("must be 1 to {VMS_MAX} VMs in all");
                    return Err(place.wrong("count", value, problem));
                }
            },
        };
        for instance in instances {
            let mut vm = vm.clone();
            if let Some(index) = instance {
                vm.name = Some(format!("{name}-{index}"));
                vm.console = vm.console.map(|path| numbered(&path, index));
            }
            let mut vm = vm.check(origin, folder, resources)?;
            let position = u64::try_from(self.vms.len()).unwrap_or(u64::MAX);
            seed(&mut vm, self.host.seed.wrapping_add(position));
            self.vms.push(vm);
        }
        Ok(())
    }

    /// Names, disks that are written and console logs belong to one VM each.
    fn check_together(&self, origin: &str) -> Result<(), ConfigError> {
        let (mut names, mut files) = (HashSet::new(), HashMap::new());
        let mut groups = HashMap::new();
        for vm in &self.vms {
            let place = Place {
                text: format!("{origin}: vm {:?}", vm.name),
            };
            if !names.insert(&vm.name) {
                let name = format!("{:?}", vm.name);
                let problem = "is used twice, must be one VM's alone";
                return Err(place.wrong("name", name, problem));
            }
            if let Some(group) = &vm.share_group
                && let first = groups.entry(group).or_insert(vm)
                && first.sharing != vm.sharing
            {
                let problem = format!(
                    "vm {:?} of the same share_group {group:?} has {:?}, must be the same",
                    first.name,
                    first.sharing.name()
                );
                let sharing = format!("{:?}", vm.sharing.name());
                return Err(place.wrong("sharing", sharing, problem));
            }
            for (key, path, is_read) in [
                ("disk", &vm.disk, vm.disk_read_only),
                ("console", &vm.console, false),
            ] {
                if let Some(path) = path
                    && let Some(was_read) = files.insert(path, is_read)
                    && !(was_read && is_read)
                {
                    let path = format!("{path:?}");
                    let problem = "is used twice, must be one VM's alone";
                    return Err(place.wrong(key, path, problem));
                }
            }
        }
        Ok(())
    }
}

/// `web.log` of instance 2 is `web-2.log`.
fn numbered(path: &Path, index: usize) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!("-{index}"));
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

/// Appends a seed to the options of a built-in guest that has none.
fn seed(vm: &mut VmSpec, seed: u64) {
    let has_seed = vm
        .cmdline
        .split_whitespace()
        .any(|word| word.starts_with("seed="));
    if matches!(vm.boot, Boot::Guest(_)) && !has_seed {
        vm.cmdline = format!("{} seed={seed}", vm.cmdline)
            .trim_start()
            .to_owned();
    }
}

fn check_host(
    table: &HostTable,
    origin: &str,
    folder: &Path,
    resources: &Resources<'_>,
) -> Result<HostSpec, ConfigError> {
    let place = Place {
        text: format!("{origin}: host"),
    };
    let auto = Written::from("auto");
    let value = table.memory.as_ref().unwrap_or(&auto);
    let memory = if *value == auto {
        let available = resources.available;
        let spare = Pages(available.0 / AUTO_SPARE_DIVISOR).max(AUTO_SPARE_MIN);
        available.saturating_sub(spare)
    } else {
        place.size("memory", value)?
    };
    if !BUDGETS.contains(&memory) {
        let problem = format!("{memory}, must be {BUDGET_FORMS}");
        return Err(place.wrong("memory", value, problem));
    }
    let policy = match &table.policy {
        None => PolicyKind::default(),
        Some(name) => name.parse().map_err(|_| {
            let problem = format!("must be one of {}", PolicyKind::names());
            place.wrong("policy", format!("{name:?}"), problem)
        })?,
    };
    let swap_dir = folder.join(table.swap_dir.as_deref().unwrap_or(Path::new(SWAP_DIR)));
    if !swap_dir.is_dir() {
        let value = format!("{:?}", swap_dir.display().to_string());
        return Err(place.wrong("swap_dir", value, "must be a folder that exists"));
    }
    Ok(HostSpec {
        memory,
        policy,
        sampling: sampling(&place, table)?,
        settings: policy_settings(&place, table)?,
        swap_dir,
        seed: table.seed.unwrap_or(SEED_DEFAULT),
    })
}

fn sampling(place: &Place, table: &HostTable) -> Result<Sampling, ConfigError> {
    let mut sampling = Sampling::default();
    if let Some(value) = &table.sample_pages {
        let pages = value.text().parse().ok();
        let pages = pages.filter(|pages| *pages <= SAMPLE_PAGES_MAX);
        sampling.pages = pages.ok_or_else(|| {
            let problem = format!("must be 0 (no sampling) to {SAMPLE_PAGES_MAX}");
            place.wrong("sample_pages", value, problem)
        })?;
    }
    if let Some(text) = &table.sample_period {
        let period = parse_duration(text).ok();
        let period = period.filter(|period| SAMPLE_PERIODS.contains(period));
        sampling.period = period.ok_or_else(|| {
            let text = format!("{text:?}");
            place.wrong("sample_period", text, "must be 100ms to 1h")
        })?;
    }
    Ok(sampling)
}

fn policy_settings(place: &Place, table: &HostTable) -> Result<PolicySettings, ConfigError> {
    let mut settings = PolicySettings::default();
    if let Some(value) = &table.idle_tax {
        let tax = value.text().parse().ok().and_then(IdleTax::new);
        settings.idle_tax = tax.ok_or_else(|| {
            let problem = format!("must be 0 to {} percent", IdleTax::PERCENT_MAX);
            place.wrong("idle_tax", value, problem)
        })?;
    }
    if let Some(name) = &table.min_free {
        settings.min_free = MinFree::named(name).ok_or_else(|| {
            let names: Vec<_> = MinFree::ALL.iter().map(|scale| scale.name()).collect();
            let problem = format!("must be one of {}", names.join(", "));
            place.wrong("min_free", format!("{name:?}"), problem)
        })?;
    }
    Ok(settings)
}
