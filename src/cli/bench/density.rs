//! How many guests a given memory holds, as long as nobody has to wait for a disk.
//!
//! Sister guests fill their memory in runs of equal length, a third each common to all, unique and
//! zero, and rest. Memory is plenty, so nothing is ballooned, compressed or swapped: what is saved is
//! saved by sharing alone, by us or by KSM.
//!
//! | row | figure |
//! |---|---|
//! | `density` | guests in a GiB: as many as there are, by the memory of all processes of the arm, once that has not fallen for some seconds |
//!
//! That memory is the host manager's and the VMs' ([`super::memory`]), and of KSM what the kernel
//! keeps about the pages that it looks at, where the kernel says so. It holds one copy of what all
//! have in common, so more guests have more in a GiB. Notes: the same of the plain arm without KSM,
//! in one run; the memory of one guest in each arm; and the seconds until it had settled.

use std::time::{Duration, Instant};

use serde_json::json;

use super::fleet::{Arm, Fleet, Guest};
use super::ksm::{Ksm, Settings};
use super::row::{Better, Ran, Row, Spread};
use super::{Bench, Error, Side, memory};
use crate::words::Advice;

/// The rows.
pub(super) const KEYS: &[&str] = &["density"];
/// Memory of each guest that is filled, unless said otherwise.
pub(super) const SIZE: u64 = 64 << 20;
/// Guests.
const GUESTS: u32 = 8;
const OPTIONS: &str = "kinds=cuz run=16 do=fill,sleep:3600000";
/// ksmd looks at all pages of eight such guests about twice a second, if it gets a CPU for it.
const SETTINGS: Settings = Settings {
    pages_to_scan: 5000,
    smart_scan: true,
};
/// Memory has settled when it has not fallen by [`NOISE_BYTES`] for so long,
const STILL: Duration = Duration::from_secs(4);
/// which is little beside a guest,
const NOISE_BYTES: u64 = 256 << 10;
/// or when it has been looked at for so long.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time between two looks.
const LOOK: Duration = Duration::from_millis(250);
const MIB: f64 = (1 << 20) as f64;

/// One arm, settled.
#[derive(Debug, Clone, Copy)]
struct Settled {
    /// Memory of all its processes.
    bytes: u64,
    /// From its start.
    seconds: f64,
}

impl Settled {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    fn mib_a_guest(&self) -> f64 {
        self.bytes as f64 / MIB / f64::from(GUESTS)
    }

    fn guests_a_gib(&self) -> f64 {
        1024.0 / self.mib_a_guest()
    }
}

/// Measures the row.
pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Row>, Error> {
    bench.say("density: the plain arm alone");
    let plain = settle(bench, Arm::Plain(Advice::NoHugePage), None)?;
    let (ours, theirs) = bench.alternate("density", 0, |side| match side {
        Side::Ours => settle(bench, Arm::Managed, None).map(Ok),
        // Dropped after the fleet.
        Side::Peer => match Ksm::start(SETTINGS) {
            Ok(ksm) => settle(bench, Arm::Plain(Advice::Mergeable), Some(&ksm)).map(Ok),
            Err(why) => Ok(Err(why)),
        },
    })?;
    let (ours, theirs) = (Ran::of(ours), Ran::of(theirs));
    let median = |runs: &Ran<Settled>, figure: fn(&Settled) -> f64| {
        let figures: Vec<f64> = runs.good.iter().map(figure).collect();
        Some(Spread::of(&figures)?.median)
    };
    let figures = |runs: &[Settled]| runs.iter().map(Settled::guests_a_gib).collect::<Vec<_>>();
    let own = figures(&ours.good);
    let mut row = Row::new("density", "guests/GiB", Better::Higher, own);
    row.beside(&theirs, figures);
    row.peer_is = SETTINGS.text();
    row.note("guests", json!(GUESTS));
    row.note("plain", json!(plain.guests_a_gib()));
    row.note("plain_guest_mib", json!(plain.mib_a_guest()));
    for (name, runs) in [("ours", &ours), ("peer", &theirs)] {
        for (what, figure) in [
            ("guest_mib", Settled::mib_a_guest as fn(&Settled) -> f64),
            ("seconds", |settled| settled.seconds),
        ] {
            if let Some(median) = median(runs, figure) {
                row.note(&format!("{name}_{what}"), json!(median));
            }
        }
    }
    Ok(vec![row])
}

/// Starts the guests of an arm and waits until its memory does not fall any more.
fn settle(bench: &Bench<'_>, arm: Arm, ksm: Option<&Ksm>) -> Result<Settled, Error> {
    let mut guests = Guest::several(GUESTS, arm, bench.size, OPTIONS);
    for guest in &mut guests {
        guest.group = (arm == Arm::Managed).then_some("bench");
    }
    let index_before = ksm.map_or(0, Ksm::index_bytes);
    let mut fleet = Fleet::start(bench, &guests)?;
    fleet.fill(&guests)?;
    let full = Instant::now();
    let (mut least, mut since) = (u64::MAX, full);
    let seen = fleet.until_every(LOOK, "memory that has settled", |fleet| {
        let pids = [vec![fleet.host_process()], fleet.vm_processes()].concat();
        let bytes = match memory::of(&pids) {
            Ok(bytes) => bytes,
            Err(error) => return Some(Err(error)),
        };
        let index = ksm.map_or(0, Ksm::index_bytes).saturating_sub(index_before);
        let (bytes, now) = (bytes + index, Instant::now());
        if bytes.saturating_add(NOISE_BYTES) <= least {
            (least, since) = (bytes, now);
        }
        let over = since.elapsed() >= STILL || full.elapsed() >= PATIENCE;
        over.then(|| {
            Ok(Settled {
                bytes,
                seconds: (since - fleet.started()).as_secs_f64(),
            })
        })
    })?;
    fleet.stop()?;
    seen
}
