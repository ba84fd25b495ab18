//! Sudden deaths: of a VM process, of the host manager, of the whole run.
#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers are tests too: a panic is their way to fail"
)]

mod common;

use common::Capability::{Kvm, Uffd};
use common::fleet::{
    Fleet, Folder, MIB, SOON, alone, check_sums, describe, find_vm, is_alive, kill, number,
};
use common::{require, wait_for};
use rustix::process::Signal;

fn fleet() -> String {
    r#"
        [host]
        memory = "96M"
        swap_dir = "."
        [[vm]]
        name = "verify"
        count = 3
        memory = "48M"
        guest = "verify"
        share_group = "g"
    "#
    .to_owned()
}

fn all_compare(figures: &serde_json::Value) -> bool {
    let vms = figures["vms"].as_array().unwrap();
    vms.len() == 3
        && vms
            .iter()
            .all(|vm| vm["guest"]["pages_verified"].as_u64() > Some(0))
}

#[test]
fn a_killed_vm_returns_its_memory_and_harms_nobody() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let mut fleet = Fleet::start(&fleet(), &[]);
    let before = fleet.until("work", |figures| {
        all_compare(figures) && number(&figures["host"], "pages_sharing") > 0
    });
    let held = number(find_vm(&before, "verify-1").unwrap(), "consumed_bytes");
    assert!(held > 8 * MIB, "{before}");
    kill(fleet.process.vm_pid("verify-1"));
    let after = fleet.until("its end", |figures| {
        find_vm(figures, "verify-1").is_some_and(|vm| vm["state"] == "ended")
    });
    let dead = find_vm(&after, "verify-1").unwrap();
    assert_eq!(number(dead, "consumed_bytes"), 0, "{dead}");
    assert_eq!(number(dead, "credit_bytes"), 0, "{dead}");
    assert_eq!(dead["exit"]["reason"], "killed");
    check_sums(&after);
    let compared = |figures: &serde_json::Value, name: &str| {
        find_vm(figures, name).map_or(0, |vm| number(vm, "guest.pages_verified"))
    };
    fleet.until("the others go on", |figures| {
        ["verify-0", "verify-2"]
            .iter()
            .all(|name| compared(figures, name) > compared(&after, name) + 20_000)
    });
    fleet.process.signal(Signal::INT);
    let end = fleet.end(SOON);
    assert_eq!(end.status.code(), Some(1), "a killed VM is no success");
    assert_eq!(end.vm("verify-1")["exit"]["reason"], "killed");
    for name in ["verify-0", "verify-2"] {
        assert_eq!(end.vm(name)["exit"]["reason"], "stopped", "{}", end.log);
        end.check_guest(end.vm(name));
    }
    end.check_sums();
}

#[test]
fn the_vms_end_with_a_killed_run() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let mut fleet = Fleet::start(&fleet(), &[]);
    fleet.until("work", all_compare);
    let vms = fleet.process.vms();
    assert_eq!(vms.len(), 3);
    fleet.process.signal(Signal::KILL);
    wait_for("the end of its VM processes", SOON, || {
        !vms.iter().any(|(_, pid)| is_alive(*pid))
    });
    let swap: Vec<String> = fleet
        .folder
        .files()
        .into_iter()
        .filter(|name| name != "fleet.toml" && !name.ends_with(".sock"))
        .collect();
    assert!(swap.is_empty(), "{swap:?}");
}

#[test]
fn guests_outlive_the_host_manager_and_join_the_next() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let folder = Folder::new();
    let mut first = folder.host("72M");
    let mut vms = [
        folder.join("a", "48M", "seed=1"),
        folder.join("b", "48M", "seed=2"),
    ];
    // Ends by itself, with code 0 if everything it compared was right.
    let mut finite = folder.join("c", "48M", "seed=3 passes=3");
    let working = |names: &[&str]| {
        let Some(figures) = folder.ps() else {
            return false;
        };
        check_sums(&figures);
        names.iter().all(|name| {
            find_vm(&figures, name)
                .is_some_and(|vm| vm["guest"]["pages_verified"].as_u64() > Some(0))
        })
    };
    wait_for("guests at work, some of it swapped", SOON, || {
        working(&["a", "b"])
            && folder
                .vm("a")
                .is_some_and(|vm| number(&vm, "swapped_bytes") > 0)
    });
    let compared = number(&folder.vm("a").unwrap(), "guest.pages_verified");
    first.signal(Signal::KILL);
    first.wait(SOON);
    // Nobody is there while it finishes: swapped pages come back all the same.
    let status = finite.wait(SOON * 2);
    assert_eq!(
        status.code(),
        Some(0),
        "{} {}",
        describe(status),
        finite.log()
    );
    assert!(
        finite.log().contains("the guest goes on"),
        "{}",
        finite.log()
    );
    assert!(folder.ps().is_none());

    let mut second = folder.host("120M");
    wait_for("both at the next host manager", SOON, || {
        working(&["a", "b"])
    });
    wait_for("progress and full accounts", SOON, || {
        let figures = folder.ps().unwrap();
        check_sums(&figures);
        ["a", "b"].iter().all(|name| {
            find_vm(&figures, name).is_some_and(|vm| {
                number(vm, "consumed_bytes") > 8 * MIB
                    && number(vm, "guest.pages_verified") > compared + 20_000
                    && number(vm, "guest.pages_corrupt") == 0
            })
        })
    });
    // And the next one rules them: with less memory they shrink.
    let status = folder.output(&["set", "host", "memory=72M"]).status;
    assert!(status.success());
    wait_for("less consumed", SOON, || {
        let figures = folder.ps().unwrap();
        number(&figures["host"], "consumed_bytes") <= 72 * MIB
    });
    for name in ["a", "b"] {
        assert!(folder.output(&["stop", name]).status.success());
    }
    for vm in &mut vms {
        let status = vm.wait(SOON);
        assert_eq!(status.code(), Some(0), "{} {}", describe(status), vm.log());
    }
    wait_for("all memory back", SOON, || {
        let figures = folder.ps().unwrap();
        check_sums(&figures);
        number(&figures["host"], "consumed_bytes") == number(&figures["host"], "overhead_bytes")
            && number(&figures["host"], "frames_shared") == 0
    });
    second.signal(Signal::TERM);
    assert_eq!(second.wait(SOON).code(), Some(0));
    assert!(folder.files().is_empty(), "{:?}", folder.files());
}
