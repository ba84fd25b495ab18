//! Stock Debian guests on emulated Linux hosts, under two kernels: 6.12, and 6.1, which lacks
//! UFFDIO_MOVE.
//!
//! `tests/lab/lab.sh` builds a static program and boots the host in QEMU's TCG; the tests
//! themselves are in `tests/lab/runner` and run inside. That takes minutes, so it happens when
//! TIDEMARK_LAB=1 asks for it, and is a visible skip otherwise.
//!
//! Known gap: the stock balloon driver's statistics do not arrive yet, so `balloon` fails.

mod common;

use std::path::Path;
use std::process::{Command, Stdio};

/// Tests that each host must report; one that is missing has not run.
const TESTS: [&str; 7] = [
    "boot_disk_and_reboot",
    "smp_boot_and_power_off",
    "balloon",
    "host_swapping",
    "overcommit",
    "two_sisters",
    "four_sisters",
];

fn wanted() -> bool {
    std::env::var_os("TIDEMARK_LAB").is_some_and(|value| value == "1")
}

fn run_lab(version: &str) {
    if !wanted() {
        common::note("SKIP: takes minutes (set TIDEMARK_LAB=1 to run it)");
        return;
    }
    let lab = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab");
    let setup = Command::new("sh").arg(lab.join("setup.sh")).status();
    let ready = setup.is_ok_and(|status| status.success());
    assert!(ready, "tests/lab/setup.sh failed");
    let mut command = Command::new("sh");
    command.arg(lab.join("lab.sh")).arg(version);
    // Cargo's own variables would make the inner build one of this test.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_") {
            command.env_remove(name);
        }
    }
    let output = command.stdin(Stdio::null()).output();
    let output = output.expect("sh can be started");
    let console = String::from_utf8_lossy(&output.stdout);
    let results = console.lines().filter(|line| {
        ["PASS ", "FAIL ", "TABLE ", "LAB HOST "]
            .iter()
            .any(|mark| line.starts_with(mark))
    });
    for line in results {
        common::note(line);
    }
    let missing = TESTS.iter().find(|name| {
        !console
            .lines()
            .any(|line| line.starts_with(&format!("PASS {name} ")))
    });
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && missing.is_none(),
        "first test without success: {missing:?}\n{console}\n{errors}"
    );
}

#[test]
fn linux_6_12() {
    run_lab("6.12");
}

#[test]
fn linux_6_1() {
    run_lab("6.1");
}
