//! What it costs to start and to keep a VM process, seen from outside through the `tidemark`
//! program. Not criterion's: every figure is the median, least and most of a number of runs.
//!
//! | figure | unit |
//! |---|---|
//! | `run/start` | ms from the start of a VM process's program to its guest's first instruction |
//! | `run/boot` | ms from the fork of the VM process to its guest's first serial byte, as `run` sees it |
//! | `run/wall` | ms from the exec of `tidemark run` to the guest's first line on our side of the pipe |
//! | `run/idle/*` | KiB of a VM process beside its idle guest's RAM, and of the host manager |
//!
//! 20 runs of a `hello` guest with 64 MiB, then three seconds of an `idle` guest with 256 MiB.
//! Private memory is what smaps calls anonymous in every mapping but the guest's RAM; the files
//! (program and libraries) are shared by all processes of a fleet.

mod common;

use std::fs;
use std::io::{self, Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::Capability;
use serde_json::Value;

const RUNS: usize = 20;
/// Mappings at least this large, KiB, are guest RAM, or the view of the frame pool.
const RAM_KIB: u64 = 256 << 10;

fn tidemark(arguments: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_tidemark"))
        .args(arguments.split(' '))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts")
}

/// The closing object of a run.
fn closing(child: &mut Child) -> Value {
    let mut text = String::new();
    let stdout = child.stdout.as_mut().expect("it is piped");
    stdout.read_to_string(&mut text).expect("a pipe");
    assert!(child.wait().expect("our child").success(), "{text}");
    serde_json::from_str(&text).expect("one JSON object")
}

fn show(name: &str, unit: &str, mut figures: Vec<f64>) {
    figures.sort_by(f64::total_cmp);
    let at = |part: usize| figures[part * (figures.len() - 1) / 4];
    let _gone = writeln!(
        io::stdout(),
        "{name:<24} median {:>9.2} {unit}   quartiles {:.2} .. {:.2}   range {:.2} .. {:.2}   n {}",
        at(2),
        at(1),
        at(3),
        at(0),
        at(4),
        figures.len()
    );
}

fn boot() {
    let (mut wall, mut start, mut boot) = (vec![], vec![], vec![]);
    // The first run reads the program from the disk.
    for run in 0..=RUNS {
        let begin = Instant::now();
        let mut child = tidemark("run --guest hello --memory 64M --json");
        let mut byte = [0];
        let stderr = child.stderr.as_mut().expect("it is piped");
        stderr
            .read_exact(&mut byte)
            .expect("the guest says something");
        let seen = begin.elapsed();
        let vm = &closing(&mut child)["vms"][0];
        if run > 0 {
            wall.push(seen.as_secs_f64() * 1e3);
            start.push(vm["start_ms"].as_f64().expect("it ran"));
            boot.push(vm["boot_ms"].as_f64().expect("it wrote"));
        }
    }
    show("run/start", "ms", start);
    show("run/boot", "ms", boot);
    show("run/wall", "ms", wall);
}

/// Anonymous KiB beside guest RAM, and KiB of page tables.
fn memory(pid: u32) -> (f64, f64) {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("a live process");
    let kib = |line: &str| {
        line.split_whitespace()
            .nth(1)
            .and_then(|word| word.parse().ok())
    };
    let (mut private, mut size) = (0u64, 0u64);
    for line in smaps.lines() {
        if line.starts_with("Size:") {
            size = kib(line).expect("a size");
        } else if line.starts_with("Anonymous:") && size < RAM_KIB {
            private += kib(line).expect("a size");
        }
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a live process");
    let tables = status.lines().find(|line| line.starts_with("VmPTE:"));
    let tables: u64 = tables.and_then(kib).expect("page tables");
    #[expect(clippy::cast_precision_loss, reason = "some MiB in KiB")]
    (private as f64, tables as f64)
}

/// The only child of a process.
fn child_of(pid: u32) -> u32 {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.expect("a live process");
    children.trim().parse().expect("one child")
}

fn idle() {
    let mut child = tidemark("run --guest idle --memory 256M --for 3s --json");
    std::thread::sleep(Duration::from_secs(2));
    let (host, host_tables) = memory(child.id());
    let (vm, vm_tables) = memory(child_of(child.id()));
    closing(&mut child);
    show("run/idle/vm_private", "KiB", vec![vm]);
    show("run/idle/vm_tables", "KiB", vec![vm_tables]);
    show("run/idle/host_private", "KiB", vec![host]);
    show("run/idle/host_tables", "KiB", vec![host_tables]);
}

fn main() {
    // `cargo test --benches` only wants to know that it links.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    if common::require(&[Capability::Kvm, Capability::Uffd]).is_some() {
        boot();
        idle();
    }
}
