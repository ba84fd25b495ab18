//! A storm of copy-on-write breaks: two guests whose pages were all merged write each of them once,
//! in random order, at the same time. Peer: KSM.
//!
//! | row | figure |
//! |---|---|
//! | `storm_worst_ms` | the slowest write |
//! | `storm_p50_us`, `storm_p99_us` | what half and what 99 of 100 writes took at most |
//!
//! When the guests begin to write was said to them at their start. What is not merged by then makes
//! the arm worthless, and that is said: nine tenths must be.

use serde_json::json;

use super::fleet::{Arm, Fleet, Guest};
use super::ksm::{Ksm, Settings};
use super::meter::Pages;
use super::row::{Better, Ran, Row};
use super::{Bench, Error, Side};
use crate::words::Advice;

/// The rows.
pub(super) const KEYS: &[&str] = &["storm_worst_ms", "storm_p50_us", "storm_p99_us"];

/// Memory of each guest, unless said otherwise.
pub(super) const SIZE: u64 = 64 << 20;
/// Position of the writes among the phases.
const WRITES: u64 = 2;
const KSM: Settings = Settings {
    pages_to_scan: 2000,
    smart_scan: true,
};

/// Key and unit of a row, and its figure of an arm.
type Figure = (&'static str, &'static str, fn(&Storm) -> f64);

/// One arm: the slower of the two guests in each figure.
#[derive(Debug, Clone, Copy)]
struct Storm {
    pages: u64,
    worst_ms: f64,
    p50_us: f64,
    p99_us: f64,
}

impl Storm {
    #[expect(clippy::cast_precision_loss, reason = "times far below 2^53 ns")]
    fn of(guests: [Pages; 2]) -> Storm {
        let most = |figure: fn(&Pages) -> u64| guests.iter().map(figure).max().unwrap_or(0) as f64;
        Storm {
            pages: guests.iter().map(|guest| guest.pages).sum(),
            worst_ms: most(|guest| guest.worst) / 1e6,
            p50_us: most(|guest| guest.p50) / 1e3,
            p99_us: most(|guest| guest.p99) / 1e3,
        }
    }
}

/// Measures the rows that are wanted.
pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Row>, Error> {
    let (ours, theirs) = bench.alternate("storm", 0, |side| match side {
        Side::Ours => managed(bench),
        Side::Peer => ksm(bench),
    })?;
    let (ours, peer) = (Ran::of(ours), Ran::of(theirs));
    if let (true, Some(why)) = (ours.good.is_empty(), ours.failed) {
        let what = "our storm".to_owned();
        return Err(Error::Fleet { what, why });
    }
    let ours = ours.good;
    let figures: [Figure; 3] = [
        ("storm_worst_ms", "ms", |storm| storm.worst_ms),
        ("storm_p50_us", "us", |storm| storm.p50_us),
        ("storm_p99_us", "us", |storm| storm.p99_us),
    ];
    let mut rows = Vec::new();
    for (key, unit, figure) in figures {
        let mut row = Row::new(key, unit, Better::Lower, ours.iter().map(figure).collect());
        row.beside(&peer, |storms| storms.iter().map(figure).collect());
        row.peer_is = KSM.text();
        row.note("pages", json!(ours.first().map(|storm| storm.pages)));
        rows.push(row);
    }
    rows.retain(|row| bench.wants(row.key));
    Ok(rows)
}

fn guests(bench: &Bench<'_>, arm: Arm) -> Vec<Guest> {
    let set_bytes = bench.size;
    // Three looks at all pages, and some seconds.
    let rest_ms = 6000 + set_bytes / 4096 * 3000 / 8192;
    let guest = |name: &str| Guest {
        name: name.to_owned(),
        arm,
        set_bytes,
        options: format!("kinds=c do=fill,sleep:{rest_ms},write,verify"),
        group: (arm == Arm::Managed).then_some("bench"),
        limit: None,
    };
    vec![guest("a"), guest("b")]
}

/// Follows both guests to their end; `saved` says how many pages are saved now.
fn follow(
    bench: &Bench<'_>,
    mut fleet: Fleet<'_>,
    saved: impl Fn(&Fleet<'_>) -> u64,
) -> Result<Result<Storm, String>, Error> {
    let mut merged = 0;
    let [a, b] = fleet.until("both storms", |fleet| {
        let said = ["a", "b"].map(|guest| fleet.said(guest));
        if said.iter().all(|said| said.begun <= WRITES) {
            merged = merged.max(saved(fleet));
        }
        let [a, b] = said.map(|said| said.phase(WRITES));
        Some([a?, b?])
    })?;
    fleet.end()?;
    let all = bench.size / 4096;
    Ok(match merged >= all * 9 / 10 {
        true => Ok(Storm::of([a, b])),
        false => Err(format!("{merged} of {all} pages were merged when it began")),
    })
}

fn managed(bench: &Bench<'_>) -> Result<Result<Storm, String>, Error> {
    let fleet = Fleet::start(bench, &guests(bench, Arm::Managed))?;
    follow(bench, fleet, |fleet| {
        let saved = |figures: crate::host::accounts::Figures| {
            figures
                .vms
                .iter()
                .map(|vm| vm.memory.saved_bytes / 4096)
                .sum()
        };
        fleet.figures().map_or(0, saved)
    })
}

fn ksm(bench: &Bench<'_>) -> Result<Result<Storm, String>, Error> {
    // Dropped after the fleet.
    let ksm = match Ksm::start(KSM) {
        Ok(ksm) => ksm,
        Err(why) => return Ok(Err(why)),
    };
    let before = ksm.saved_pages();
    let fleet = Fleet::start(bench, &guests(bench, Arm::Plain(Advice::Mergeable)))?;
    follow(bench, fleet, |_| ksm.saved_pages().saturating_sub(before))
}
