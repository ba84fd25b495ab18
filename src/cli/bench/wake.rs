//! Out to disk and back, beside the kernel's swap.
//!
//! A guest fills its memory with what does not compress, and rests. Its memory is taken: ours by a
//! limit of next to nothing, which is then lifted; the peer's, in the plain arm, by MADV_PAGEOUT from
//! outside, to a swap file beside ours. Then the guest wakes and reads a word of every page.
//!
//! | row | figure |
//! |---|---|
//! | `out` | from the order until four fifths of it are out, their writes done |
//! | `in_disk_p50`, `in_disk_p99` | one page of which no neighbour is read: one in 128, in random order |
//! | `wake_random`, `wake_seq` | all pages, in random order, in order |
//!
//! What the kernel has written out stays in its swap cache for a while, and would come back without
//! a read. So the peer's VM is in a memory cgroup, which is emptied before the guest wakes, and a run
//! in which the kernel read fewer than nine tenths of the pages is none.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;

use super::cgroup::Group;
use super::fleet::{Arm, Fleet, Guest};
use super::meter::Pages;
use super::row::{Better, Ran, Row};
use super::{Bench, Error, Side};
use crate::sys::kernel_swap::{SwapArea, page_out};
use crate::sys::proc::{anonymous, vmstat};
use crate::words::Advice;

/// The rows.
pub(super) const KEYS: &[&str] = &[
    "out",
    "in_disk_p50",
    "in_disk_p99",
    "wake_random",
    "wake_seq",
];

/// Memory of the guest, unless said otherwise.
pub(super) const SIZE: u64 = 64 << 20;
/// How long a guest of [`SIZE`] rests: in this time it must be taken out.
const REST_MS: u64 = 12_000;
/// A small one rests at least so long.
const REST_MS_MIN: u64 = 6_000;
/// Position of the reads among the phases.
const READS: u64 = 2;
/// From one look at what is left of it to the next.
const OUT_LOOK: Duration = Duration::from_millis(1);
/// What we leave the guest, bytes: its program and its tables.
const LIMIT: u64 = 2 << 20;

/// It is out when this much of it is, bytes: what a small guest may keep, and what the VM process needs
/// for the writing, is less than the rest.
fn most(set: u64) -> u64 {
    set / 5 * 4
}

/// One arm.
#[derive(Debug, Clone, Copy)]
struct Woken {
    out: Duration,
    reads: Pages,
}

/// Both arms of one order.
struct Both {
    ours: Vec<Woken>,
    peer: Ran<Woken>,
}

impl Both {
    fn measure(bench: &Bench<'_>, order: &str) -> Result<Both, Error> {
        let (ours, theirs) = bench.alternate(order, 0, |side| match side {
            Side::Ours => managed(bench, order).map(Ok),
            Side::Peer => kernel(bench, order),
        })?;
        let ours: Result<_, String> = ours.into_iter().collect();
        Ok(Both {
            ours: ours.unwrap_or_default(),
            peer: Ran::of(theirs),
        })
    }

    fn row(&self, key: &'static str, unit: &'static str, figure: fn(&Woken) -> f64) -> Row {
        let figures = |runs: &[Woken]| runs.iter().map(figure).collect::<Vec<f64>>();
        let mut row = Row::new(key, unit, Better::Lower, figures(&self.ours));
        row.beside(&self.peer, figures);
        let cluster = fs::read_to_string("/proc/sys/vm/page-cluster").unwrap_or_default();
        row.peer_is = format!(
            "the kernel's swap file, by MADV_PAGEOUT, page-cluster {}",
            cluster.trim()
        );
        row.note("pages", json!(self.ours.first().map(|run| run.reads.pages)));
        row
    }
}

/// Measures the rows that are wanted.
pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Row>, Error> {
    let mut rows = Vec::new();
    if bench.wants("in_disk_p50") || bench.wants("in_disk_p99") {
        let both = Both::measure(bench, "read_sparse")?;
        #[expect(clippy::cast_precision_loss, reason = "times far below 2^53 ns")]
        rows.extend([
            both.row("in_disk_p50", "us", |run| run.reads.p50 as f64 / 1e3),
            both.row("in_disk_p99", "us", |run| run.reads.p99 as f64 / 1e3),
        ]);
    }
    if bench.wants("out") || bench.wants("wake_random") {
        let both = Both::measure(bench, "read")?;
        #[expect(clippy::cast_precision_loss, reason = "times far below 2^53 ns")]
        rows.extend([
            both.row("out", "s", |run| run.out.as_secs_f64()),
            both.row("wake_random", "s", |run| run.reads.ns as f64 / 1e9),
        ]);
    }
    if bench.wants("wake_seq") {
        let both = Both::measure(bench, "read_seq")?;
        #[expect(clippy::cast_precision_loss, reason = "times far below 2^53 ns")]
        rows.push(both.row("wake_seq", "s", |run| run.reads.ns as f64 / 1e9));
    }
    rows.retain(|row| bench.wants(row.key));
    Ok(rows)
}

fn rest_ms(size: u64) -> u64 {
    REST_MS_MIN.max(size / (SIZE / REST_MS))
}

fn guest(bench: &Bench<'_>, arm: Arm, order: &str) -> Guest {
    Guest {
        name: "a".to_owned(),
        arm,
        set_bytes: bench.size,
        options: format!("do=fill,sleep:{},{order},verify", rest_ms(bench.size)),
        group: None,
        limit: None,
    }
}

fn full(fleet: &Fleet<'_>) -> Option<()> {
    fleet.said("a").phase(0).map(|_| ())
}

/// Waits for the rest to go out as well, unless the guest wakes before.
fn rest(fleet: &mut Fleet<'_>, start: Instant, out: Duration) -> Result<(), Error> {
    let patience = 2 * out + Duration::from_millis(500);
    fleet.until("the rest on disk", |fleet| {
        (start.elapsed() > patience || fleet.said("a").begun > READS).then_some(())
    })
}

/// Waits for the reads of a guest that was still asleep when it was ready to wake.
fn wake(mut fleet: Fleet<'_>, out: Duration) -> Result<Woken, Error> {
    if fleet.said("a").begun > READS {
        return Err(Error::Fleet {
            what: "a guest that sleeps".to_owned(),
            why: "it did not rest long enough for its memory to be taken".to_owned(),
        });
    }
    let reads = fleet.until("the reads", |fleet| fleet.said("a").phase(READS))?;
    fleet.end()?;
    Ok(Woken { out, reads })
}

fn managed(bench: &Bench<'_>, order: &str) -> Result<Woken, Error> {
    let guest = guest(bench, Arm::Managed, order);
    let (set, memory) = (guest.set_bytes, guest.memory_bytes());
    let mut fleet = Fleet::start(bench, &[guest])?;
    fleet.until("a full guest", full)?;
    let pid = fleet.vm_processes().first().copied().unwrap_or(0);
    // A page leaves the process when it is written, and the figures of `ps` are older than this.
    let left = anonymous(pid).bytes().saturating_sub(most(set));
    let start = Instant::now();
    fleet.set("a", "limit", &LIMIT.to_string())?;
    let out = fleet.until_every(OUT_LOOK, "its memory on disk", |_| {
        (anonymous(pid).bytes() <= left).then(|| start.elapsed())
    })?;
    rest(&mut fleet, start, out)?;
    fleet.set("a", "limit", &memory.to_string())?;
    wake(fleet, out)
}

fn kernel(bench: &Bench<'_>, order: &str) -> Result<Result<Woken, String>, Error> {
    let guest = guest(bench, Arm::Plain(Advice::NoHugePage), order);
    let set = guest.set_bytes;
    let file = bench.scratch.file("kernel-swap");
    let area = match SwapArea::switch_on(&file, 2 * set) {
        Ok(area) => area,
        Err(error) => return Ok(Err(format!("no swap file: {error}"))),
    };
    let group = match Group::new() {
        Ok(group) => group,
        Err(why) => return Ok(Err(why)),
    };
    let started = group.around(|| Fleet::start(bench, &[guest]));
    let mut fleet = match started {
        Ok(fleet) => fleet?,
        Err(why) => return Ok(Err(why)),
    };
    fleet.until("a full guest", full)?;
    let result = push_out(&mut fleet, &group, set)?;
    let out = match result {
        Ok(out) => out,
        Err(why) => return Ok(Err(why)),
    };
    let before = vmstat("pswpin");
    let woken = wake(fleet, out)?;
    let (read, pages) = (vmstat("pswpin") - before, woken.reads.pages);
    drop((group, area));
    Ok(match read >= pages / 10 * 9 {
        true => Ok(woken),
        false => Err(format!("only {read} of {pages} pages were read from disk")),
    })
}

/// Has the kernel page the VM out and write it; the time that took.
fn push_out(
    fleet: &mut Fleet<'_>,
    group: &Group,
    set: u64,
) -> Result<Result<Duration, String>, Error> {
    let Some(&pid) = fleet.vm_processes().first() else {
        return Ok(Err("the VM has no process".to_owned()));
    };
    let Some((from, bytes)) = largest_mapping(pid) else {
        return Ok(Err("the VM has no memory".to_owned()));
    };
    let before = vmstat("pswpout");
    let start = Instant::now();
    if let Err(error) = page_out(pid, from, bytes) {
        return Ok(Err(format!("process_madvise: {error}")));
    }
    let wanted = most(set) / 4096;
    let out = fleet.until("the kernel's writes", |_| {
        let done = vmstat("pswpout") - before >= wanted && vmstat("nr_writeback") < 64;
        let late = start.elapsed() > Duration::from_secs(5);
        (done || late).then(|| (done, start.elapsed()))
    })?;
    if !out.0 {
        let (written, pages) = (vmstat("pswpout") - before, set / 4096);
        return Ok(Err(format!(
            "MADV_PAGEOUT wrote {written} of {pages} pages"
        )));
    }
    // What was on its way to the kernel's lists was passed over.
    if let Err(error) = page_out(pid, from, bytes) {
        return Ok(Err(format!("process_madvise: {error}")));
    }
    rest(fleet, start, out.1)?;
    Ok(group.empty().map(|()| out.1))
}

/// Address and length of a process's largest anonymous mapping: its guest's RAM.
fn largest_mapping(pid: i32) -> Option<(usize, usize)> {
    let text = fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    let anonymous = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (from, to) = words.next()?.split_once('-')?;
        let writable = words.next()?.starts_with("rw");
        let address = |text| usize::from_str_radix(text, 16).ok();
        let (from, to) = (address(from)?, address(to)?);
        writable.then_some((from, to - from))
    });
    anonymous.max_by_key(|(_, bytes)| *bytes)
}
