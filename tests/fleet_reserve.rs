//! Memory promised before its VM exists: a lease keeps others out, squeezes them, and ends with its
//! owner.
#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers are tests too: a panic is their way to fail"
)]

mod common;

use common::Capability::{Kvm, Uffd};
use common::fleet::{Folder, MIB, Process, SOON, alone, check_sums, number};
use common::{require, wait_for};
use rustix::process::Signal;
use serde_json::Value;

/// A host manager that the other verbs find by themselves.
fn host(folder: &Folder, memory: &str) -> Process {
    let process = Process::start(folder.command(&["host", "--memory", memory]));
    wait_for("the host manager", SOON, || {
        process.log().contains("listens at")
    });
    process
}

fn vm(folder: &Folder, name: &str, more: &[&str]) -> Process {
    let args = ["vm", "--swap-dir", ".", "--memory", "64M", "--name", name];
    Process::start(folder.command(&[&args, more].concat()))
}

/// A VM that is promised 60 of its 64 MiB.
fn promised(folder: &Folder, name: &str) -> Process {
    vm(
        folder,
        name,
        &[
            "--guest",
            "verify",
            "--reservation",
            "60M",
            "--cmdline",
            "seed=1 fill=50",
        ],
    )
}

/// `tidemark reserve`, and the lease it printed.
fn reserve(folder: &Folder, args: &[&str]) -> (Process, Value) {
    let process = Process::start(folder.command(&[&["reserve", "--json"], args].concat()));
    wait_for("the lease", SOON, || process.stdout().ends_with('\n'));
    let lease = serde_json::from_str(&process.stdout()).unwrap();
    (process, lease)
}

fn leased(folder: &Folder) -> u64 {
    number(&folder.ps().unwrap(), "host.leased_bytes")
}

/// The VM must be turned away, with the figures that say why.
fn refused(mut vm: Process, name: &str) {
    let status = vm.wait(SOON);
    let said = vm.log();
    assert_eq!(status.code(), Some(1), "{said}");
    for word in [
        name, "admit", "60.0 MiB", "90.0 MiB", "reserv", "overhead", "promised",
    ] {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
}

fn works(folder: &Folder, name: &str) {
    wait_for(&format!("work of {name}"), SOON, || {
        folder
            .vm(name)
            .is_some_and(|vm| vm["guest"]["pages_verified"].as_u64() > Some(0))
    });
    let vm = folder.vm(name).unwrap();
    assert_eq!(number(&vm, "guest.pages_corrupt"), 0, "{vm}");
    check_sums(&folder.ps().unwrap());
}

#[test]
fn a_lease_keeps_others_out_until_its_owner_dies() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let folder = Folder::new();
    let _manager = host(&folder, "90M");
    assert_eq!(leased(&folder), 0);
    let (mut owner, lease) = reserve(&folder, &["32M"]);
    assert_eq!(number(&lease, "reservation_bytes"), 32 * MIB);
    assert_eq!(
        leased(&folder),
        number(&lease, "reservation_bytes") + number(&lease, "overhead_bytes")
    );
    refused(promised(&folder, "late"), "late");
    // So is another lease; the refused leave the first as it was.
    let said = folder.fails(&["reserve", "64M"], 1);
    for word in ["64.0 MiB", "90.0 MiB", "reserv", "overhead", "promised"] {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
    assert!(leased(&folder) >= 32 * MIB);
    assert!(owner.status().is_none());
    owner.signal(Signal::KILL);
    owner.wait(SOON);
    wait_for("the end of the lease", SOON, || leased(&folder) == 0);
    let _vm = promised(&folder, "late");
    works(&folder, "late");
}

#[test]
fn a_lease_is_redeemed_once_and_becomes_the_reservation() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let folder = Folder::new();
    let _manager = host(&folder, "90M");
    let (mut owner, lease) = reserve(&folder, &["32M"]);
    let token = lease["token"].as_str().unwrap();
    let redeem = |name: &str| {
        vm(
            &folder,
            name,
            &[
                "--guest",
                "verify",
                "--lease",
                token,
                "--cmdline",
                "seed=2 fill=50",
            ],
        )
    };
    let _vm = redeem("heir");
    works(&folder, "heir");
    assert_eq!(leased(&folder), 0);
    assert_eq!(owner.wait(SOON).code(), Some(0), "{}", owner.log());
    assert!(owner.log().contains("redeemed by heir"), "{}", owner.log());
    // What was leased is promised still, now to the VM.
    refused(promised(&folder, "late"), "late");
    let mut again = redeem("again");
    assert_eq!(again.wait(SOON).code(), Some(1), "{}", again.log());
    assert!(again.log().contains("no lease"), "{}", again.log());
    // The number in the messages is no token.
    let id = lease["lease"].to_string();
    let args = ["vm", "--guest", "idle", "--name", "thief", "--lease", &id];
    let output = folder.output(&args);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("32 hexadecimal digits"));
    assert!(folder.output(&["stop", "heir"]).status.success());
    wait_for("the end of heir", SOON, || {
        folder.vm("heir").is_none_or(|vm| vm["state"] == "ended")
    });
    let _late = promised(&folder, "late");
    works(&folder, "late");
}

#[test]
fn a_lease_squeezes_who_holds_its_memory_and_ends_in_time() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let folder = Folder::new();
    let _manager = host(&folder, "80M");
    let full = [
        "--guest",
        "verify",
        "--cmdline",
        "seed=3 fill=85 zero=0 dup=0",
    ];
    let _vm = vm(&folder, "full", &full);
    let consumed = || number(&folder.vm("full").unwrap(), "consumed_bytes");
    wait_for("memory in use", SOON, || {
        folder.vm("full").is_some() && consumed() > 50 * MIB
    });
    // No more than can be promised, which is less than asked.
    let (mut owner, lease) = reserve(&folder, &["40M", "--max", "512M", "--for", "6s"]);
    let promised = number(&lease, "reservation_bytes");
    assert!((40 * MIB..80 * MIB).contains(&promised), "{lease}");
    // A lease gets what the overheads leave when it is taken, and the VM's grows as it is swapped.
    wait_for("memory for the lease", SOON, || {
        let figures = folder.ps().unwrap();
        check_sums(&figures);
        let host = &figures["host"];
        let leased = number(host, "leased_bytes");
        leased >= promised
            && number(host, "consumed_bytes") + leased <= number(host, "memory_bytes") + MIB
    });
    assert!(consumed() < 40 * MIB, "{}", consumed());
    assert_eq!(owner.wait(SOON).code(), Some(0), "{}", owner.log());
    assert!(owner.log().contains("expired"), "{}", owner.log());
    assert_eq!(leased(&folder), 0);
    let verified = || number(&folder.vm("full").unwrap(), "guest.pages_verified");
    let before = verified();
    wait_for("progress", SOON, || verified() > before);
    works(&folder, "full");
}
