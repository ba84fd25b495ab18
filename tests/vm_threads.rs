//! The threads of a VM process while its guest runs, seen from outside: those of the table, each
//! behind its filter. What the filters do is tested beside the table, thread by thread.
#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers are tests too: a panic is their way to fail"
)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::Capability::{Kvm, Uffd};
use common::fleet::{Fleet, SOON, alone, find_vm};
use common::{note, require};
use rustix::process::Signal;
use serde_json::Value;
use tidemark::threads::table::TABLE;
use tidemark::threads::{BUILDER, INSPECTOR, KEYS, MAIN};

const FLEET: &str = r#"
    [host]
    memory = "96M"
    swap_dir = "."
    [[vm]]
    name = "a"
    memory = "32M"
    cpus = 1
    guest = "verify"
"#;

const TWO: &str = r#"
    [host]
    memory = "96M"
    swap_dir = "."
    [[vm]]
    name = "a"
    count = 2
    memory = "32M"
    guest = "verify"
    share_group = "g"
    console = "a.log"
"#;

/// The value of a line in /proc/*/status.
fn field(task: &Path, key: &str) -> String {
    let status = fs::read_to_string(task.join("status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    line.unwrap_or_else(|| panic!("no {key} in {status}"))
        .trim()
        .to_owned()
}

/// Names without their numbers, and whether the thread is behind a filter for good, without
/// capabilities or a way to any.
fn threads(pid: u32) -> Vec<(String, bool)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let tasks = tasks.map(|task| {
        let task = task.unwrap();
        let name = match task.file_name().to_str().unwrap() == pid.to_string() {
            true => MAIN.name.to_owned(),
            false => field(&task.path(), "Name:"),
        };
        let none = |key| field(&task.path(), key).trim_start_matches('0').is_empty();
        let confined = field(&task.path(), "Seccomp:") == "2"
            && field(&task.path(), "NoNewPrivs:") == "1"
            && ["CapEff:", "CapPrm:", "CapInh:", "CapAmb:"]
                .into_iter()
                .all(none)
            && (none("CapBnd:") || !rustix::process::geteuid().is_root());
        let name = name.trim_end_matches(|c: char| c.is_ascii_digit());
        (name.to_owned(), confined)
    });
    // KVM has workers of its own in the process, which never leave the kernel.
    tasks
        .filter(|(name, _)| !name.starts_with("kvm-"))
        .collect()
}

/// The namespaces of a process, by kind.
fn namespaces(pid: u32) -> Vec<(&'static str, PathBuf)> {
    let of = |kind| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    ["mnt", "ipc", "net"].map(|kind| (kind, of(kind))).into()
}

#[test]
fn hardened_vm_processes_are_users_that_nobody_else_is_and_see_nothing_of_the_host() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    if !rustix::process::geteuid().is_root() {
        return note("not root: whether the host grants the namespaces `tidemark check` says");
    }
    let _alone = alone();
    let mut fleet = Fleet::start(TWO, &["--hardened"]);
    let at_work = |figures: &Value, name: &str| {
        let vm = find_vm(figures, name);
        vm.is_some_and(|vm| {
            vm["guest"]["pages_verified"].as_u64() > Some(0)
                && vm["process_bytes"].as_u64() > Some(0)
        })
    };
    fleet.until("both guests at work", |figures| {
        at_work(figures, "a-0") && at_work(figures, "a-1")
    });
    let pids = ["a-0", "a-1"].map(|name| fleet.process.vm_pid(name));
    let mut users = vec![0];
    for pid in pids {
        // All threads of it, of which none has kept its launcher's user.
        for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
            let task = task.unwrap().path();
            let numbers = field(&task, "Uid:");
            let mut numbers: Vec<u32> = numbers
                .split_whitespace()
                .map(|n| n.parse().unwrap())
                .collect();
            numbers.dedup();
            assert_eq!(numbers, [0x7000_0000 + pid], "{}", field(&task, "Name:"));
            assert_eq!(field(&task, "Groups:"), "");
            let spaces = namespaces(task.file_name().unwrap().to_str().unwrap().parse().unwrap());
            for (ours, theirs) in namespaces(std::process::id()).iter().zip(&spaces) {
                assert_ne!(ours, theirs);
            }
        }
        users.push(0x7000_0000 + pid);
        let root = fs::read_dir(format!("/proc/{pid}/root")).unwrap();
        assert_eq!(root.count(), 0);
    }
    users.dedup();
    assert_eq!(users.len(), 3);
    fleet.process.signal(Signal::INT);
    fleet.end(SOON).check();
}

#[test]
fn a_vm_process_has_the_threads_of_the_table_and_each_is_confined() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let mut fleet = Fleet::start(FLEET, &[]);
    fleet.until("the guest at work", |figures| {
        find_vm(figures, "a").is_some_and(|vm| vm["guest"]["pages_verified"].as_u64() > Some(0))
    });
    let pid = fleet.process.vm_pid("a");
    let found = threads(pid);
    for (name, confined) in &found {
        assert!(confined, "{name}: {found:?}");
        assert!(TABLE.iter().any(|row| row.name == name), "{found:?}");
    }
    for row in TABLE {
        let runs = found.iter().any(|(name, _)| name == row.name);
        // The machine is built, nobody sits at a terminal, and inspectors are processes of their own.
        let absent = [BUILDER.name, KEYS.name, INSPECTOR.name].contains(&row.name);
        assert_eq!(runs, !absent, "{}: {found:?}", row.name);
    }
    // Nothing of its memory gets into a core dump, or to another process of its user.
    let of_process = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}"));
    let limits = of_process("limits").unwrap();
    let cores = limits.lines().find(|line| line.contains("core file size"));
    let cores: Vec<&str> = cores.unwrap().split_whitespace().collect();
    assert_eq!(cores[4..6], ["0", "0"], "{cores:?}");
    if rustix::process::geteuid().is_root() {
        assert_eq!(of_process("coredump_filter").unwrap().trim(), "00000000");
    } else {
        assert!(of_process("smaps_rollup").is_err());
    }
    fleet.process.signal(Signal::INT);
    fleet.end(SOON).check();
}
