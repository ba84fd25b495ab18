//! Where a swap file cannot grow the pages stay in memory, and it is said; where it is lost, the VM
//! ends at once, with its reason.
#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers are tests too: a panic is their way to fail"
)]

mod common;

use std::time::{Duration, Instant};

use common::Capability::{Kvm, Root, Uffd};
use common::fleet::{Fleet, MIB, SOON, alone, find_vm, number, swap_file};
use common::require;
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};

/// Longest file that a process may write from now on.
fn limit_files(pid: u32, bytes: Option<u64>) {
    let pid = Pid::from_raw(pid.cast_signed());
    let limit = Rlimit {
        current: bytes,
        maximum: None,
    };
    prlimit(pid, Resource::Fsize, limit).unwrap();
}

#[test]
fn a_swap_file_that_cannot_grow_loses_nothing() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let toml = r#"
        [host]
        memory = "128M"
        swap_dir = "."
        [[vm]]
        name = "stuck"
        memory = "64M"
        guest = "stuck"
        cmdline = "fill=85 pause_ms=10"
        [[vm]]
        name = "verify"
        memory = "32M"
        guest = "verify"
    "#;
    let mut fleet = Fleet::start(toml, &[]);
    let full = 54 * MIB;
    fleet.until("a full guest", |figures| {
        find_vm(figures, "stuck").is_some_and(|vm| number(vm, "consumed_bytes") >= full)
    });
    let pid = fleet.process.vm_pid("stuck");
    limit_files(pid, Some(4 * MIB));
    // Its limit makes it swap; nobody else is short.
    assert!(
        fleet
            .folder
            .output(&["set", "stuck", "limit=40M"])
            .status
            .success()
    );
    let failed = fleet.until("a failure", |figures| {
        find_vm(figures, "stuck").is_some_and(|vm| number(vm, "swap_errors") > 0)
    });
    let before = find_vm(&failed, "stuck").unwrap();
    assert!(number(before, "swapped_bytes") <= 4 * MIB, "{before}");
    let log = fleet.process.log();
    assert!(
        log.contains("stuck: pages stay in memory: swap file:"),
        "{log}"
    );
    // The guest may have to wait now: it is above its limit, and nothing can be taken from it.
    // With room again it goes on.
    limit_files(pid, None);
    fleet.until("the limit kept", |figures| {
        find_vm(figures, "stuck").is_some_and(|vm| number(vm, "consumed_bytes") <= 40 * MIB)
    });
    let seen = fleet.folder.vm("stuck").unwrap();
    // Twice around: whatever was taken out and given back is compared.
    fleet.until("progress", |figures| {
        find_vm(figures, "stuck").is_some_and(|vm| {
            number(vm, "guest.pages_verified")
                > number(&seen, "guest.pages_verified") + 2 * full / 4096
        })
    });
    fleet.process.signal(Signal::INT);
    let end = fleet.end(SOON);
    end.check();
    assert_eq!(number(end.vm("verify"), "swap_errors"), 0);
    let lines = end
        .log
        .lines()
        .filter(|line| line.contains("pages stay in memory"));
    assert!(lines.count() < 60, "{}", end.log);
}

/// A page that is gone for good ends the VM within a second, in whatever the agent is busy with: it
/// swaps all the time here. Nobody else notices.
#[test]
fn a_lost_swap_file_ends_its_vm_and_no_other() {
    let Some(_host) = require(&[Kvm, Uffd, Root]) else {
        return;
    };
    let _alone = alone();
    let toml = r#"
        [host]
        memory = "192M"
        swap_dir = "."
        [[vm]]
        name = "unlucky"
        memory = "64M"
        guest = "verify"
        limit = "40M"
        [[vm]]
        name = "other"
        memory = "32M"
        guest = "verify"
    "#;
    let mut fleet = Fleet::start(toml, &[]);
    fleet.until("pages in the swap file", |figures| {
        find_vm(figures, "unlucky").is_some_and(|vm| number(vm, "swapped_bytes") >= 4 * MIB)
    });
    let pid = fleet.process.vm_pid("unlucky");
    let file = std::fs::OpenOptions::new().write(true).open(swap_file(pid));
    file.unwrap().set_len(0).unwrap();
    let lost = Instant::now();
    fleet.until("the end of the VM", |figures| {
        let vm = find_vm(figures, "unlucky");
        vm.is_none_or(|vm| vm["state"] == "ended")
    });
    // The guest touches a swapped page some hundred times a second.
    assert!(
        lost.elapsed() < Duration::from_secs(3),
        "{:?}",
        lost.elapsed()
    );
    let seen = fleet.folder.vm("other").unwrap();
    fleet.until("progress of the other", |figures| {
        find_vm(figures, "other").is_some_and(|vm| {
            number(vm, "guest.pages_verified") > number(&seen, "guest.pages_verified")
        })
    });
    fleet.process.signal(Signal::INT);
    let end = fleet.end(SOON);
    let exit = &end.vm("unlucky")["exit"];
    assert_eq!(exit["reason"], "error", "{exit}");
    let message = exit["message"].as_str().unwrap();
    assert!(message.contains("swap slot"), "{message}");
    assert_eq!(number(end.vm("unlucky"), "guest.pages_corrupt"), 0);
    end.check_guest(end.vm("other"));
}
