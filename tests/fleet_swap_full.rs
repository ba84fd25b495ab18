//! A swap folder that is full, or will be: it is known before the start, seen while it lasts, told by
//! the exit status, and over when there is room again.

mod common;

use std::process::Command;
use std::time::Duration;

use common::Capability::{Kvm, Uffd};
use common::fleet::{Fleet, Folder, SOON, alone, find_vm, number};
use common::{require, skip};
use rustix::process::Signal;

/// For whatever a small swap folder makes wait.
const LIMIT: Duration = Duration::from_secs(60);

/// Two guests that together need 109 MiB, nothing of which compresses or is shared, in 64 MiB.
const FLEET: &str = r#"
    [host]
    memory = "64M"
    swap_dir = "swap"
    [[vm]]
    name = "v"
    count = 2
    memory = "64M"
    guest = "verify"
    cmdline = "fill=85 zero=0 dup=0 cache=0"
"#;

/// A fleet whose folder "swap" is a file system of 2 MiB of its own, or none and why not.
fn in_little_room(args: &[&str]) -> Result<Fleet, &'static str> {
    if !rustix::process::geteuid().is_root() {
        return Err("only root can mount a small swap folder");
    }
    let probe = Command::new("unshare")
        .args(["-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"])
        .output();
    if !probe.is_ok_and(|output| output.status.success()) {
        return Err("no mount namespaces here");
    }
    let wrap = |command: &mut Command| {
        let (program, args) = (command.get_program(), command.get_args());
        let script = "mkdir -p swap && mount -t tmpfs -o size=2m tmpfs swap && exec \"$0\" \"$@\"";
        let mut wrapped = Command::new("unshare");
        wrapped.args(["-m", "sh", "-c", script]);
        wrapped.arg(program).args(args);
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(key, value),
                None => wrapped.env_remove(key),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            wrapped.current_dir(folder);
        }
        *command = wrapped;
    };
    Ok(Fleet::start_with(FLEET, args, wrap))
}

/// Whether all VMs are in one of these states.
fn all_are(figures: &serde_json::Value, states: &[&str]) -> bool {
    ["v-0", "v-1"].iter().all(|name| {
        find_vm(figures, name).is_some_and(|vm| states.iter().any(|state| vm["state"] == **state))
    })
}

fn until_one_is_stalled(fleet: &mut Fleet) {
    fleet.until_within(LIMIT, "a stalled VM", |figures| {
        let mut vms = figures["vms"].as_array().into_iter().flatten();
        vms.any(|vm| vm["state"] == "stalled")
    });
}

fn verified(figures: &serde_json::Value, name: &str) -> u64 {
    find_vm(figures, name).map_or(0, |vm| number(vm, "guest.pages_verified"))
}

#[test]
fn a_fleet_that_a_full_swap_folder_holds_goes_on_when_there_is_room() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let mut fleet = match in_little_room(&[]) {
        Ok(fleet) => fleet,
        Err(why) => return skip(why),
    };
    fleet.until_within(LIMIT, "a full swap folder", |figures| {
        all_are(figures, &["swap full", "stalled"])
    });
    until_one_is_stalled(&mut fleet);
    let pid = fleet.process.pid().to_string();
    let swap = fleet.folder.path().join("swap");
    let grown = Command::new("nsenter")
        .args(["-t", &pid, "-m", "mount", "-o", "remount,size=512m"])
        .arg(&swap)
        .status();
    assert!(grown.unwrap().success());
    let running = fleet.until_within(LIMIT, "room", |figures| {
        all_are(figures, &["running", "blocked"]) && verified(figures, "v-0") > 0
    });
    fleet.until_within(LIMIT, "progress of both", |figures| {
        let on = |name| verified(figures, name) > verified(&running, name) + 1000;
        on("v-0") && on("v-1")
    });
    fleet.process.signal(Signal::INT);
    let end = fleet.end(SOON);
    assert!(end.log.contains("2.0 MiB free"), "{}", end.log);
    end.check();
}

#[test]
fn a_fleet_that_stalls_ends_with_a_status() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let mut fleet = match in_little_room(&[]) {
        Ok(fleet) => fleet,
        Err(why) => return skip(why),
    };
    until_one_is_stalled(&mut fleet);
    fleet.process.signal(Signal::INT);
    let end = fleet.end(SOON);
    assert_eq!(end.status.code(), Some(1), "{}", end.log);
    let exits = ["v-0", "v-1"].map(|name| end.vm(name)["exit"].clone());
    let says = |exit: &serde_json::Value| {
        let message = exit["message"].as_str().unwrap_or_default();
        message.contains("stalled") && message.contains("swap folder was full")
    };
    assert!(exits.iter().any(says), "{exits:?}");
    for name in ["v-0", "v-1"] {
        assert_eq!(number(end.vm(name), "guest.pages_corrupt"), 0);
    }
    // One line when it is full, and not one each second.
    let lines = end.log.lines();
    let told = lines.filter(|line| line.contains("pages stay in memory"));
    assert!(told.count() < 20, "{}", end.log);
}

#[test]
fn too_little_room_is_known_before_the_start() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let mut fleet = match in_little_room(&["--strict"]) {
        Ok(fleet) => fleet,
        Err(why) => return skip(why),
    };
    assert_eq!(fleet.process.wait(SOON).code(), Some(2));
    let said = fleet.process.log();
    for word in ["2.0 MiB free", "64.0 MiB may have", "VMs of 128.0 MiB"] {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
    // With room enough, or a budget that holds all of it, there is nothing to say.
    let folder = Folder::new();
    let run = [
        "run",
        "--guest",
        "hello",
        "--memory",
        "16M",
        "--swap-dir",
        ".",
    ];
    let output = folder.output(&[&run[..], &["--host-memory", "64M", "--strict"]].concat());
    assert!(output.status.success(), "{output:?}");
    assert!(!String::from_utf8_lossy(&output.stderr).contains("swap_dir"));
}
