//! Many hosts from a seed: do the laws hold for guests that nobody thought of, and what does it cost?

use std::time::Duration;

use super::host;
use super::outcome::Outcome;
use super::scenario::{Fleet, GuestSpec, Model, Reports, Scenario};
use crate::policy::PolicyKind;
use crate::units::Pages;
use crate::words::Allocation;

/// Plays every host; the outcome holds the VMs of all, named `h<host>-vm<n>`.
pub(super) fn run(scenario: &Scenario, fleet: &Fleet, policy: PolicyKind) -> Outcome {
    let mut whole: Option<Outcome> = None;
    let mut broken = 0_u32;
    for number in 0..fleet.hosts {
        let mut random = fastrand::Rng::with_seed(fleet.seed ^ (u64::from(number) << 32));
        let one = Scenario {
            guests: guests(scenario, fleet, number, &mut random),
            fleet: None,
            ..scenario.clone()
        };
        let outcome = host::run(&one, policy);
        broken += u32::from(!outcome.ok);
        match &mut whole {
            None => whole = Some(outcome),
            Some(whole) => join(whole, outcome, number),
        }
    }
    let mut whole = whole.unwrap_or_else(|| host::run(scenario, policy));
    if whole.ok {
        whole.why = format!(
            "{} hosts, {} VMs: as expected",
            fleet.hosts,
            whole.vms.len()
        );
    } else {
        whole.why = format!("{broken} of {} hosts: {}", fleet.hosts, whole.why);
    }
    whole
}

fn join(whole: &mut Outcome, part: Outcome, number: u32) {
    if whole.ok && !part.ok {
        whole.ok = false;
        whole.why = format!("h{number}: {}", part.why);
    }
    whole.vms.extend(part.vms);
    whole.vm_decisions += part.vm_decisions;
    whole.free_bytes_min = whole.free_bytes_min.min(part.free_bytes_min);
    whole.state_worst = whole.state_worst.max(part.state_worst);
    whole.state_changes += part.state_changes;
}

fn guests(
    scenario: &Scenario,
    fleet: &Fleet,
    number: u32,
    random: &mut fastrand::Rng,
) -> Vec<GuestSpec> {
    let count = random.u32(1..=fleet.vms_max);
    let mut guests: Vec<GuestSpec> = (0..count)
        .map(|vm| guest(scenario, format!("h{number}-vm{vm}"), random))
        .collect();
    // In the order in which they start, as a host would name them.
    guests.sort_by_key(|guest| guest.start);
    guests
}

fn guest(scenario: &Scenario, name: String, random: &mut fastrand::Rng) -> GuestSpec {
    let mib = 64 * random.u64(1..=16);
    let size = Pages::mib(mib);
    let part = |percent: u64| Pages(size.0 * percent / 100);
    let low = random.u64(0..=20);
    let seconds = scenario.duration.as_secs().max(1);
    let at = Duration::from_secs(random.u64(0..seconds));
    let model = match random.u8(0..20) {
        0 => Model::Stuck,
        1 => Model::Trickle,
        2 | 3 => Model::Slow { step: Pages(102) },
        4 => Model::SometimesStuck {
            works: Duration::from_millis(300),
            period: Duration::from_secs(3),
        },
        5 => Model::Refuses { below: part(60) },
        6 => Model::Dies { at },
        7 | 8 => Model::SuddenNeed {
            at,
            wants: part(95),
        },
        _ => Model::Prompt,
    };
    let wants = part(random.u64(10..=90));
    GuestSpec {
        name,
        allocation: Allocation {
            size,
            reservation: part(low / 2),
            limit: size,
            shares: mib * [5, 10, 20][random.usize(0..3)],
            dynamic_min: part(low),
            dynamic_max: part(random.u64(60..=100)),
        },
        overhead: Pages::mib(4),
        start: Duration::from_secs(random.u64(0..=seconds / 2)),
        model,
        wants,
        cache: part(random.u64(0..=20)),
        active: Pages(wants.0 * random.u64(0..=100) / 100),
        upper: size,
        misses: Pages::ZERO,
        reports: [
            Reports::Nothing,
            Reports::Truth,
            Reports::Truth,
            Reports::Lies,
        ][random.usize(0..4)],
    }
}
