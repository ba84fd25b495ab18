//! The allocation keys mean the same wherever they are written: in a fleet file, in flags, in a scenario
//! and in `set`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use clap::Parser;
use proptest::prelude::*;
use tidemark::config::{FleetSpec, Resources, VmArgs};
use tidemark::host::control::{self, Reply, Request};
use tidemark::host::manager::{Manager, Settings};
use tidemark::host::process::ProcessId;
use tidemark::host::registration::Registration;
use tidemark::policy::PolicyKind;
use tidemark::policy::lease::OwnerId;
use tidemark::policy::settings::PolicySettings;
use tidemark::sim;
use tidemark::units::{PAGES_MAX, Pages};
use tidemark::words::{Allocation, AllocationKey, Sampling, Sharing};

const MACHINE: Resources<'_> = Resources {
    available: Pages::mib(4096),
    guests: &["verify"],
};
/// In every origin's message before what is wrong.
const VM: &str = ": vm \"a\": ";

/// What is written at each key; a missing one has its default.
type Keys = Vec<(AllocationKey, &'static str)>;
/// What comes of it, or what is wrong with it.
type Outcome = Result<Allocation, String>;

fn table(keys: &Keys) -> String {
    let lines = keys
        .iter()
        .map(|(key, value)| format!("{key} = \"{value}\"\n"));
    format!("[[vm]]\nname = \"a\"\n{}", lines.collect::<String>())
}

/// The part of a message that does not say where.
fn what(error: impl ToString) -> String {
    let line = error.to_string();
    match line.split_once(VM) {
        Some((_, what)) => what.to_owned(),
        None => panic!("{line}: does not name the VM"),
    }
}

fn of_file(keys: &Keys) -> Outcome {
    let text = format!("{}guest = \"verify\"\n", table(keys));
    let fleet = FleetSpec::parse(&text, Path::new("fleet.toml"), &MACHINE);
    fleet.map(|fleet| fleet.vms[0].allocation).map_err(what)
}

fn of_flags(keys: &Keys) -> Outcome {
    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        vm: VmArgs,
    }
    let flag = |(key, value): &(AllocationKey, &str)| {
        format!("--{}={value}", key.name().replace('_', "-"))
    };
    let flags = ["vm", "--name=a", "--guest=verify"].map(str::to_owned);
    let flags = flags.into_iter().chain(keys.iter().map(flag));
    let spec = Cli::parse_from(flags).vm.to_spec(&MACHINE);
    spec.map(|spec| spec.allocation).map_err(what)
}

/// Whether a scenario says the same as `expected`.
fn is_of_scenario(keys: &Keys, expected: &Outcome) -> bool {
    let text = format!(
        "name = 'x'\nwhy = 'y'\n[host]\nmemory = '1G'\n{}",
        table(keys)
    );
    match (sim::parse(&text, Path::new("x.toml")), expected) {
        (Ok(scenario), Ok(allocation)) => {
            format!("{scenario:?}").contains(&format!("{allocation:?}"))
        }
        (Err(mistake), Err(expected)) => what(mistake) == *expected,
        _ => false,
    }
}

/// What `set` makes of a VM with that memory and defaults.
fn of_set(memory: Pages, keys: &Keys) -> Outcome {
    let mut manager = Manager::new(Settings {
        budget: Pages(2 * PAGES_MAX),
        policy: PolicyKind::Esx,
        policy_settings: PolicySettings::default(),
        sampling: Sampling::default(),
        seed: 1,
    });
    let registration = Registration {
        name: "a".to_owned(),
        allocation: Allocation::of(memory),
        share_group: None,
        sharing: Sharing::default(),
        managed: true,
        lease: None,
    };
    let process = ProcessId { pid: 2, started: 1 };
    let vm = manager
        .admit(registration, process, None)
        .map_err(|no| no.to_string())?;
    let changes = keys
        .iter()
        .map(|(key, value)| (key.to_string(), (*value).to_owned()));
    let request = Request::Set {
        vm: "a".to_owned(),
        changes: changes.collect::<BTreeMap<_, _>>(),
    };
    let request = serde_json::to_vec(&request).map_err(|error| error.to_string())?;
    match control::answer(&mut manager, &request, OwnerId(1), Duration::ZERO) {
        Reply::Ok(_) => Ok(manager.allocation(vm).expect("it runs")),
        Reply::Error(line) => Err(line),
    }
}

fn sizes() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "0",
        "1M",
        "26112K",
        "64M",
        "100663296",
        "256M",
        "1G",
        "4097",
        "lots",
        "-1",
    ])
}

fn shares() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "high",
        "normal",
        "low",
        "0",
        "7",
        "1000000000",
        "1000000001",
        "999999999999",
        "huge",
    ])
}

/// All keys but the memory.
fn others() -> impl Strategy<Value = Keys> {
    (shares(), prop::array::uniform4(sizes())).prop_map(|(shares, sizes)| {
        vec![
            (AllocationKey::Shares, shares),
            (AllocationKey::Reservation, sizes[0]),
            (AllocationKey::Limit, sizes[1]),
            (AllocationKey::DynamicMin, sizes[2]),
            (AllocationKey::DynamicMax, sizes[3]),
        ]
    })
}

fn any_keys() -> impl Strategy<Value = Keys> {
    (sizes(), others(), prop::array::uniform6(any::<bool>())).prop_map(|(memory, others, said)| {
        let all = std::iter::once((AllocationKey::Memory, memory)).chain(others);
        let said = all.zip(said).filter(|(_, said)| *said);
        said.map(|(key, _)| key).collect()
    })
}

proptest! {
    #[test]
    fn a_file_flags_and_a_scenario_agree(keys in any_keys()) {
        let expected = of_file(&keys);
        prop_assert_eq!(&of_flags(&keys), &expected);
        prop_assert!(is_of_scenario(&keys, &expected), "{keys:?}: a file says {expected:?}");
    }

    #[test]
    fn set_agrees_with_a_file(
        memory in prop::sample::select(vec![("26112K", Pages(6528)), ("64M", Pages::mib(64)), ("1G", Pages::mib(1024))]),
        keys in others(),
    ) {
        let (text, memory) = memory;
        let mut all = vec![(AllocationKey::Memory, text)];
        all.extend(keys.iter().copied());
        // The VM has its memory; nobody wrote it now.
        let written = format!("`memory = \"{text}\"`");
        let had = format!("`memory` ({memory})");
        let expected = of_file(&all).map_err(|line| line.replace(&written, &had));
        prop_assert_eq!(of_set(memory, &keys), expected);
    }
}

#[test]
fn a_weight_is_refused_or_taken_everywhere() {
    for (shares, good) in [("1000000000", true), ("999999999999", false)] {
        let keys = vec![(AllocationKey::Shares, shares)];
        let outcomes = [
            of_file(&keys),
            of_flags(&keys),
            of_set(Pages::mib(256), &keys),
        ];
        for outcome in &outcomes {
            assert_eq!(outcome.is_ok(), good, "{outcome:?}");
            assert_eq!(outcome, &outcomes[0]);
        }
    }
}
