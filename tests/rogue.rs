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
use std::time::{Duration, Instant};

use serde_json::Value;

use common::fleet::{Folder, MIB, Process, SOON, alone, find_vm, is_alive, number};
use common::{Capability::Kvm, Capability::Uffd, require, wait_for};
use tidemark::host::control;
use tidemark::host::registration::Registration;
use tidemark::link::message::LIST_MAX;
use tidemark::link::message::ToHost;
use tidemark::link::socket::{self, Link, Received};
use tidemark::sys::proc::cpu_time;
use tidemark::units::{Gfn, Pages};
use tidemark::vm::join::say_hello;
use tidemark::words::{Allocation, Holding, Key, Report, Sharing};

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
            allocation: Allocation::of(size_of_rogue()),
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
    if let Some(permille) = case.to_str().unwrap().strip_prefix("burns ") {
        return burn(permille.parse().unwrap());
    }
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
        "triples" => rogue.goes_on(|rogue| rogue.reports(Pages(3 * SIZE.0), Pages::ZERO)),
        "hints" => {
            let mut next = 0_u32;
            rogue.goes_on(|rogue| {
                for _ in 0..256 {
                    let keys = (next..).take(LIST_MAX);
                    let page = |n| (Gfn(n), Key(fastrand::u64(1..)));
                    let pages = keys.map(page).collect();
                    next = next.wrapping_add(u32::try_from(LIST_MAX).unwrap());
                    if rogue.link.send(&ToHost::Offer { pages }).is_err() {
                        return;
                    }
                }
            });
        }
        case => panic!("{case}?"),
    }
}

/// The memory that its launcher said.
fn size_of_rogue() -> Pages {
    match std::env::var(CASE).as_deref() {
        Ok("hints") => Pages::mib(4096),
        Ok("triples") => Pages::mib(128),
        _ => SIZE,
    }
}

/// Takes so many thousandths of a CPU until it is killed.
fn burn(permille: u64) {
    let period = Duration::from_millis(10);
    loop {
        let start = Instant::now();
        while start.elapsed() < period * u32::try_from(permille).unwrap() / 1000 {
            std::hint::spin_loop();
        }
        std::thread::sleep(period.saturating_sub(start.elapsed()));
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
        was_killed(rogue, figures, "its process has ")
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

/// Which rows of the table are measured, with commas between them, or `all`: `TIDEMARK_MEASURE`.
const MEASURE: &str = "TIDEMARK_MEASURE";
/// What a rogue does, and whether the budget is cut while it does that.
const ROWS: [(&str, &str, bool); 8] = [
    ("takes", "takes", false),
    ("claims", "claims", false),
    ("triples", "triples", false),
    ("overhead", "overhead", false),
    ("hoards", "hoards", false),
    ("keeps", "ignores", false),
    ("ignores", "ignores", true),
    ("hints", "hints", false),
];
/// How long each arm is, and how often it is measured.
const ARM: Duration = Duration::from_secs(6);
const ARMS: usize = 2;

/// What two good VMs do beside a rogue, against what they do beside an honest VM with its registration
/// and a process that takes as much CPU. Prints a table, and judges nothing: that takes a quiet machine.
#[test]
fn good_ones_beside_a_rogue_and_beside_an_honest_one() {
    let Some(wanted) = std::env::var_os(MEASURE) else {
        return;
    };
    let wanted = wanted.into_string().unwrap();
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let rows = ROWS
        .iter()
        .filter(|row| wanted == "all" || wanted.split(',').any(|it| it == row.0));
    for &(row, case, cut) in rows {
        measure(row, case, cut);
    }
}

fn measure(row: &str, case: &str, cut: bool) {
    let folder = Folder::new();
    let mut host = folder.host("512M");
    let mut good = GOOD.map(|name| folder.join(name, "128M", "fill=40"));
    let done = || {
        let figures = folder.ps().unwrap();
        let each = GOOD.map(|name| verified(&figures, name).unwrap_or(0));
        each.iter().sum::<u64>()
    };
    wait_for("work of the good ones", SOON, || done() > 1_000_000);
    // Pages that both verify in a second from now on.
    let arm = || {
        let (start, begin) = (Instant::now(), done());
        if cut {
            assert!(
                folder
                    .output(&["set", "host", "memory=416M"])
                    .status
                    .success()
            );
        }
        while start.elapsed() < ARM {
            std::thread::sleep(Duration::from_millis(20));
        }
        (done() - begin) as f64 / start.elapsed().as_secs_f64()
    };
    let size = match case {
        "hints" => "4G",
        "triples" => "128M",
        _ => "512M",
    };
    for _ in 0..ARMS {
        let mut rogue = start_rogue(&folder, case);
        let there = |name: &str, state: &[&str]| {
            let figures = folder.ps().unwrap();
            let vms = figures["vms"].as_array().unwrap();
            let is_it =
                |vm: &&Value| vm["name"] == name && state.contains(&vm["state"].as_str().unwrap());
            vms.iter().any(|vm| is_it(&vm))
        };
        let live = ["starting", "running", "blocked", "detached"];
        wait_for("the rogue", SOON, || there(NAME, &live));
        let begin = Instant::now();
        // What is known of its CPU time is what was seen last.
        let pid = rogue.pid();
        let watcher = std::thread::spawn(move || {
            let mut seen = Duration::ZERO;
            while begin.elapsed() < ARM && is_alive(pid) {
                seen = cpu_time(pid.cast_signed()).unwrap_or(seen);
                std::thread::sleep(Duration::from_millis(50));
            }
            (seen, begin.elapsed())
        });
        let beside_rogue = arm();
        let (cpu, lived) = watcher.join().unwrap();
        let ended = rogue.status().is_some();
        drop(rogue);
        wait_for("the end of the rogue", SOON, || !there(NAME, &live));
        let reset = folder.output(&["set", "host", "memory=512M"]);
        assert!(reset.status.success());
        let permille = (cpu.as_secs_f64() * 1000.0 / ARM.as_secs_f64()).round();
        let mut burner = Command::new(std::env::current_exe().unwrap());
        burner
            .args(["--exact", "the_rogue"])
            .env(CASE, format!("burns {permille}"))
            .stdin(Stdio::null());
        let socket = folder.socket();
        let mut honest = folder.command(&["vm", "--host", socket.to_str().unwrap()]);
        honest.args([
            "--guest",
            "idle",
            "--name",
            "honest",
            "--memory",
            size,
            "--swap-dir",
            ".",
        ]);
        let (burner, honest) = (Process::start(burner), Process::start(honest));
        wait_for("the honest one", SOON, || there("honest", &["running"]));
        let beside_honest = arm();
        drop((burner, honest));
        assert!(
            folder
                .output(&["set", "host", "memory=512M"])
                .status
                .success()
        );
        println!(
            "ROW {row}: beside the rogue {:.0} k pages/s, beside an honest one {:.0} k: {:.1} %; the rogue \
             took {permille} thousandths of a CPU, {}",
            beside_rogue / 1e3,
            beside_honest / 1e3,
            100.0 * beside_rogue / beside_honest,
            match ended {
                true => format!("was ended after {:.1} s", lived.as_secs_f64()),
                false => "lived".to_owned(),
            }
        );
    }
    for (name, vm) in GOOD.iter().zip(&mut good) {
        assert!(folder.output(&["stop", name]).status.success());
        assert_eq!(vm.wait(SOON).code(), Some(0), "{}", vm.log());
    }
    host.signal(rustix::process::Signal::TERM);
    assert_eq!(host.wait(SOON).code(), Some(0));
}
