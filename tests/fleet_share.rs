//! Sharing across VMs, seen from outside: who shares, who does not, and what writes do to it.

mod common;

use common::Capability::{Kvm, Uffd};
use common::fleet::{Fleet, MIB, SOON, alone, find_vm, number};
use common::require;

/// What a `duplicate` or `zeros` guest of 32 MiB fills: 80 %.
const FILL: u64 = 32 * MIB * 8 / 10;

fn two(group: [&str; 2], guest: &str, cmdline: &str) -> String {
    let vm = |name: &str, group: &str| {
        let group = match group {
            "" => String::new(),
            group => format!("share_group = \"{group}\""),
        };
        format!(
            "[[vm]]\nname = \"{name}\"\nmemory = \"32M\"\nguest = \"{guest}\"\n\
             cmdline = \"{cmdline}\"\n{group}\n"
        )
    };
    format!(
        "[host]\nmemory = \"256M\"\nswap_dir = \".\"\n{}{}",
        vm("a", group[0]),
        vm("b", group[1])
    )
}

#[test]
fn equal_guests_of_one_group_share_nearly_everything() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let mut fleet = Fleet::start(&two(["g", "g"], "duplicate", "pause_ms=200"), &[]);
    let figures = fleet.until("sharing", |figures| {
        let saved: Option<u64> = ["a", "b"]
            .iter()
            .map(|name| find_vm(figures, name)?["saved_bytes"].as_u64())
            .sum();
        // What one guest fills is there once instead of twice. (A frame that nobody holds any more is
        // there for some time yet.)
        let host = &figures["host"];
        saved.is_some_and(|saved| saved >= FILL * 95 / 100)
            && number(host, "pages_sharing") >= number(host, "frames_shared") * 19 / 10
    });
    let saved: u64 = ["a", "b"]
        .iter()
        .map(|name| number(find_vm(&figures, name).unwrap(), "saved_bytes"))
        .sum();
    assert!(saved <= FILL + MIB, "{figures}");
    let host = &figures["host"];
    assert!(number(host, "frames_shared") * 4096 >= FILL * 95 / 100);
    let compared = number(find_vm(&figures, "a").unwrap(), "guest.pages_verified");
    fleet.until("another pass over what is shared", |figures| {
        find_vm(figures, "a")
            .is_some_and(|vm| number(vm, "guest.pages_verified") > compared + FILL / 4096)
    });
    fleet.process.signal(rustix::process::Signal::INT);
    let end = fleet.end(SOON);
    end.check();
    // Nobody writes its data; a few pages of the program itself are equal in both at first.
    assert!(end.sum("cow_breaks") < 64, "{}", end.figures);
}

#[test]
fn nothing_is_shared_across_groups() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    for group in [["g", "h"], ["", ""]] {
        let fleet = Fleet::start(&two(group, "duplicate", "pause_ms=200"), &["--for", "7s"]);
        let end = fleet.end(SOON);
        end.check();
        // The data of one guest differs from page to page; a few pages beside it may not.
        let host = &end.figures["host"];
        assert!(number(host, "pages_sharing") < 64, "{host}");
        assert!(end.sum("saved_bytes") < MIB, "{}", end.figures);
        assert!(
            end.sum("private_bytes") > 2 * FILL * 95 / 100,
            "{}",
            end.figures
        );
    }
}

#[test]
fn writes_break_sharing_and_nothing_else() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let toml = two(["g", "g"], "duplicate", "pause_ms=1000 write=10");
    let end = Fleet::start(&toml, &["--for", "12s"]).end(SOON);
    end.check();
    for name in ["a", "b"] {
        let vm = end.vm(name);
        // A tenth of the pages in every pass.
        assert!(number(vm, "cow_breaks") > 500, "{vm}");
        assert!(number(vm, "peak.saved_bytes") > FILL / 4, "{vm}");
        assert!(number(vm, "guest.pages_verified") > 2 * FILL / 4096, "{vm}");
    }
}

#[test]
fn zero_pages_take_no_memory() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let mut fleet = Fleet::start(&two(["", ""], "zeros", "pause_ms=300"), &[]);
    let gone = |vm: &serde_json::Value| {
        vm["zero_bytes"].as_u64() >= Some(FILL * 95 / 100)
            && vm["consumed_bytes"].as_u64() < Some(4 * MIB)
    };
    let figures = fleet.until("zero pages gone", |figures| {
        ["a", "b"]
            .iter()
            .all(|name| find_vm(figures, name).is_some_and(gone))
    });
    let compared = number(find_vm(&figures, "a").unwrap(), "guest.pages_verified");
    fleet.until("another pass over them", |figures| {
        find_vm(figures, "a")
            .is_some_and(|vm| number(vm, "guest.pages_verified") > compared + FILL / 4096)
    });
    fleet.process.signal(rustix::process::Signal::INT);
    fleet.end(SOON).check();
}
