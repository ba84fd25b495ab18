//! What a single guest notices: its first touch of memory, its work on it, its work on memory that
//! is worth sharing.
//!
//! | row | the guest | the peer |
//! |---|---|---|
//! | `first_touch_4k` | writes each page in full, in order, for the first time | plain arm, nohugepage |
//! | `first_touch_large` | the same | plain arm, hugepage |
//! | `first_touch_scanned` | fills in runs of 16 pages: common, unique, zero | plain arm, nohugepage |
//! | `steady_large` | reads and writes whole pages at random, compares; nothing to share | plain arm, hugepage |
//! | `rewritten_early` | two thirds common or zero; a quarter of operations write, half of those draw the kind again; the first 2 s | plain arm, nohugepage |
//! | `rewritten_late` | the same from 10 s on | the same |
//! | `rewritten_rested` | the same in the first 2 s after a rest in which all of it was looked at three times | the same |
//!
//! Common pages have one of 256 contents, so that a lone guest has equal pages.

use serde_json::{Map, json};

use super::fleet::{Arm, Fleet, Guest};
use super::meter::Said;
use super::row::{Better, Peer, Row, Spread};
use super::{Bench, Error, Side, cpu};
use crate::words::Advice;

/// The rows.
pub(super) const KEYS: &[&str] = &[
    "first_touch_4k",
    "first_touch_large",
    "first_touch_scanned",
    "steady_large",
    "rewritten_early",
    "rewritten_late",
    "rewritten_rested",
];

const SMALL: Arm = Arm::Plain(Advice::NoHugePage);
const LARGE: Arm = Arm::Plain(Advice::HugePage);
/// Memory that the guest works on unless said otherwise.
pub(super) const SIZE: u64 = 256 << 20;
/// A third each of common, unique and zero pages.
const THIRDS: &str = "kinds=cuz run=16 common=256";
/// Milliseconds in which 8192 pages are looked at three times.
const LOOKS_MS: u64 = 3000;
/// Seconds of rewriting that are early, and the first that is late.
const EARLY: u64 = 2;
const LATE: u64 = 10;

/// Measures the rows that are wanted.
pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Row>, Error> {
    let mut rows = Vec::new();
    for (key, peer, options) in [
        ("first_touch_4k", SMALL, "do=page,sleep:300".to_owned()),
        ("first_touch_large", LARGE, "do=page,sleep:300".to_owned()),
        (
            "first_touch_scanned",
            SMALL,
            format!("{THIRDS} do=fill,sleep:300"),
        ),
    ] {
        if bench.wants(key) {
            rows.push(touched(bench, key, peer, &options)?);
        }
    }
    let ms = u64::from(bench.flags.seconds) * 1000;
    if bench.wants("steady_large") {
        let options = format!("write=25 do=fill,ops:{ms}");
        let work = worked(bench, "steady_large", LARGE, &options)?;
        // The first second settles.
        rows.push(work.row("steady_large", LARGE, 1, u64::MAX));
    }
    if bench.wants("rewritten_early") || bench.wants("rewritten_late") {
        let options = format!("{THIRDS} write=25 redraw=50 do=fill,ops:{ms}");
        let work = worked(bench, "rewritten", SMALL, &options)?;
        let late = LATE.min(u64::from(bench.flags.seconds) - 1);
        let early = work.row("rewritten_early", SMALL, 0, EARLY.min(late));
        let late = work.row("rewritten_late", SMALL, late, u64::MAX);
        rows.extend([early, late].into_iter().filter(|row| bench.wants(row.key)));
    }
    if bench.wants("rewritten_rested") {
        let rest_ms = bench.size / 4096 * LOOKS_MS / 8192;
        let options = format!("{THIRDS} write=25 redraw=50 do=fill,sleep:{rest_ms},ops:{ms}");
        let work = worked(bench, "rewritten_rested", SMALL, &options)?;
        rows.push(work.row("rewritten_rested", SMALL, 0, EARLY.min(ms / 1000 - 1)));
    }
    Ok(rows)
}

fn arm(side: Side, peer: Arm) -> Arm {
    match side {
        Side::Ours => Arm::Managed,
        Side::Peer => peer,
    }
}

fn guest(bench: &Bench<'_>, arm: Arm, options: &str) -> Guest {
    Guest {
        name: "a".to_owned(),
        arm,
        set_bytes: bench.size,
        options: options.to_owned(),
        group: None,
        limit: None,
    }
}

/// Who the peer is, for people.
fn name_of(peer: Arm) -> String {
    match peer {
        Arm::Managed => "ourselves".to_owned(),
        Arm::Plain(advice) => format!("plain arm, {advice}"),
    }
}

/// Microseconds a page of a first phase that goes over all pages, and the CPU time that the VM's
/// process and the host manager took for it.
fn touched(bench: &Bench<'_>, key: &'static str, peer: Arm, options: &str) -> Result<Row, Error> {
    // The first pass finds memory as others left it.
    let discarded = u8::from(bench.flags.runs > 1);
    let (ours, theirs) = bench.alternate(key, discarded, |side| {
        let arm = arm(side, peer);
        let mut fleet = Fleet::start(bench, &[guest(bench, arm, options)])?;
        let phase = fleet.until("the first touch", |fleet| fleet.said("a").phase(0))?;
        let spent = fleet.cpu(cpu::Threads::All);
        fleet.end()?;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let us = phase.ns as f64 / 1e3 / phase.pages as f64;
        Ok((us, spent.as_secs_f64() * 1e3, phase))
    })?;
    let mut notes = Map::new();
    for (name, runs) in [("ours", &ours), ("peer", &theirs)] {
        let of = |figure: fn(&(f64, f64, super::meter::Pages)) -> f64| {
            Spread::of(&runs.iter().map(figure).collect::<Vec<_>>()).map(|spread| spread.median)
        };
        notes.insert(format!("{name}_cpu_ms"), json!(of(|run| run.1)));
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        notes.insert(format!("{name}_p99_ns"), json!(of(|run| run.2.p99 as f64)));
    }
    let figures = |runs: &[(f64, f64, _)]| runs.iter().map(|run| run.0).collect();
    Ok(Row {
        key,
        unit: "us/page",
        better: Better::Lower,
        ours: figures(&ours),
        peer: Peer::Measured(figures(&theirs)),
        peer_is: name_of(peer),
        notes,
    })
}

/// Work on memory that is there, by both arms.
struct Worked {
    ours: Vec<Said>,
    theirs: Vec<Said>,
}

fn worked(bench: &Bench<'_>, what: &str, peer: Arm, options: &str) -> Result<Worked, Error> {
    let (ours, theirs) = bench.alternate(what, 0, |side| {
        let arm = arm(side, peer);
        let mut fleet = Fleet::start(bench, &[guest(bench, arm, options)])?;
        let end = |fleet: &Fleet<'_>| Some(fleet.said("a")).filter(|said| said.ended);
        let said = fleet.until("the guest's end", end)?;
        fleet.end()?;
        Ok(said)
    })?;
    Ok(Worked { ours, theirs })
}

impl Worked {
    /// Thousand operations a second in the seconds `from` to `to`.
    fn row(&self, key: &'static str, peer: Arm, from: u64, to: u64) -> Row {
        let figures = |runs: &[Said]| {
            runs.iter()
                .filter_map(|said| said.kilo_ops(from, to))
                .collect()
        };
        let mut notes = Map::new();
        notes.insert("from_second".to_owned(), json!(from));
        Row {
            key,
            unit: "k ops/s",
            better: Better::Higher,
            ours: figures(&self.ours),
            peer: Peer::Measured(figures(&self.theirs)),
            peer_is: name_of(peer),
            notes,
        }
    }
}
