//! Stock Debian guests on emulated Linux hosts, under two kernels: 6.12, and 6.1, which lacks
//! UFFDIO_MOVE; and on this machine's own KVM when it is hardware.
//!
//! `tests/lab/lab.sh` builds a static program and boots the host in QEMU's TCG; the tests
//! themselves are in `tests/lab/runner` and run inside. `tests/lab/setup.sh` installs what is
//! missing; where it cannot, the tests are skipped visibly.

mod common;

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

/// Tests that each host must report; one that is missing has not run.
const TESTS: [&str; 13] = [
    "boot_disk_and_reboot",
    "smp_boot_and_power_off",
    "smp_reboot",
    "vmlinux_on_its_own_root",
    "more_than_4_gib",
    "balloon",
    "free_page_hinting",
    "host_swapping",
    "large_pages",
    "overcommit",
    "numa_migration",
    "swap_of_the_host",
    "memory_cgroups",
];

/// A script of the lab, started as from a shell: Cargo's own variables would make its build one of
/// this test.
fn run_script(name: &str, arguments: &[&str]) -> Output {
    let lab = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/lab");
    let mut command = Command::new("sh");
    command.arg(lab.join(name)).args(arguments);
    const OF_THIS_TEST: [&str; 5] = [
        "CARGO_PKG_",
        "CARGO_MANIFEST_",
        "CARGO_BIN_",
        "CARGO_CRATE_",
        "CARGO_PRIMARY_",
    ];
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if OF_THIS_TEST.iter().any(|start| text.starts_with(start)) {
            command.env_remove(&name);
        }
    }
    let output = command.stdin(Stdio::null()).output();
    output.expect("sh can be started")
}

/// Whether everything is installed and fetched; after a visible line when it is not.
fn set_up() -> bool {
    static READY: OnceLock<Result<(), String>> = OnceLock::new();
    let ready = READY.get_or_init(|| {
        let output = run_script("setup.sh", &[]);
        match output.status.success() {
            true => Ok(()),
            false => Err(format!(
                "tests/lab/setup.sh failed: {}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            )),
        }
    });
    match ready {
        Ok(()) => true,
        Err(reason) => {
            common::skip(reason);
            false
        }
    }
}

/// `place` is empty for the emulated host.
fn run_lab(place: &[&str], version: &str, tests: &[&str]) {
    if !set_up() {
        return;
    }
    let output = run_script("lab.sh", &[place, &[version], tests].concat());
    let console = String::from_utf8_lossy(&output.stdout);
    let results = console.lines().filter(|line| {
        ["PASS ", "FAIL ", "TABLE ", "LAB HOST "]
            .iter()
            .any(|mark| line.starts_with(mark))
    });
    for line in results {
        common::note(line);
    }
    let said = |start: String| console.lines().any(|line| line.starts_with(&start));
    let missing = tests.iter().find(|name| !said(format!("PASS {name} ")));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && missing.is_none(),
        "first test without success: {missing:?}\n{console}\n{errors}"
    );
    // Other releases of Debian have other kernels behind the same names.
    assert!(
        !place.is_empty() || said(format!("LAB HOST {version}.")),
        "the host did not run {version}:\n{console}"
    );
}

#[test]
fn linux_6_12() {
    run_lab(&[], "6.12", &TESTS);
}

#[test]
fn linux_6_1() {
    // On this one in version 1, and that does not get the controller back which version 2 has had.
    let (cgroups, others): (Vec<_>, Vec<_>) =
        TESTS.iter().partition(|name| **name == "memory_cgroups");
    run_lab(&[], "6.1", &others);
    run_lab(&[], "6.1", &cgroups);
}

/// Hardware KVM has interrupt controllers and runs any kernel; the software KVM of some clouds does
/// not, and there the emulated hosts are all there is.
#[test]
fn on_this_machine() {
    let check = Command::new(env!("CARGO_BIN_EXE_tidemark"))
        .args(["check", "--json"])
        .output();
    let check = check.expect("tidemark can be started");
    let found: serde_json::Value =
        serde_json::from_slice(&check.stdout).expect("check prints one object");
    let kind = found["kvm"]["kind"].as_str().unwrap_or("none");
    let missing = found["missing"].as_array().map_or(0, Vec::len);
    if missing > 0 || !["vmx", "svm"].contains(&kind) {
        common::note(&format!(
            "does not apply: this machine's KVM is {kind}, not usable hardware"
        ));
        return;
    }
    for version in ["6.1", "6.12"] {
        run_lab(&["--here"], version, &TESTS);
    }
}
