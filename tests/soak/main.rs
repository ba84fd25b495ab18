//! Nothing is lost and nothing hangs, whatever happens around the guests: processes that are stopped
//! and killed, a full swap folder, pages that the host's kernel moves, settings that change every
//! second.
//!
//! A round is a script drawn from a seed ([`script`]) and a fleet that it is played to ([`world`]):
//! guests that compare every byte, in half of the memory they were promised. `make test` plays one
//! round; `make soak` plays as many as fit into the time that it is given, each with a new seed.
//!
//! | variable | of `make soak` |
//! |---|---|
//! | `SOAK` | how long: 10m, 1h |
//! | `SOAK_TAKE` | `move` or `copy`; both in turn if it is not set |
//! | `TIDEMARK_SEED` | seed of the first round; a new one if it is not set |

#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers are tests too: a panic is their way to fail"
)]

#[path = "../common/mod.rs"]
mod common;
mod diary;
mod oracle;
mod script;
mod swap_room;
mod world;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use common::Capability::{Kvm, Uffd};
use common::fleet::alone;
use common::{note, require, skip};
use script::Script;
use tidemark::words::size::parse_duration;
use world::{BUDGETS, CAST, Outcome, World};

/// Events of the round in `make test`.
const SHORT: Duration = Duration::from_secs(30);
/// Events of a round of `make soak`.
const LONG: Duration = Duration::from_secs(180);
/// For rounding to seconds.
const HALF: Duration = Duration::from_millis(500);
/// A shorter rest of the time is not worth a round.
const LEAST: Duration = Duration::from_secs(20);
/// A new host manager has this long to bring the fleet back into its budget, or a third of a
/// shorter round.
const GRACE: Duration = Duration::from_secs(30);
/// Seed of the round in `make test`: one whose script has every kind of event.
const SEED: u64 = 139;

/// Plays the script of a seed.
fn round(seed: u64, take: Option<&'static str>, length: Duration) -> Outcome {
    let script = Script::draw(seed, length, CAST);
    let mut world = World::start(seed, take, GRACE.min(length / 3));
    world.diary.begin();
    let start = Instant::now();
    for step in &script.steps {
        world.watch_until(start + step.at);
        world.perform(&step.action);
    }
    world.watch_until(start + script.length);
    world.finish()
}

fn line(outcome: &Outcome) -> String {
    let events: Vec<String> = outcome
        .events
        .iter()
        .map(|(kind, count)| format!("{kind} {count}"))
        .collect();
    let peaks: Vec<String> = outcome
        .peaks
        .iter()
        .zip(BUDGETS)
        .map(|(peak, budget)| format!("{}/{}", peak >> 20, budget >> 20))
        .collect();
    format!(
        "{}; {} pages verified; peak {} MiB (host, run)",
        events.join(", "),
        outcome.verified,
        peaks.join(" and ")
    )
}

fn ready() -> bool {
    if require(&[Kvm, Uffd]).is_none() {
        return false;
    }
    if !world::can_compact() {
        skip("/proc/sys/vm/compact_memory cannot be written: no compaction in the script");
    }
    true
}

#[test]
fn a_fleet_survives_half_a_minute_of_trouble() {
    if !ready() {
        return;
    }
    let _alone = alone();
    let seed = std::env::var("TIDEMARK_SEED").map_or(SEED, |_| common::seed());
    let outcome = round(seed, None, SHORT);
    note(&format!("seed {seed}: {}", line(&outcome)));
}

/// The ways of taking pages out that take turns.
fn takes() -> Vec<&'static str> {
    match std::env::var("SOAK_TAKE").ok().as_deref() {
        Some("move") => vec!["move"],
        Some("copy") => vec!["copy"],
        Some(other) => panic!("SOAK_TAKE={other:?}: allowed are move and copy"),
        None => vec!["move", "copy"],
    }
}

#[test]
fn soak() {
    let Ok(time) = std::env::var("SOAK") else {
        return note("does not apply: SOAK is not set, see `make soak`");
    };
    let time = parse_duration(&time).unwrap_or_else(|error| panic!("SOAK={time:?} {error}"));
    if !ready() {
        return;
    }
    let _alone = alone();
    let deadline = Instant::now() + time;
    let given = std::env::var_os("TIDEMARK_SEED").map(|_| common::seed());
    let (mut rounds, mut verified, mut totals) = (0, 0, BTreeMap::new());
    for take in takes().into_iter().cycle() {
        let left = deadline.saturating_duration_since(Instant::now());
        if rounds > 0 && left < LEAST {
            break;
        }
        let seed = given
            .filter(|_| rounds == 0)
            .unwrap_or_else(|| fastrand::u64(..1 << 32));
        // Whole seconds: the length is a part of what repeats a round.
        let length = Duration::from_secs((left + HALF).as_secs()).clamp(LEAST, LONG);
        let repeat = format!(
            "TIDEMARK_SEED={seed} SOAK_TAKE={take} SOAK={}s make soak",
            length.as_secs()
        );
        note(&format!("round {rounds}: {repeat}"));
        let played = std::panic::catch_unwind(|| round(seed, Some(take), length));
        let outcome = played.unwrap_or_else(|_| panic!("the round failed; again: {repeat}"));
        note(&format!("round {rounds}: {}", line(&outcome)));
        verified += outcome.verified;
        for (kind, count) in outcome.events {
            *totals.entry(kind).or_insert(0) += count;
        }
        rounds += 1;
        oracle::round(seed);
    }
    note(&format!(
        "{rounds} rounds without a finding, {verified} pages verified, events {totals:?}"
    ));
}
