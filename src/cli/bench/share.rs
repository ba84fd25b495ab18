//! Sharing, beside KSM.
//!
//! Four guests fill their memory in runs of equal length, a third each common to all, unique and
//! zero, and rest. What can be saved is known: the zero pages, and all but one of each common page.
//!
//! | row | figure |
//! |---|---|
//! | `merge_runs`, `merge_isolated` | CPU for each page saved until 95 % are; runs of 16 pages, or of one |
//! | `converge` | time from the first guest's start until then; runs of 16 |
//! | `scan_steady` | CPU a second, afterwards, while nothing changes |
//!
//! Our CPU time is that of all threads but the vCPUs, less what the same guests take until they are
//! full where there is nothing to share. KSM's is ksmd's. For `merge_*` and `converge` ksmd is set
//! to the pace at which it takes as much CPU a second as we did: pages_to_scan is scaled up to three
//! times towards that, and how near it came is in the notes. For `scan_steady` it looks at each page as often as we do.

use std::time::{Duration, Instant};

use serde_json::json;

use super::cpu::Threads;
use super::fleet::{Arm, Fleet, Guest};
use super::ksm::{Ksm, Settings};
use super::row::{Better, Ran, Row, Spread};
use super::{Bench, Error};
use crate::words::Advice;

/// The rows.
pub(super) const KEYS: &[&str] = &["merge_runs", "merge_isolated", "converge", "scan_steady"];

/// Guests.
const GUESTS: u32 = 4;
/// Memory of each that is filled, unless said otherwise.
pub(super) const SIZE: u64 = 128 << 20;
const RUN: u64 = 16;
/// What ksmd is given first: about 65,000 pages a second.
const FIRST_PACE: u64 = 1300;
/// Tries to bring ksmd to our pace.
const TRIES: u32 = 3;
/// Pages that our scan looks at in a second, in each VM.
const OUR_SCAN: u64 = 8192;
/// How long ksmd or we may take until 95 %.
const PATIENCE: Duration = Duration::from_secs(60);

/// One arm until 95 % of what can be saved was.
#[derive(Debug, Clone, Copy)]
struct Merged {
    wall: Duration,
    cpu: Duration,
    pages: u64,
    /// CPU a second afterwards, of one second.
    steady: Option<f64>,
}

impl Merged {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    fn us_a_page(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.pages as f64
    }

    fn share_of_a_cpu(&self) -> f64 {
        self.cpu.as_secs_f64() / self.wall.as_secs_f64()
    }
}

/// Measures the rows that are wanted.
pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Row>, Error> {
    let mut rows = Vec::new();
    let in_runs = ["merge_runs", "converge", "scan_steady"];
    if in_runs.iter().any(|key| bench.wants(key)) {
        let both = Both::measure(bench, RUN)?;
        rows.extend([
            both.row("merge_runs", "us/page", Merged::us_a_page),
            both.row("converge", "s", |merged| merged.wall.as_secs_f64()),
            both.steady(),
        ]);
    }
    if bench.wants("merge_isolated") {
        let both = Both::measure(bench, 1)?;
        rows.push(both.row("merge_isolated", "us/page", Merged::us_a_page));
    }
    rows.retain(|row| bench.wants(row.key));
    Ok(rows)
}

/// Both arms.
struct Both {
    ours: Vec<Merged>,
    peer: Ran<Merged>,
    settings: Settings,
    baseline: Duration,
}

impl Both {
    fn measure(bench: &Bench<'_>, run: u64) -> Result<Both, Error> {
        let what = format!("sharing in runs of {run}");
        bench.say(&format!("{what}: without anything to share"));
        let baseline = baseline(bench)?;
        let (mut ours, mut peer) = (Vec::new(), Vec::new());
        let mut settings = Settings {
            pages_to_scan: FIRST_PACE,
            smart_scan: true,
        };
        for number in 1..=bench.flags.runs {
            bench.say(&format!("{what}: run {number} of {}", bench.flags.runs));
            ours.push(managed(bench, run, baseline)?);
            if number > 1 {
                peer.push(ksm(bench, run, settings)?);
                continue;
            }
            let goal = ours[0].share_of_a_cpu();
            match tune(bench, run, goal, settings)? {
                Ok((tuned, first)) => {
                    settings = tuned;
                    peer.push(Ok(first));
                }
                Err(why) => peer.push(Err(why)),
            }
        }
        Ok(Both {
            ours,
            peer: Ran::of(peer),
            settings,
            baseline,
        })
    }

    fn row(&self, key: &'static str, unit: &'static str, figure: fn(&Merged) -> f64) -> Row {
        let figures = |runs: &[Merged]| runs.iter().map(figure).collect::<Vec<f64>>();
        let mut row = Row::new(key, unit, Better::Lower, figures(&self.ours));
        row.beside(&self.peer, figures);
        row.peer_is = self.settings.text();
        let share = |runs: &[Merged]| {
            let shares: Vec<f64> = runs.iter().map(Merged::share_of_a_cpu).collect();
            json!(Spread::of(&shares).map(|spread| spread.median))
        };
        row.note("ours_cpu_share", share(&self.ours));
        row.note("baseline_cpu_ms", json!(self.baseline.as_secs_f64() * 1e3));
        if !self.peer.good.is_empty() {
            row.note("peer_cpu_share", share(&self.peer.good));
        }
        row
    }

    fn steady(&self) -> Row {
        let figures = |runs: &[Merged]| {
            runs.iter()
                .filter_map(|merged| merged.steady)
                .map(|share| share * 1e3)
                .collect::<Vec<f64>>()
        };
        let mut row = Row::new("scan_steady", "ms/s", Better::Lower, figures(&self.ours));
        row.beside(&self.peer, figures);
        row.peer_is = same_period().text();
        row
    }
}

/// KSM's settings that look at each page as often as our scan does.
fn same_period() -> Settings {
    Settings {
        pages_to_scan: OUR_SCAN * u64::from(GUESTS) * super::ksm::SLEEP_MS / 1000,
        smart_scan: true,
    }
}

fn guests(bench: &Bench<'_>, arm: Arm, kinds: &str, run: u64) -> Vec<Guest> {
    let guest = |number: u32| Guest {
        name: format!("g{number}"),
        arm,
        set_bytes: bench.size,
        options: format!("kinds={kinds} run={run} do=fill,sleep:3600000"),
        group: (arm == Arm::Managed).then_some("bench"),
        limit: None,
    };
    (0..GUESTS).map(guest).collect()
}

/// Pages that can be saved.
fn expected(bench: &Bench<'_>, run: u64) -> u64 {
    let pages = bench.size / 4096;
    let of_kind = |kind| (0..pages).filter(|page| page / run % 3 == kind).count() as u64;
    let (common, zero) = (of_kind(0), of_kind(2));
    u64::from(GUESTS) * zero + u64::from(GUESTS - 1) * common
}

fn filled(fleet: &Fleet<'_>) -> Option<()> {
    let full = |number| fleet.said(&format!("g{number}")).phase(0).is_some();
    (0..GUESTS).all(full).then_some(())
}

/// Our CPU until all guests are full, where there is nothing to share.
fn baseline(bench: &Bench<'_>) -> Result<Duration, Error> {
    let mut fleet = Fleet::start(bench, &guests(bench, Arm::Managed, "u", RUN))?;
    fleet.until("full guests", filled)?;
    let cpu = fleet.cpu(Threads::AllButVcpus);
    fleet.stop()?;
    Ok(cpu)
}

/// CPU a second while nothing changes, after a while in which everything has settled.
fn steady(
    bench: &Bench<'_>,
    fleet: &mut Fleet<'_>,
    cpu: impl Fn(&Fleet<'_>) -> Duration,
) -> Result<Option<f64>, Error> {
    if !bench.wants("scan_steady") {
        return Ok(None);
    }
    let time = Duration::from_secs(u64::from(bench.flags.seconds));
    let start = Instant::now();
    fleet.until("a settled fleet", |_| {
        (start.elapsed() >= time).then_some(())
    })?;
    let (start, before) = (Instant::now(), cpu(fleet));
    fleet.until("some time", |_| (start.elapsed() >= time).then_some(()))?;
    let spent = cpu(fleet).saturating_sub(before);
    Ok(Some(spent.as_secs_f64() / start.elapsed().as_secs_f64()))
}

fn managed(bench: &Bench<'_>, run: u64, baseline: Duration) -> Result<Merged, Error> {
    let wanted = expected(bench, run) * 95 / 100;
    let mut fleet = Fleet::start(bench, &guests(bench, Arm::Managed, "cuz", run))?;
    let (wall, pages) = fleet.until("95 % of the savings", |fleet| {
        let figures = fleet.figures()?;
        let saved = figures.vms.iter().map(|vm| {
            let memory = &vm.memory;
            (memory.saved_bytes + memory.gauges.zero.bytes()) / 4096
        });
        let saved: u64 = saved.sum();
        (saved >= wanted).then(|| (fleet.started().elapsed(), saved))
    })?;
    let cpu = fleet.cpu(Threads::AllButVcpus).saturating_sub(baseline);
    let steady = match run {
        RUN => steady(bench, &mut fleet, |fleet| fleet.cpu(Threads::AllButVcpus))?,
        _ => None,
    };
    fleet.stop()?;
    Ok(Merged {
        wall,
        cpu,
        pages,
        steady,
    })
}

/// The same by KSM; a text where it cannot be had, or is too slow.
fn ksm(bench: &Bench<'_>, run: u64, settings: Settings) -> Result<Result<Merged, String>, Error> {
    let wanted = expected(bench, run) * 95 / 100;
    // Dropped after the fleet.
    let ksm = match Ksm::start(settings) {
        Ok(ksm) => ksm,
        Err(why) => return Ok(Err(why)),
    };
    let arm = Arm::Plain(Advice::Mergeable);
    let (before, saved_before) = (ksm.cpu(), ksm.saved_pages());
    let mut fleet = Fleet::start(bench, &guests(bench, arm, "cuz", run))?;
    let found = fleet.until("95 % of the savings", |fleet| {
        let wall = fleet.started().elapsed();
        let pages = ksm.saved_pages().saturating_sub(saved_before);
        (pages >= wanted || wall > PATIENCE).then_some((wall, pages))
    })?;
    let (wall, pages) = found;
    let cpu = ksm.cpu().saturating_sub(before);
    if pages < wanted {
        fleet.stop()?;
        return Ok(Err(format!(
            "{} saved {pages} of {wanted} pages in {PATIENCE:?}",
            settings.text()
        )));
    }
    if let Err(why) = ksm.change(same_period()) {
        return Ok(Err(why));
    }
    let steady = match run {
        RUN => steady(bench, &mut fleet, |_| ksm.cpu())?,
        _ => None,
    };
    fleet.stop()?;
    Ok(Ok(Merged {
        wall,
        cpu,
        pages,
        steady,
    }))
}

/// Scales ksmd's pace until it takes `goal` of a CPU, to a tenth, or the tries are over; the pace
/// that came nearest, and its figures.
fn tune(
    bench: &Bench<'_>,
    run: u64,
    goal: f64,
    first: Settings,
) -> Result<Result<(Settings, Merged), String>, Error> {
    let mut settings = first;
    let mut nearest: Option<(f64, Settings, Merged)> = None;
    for _ in 0..TRIES {
        let merged = match ksm(bench, run, settings)? {
            Ok(merged) => merged,
            Err(why) => {
                return Ok(nearest
                    .map(|(_, settings, merged)| (settings, merged))
                    .ok_or(why));
            }
        };
        let scale = goal / merged.share_of_a_cpu();
        let distance = scale.ln().abs();
        if nearest.as_ref().is_none_or(|(other, ..)| distance < *other) {
            nearest = Some((distance, settings, merged));
        }
        if (0.9..=1.1).contains(&scale) {
            break;
        }
        bench.say(&format!(
            "{} takes {:.2} of a CPU, we take {goal:.2}",
            settings.text(),
            merged.share_of_a_cpu()
        ));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a pace between 10 and 100,000"
        )]
        let pace = (settings.pages_to_scan as f64 * scale).clamp(10.0, 1e5) as u64;
        settings.pages_to_scan = pace;
    }
    let found = nearest.map(|(_, settings, merged)| (settings, merged));
    Ok(found.ok_or_else(|| "it was not tried".to_owned()))
}
