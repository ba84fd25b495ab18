//! The built-in test guests on the host's KVM, with plain memory behind them.

mod common;

use std::collections::BTreeSet;

use common::{Call, Capability::Kvm, TestVm, require};
use tidemark::boot::builtin;
use tidemark::boot::image::Image;
use tidemark::units::{Gfn, Pages};
use tidemark::words::ExitReason;
use tidemark_guest_protocol::NOTE_NAME;

fn image(name: &str) -> Image {
    Image::Builtin(builtin::find(name).expect("a built-in guest"))
}

#[test]
fn hello_says_so_and_ends_well() {
    let Some(host) = require(&[Kvm]) else { return };
    let vm = TestVm::start(host, image("hello"), "", 16);
    let exit = vm.wait();
    assert_eq!(
        (exit.reason, exit.code),
        (ExitReason::GuestExit, 0),
        "{exit:?}"
    );
    assert_eq!(vm.log.text(), "hello from tidemark\n");
}

#[test]
fn the_same_guest_starts_by_pvh() {
    let Some(_) = require(&[Kvm]) else { return };
    let mut file = builtin::find("hello").expect("a built-in guest").to_vec();
    // Another owner's name hides the ring-3 note.
    let at = file
        .windows(NOTE_NAME.len())
        .position(|window| window == NOTE_NAME)
        .expect("a ring-3 note");
    file[at] = b'T';
    for cpus in [1, 2] {
        // The second vCPU waits for start-up interrupts that never come, and must still end.
        let mut vm = TestVm::build_smp(Image::Owned(file.clone()), "", 16, cpus);
        vm.machine.start().expect("threads");
        let exit = vm.wait();
        assert_eq!(
            (exit.reason, exit.code),
            (ExitReason::GuestExit, 0),
            "{exit:?}"
        );
        assert_eq!(vm.log.text(), "hello from tidemark\n");
    }
}

#[test]
fn the_balloon_follows_its_target_both_ways() {
    let Some(host) = require(&[Kvm]) else { return };
    let vm = TestVm::start(host, image("idle"), "", 32);
    let balloon = vm.machine.balloon();
    vm.until("driver", |vm| vm.machine.balloon().driver_up());
    for target in [2000, 4000, 1000, 0] {
        balloon.set_target(Pages(target));
        vm.until("target", |vm| {
            vm.machine.balloon().actual() == Pages(target)
        });
        assert_eq!(vm.ballooned(), target as i64);
    }
    let mut held = BTreeSet::new();
    for call in vm.sink.calls() {
        match call {
            Call::Inflate(gfns) => {
                for gfn in gfns {
                    assert!(
                        gfn < Gfn(32 << 8) && held.insert(gfn),
                        "{gfn} twice or outside"
                    );
                }
            }
            Call::Deflate(gfns) => {
                for gfn in gfns {
                    assert!(held.remove(&gfn), "{gfn} came out but was not in");
                }
            }
            Call::ReportFree(_) => {}
        }
    }
    assert_eq!(balloon.malformed_pfns(), 0);
    assert_eq!(balloon.malformed_count(), 0);
    vm.machine.stop();
    assert_eq!(vm.wait().reason, ExitReason::Stopped);
}

#[test]
fn statistics_are_refreshed_on_request() {
    let Some(host) = require(&[Kvm]) else { return };
    let vm = TestVm::start(host, image("idle"), "", 32);
    let balloon = vm.machine.balloon();
    for n in 1..4 {
        vm.until("statistics", |vm| vm.machine.balloon().stats_updates() >= n);
        balloon.request_stats();
    }
    let stats = balloon.stats();
    assert!(
        stats
            .free_bytes
            .is_some_and(|free| free > 0 && free < 32 << 20),
        "{stats:?}"
    );
    vm.machine.stop();
    vm.wait();
}

#[test]
fn verify_reports_what_it_compared() {
    let Some(host) = require(&[Kvm]) else { return };
    let vm = TestVm::start(host, image("verify"), "passes=1", 16);
    let exit = vm.wait();
    assert_eq!(
        (exit.reason, exit.code),
        (ExitReason::GuestExit, 0),
        "{exit:?} {}",
        vm.log.text()
    );
    let report = vm.machine.console().report().expect("a report");
    assert!(report.pages_verified > 0);
    assert_eq!(report.pages_corrupt, 0);
}

#[test]
fn the_meter_says_what_it_measured() {
    let Some(host) = require(&[Kvm]) else { return };
    let options = "set=4M kinds=cuz common=8 run=2 write=25 redraw=50 seed=3 \
                   do=word,page,fill,read,read_seq,ops:1200,write,write_seq,sleep:20,verify";
    let vm = TestVm::start(host, image("meter"), options, 16);
    let exit = vm.wait();
    assert_eq!(
        (exit.reason, exit.code),
        (ExitReason::GuestExit, 0),
        "{exit:?}"
    );
    let text = vm.log.text();
    for (number, phase) in [
        (0, "word"),
        (1, "page"),
        (2, "fill"),
        (3, "read"),
        (4, "read_seq"),
        (6, "write"),
        (7, "write_seq"),
    ] {
        let line = format!("meter: phase={number} {phase} pages=1024 ns=");
        assert!(text.contains(&line), "no {line:?} in\n{text}");
    }
    assert!(
        text.contains("meter: phase=5 ops=") && text.contains(" window=1 "),
        "{text}"
    );
    assert!(text.ends_with("meter: end\n"), "{text}");
    let report = vm.machine.console().report().expect("figures");
    assert!(
        report.pages_verified > 1024 && report.pages_corrupt == 0,
        "{report:?}"
    );
}

#[test]
fn the_meter_refuses_what_it_cannot_do() {
    for options in [
        "do=fil",
        "do=verify",
        "kinds=x",
        "run=0",
        "common=-1",
        "size=4M",
    ] {
        let Some(host) = require(&[Kvm]) else { return };
        let exit = TestVm::start(host, image("meter"), options, 16).wait();
        assert_eq!(
            (exit.reason, exit.code),
            (ExitReason::GuestExit, 2),
            "{options}"
        );
    }
}
