//! A host manager that does not run for a while, and one that takes over from another: no guest page is
//! lost, none is held twice, and the guests go on.
#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers are tests too: a panic is their way to fail"
)]

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use common::Capability::{Kvm, Uffd};
use common::fleet::{Folder, MIB, Process, SOON, alone, check_sums, find_vm, number};
use common::{require, wait_for};
use rustix::process::Signal;
use serde_json::Value;

/// Longer than a VM process waits for anybody.
const STOPPED: Duration = Duration::from_secs(12);

/// Until every guest goes on after a restart: two seconds, and what other tests on the machine take.
const PROGRESS: Duration = Duration::from_secs(10);

/// Pages that a VM's guest has compared.
fn verified(figures: &Value, name: &str) -> u64 {
    let vm = find_vm(figures, name);
    vm.and_then(|vm| vm["guest"]["pages_verified"].as_u64())
        .unwrap_or(0)
}

fn consumed(figures: &Value) -> u64 {
    number(&figures["host"], "consumed_bytes")
}

/// No guest has ended or found a wrong byte.
fn check_guests(vms: &mut [(&str, Process)], figures: &Value) {
    for (name, process) in vms {
        let status = process.status();
        assert!(status.is_none(), "{name} has ended: {}", process.log());
        let corrupt = find_vm(figures, name).map(|vm| vm["guest"]["pages_corrupt"].clone());
        let wrong = corrupt.is_some_and(|corrupt| corrupt.as_u64().unwrap_or(0) > 0);
        assert!(!wrong, "{name}: {figures}");
    }
}

/// Bytes of memory that the frame pools of a process have, by its own descriptors.
fn pool_bytes(pid: u32) -> u64 {
    let mut inodes = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
        let target = fs::read_link(entry.path()).unwrap_or_default();
        if target.to_string_lossy().contains("memfd:tidemark-frames") {
            let meta = fs::metadata(entry.path()).unwrap();
            inodes.push((meta.ino(), meta.blocks() * 512));
        }
    }
    inodes.sort_unstable();
    inodes.dedup();
    inodes.iter().map(|(_, bytes)| bytes).sum()
}

fn stop_all(folder: &Folder, vms: Vec<(&str, Process)>, mut host: Process) {
    for (name, _) in &vms {
        assert!(folder.output(&["stop", name]).status.success());
    }
    for (name, mut vm) in vms {
        let status = vm.wait(SOON);
        assert_eq!(status.code(), Some(0), "{name}: {}", vm.log());
    }
    wait_for("all memory back", SOON, || {
        let figures = folder.ps().unwrap();
        consumed(&figures) == number(&figures["host"], "overhead_bytes")
            && number(&figures["host"], "frames_shared") == 0
    });
    assert_eq!(pool_bytes(host.pid()), 0);
    host.signal(Signal::TERM);
    assert_eq!(host.wait(SOON).code(), Some(0));
    assert!(folder.files().is_empty(), "{:?}", folder.files());
}

#[test]
fn a_host_manager_that_is_stopped_for_a_while_loses_nobody() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let folder = Folder::new();
    let host = folder.host("192M");
    let mut vms: Vec<(&str, Process)> = ["a", "b"]
        .into_iter()
        .map(|name| (name, folder.join(name, "96M", "fill=85 dup=60 rewrite=5")))
        .collect();
    wait_for("guests that share", SOON * 2, || {
        folder.ps().is_some_and(|figures| {
            number(&figures["host"], "pages_sharing") > 10_000
                && ["a", "b"].iter().all(|name| verified(&figures, name) > 0)
        })
    });
    host.signal(Signal::STOP);
    std::thread::sleep(STOPPED);
    host.signal(Signal::CONT);
    let mut before = None;
    wait_for("both there again", SOON, || {
        before = folder.ps();
        before.is_some()
    });
    let before = before.unwrap();
    // Orders flow, and messages of every kind.
    let deadline = Instant::now() + SOON * 2;
    let mut turn = 0;
    loop {
        let memory = ["memory=150M", "memory=192M"][turn % 2];
        turn += 1;
        assert!(folder.output(&["set", "host", memory]).status.success());
        let figures = folder.ps().unwrap();
        check_sums(&figures);
        check_guests(&mut vms, &figures);
        let goes_on = |name: &str| {
            verified(&figures, name) > verified(&before, name) + 50_000
                && find_vm(&figures, name).is_some_and(|vm| vm["state"] != "detached")
        };
        if turn > 20 && ["a", "b"].iter().all(|name| goes_on(name)) {
            break;
        }
        assert!(Instant::now() < deadline, "{figures}");
        std::thread::sleep(Duration::from_millis(100));
    }
    stop_all(&folder, vms, host);
}

#[test]
fn a_fleet_under_pressure_goes_on_with_the_next_host_manager() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let folder = Folder::new();
    let mut first = folder.host("104M");
    let names = ["a", "b", "c", "d"];
    // Two are users of their own, which leave the door and know the host manager all the same.
    let jail = |name| match name {
        "a" if rustix::process::geteuid().is_root() => &["--user", "auto"][..],
        "b" if rustix::process::geteuid().is_root() => &["--hardened"][..],
        _ => &[],
    };
    let join = |name| folder.join_with(name, "64M", "fill=85 dup=60 rewrite=5", jail(name));
    let mut vms: Vec<(&str, Process)> = names.into_iter().map(|name| (name, join(name))).collect();
    wait_for("a fleet at its limit that shares", SOON * 3, || {
        folder.ps().is_some_and(|figures| {
            number(&figures["host"], "pages_sharing") > 20_000
                && consumed(&figures) > 85 * MIB
                && names.iter().all(|name| verified(&figures, name) > 20_000)
        })
    });
    let before = folder.ps().unwrap();
    check_guests(&mut vms, &before);
    let frames = number(&before["host"], "frames_shared") * 4096;
    first.signal(Signal::KILL);
    first.wait(SOON);
    std::thread::sleep(Duration::from_secs(1));

    let second = folder.host("104M");
    let started = Instant::now();
    wait_for("four VMs to be expected", SOON, || {
        second.log().contains("expects 4 VMs")
    });
    let mut there = None;
    wait_for("all four there again", SOON, || {
        there = folder.ps().filter(|figures| {
            let reported = |name: &&str| verified(figures, name) > 0;
            names.iter().all(reported)
        });
        there.is_some()
    });
    let there = there.unwrap();
    let rejoined = started.elapsed();
    let progress = loop {
        let figures = folder.ps().unwrap();
        check_guests(&mut vms, &figures);
        let goes_on = |name: &&str| verified(&figures, name) > verified(&there, name);
        if names.iter().all(goes_on) {
            break started.elapsed();
        }
        assert!(started.elapsed() < PROGRESS, "not all go on: {figures}");
        std::thread::sleep(Duration::from_millis(50));
    };
    eprintln!("rejoined after {rejoined:?}, progress after {progress:?}");
    // The old consumption, by the books and by the memory that the pool really has.
    let deadline = started + SOON;
    loop {
        let figures = folder.ps().unwrap();
        check_sums(&figures);
        check_guests(&mut vms, &figures);
        let in_use = number(&figures["host"], "frames_shared") * 4096;
        let held = pool_bytes(second.pid());
        let high = consumed(&before) + 4 * MIB;
        let blocked = names
            .iter()
            .any(|name| find_vm(&figures, name).is_some_and(|vm| vm["state"] == "blocked"));
        if consumed(&figures) <= high
            && in_use >= frames / 2
            && held.abs_diff(in_use) <= MIB
            && !blocked
        {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "{held} bytes in the pool, {in_use} in use, {frames} before: {figures}"
        );
        std::thread::sleep(Duration::from_millis(200));
    }
    eprintln!("back at the old consumption after {:?}", started.elapsed());
    let later = folder.ps().unwrap();
    wait_for("further progress", SOON, || {
        let figures = folder.ps().unwrap();
        check_guests(&mut vms, &figures);
        names
            .iter()
            .all(|name| verified(&figures, name) > verified(&later, name) + 5_000)
    });
    stop_all(&folder, vms, second);
}
