//! A guest that must live in half of its memory, beside the kernel's swap.
//!
//! The guest's pages do not compress. It draws one after the other at random, compares two of three
//! and writes the third, in a limit of half its memory from its start on. Figure (`half`): operations
//! a second, once they have settled. Each draws a page whose like is out every second time, so that
//! for nearly every second operation a page comes from disk, and for nearly every one some go there.
//!
//! Where the kernel's limit reaches a VM's pages cannot be relied on (under kvm-pvm such a VM is killed
//! for want of memory), so the peer is the guest's access loop as an ordinary process: the same code
//! ([`tidemark_guest_model::work`]), the same pages in the same order, in a memory cgroup with the same
//! limit, swapping to a file beside ours. What that process has on a VM with all memory present stands
//! in the notes, as `present` of each arm and `slow_down_ratio`: how many times less we slow down.

use serde_json::{Value, json};

use super::cgroup::Group;
use super::fleet::{Arm, Fleet, Guest};
use super::meter::Said;
use super::process::Flags;
use super::program::Program;
use super::row::{Better, Ran, Row, Spread};
use super::{Bench, Error, Side};
use crate::sys::kernel_swap::SwapArea;
use crate::sys::proc::vmstat;

/// The rows.
pub(super) const KEYS: &[&str] = &["half"];
/// Memory that the guest works on unless said otherwise.
pub(super) const SIZE: u64 = 121 << 20;
/// What either has beside half of that: program, tables.
const OUTSIDE: u64 = 2 << 20;
/// Percent of operations that write.
const WRITE: u32 = 33;
/// Decides which pages are drawn.
const SEED: u64 = 1;
/// Seconds of work with all memory present.
const PRESENT_SECONDS: u32 = 3;

/// How much memory there is for the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    Half,
    All,
}

/// One arm.
#[derive(Debug, Clone, Copy)]
struct Worked {
    kilo_ops: f64,
    /// Memory that it had while it worked.
    bytes: u64,
}

impl Worked {
    /// Nothing before `settled` counts.
    fn of(said: &Said, settled: u64, bytes: u64) -> Option<Worked> {
        let kilo_ops = said.kilo_ops(settled, u64::MAX)?;
        Some(Worked { kilo_ops, bytes })
    }
}

/// Seconds of work, and the first that counts.
fn times(bench: &Bench<'_>, room: Room) -> (u32, u64) {
    match room {
        Room::Half => (bench.flags.seconds, u64::from(bench.flags.seconds / 3)),
        Room::All => (PRESENT_SECONDS, 1),
    }
}

fn limit(bench: &Bench<'_>) -> u64 {
    (bench.size / 2 + OUTSIDE) / 4096 * 4096
}

/// Measures the row.
pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Row>, Error> {
    let both = |what, room| {
        bench.alternate(what, 0, |side| match side {
            Side::Ours => managed(bench, room).map(Ok),
            Side::Peer => ordinary(bench, room),
        })
    };
    let (ours, theirs) = both("half", Room::Half)?;
    let (ours_present, theirs_present) = both("all memory present", Room::All)?;
    let ours = Ran::of(ours).good;
    let figures = |runs: &[Worked]| runs.iter().map(|run| run.kilo_ops).collect::<Vec<f64>>();
    let mut row = Row::new("half", "k ops/s", Better::Higher, figures(&ours));
    row.peer_is = format!(
        "the guest's access loop as a process in a memory cgroup, the kernel's swap file, page-cluster {}",
        page_cluster()
    );
    let theirs = Ran::of(theirs);
    let resident = |runs: &[Worked]| json!(runs.first().map(|run| run.bytes >> 20));
    row.note("ours_resident_mib", resident(&ours));
    if !theirs.good.is_empty() {
        row.note("peer_resident_mib", resident(&theirs.good));
    }
    row.beside(&theirs, figures);
    let present = |runs| {
        let runs = Ran::of(runs).good;
        Spread::of(&figures(&runs)).map(|spread| spread.median)
    };
    let present = (present(ours_present), present(theirs_present));
    row.note("ours_present", json!(present.0));
    row.note("peer_present", json!(present.1));
    let slow_down = row.ratio().zip(present.0).zip(present.1);
    let slow_down = slow_down.map(|((ratio, ours), peer)| ratio / (ours / peer));
    row.note(
        "slow_down_ratio",
        slow_down.map_or(Value::Null, |ratio| json!(ratio)),
    );
    Ok(vec![row])
}

fn page_cluster() -> String {
    let text = std::fs::read_to_string("/proc/sys/vm/page-cluster").unwrap_or_default();
    text.trim().to_owned()
}

/// The guest.
fn managed(bench: &Bench<'_>, room: Room) -> Result<Worked, Error> {
    let (seconds, settled) = times(bench, room);
    let guest = Guest {
        name: "a".to_owned(),
        arm: Arm::Managed,
        set_bytes: bench.size,
        options: format!("seed={SEED} write={WRITE} do=fill,ops:{}", seconds * 1000),
        group: None,
        limit: (room == Room::Half).then(|| limit(bench)),
    };
    let mut fleet = Fleet::start(bench, &[guest])?;
    fleet.until("work that has settled", |fleet| {
        has_settled(&fleet.said("a"), settled)
    })?;
    let bytes = fleet.until("its memory", |fleet| {
        let figures = fleet.figures()?;
        Some(figures.vms.first()?.memory.consumed_bytes)
    })?;
    let said = fleet.until("the guest's end", |fleet| {
        Some(fleet.said("a")).filter(|said| said.ended)
    })?;
    let closing = fleet.end()?;
    let read = closing
        .vms
        .first()
        .map_or(0, |vm| vm.counters.swap_in_pages);
    let worked = Worked::of(&said, settled, bytes);
    worked
        .filter(|_| room == Room::All || read > 0)
        .ok_or_else(|| Error::Fleet {
            what: "a guest in half of its memory".to_owned(),
            why: format!("{read} pages came back from swap"),
        })
}

fn has_settled(said: &Said, settled: u64) -> Option<()> {
    let last = said.windows.last()?;
    (last.window >= settled).then_some(())
}

/// The process.
fn ordinary(bench: &Bench<'_>, room: Room) -> Result<Result<Worked, String>, Error> {
    let (seconds, settled) = times(bench, room);
    let command = Flags {
        set: bench.size,
        ms: u64::from(seconds) * 1000,
        write: WRITE,
        seed: SEED,
    }
    .command_line();
    if room == Room::All {
        let process = Program::start(bench, &command)?;
        return follow(process, settled, || Some(bench.size));
    }
    // Switched off when the process has ended.
    let area = SwapArea::switch_on(&bench.scratch.file("kernel-swap"), 2 * bench.size);
    let _area = match area {
        Ok(area) => area,
        Err(error) => return Ok(Err(format!("no swap file: {error}"))),
    };
    let group = match Group::new() {
        Ok(group) => group,
        Err(why) => return Ok(Err(why)),
    };
    let started = group
        .limit(limit(bench))
        .and_then(|()| group.around(|| Program::start(bench, &command)));
    let process = match started {
        Ok(process) => process?,
        Err(why) => return Ok(Err(why)),
    };
    let before = vmstat("pswpin");
    let worked = follow(process, settled, || group.usage())?;
    let read = vmstat("pswpin") - before;
    Ok(match (worked, read) {
        (Ok(_), 0) => Err("the kernel read nothing from swap".to_owned()),
        (worked, _) => worked,
    })
}

/// Follows a process to its end; `bytes` says how much memory it has.
fn follow(
    mut process: Program<'_>,
    settled: u64,
    bytes: impl Fn() -> Option<u64>,
) -> Result<Result<Worked, String>, Error> {
    let begun = process.until(|said| has_settled(said, settled))?;
    let bytes = bytes().unwrap_or(0);
    let said = process.until(|said| said.ended.then(|| said.clone()))?;
    let worked = begun
        .and(said)
        .and_then(|said| Worked::of(&said, settled, bytes));
    let worked = worked.ok_or_else(|| "the process did not do its work".to_owned());
    // Why it ended says more than that it did not work.
    Ok(process.end().and(worked))
}
