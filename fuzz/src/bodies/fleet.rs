//! Fleet files: any text is a fleet or a mistake in one line, and a fleet's VMs can be said in
//! flags.

use std::path::Path;

use clap::Parser;
use tidemark::config::{FleetSpec, Resources, VmArgs};
use tidemark::units::Pages;

use super::input::Input;
use super::toml::{self, Key};

const RESOURCES: Resources<'_> = Resources {
    available: Pages::mib(4096),
    guests: &["verify", "idle", "echo"],
};

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    vm: VmArgs,
}

/// VMs of one table that are looked at: thousands of them take long and are all alike.
const COUNT_MAX: u64 = 20;

fn is_large(line: &str) -> bool {
    let Some((key, value)) = line.split_once('=') else {
        return false;
    };
    let digits = value.replace(|c: char| !c.is_ascii_digit(), "");
    key.contains("count") && digits.parse().is_ok_and(|count: u64| count > COUNT_MAX)
}

const HOST: &[Key] = &[
    (
        "memory",
        &["'auto'", "'64M'", "'512M'", "'16M'", "'64T'", "'1G'"],
    ),
    (
        "policy",
        &["'esx'", "'proportional'", "'self'", "'pref'", "'pressure'"],
    ),
    ("idle_tax", &["0", "75", "99", "50"]),
    ("min_free", &["'percent'", "'sliding'", "'6%'"]),
    ("sample_pages", &["0", "100", "128"]),
    ("sample_period", &["'100ms'", "'30s'", "'1h'"]),
    ("swap_dir", &["'/tmp'", "'/'", "'.'"]),
    ("seed", &["0", "9223372036854775807"]),
];
const VM: &[Key] = &[
    ("count", &["1", "2", "'3'"]),
    ("cpus", &["1", "64", "'2'"]),
    (
        "cmdline",
        &["''", "'fill=85'", "'--fill seed=1'", "\"a\\tb\""],
    ),
    ("disk", &["'/etc/passwd'"]),
    ("disk_read_only", &["true", "false"]),
    ("memory_management", &["true", "false", "'on'"]),
    ("advise", &["'hugepage'", "'nohugepage'", "'mergeable'"]),
    ("large_pages", &["true", "false", "'off'"]),
    ("share_group", &["'g'", "'h'"]),
    ("console", &["'a.log'", "'-'", "'/tmp/=b'"]),
];

/// A fleet of up to three descriptions.
fn written(input: &mut Input<'_>) -> String {
    let mut text = "[host]\n".to_owned();
    toml::write(&mut text, HOST, input);
    for number in 0..=input.below(3) {
        let guest = input.pick(&[
            "guest = 'verify'",
            "guest = 'idle'",
            "kernel = '/etc/passwd'",
        ]);
        text.push_str(&format!("[[vm]]\nname = 'vm-{number}'\n{guest}\n"));
        toml::write(&mut text, VM, input);
        toml::write(&mut text, toml::ALLOCATION, input);
    }
    text
}

/// Whether it was a fleet.
pub fn body(data: &[u8]) -> bool {
    if toml::is_program(data) {
        return check(&written(&mut Input::new(&data[1..])));
    }
    str::from_utf8(data).is_ok_and(check)
}

fn check(text: &str) -> bool {
    if text.lines().any(is_large) {
        return false;
    }
    let path = Path::new("/nowhere/fleet.toml");
    let fleet = match FleetSpec::parse(text, path, &RESOURCES) {
        Ok(fleet) => fleet,
        Err(mistake) => {
            let line = mistake.to_string();
            assert!(!line.is_empty() && !line.contains('\n'), "{line:?}");
            return false;
        }
    };
    // All of a `count` are alike.
    for vm in fleet.vms.iter().take(8) {
        vm.allocation.check().expect("a checked allocation");
        let flags = std::iter::once("vm".into()).chain(vm.to_args());
        let flags = Flags::try_parse_from(flags).unwrap_or_else(|error| panic!("{error}: {vm:?}"));
        let again = flags.vm.to_spec(&RESOURCES).expect("a checked VM");
        assert_eq!(&again, vm);
    }
    true
}
