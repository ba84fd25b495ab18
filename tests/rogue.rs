//! A VM process that was let in and then does what it likes: the other VMs keep their part.
//!
//! The rogue is a process of its own (this test program, started again), since the host manager
//! measures processes and kills them.
#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers are tests too: a panic is their way to fail"
)]

mod common;

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use common::fleet::{Folder, MIB, Process, SOON, alone, find_vm, number};
use common::{Capability::Kvm, Capability::Uffd, require, wait_for};
use tidemark::host::control;
use tidemark::host::registration::Registration;
use tidemark::link::message::ToHost;
use tidemark::link::socket::{self, Link, Received};
use tidemark::units::Pages;
use tidemark::vm::join::say_hello;
use tidemark::words::{Allocation, Holding, Report, Sharing};

/// What the rogue does, and where its host manager listens.
const CASE: &str = "TIDEMARK_TEST_ROGUE";
const SOCKET: &str = "TIDEMARK_TEST_ROGUE_SOCKET";
/// Its name and memory.
const NAME: &str = "rogue";
const SIZE: Pages = Pages::mib(512);
/// Memory that it takes without a word.
const TAKEN: usize = 400 << 20;
const GOOD: [&str; 2] = ["good-0", "good-1"];

/// The rogue's side.
struct Rogue {
    link: Link,
}

impl Rogue {
    fn join() -> Rogue {
        let path = PathBuf::from(std::env::var_os(SOCKET).unwrap());
        let (ours, theirs) = socket::pair().unwrap();
        let link = Link::new(ours).unwrap();
        say_hello(&link).unwrap();
        let registration = Registration {
            name: NAME.to_owned(),
            allocation: Allocation::of(SIZE),
            managed: true,
            share_group: None,
            sharing: Sharing::default(),
            lease: None,
        };
        control::join(&path, registration, None, theirs).unwrap();
        Rogue { link }
    }

    fn says(&self, message: &ToHost) {
        self.link.send(message).unwrap();
    }

    fn reports(&self, private: Pages, overhead: Pages) {
        let report = Report {
            holding: Holding::private(private),
            overhead,
            ..Report::default()
        };
        self.says(&ToHost::Report(Box::new(report)));
    }

    /// Hears everything and obeys nothing, for as long as it is let.
    fn goes_on(&self, mut each: impl FnMut(&Rogue)) {
        let tenth = Duration::from_millis(100);
        while !matches!(self.link.recv(Some(tenth)), Err(_) | Ok(Received::Closed)) {
            each(self);
        }
    }
}

/// The program that was run again.
#[test]
fn the_rogue() {
    let Some(case) = std::env::var_os(CASE) else {
        return;
    };
    let rogue = Rogue::join();
    match case.to_str().unwrap() {
        "takes" => {
            let memory = vec![1_u8; TAKEN];
            rogue.goes_on(|rogue| rogue.reports(Pages::ZERO, Pages::ZERO));
            drop(memory);
        }
        "claims" => rogue.goes_on(|rogue| rogue.reports(SIZE, Pages::ZERO)),
        "overhead" => rogue.goes_on(|rogue| rogue.reports(Pages::ZERO, SIZE)),
        "hoards" => {
            rogue.says(&ToHost::CreditRequest { pages: SIZE });
            rogue.goes_on(|rogue| rogue.reports(Pages::ZERO, Pages::ZERO));
        }
        "ignores" => {
            rogue.says(&ToHost::CreditRequest { pages: SIZE });
            // Who runs is known by the CPU time that it takes.
            rogue.goes_on(|_| (0..1 << 27).for_each(|n| _ = std::hint::black_box(n)));
        }
        case => panic!("{case}?"),
    }
}

fn start_rogue(folder: &Folder, case: &str) -> Process {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "the_rogue", "--nocapture"])
        .env(CASE, case)
        .env(SOCKET, folder.socket())
        .stdin(Stdio::null());
    Process::start(command)
}

fn verified(figures: &Value, name: &str) -> Option<u64> {
    find_vm(figures, name)?["guest"]["pages_verified"].as_u64()
}

/// Two good VMs that need some 45 MiB each, of which `memory` has enough, beside the rogue: until
/// `seen` of it and the figures, and then until the good ones have done some more.
fn beside(memory: &str, case: &str, mut seen: impl FnMut(&Folder, &mut Process, &Value) -> bool) {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let folder = Folder::new();
    let mut host = folder.host(memory);
    let mut good = GOOD.map(|name| folder.join(name, "128M", "fill=40"));
    let work = |folder: &Folder, more: u64| {
        let begin = folder.ps().unwrap();
        let done = |figures: &Value| {
            let so_far = |figures, name| verified(figures, name).unwrap_or(0);
            GOOD.iter()
                .all(|name| so_far(figures, name) >= so_far(&begin, name) + more)
        };
        wait_for("work of the good ones", 2 * SOON, || {
            folder.ps().is_some_and(|figures| done(&figures))
        });
    };
    work(&folder, 1);
    let mut rogue = start_rogue(&folder, case);
    wait_for("what becomes of the rogue", 2 * SOON, || {
        folder
            .ps()
            .is_some_and(|figures| seen(&folder, &mut rogue, &figures))
    });
    work(&folder, 50_000);
    let figures = folder.ps().unwrap();
    for name in GOOD {
        let vm = find_vm(&figures, name).unwrap();
        assert!(number(vm, "target_bytes") >= 45 * MIB, "{vm}");
        assert_eq!(number(vm, "guest.pages_corrupt"), 0, "{vm}");
    }
    drop(rogue);
    for (name, vm) in GOOD.iter().zip(&mut good) {
        assert!(folder.output(&["stop", name]).status.success());
        assert_eq!(vm.wait(SOON).code(), Some(0), "{}", vm.log());
    }
    host.signal(rustix::process::Signal::TERM);
    assert_eq!(host.wait(SOON).code(), Some(0));
}

/// How the host manager says that it killed the rogue.
fn was_killed(rogue: &mut Process, figures: &Value, why: &str) -> bool {
    let exit = |figures: &Value| {
        let vm = find_vm(figures, NAME)?;
        let exit = &vm["exit"];
        (exit["reason"] == "killed").then(|| exit["message"].to_string())
    };
    rogue.status().is_some() && exit(figures).is_some_and(|message| message.contains(why))
}

#[test]
fn who_takes_memory_without_a_word_is_killed() {
    beside("512M", "takes", |_, rogue, figures| {
        was_killed(rogue, figures, "its process has 4")
    });
}

#[test]
fn who_claims_what_it_was_not_granted_is_killed() {
    beside("512M", "claims", |_, rogue, figures| {
        was_killed(rogue, figures, "its process has 512.0 MiB")
    });
}

#[test]
fn a_claimed_overhead_is_worth_what_the_process_has() {
    beside("512M", "overhead", |_, _, figures| {
        let told = |vm: &Value| number(vm, "overhead_bytes") > 0;
        let host = number(&figures["host"], "overhead_bytes");
        find_vm(figures, NAME).is_some_and(told) && host < 64 * MIB
    });
}

/// It may have what nobody needs, and that counts as its own.
#[test]
fn who_keeps_credit_unused_takes_none_of_the_others() {
    beside("512M", "hoards", |_, _, figures| {
        find_vm(figures, NAME).is_some_and(|vm| number(vm, "credit_bytes") > 256 * MIB)
    });
}

#[test]
fn who_ignores_that_it_is_told_to_give_is_killed() {
    let mut told = false;
    beside("512M", "ignores", |folder, rogue, figures| {
        let has_much = |vm: &Value| number(vm, "credit_bytes") > 256 * MIB;
        if !told && find_vm(figures, NAME).is_some_and(has_much) {
            told = folder
                .output(&["set", "host", "memory=416M"])
                .status
                .success();
        }
        was_killed(rogue, figures, "it has kept all")
    });
}
