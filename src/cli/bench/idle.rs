//! What tidemark itself needs: for guests that rest, for a host manager that is asked while guests
//! fill, for its index of pages, for the demo.
//!
//! | row | figure |
//! |---|---|
//! | `idle_cpu_ms` | CPU a second of the process of a VM that rests; the plain arm's is in the notes |
//! | `idle_memory_mib` | memory that such a VM takes from the host (MemAvailable), less what its guest works on; what its process alone has, page tables included, is in the notes. Only right while nothing else on the machine takes memory |
//! | `ps_busy_ms` | what `ps` takes while 100 guests fill, median of a run |
//! | `index_bytes` | bytes that the host manager grows by for each page that was offered to it |
//! | `demo_overhead_percent` | share of the CPU time outside vCPU threads, in the demo |

use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;

use super::cpu::{self, Threads};
use super::fleet::{Arm, Fleet, Guest};
use super::row::{Better, Row, Spread};
use super::{Bench, Error};
use crate::sys::proc;
use crate::words::Advice;

/// The rows.
pub(super) const KEYS: &[&str] = &[
    "idle_cpu_ms",
    "idle_memory_mib",
    "ps_busy_ms",
    "index_bytes",
    "demo_overhead_percent",
];

/// Guests that rest.
const IDLE: u32 = 20;
/// Guests that fill, and how much.
const FILLING: u32 = 100;
const FILLED_BYTES: u64 = 64 << 20;
/// How often `ps` is asked at most.
const ASKED: usize = 100;
/// Guests whose pages are offered, and how much memory each has.
const OFFERING: u32 = 2;
const OFFERED_BYTES: u64 = 128 << 20;
/// Memory of a guest that rests, unless said otherwise.
pub(super) const SIZE: u64 = 4 << 20;
/// Time in which everything has settled.
const SETTLED: Duration = Duration::from_secs(5);
/// Time without growth after which the host manager's index is complete.
const STILL: Duration = Duration::from_secs(3);
const DEMO: &str = include_str!("../../../examples/demo.toml");
const DEMO_BYTES: u64 = 512 << 20;

/// Measures the rows that are wanted.
pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Row>, Error> {
    let mut rows = Vec::new();
    if bench.wants("idle_cpu_ms") || bench.wants("idle_memory_mib") {
        rows.extend(idle(bench)?);
    }
    if bench.wants("ps_busy_ms") {
        rows.push(absolute(bench, "ps_busy_ms", "ms", ps_busy)?);
    }
    if bench.wants("index_bytes") {
        rows.push(absolute(bench, "index_bytes", "bytes", index_bytes)?);
    }
    if bench.wants("demo_overhead_percent") {
        let key = "demo_overhead_percent";
        rows.push(absolute(bench, key, "%", demo_overhead)?);
    }
    rows.retain(|row| bench.wants(row.key));
    Ok(rows)
}

fn absolute(
    bench: &Bench<'_>,
    key: &'static str,
    unit: &'static str,
    run: fn(&Bench<'_>) -> Result<f64, Error>,
) -> Result<Row, Error> {
    let mut figures = Vec::new();
    for number in 1..=bench.flags.runs {
        bench.say(&format!("{key}: run {number} of {}", bench.flags.runs));
        figures.push(run(bench)?);
    }
    Ok(Row::new(key, unit, Better::Lower, figures))
}

fn pass(fleet: &mut Fleet<'_>, time: Duration) -> Result<(), Error> {
    let start = Instant::now();
    fleet.until("some time", |_| (start.elapsed() >= time).then_some(()))
}

/// CPU in ms a second, memory from the host in MiB, and that of the process, of one guest that rests.
fn rest(bench: &Bench<'_>, arm: Arm) -> Result<[f64; 3], Error> {
    let set = bench.size;
    let guests = Guest::several(IDLE, arm, set, "do=fill,sleep:3600000");
    let available = || proc::meminfo("MemAvailable").bytes();
    let before = available();
    let mut fleet = Fleet::start(bench, &guests)?;
    fleet.fill(&guests)?;
    pass(&mut fleet, SETTLED)?;
    let time = Duration::from_secs(u64::from(bench.flags.seconds));
    let pids = fleet.vm_processes();
    let spent = || pids.iter().map(|&pid| cpu::time(pid, Threads::All)).sum();
    let (start, before_cpu): (_, Duration) = (Instant::now(), spent());
    pass(&mut fleet, time)?;
    let cpu: Duration = spent() - before_cpu;
    let seconds = start.elapsed().as_secs_f64();
    let taken = before.saturating_sub(available());
    let own: u64 = pids.iter().map(|&pid| process_bytes(pid)).sum();
    fleet.stop()?;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let of_one = |bytes: u64| (bytes as f64 / f64::from(IDLE) - set as f64) / f64::from(1 << 20);
    let cpu = cpu.as_secs_f64() * 1e3 / seconds / f64::from(IDLE);
    Ok([cpu, of_one(taken), of_one(own)])
}

/// Memory that only this process has, and its page tables.
fn process_bytes(pid: i32) -> u64 {
    let read = |name| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let (rollup, status) = (read("smaps_rollup"), read("status"));
    let sizes = [
        proc::size(&rollup, "Private_Clean"),
        proc::size(&rollup, "Private_Dirty"),
        proc::size(&status, "VmPTE"),
    ];
    sizes.into_iter().flatten().map(|pages| pages.bytes()).sum()
}

fn idle(bench: &Bench<'_>) -> Result<[Row; 2], Error> {
    let (ours, plain) = bench.alternate("idle guests", 0, |side| {
        let arm = match side {
            super::Side::Ours => Arm::Managed,
            super::Side::Peer => Arm::Plain(Advice::NoHugePage),
        };
        rest(bench, arm)
    })?;
    let row = |key, unit, figure: fn(&[f64; 3]) -> f64| {
        let mut row = Row::new(key, unit, Better::Lower, ours.iter().map(figure).collect());
        let plain: Vec<f64> = plain.iter().map(figure).collect();
        row.note(
            "plain",
            json!(Spread::of(&plain).map(|spread| spread.median)),
        );
        row.note("guests", json!(IDLE));
        row
    };
    let cpu = row("idle_cpu_ms", "ms/s", |figures| figures[0]);
    let mut memory = row("idle_memory_mib", "MiB", |figures| figures[1]);
    for (name, runs) in [("process_mib", &ours), ("plain_process_mib", &plain)] {
        let own: Vec<f64> = runs.iter().map(|figures| figures[2]).collect();
        memory.note(name, json!(Spread::of(&own).map(|spread| spread.median)));
    }
    Ok([cpu, memory])
}

fn ps_busy(bench: &Bench<'_>) -> Result<f64, Error> {
    let options = "do=fill,sleep:3600000";
    let guests = Guest::several(FILLING, Arm::Managed, FILLED_BYTES, options);
    let last = format!("g{}", FILLING - 1);
    let mut fleet = Fleet::start(bench, &guests)?;
    let mut times = Vec::new();
    // While the guest fills that was started last.
    fleet.until("a full guest", |fleet| {
        let said = fleet.said(&last);
        if said.begun == 0 {
            return None;
        }
        let start = Instant::now();
        if fleet.figures().is_some() {
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        let enough = said.phase(0).is_some() || times.len() >= ASKED;
        enough.then_some(())
    })?;
    fleet.stop()?;
    let median = Spread::of(&times).map(|spread| spread.median);
    median.ok_or_else(|| Error::Fleet {
        what: "`ps`".to_owned(),
        why: "it was never answered".to_owned(),
    })
}

fn index_bytes(bench: &Bench<'_>) -> Result<f64, Error> {
    let options = "do=fill,sleep:3600000";
    let guests = Guest::several(OFFERING, Arm::Managed, OFFERED_BYTES, options);
    let mut fleet = Fleet::start(bench, &guests)?;
    let own = |fleet: &Fleet<'_>| proc::anonymous(fleet.host_process()).bytes();
    let before = fleet.until("a host manager", |fleet| {
        let joined = fleet.figures()?.vms.len() == guests.len();
        joined.then(|| own(fleet))
    })?;
    fleet.fill(&guests)?;
    let (mut most, mut since) = (0, Instant::now());
    fleet.until("a complete index", |fleet| {
        let now = own(fleet);
        if now > most {
            (most, since) = (now, Instant::now());
        }
        (since.elapsed() >= STILL).then_some(())
    })?;
    fleet.stop()?;
    let pages = u64::from(OFFERING) * OFFERED_BYTES / 4096;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let bytes = most.saturating_sub(before) as f64 / pages as f64;
    Ok(bytes)
}

fn demo_overhead(bench: &Bench<'_>) -> Result<f64, Error> {
    // Its swap files go where everything else of the bench is.
    let text = DEMO.replacen("[host]", "[host]\nswap_dir = \".\"", 1);
    let mut fleet = Fleet::of(bench, &text, DEMO_BYTES)?;
    let time = 3 * Duration::from_secs(u64::from(bench.flags.seconds));
    pass(&mut fleet, time)?;
    let all = fleet.cpu(Threads::All).as_secs_f64();
    let outside = fleet.cpu(Threads::AllButVcpus).as_secs_f64();
    fleet.stop()?;
    Ok(100.0 * outside / all)
}
