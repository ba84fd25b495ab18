//! A newcomer to a full host: four guests hold the budget and keep working, and a fifth starts that
//! wants memory at once.
//!
//! The four are the guest `verify`: all they have is compared and rewritten, a fifth of it is a cache
//! that their balloon drivers may drop, the rest is data of their own that has to be swapped. The
//! budget is what they hold, and the few per cent that a host in state high keeps free. The newcomer
//! has high shares, so that it is entitled to all that it wants: with the shares of the others it would
//! have to swap a fifth of it, and its time would be that of its own swapping.
//!
//! | row | figure |
//! |---|---|
//! | `grab` | from the start of the newcomer's process until it has written all of its memory |
//!
//! Peer: the same five VMs in the plain arm, with memory enough for all. Notes: the states that the
//! host was in meanwhile, seconds; and what the four did during the grab, of what they did in the
//! three seconds before it. In both arms five guests share the machine's CPUs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::json;

use super::fleet::{Arm, Fleet, Guest};
use super::program::Program;
use super::row::{Better, Peer, Row, Spread};
use super::{Bench, Error, Side};
use crate::host::accounts::{Figures, StateSeconds, VmFigures};
use crate::words::Advice;

/// The rows.
pub(super) const KEYS: &[&str] = &["grab"];
/// Memory that the newcomer wants unless said otherwise.
pub(super) const SIZE: u64 = 120 << 20;
/// Guests that were there before.
const OLD: u64 = 4;
/// Percent of its memory that each of them has filled.
const FILLED_PERCENT: u64 = 85;
/// Percent of that which is a cache.
const CACHE_PERCENT: u64 = 20;
/// Percent of the budget that the four hold.
const HELD_PERCENT: u64 = 94;
/// What a VM takes beside its guest's memory.
const OVERHEAD: u64 = 4 << 20;
/// Time that the four work undisturbed, and what of it counts.
const BEFORE: Duration = Duration::from_secs(5);
const COUNTED: Duration = Duration::from_secs(3);
/// Longest time between two reports of a guest.
const REPORTED: Duration = Duration::from_millis(1500);
/// Time between two looks at the figures.
const LOOK: Duration = Duration::from_millis(50);

/// One arm.
#[derive(Debug, Clone, Copy)]
struct Grabbed {
    seconds: f64,
    /// What the four did meanwhile, of what they did before.
    kept: f64,
    /// Memory of the host, bytes, and what of it was free when it began.
    budget: f64,
    free: f64,
    states: StateSeconds,
}

/// Measures the row.
pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Row>, Error> {
    let (ours, theirs) = bench.alternate("grab", 0, |side| grab(bench, side))?;
    let figures = |runs: &[Grabbed]| runs.iter().map(|run| run.seconds).collect::<Vec<f64>>();
    let mut row = Row::new("grab", "s", Better::Lower, figures(&ours));
    row.peer = Peer::Measured(figures(&theirs));
    row.peer_is = "plain arm, nohugepage, with free memory".to_owned();
    let median = |runs: &[Grabbed], figure: fn(&Grabbed) -> f64| {
        let spread = Spread::of(&runs.iter().map(figure).collect::<Vec<f64>>());
        json!(spread.map(|spread| spread.median))
    };
    row.note("ours_others_kept", median(&ours, |run| run.kept));
    row.note("peer_others_kept", median(&theirs, |run| run.kept));
    row.note("budget_bytes", median(&ours, |run| run.budget));
    row.note("free_part", median(&ours, |run| run.free / run.budget));
    row.note("high_s", median(&ours, |run| run.states.high));
    row.note("soft_s", median(&ours, |run| run.states.soft));
    row.note("hard_s", median(&ours, |run| run.states.hard));
    row.note("low_s", median(&ours, |run| run.states.low));
    Ok(vec![row])
}

/// Memory of each of the four.
fn old_bytes(bench: &Bench<'_>) -> u64 {
    (2 * bench.size + (16 << 20)).next_multiple_of(2 << 20)
}

fn held_bytes(bench: &Bench<'_>) -> u64 {
    old_bytes(bench) * FILLED_PERCENT / 100 / 4096 * 4096
}

/// The fleet file of the four.
fn text(bench: &Bench<'_>, side: Side) -> String {
    let (old, held) = (old_bytes(bench), held_bytes(bench));
    let (budget, keys) = match side {
        Side::Ours => (OLD * (held + OVERHEAD) / HELD_PERCENT * 100, ""),
        Side::Peer => (
            2 * (OLD * old + bench.size) + (256 << 20),
            "memory_management = false\nadvise = \"nohugepage\"\n",
        ),
    };
    let budget = budget / 4096 * 4096;
    format!(
        "[host]\nmemory = {budget}\nswap_dir = \".\"\nseed = 1\n\
         [[vm]]\nname = \"old\"\ncount = {OLD}\nguest = \"verify\"\nmemory = {old}\n\
         cmdline = \"fill={held} zero=0 dup=0 cache={CACHE_PERCENT} tsc_khz={}\"\n\
         console = \"old.log\"\n{keys}",
        bench.tsc_khz
    )
}

/// The command line of the newcomer.
fn newcomer(bench: &Bench<'_>, fleet: &Fleet<'_>, side: Side) -> Vec<String> {
    let guest = Guest {
        name: "new".to_owned(),
        arm: match side {
            Side::Ours => Arm::Managed,
            Side::Peer => Arm::Plain(Advice::NoHugePage),
        },
        set_bytes: bench.size,
        options: "seed=99 do=fill,verify".to_owned(),
        group: None,
        limit: None,
    };
    let mut line = vec![
        "vm".to_owned(),
        format!("--host={}", fleet.socket().display()),
        format!("--name={}", guest.name),
        "--guest=meter".to_owned(),
        format!("--memory={}", guest.memory_bytes()),
        format!("--cmdline={}", guest.command_line(bench.tsc_khz)),
        format!("--swap-dir={}", bench.flags.dir.display()),
        "--shares=high".to_owned(),
    ];
    if let Arm::Plain(advice) = guest.arm {
        line.push("--memory-management=off".to_owned());
        line.push(format!("--advise={advice}"));
    }
    line
}

fn grab(bench: &Bench<'_>, side: Side) -> Result<Grabbed, Error> {
    let memory = OLD * old_bytes(bench) + bench.size;
    let mut fleet = Fleet::of(bench, &text(bench, side), memory)?;
    fleet.until("four full guests", |fleet| {
        let figures = fleet.figures()?;
        let full = figures.vms.iter().filter(|vm| verified(vm) > 0.0);
        (full.count() as u64 == OLD).then_some(())
    })?;
    let mut watch = Watch::default();
    let full = Instant::now();
    watch.follow(&mut fleet, "four guests at work", |_| {
        full.elapsed() >= BEFORE
    })?;
    let host = fleet.until("figures", |fleet| fleet.figures())?.host;
    let begin = Instant::now();
    let new = Program::start(bench, &newcomer(bench, &fleet, side))?;
    let mut end = None;
    watch.follow(&mut fleet, "the newcomer's memory", |_| {
        let filled = new.said().phase(0).is_some();
        end = filled.then(Instant::now);
        filled
    })?;
    let end = end.unwrap_or(begin);
    let states = fleet
        .until("figures", |fleet| fleet.figures())?
        .host
        .state_seconds;
    // Until each has said what it had done by then.
    watch.follow(&mut fleet, "the others' reports", |_| {
        end.elapsed() >= REPORTED
    })?;
    let mut new = new;
    let said = new.until(|said| said.ended.then_some(()))?;
    let ended = new.end();
    fleet.stop()?;
    if let (None, _) | (_, Err(_)) = (said, &ended) {
        return Err(Error::Fleet {
            what: "the newcomer's end".to_owned(),
            why: ended
                .err()
                .unwrap_or_else(|| "it ended too early".to_owned()),
        });
    }
    let rate = |from, to| watch.rate(from, to);
    let before = host.state_seconds;
    #[expect(clippy::cast_precision_loss, reason = "bytes far below 2^53")]
    let [budget, free] = [host.memory_bytes, host.free_bytes].map(|bytes| bytes as f64);
    Ok(Grabbed {
        seconds: (end - begin).as_secs_f64(),
        kept: rate(begin, end) / rate(begin - COUNTED, begin),
        budget,
        free,
        states: StateSeconds {
            high: states.high - before.high,
            soft: states.soft - before.soft,
            hard: states.hard - before.hard,
            low: states.low - before.low,
        },
    })
}

/// Pages that a guest says it has compared.
#[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
fn verified(vm: &VmFigures) -> f64 {
    vm.guest.map_or(0.0, |guest| guest.pages_verified as f64)
}

/// What the four have done, and when they said so: each about once a second.
#[derive(Debug, Default)]
struct Watch {
    guests: BTreeMap<String, Vec<(Instant, f64)>>,
}

impl Watch {
    /// Looks at the four until `done`.
    fn follow(
        &mut self,
        fleet: &mut Fleet<'_>,
        what: &str,
        mut done: impl FnMut(&Fleet<'_>) -> bool,
    ) -> Result<(), Error> {
        let mut look = Instant::now();
        fleet.until(what, |fleet| {
            if Instant::now() >= look {
                look += LOOK;
                self.note(&fleet.figures()?);
            }
            done(fleet).then_some(())
        })
    }

    fn note(&mut self, figures: &Figures) {
        let now = Instant::now();
        let old = figures.vms.iter().filter(|vm| vm.name.starts_with("old"));
        for vm in old {
            let said = self.guests.entry(vm.name.clone()).or_default();
            if said.last().is_none_or(|(_, before)| *before < verified(vm)) {
                said.push((now, verified(vm)));
            }
        }
    }

    /// Operations a second of all together.
    fn rate(&self, from: Instant, to: Instant) -> f64 {
        let done = |said: &Vec<_>| count_at(said, to) - count_at(said, from);
        self.guests.values().map(done).sum::<f64>() / (to - from).as_secs_f64()
    }
}

/// A count at some time, on the straight line between the reports around it.
fn count_at(said: &[(Instant, f64)], at: Instant) -> f64 {
    let after = said.partition_point(|(time, _)| *time <= at);
    match (
        after.checked_sub(1).and_then(|before| said.get(before)),
        said.get(after),
    ) {
        (Some((from, low)), Some((to, high))) => {
            let part = (at - *from).as_secs_f64() / (*to - *from).as_secs_f64();
            low + (high - low) * part
        }
        (Some((_, count)), None) | (None, Some((_, count))) => *count,
        (None, None) => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_between_the_reports() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let said = vec![(at(0), 100.0), (at(1000), 300.0), (at(2000), 300.0)];
        assert_eq!(count_at(&said, at(500)), 200.0);
        assert_eq!(count_at(&said, at(1500)), 300.0);
        assert_eq!(count_at(&said, at(9000)), 300.0);
        assert_eq!(count_at(&[], at(0)), 0.0);
        let guests = ["old-0", "old-1"].map(|name| (name.to_owned(), said.clone()));
        let watch = Watch {
            guests: guests.into(),
        };
        assert_eq!(watch.rate(at(0), at(1000)), 400.0);
        assert_eq!(watch.rate(at(500), at(1500)), 200.0);
    }
}
