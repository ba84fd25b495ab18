//! Properties of whole decisions.

use std::time::Duration;

use proptest::prelude::*;

use super::balloon::{PROGRESS_MIN, STUCK_AFTER};
use super::ceiling::balloon_ceiling;
use super::deflate::ROOM_FOR;
use super::state::Thresholds;
use super::supply::distributable;
use super::types::*;
use super::*;
use crate::words::{GuestMemoryStats, Run};

mod every_policy;

pub(super) fn allocation(size: u64, reservation: u64, limit: u64, shares: u64) -> Allocation {
    Allocation {
        size: Pages(size),
        reservation: Pages(reservation),
        limit: Pages(limit),
        shares,
        dynamic_min: Pages(reservation),
        dynamic_max: Pages(limit),
    }
}

pub(super) fn vm(id: u32, consumed: u64, allocation: Allocation) -> VmSnapshot {
    VmSnapshot {
        id: VmId(id),
        allocation,
        consumed: Pages(consumed),
        frames: Pages::ZERO,
        private: Pages(consumed),
        ballooned: Pages::ZERO,
        swapped: Pages::ZERO,
        swap_in_pages: 0,
        asked: Pages::ZERO,
        balloon_driver: true,
        active: None,
        overhead: Pages::ZERO,
        guest: GuestMemoryStats::default(),
    }
}

/// A host of 100,000 pages (thresholds 6000, 4000, 2000, 1000) with two VMs of 80,000 pages, of
/// which the first holds all but `free`.
fn two(free: u64) -> Snapshot {
    let each = allocation(80_000, 0, 80_000, 10);
    Snapshot {
        now: Duration::ZERO,
        budget: Pages(100_000),
        free: Pages(free),
        overhead: Pages::ZERO,
        vms: vec![vm(1, 80_000 - free, each), vm(2, 20_000, each)],
    }
}

fn esx() -> PolicyState {
    PolicyState::new(PolicyKind::Esx)
}

#[test]
fn each_state_allows_what_its_row_says() {
    // (free, state, first VM balloons, swaps, is blocked)
    let table = [
        (6000, MemState::High, false, false, false),
        (5000, MemState::High, true, false, false),
        (3999, MemState::Soft, true, false, false),
        (1999, MemState::Hard, true, true, false),
        (999, MemState::Low, true, true, true),
    ];
    for (free, state, balloons, swaps, blocked) in table {
        let plan = decide(&two(free), &mut esx());
        assert_eq!(plan.state, state);
        let first = &plan.vms[0];
        assert_eq!(first.balloon_target > Pages::ZERO, balloons, "{free}");
        assert_eq!(first.private_max.is_some(), swaps, "{free}");
        assert_eq!(first.run == Run::Block, blocked, "{free}");
        // The second is far below its target: nothing is ever asked of it.
        assert_eq!(plan.vms[1].balloon_target, Pages::ZERO);
        assert_eq!(plan.vms[1].private_max, None);
        assert_eq!(plan.vms[1].run, Run::Go);
    }
}

/// Budget 100,000 pages: soft below 4000 free, growth is held below 4500, high from 6000 on.
#[test]
fn who_cannot_be_ballooned_is_swapped_until_the_host_is_high_and_kept_at_that() {
    let at = |free, state: &mut PolicyState| {
        let mut snapshot = two(free);
        snapshot.vms[0].balloon_driver = false;
        let plan = decide(&snapshot, state);
        assert_eq!(plan.vms[1].private_max, None, "below its target");
        (plan.state, plan.vms[0].private_max)
    };
    let mut state = esx();
    // (free, state, pages swapped while no more may be had), one decision after the other
    let table = [
        (4500, MemState::High, None),
        (4499, MemState::High, Some(0)),
        (4000, MemState::High, Some(0)),
        (3999, MemState::Soft, Some(2001)),
        (5000, MemState::Soft, Some(1000)),
        (5999, MemState::Soft, Some(1)),
        (6000, MemState::High, None),
        (1500, MemState::Hard, Some(3500)),
        (3999, MemState::Hard, Some(1001)),
        (4000, MemState::Soft, Some(2000)),
    ];
    for (free, mem_state, swapped) in table {
        let max = swapped.map(|pages| Pages(80_000 - free - pages));
        assert_eq!(at(free, &mut state), (mem_state, max), "{free}");
    }
}

#[test]
fn the_balloon_order_leads_the_balloon_by_one_step_and_stops_at_the_ceiling() {
    let mut state = esx();
    let mut snapshot = two(3000);
    assert_eq!(
        decide(&snapshot, &mut state).vms[0].balloon_target,
        Pages(3000)
    );
    snapshot.free = Pages::ZERO;
    assert_eq!(
        decide(&snapshot, &mut state).vms[0].balloon_target,
        Pages(5000)
    );
    // It gave what it had never touched: nothing has come free, so the loop goes on.
    snapshot.vms[0].ballooned = Pages(5000);
    assert_eq!(
        decide(&snapshot, &mut state).vms[0].balloon_target,
        Pages(10_000)
    );
    snapshot.vms[0].ballooned = Pages(51_900);
    let ceiling = balloon_ceiling(&snapshot.vms[0]);
    assert_eq!(ceiling, Pages(52_000));
    assert_eq!(decide(&snapshot, &mut state).vms[0].balloon_target, ceiling);
    snapshot.free = Pages(3000);
    snapshot.vms[0].ballooned = ceiling;
    let plan = decide(&snapshot, &mut state);
    assert!(plan.vms[0].private_max.is_some(), "{}", plan.vms[0].why);
    assert!(
        plan.vms[0].why.to_string().contains("ceiling"),
        "{}",
        plan.vms[0].why
    );
}

#[test]
fn a_stuck_balloon_is_swapped_instead_until_it_moves() {
    let mut state = esx();
    let mut snapshot = two(3000);
    assert_eq!(decide(&snapshot, &mut state).vms[0].private_max, None);
    snapshot.now = STUCK_AFTER - Duration::from_millis(1);
    assert_eq!(decide(&snapshot, &mut state).vms[0].private_max, None);
    snapshot.now = STUCK_AFTER;
    let plan = decide(&snapshot, &mut state);
    assert!(plan.vms[0].private_max.is_some());
    assert!(
        plan.vms[0].why.to_string().contains("balloon stuck"),
        "{}",
        plan.vms[0].why
    );
    assert!(plan.vms[0].balloon_target > Pages::ZERO, "the order stands");
    assert_eq!(plan.vms[0].conduct, Conduct::Stuck);
    snapshot.vms[0].ballooned = PROGRESS_MIN - Pages(1);
    assert!(decide(&snapshot, &mut state).vms[0].private_max.is_some());
    snapshot.vms[0].ballooned = PROGRESS_MIN;
    assert_eq!(decide(&snapshot, &mut state).vms[0].private_max, None);
}

#[test]
fn no_driver_means_swapping_from_soft_and_no_order() {
    let mut snapshot = two(3000);
    snapshot.vms[0].balloon_driver = false;
    let plan = decide(&snapshot, &mut esx());
    assert_eq!(plan.vms[0].balloon_target, Pages::ZERO);
    assert!(plan.vms[0].private_max.is_some());
}

#[test]
fn a_guest_that_says_it_has_nothing_left_is_swapped_instead() {
    let mut snapshot = two(3000);
    snapshot.vms[0].guest.available_bytes = Some(4 << 20);
    let plan = decide(&snapshot, &mut esx());
    assert_eq!(plan.vms[0].balloon_target, Pages::ZERO);
    assert!(plan.vms[0].private_max.is_some(), "{}", plan.vms[0].why);
}

#[test]
fn who_waits_at_its_limit_is_swapped_at_once() {
    let mut snapshot = two(50_000);
    snapshot.vms[0].allocation.limit = Pages(30_000);
    snapshot.vms[0].asked = Pages(64);
    // The second may hold its whole size: there is nothing to make room for.
    snapshot.vms[1].asked = Pages(80_000);
    let plan = decide(&snapshot, &mut esx());
    assert_eq!(plan.state, MemState::High);
    assert_eq!(plan.vms[0].private_max, Some(Pages(30_000 - 64)));
    assert_eq!(plan.vms[1].private_max, None);
    // One that does not wait is ballooned first.
    snapshot.vms[0].asked = Pages::ZERO;
    snapshot.vms[0].allocation.limit = Pages(29_000);
    let plan = decide(&snapshot, &mut esx());
    assert_eq!(plan.vms[0].private_max, None);
    assert!(plan.vms[0].balloon_target > Pages::ZERO);
}

/// Its cap does not come and go with what it asks for: each change would be told to the VM.
#[test]
fn who_cannot_be_ballooned_is_capped_just_below_its_limit() {
    let mut snapshot = two(50_000);
    snapshot.vms[0].balloon_driver = false;
    snapshot.vms[0].allocation.limit = Pages(31_000);
    let mut state = esx();
    let mut cap = |consumed: u64, asked: u64| {
        snapshot.now += Duration::from_millis(100);
        let vm = &mut snapshot.vms[0];
        (vm.consumed, vm.private) = (Pages(consumed), Pages(consumed));
        vm.asked = Pages(asked);
        decide(&snapshot, &mut state).vms[0].private_max
    };
    assert_eq!(cap(30_000, 0), None);
    for (consumed, asked) in [(30_000, 600), (30_700, 0), (30_700, 300), (31_000, 0)] {
        assert_eq!(
            cap(consumed, asked),
            Some(Pages(31_000)),
            "{consumed} {asked}"
        );
    }
    assert_eq!(cap(20_000, 0), None);
}

#[test]
fn a_limit_is_enforced_in_state_high() {
    let mut snapshot = two(50_000);
    snapshot.vms[0].allocation.limit = Pages(20_000);
    let mut state = esx();
    let plan = decide(&snapshot, &mut state);
    assert_eq!(plan.state, MemState::High);
    assert_eq!(plan.vms[0].balloon_target, Pages(5000));
    assert_eq!(plan.vms[0].private_max, None);
    snapshot.now = STUCK_AFTER;
    assert_eq!(
        decide(&snapshot, &mut state).vms[0].private_max,
        Some(Pages(20_000))
    );
}

#[test]
fn balloons_deflate_only_after_room_has_lasted_and_never_below_high() {
    let mut state = esx();
    let mut snapshot = two(3000);
    decide(&snapshot, &mut state);
    snapshot.vms[0].ballooned = Pages(3000);
    snapshot.vms[0].consumed = Pages(70_000);
    for free in [6000, 6999, 7000] {
        snapshot.now += ROOM_FOR;
        snapshot.free = Pages(free);
        assert_eq!(
            decide(&snapshot, &mut state).vms[0].balloon_target,
            Pages(3000),
            "{free}"
        );
    }
    snapshot.free = Pages(8000);
    assert_eq!(
        decide(&snapshot, &mut state).vms[0].balloon_target,
        Pages(3000)
    );
    snapshot.now += ROOM_FOR;
    assert_eq!(
        decide(&snapshot, &mut state).vms[0].balloon_target,
        Pages(2000)
    );
    // Ordered, not yet done: the same room is not given twice.
    snapshot.now += ROOM_FOR;
    assert_eq!(
        decide(&snapshot, &mut state).vms[0].balloon_target,
        Pages(2000)
    );
}

#[test]
fn policies_are_found_by_name() {
    for kind in PolicyKind::ALL {
        assert_eq!(kind.name().parse(), Ok(*kind));
    }
    assert_eq!("nosuch".parse::<PolicyKind>(), Err(UnknownPolicy));
}

prop_compose! {
    fn any_vm()(
        size in 1_u64..100_000, low in 0.0..=1.0_f64, high in 0.0..=1.0_f64, shares in 0_u64..5000,
        used in 0.0..=1.1_f64, frames in 0.0..=1.0_f64, ballooned in 0.0..=1.0_f64,
        balloon_driver in any::<bool>(), available in proptest::option::of(0_u64..1 << 28),
    ) -> VmSnapshot {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a test generator")]
        let part = |of: u64, fraction: f64| (of as f64 * fraction) as u64;
        let limit = size - part(size, high);
        let mut vm = vm(0, part(limit, used), allocation(size, part(limit, low), limit, shares));
        vm.frames = Pages(part(vm.consumed.0, frames));
        vm.private = vm.consumed - vm.frames;
        vm.ballooned = Pages(part(size, ballooned));
        vm.balloon_driver = balloon_driver;
        vm.guest.available_bytes = available;
        vm
    }
}

prop_compose! {
    /// A host whose books balance: budget = overhead + consumed + unused credit + free.
    fn any_host()(
        mut vms in proptest::collection::vec(any_vm(), 1..10), overhead in 0_u64..10_000,
        unused in 0_u64..2000, free in prop_oneof![0_u64..20_000, 0_u64..400_000],
        now in 0_u64..20_000,
    ) -> Snapshot {
        for (id, vm) in (0..).zip(&mut vms) {
            vm.id = VmId(id);
        }
        let consumed: u64 = vms.iter().map(|vm| vm.consumed.0).sum();
        Snapshot {
            now: Duration::from_millis(now),
            budget: Pages(overhead + consumed + unused + free),
            free: Pages(free),
            overhead: Pages(overhead),
            vms,
        }
    }
}

fn targets(snapshot: &Snapshot) -> Vec<u64> {
    let plan = decide(snapshot, &mut esx());
    plan.vms.iter().map(|vm| vm.target.0).collect()
}

proptest! {
    #[test]
    fn targets_fit_the_host_and_each_vm(host in any_host()) {
        let thresholds = Thresholds::of_budget(host.budget);
        let reserved: Pages = host.vms.iter().map(|vm| vm.allocation.reservation).sum();
        let plan = decide(&host, &mut esx());
        let sum: Pages = plan.vms.iter().map(|vm| vm.target).sum();
        prop_assert!(sum <= distributable(&host, &thresholds).max(reserved));
        for (vm, plan) in host.vms.iter().zip(&plan.vms) {
            prop_assert_eq!(vm.id, plan.id);
            prop_assert!(vm.allocation.reservation <= plan.target);
            prop_assert!(plan.target <= vm.allocation.limit);
        }
    }

    #[test]
    fn more_budget_never_lowers_a_target(host in any_host(), more in 0_u64..5000) {
        let mut larger = host.clone();
        larger.budget += Pages(more);
        larger.free += Pages(more);
        for (before, after) in targets(&host).iter().zip(targets(&larger)) {
            prop_assert!(*before <= after);
        }
    }

    #[test]
    fn more_shares_never_lower_a_target(host in any_host(), which in any::<prop::sample::Index>(), more in 0_u64..500) {
        let which = which.index(host.vms.len());
        let mut richer = host.clone();
        richer.vms[which].allocation.shares += more;
        prop_assert!(targets(&host)[which] <= targets(&richer)[which]);
    }

    #[test]
    fn the_same_input_gives_the_same_plan(hosts in proptest::collection::vec(any_host(), 1..5)) {
        let (mut one, mut two) = (esx(), esx());
        for host in &hosts {
            prop_assert_eq!(decide(host, &mut one), decide(host, &mut two));
            prop_assert_eq!(&one, &two);
        }
    }

    #[test]
    fn with_enough_free_nothing_is_taken_but_what_is_above_a_limit(hosts in proptest::collection::vec(any_host(), 1..5)) {
        let mut state = esx();
        for host in &hosts {
            let before = state.clone();
            let plan = decide(host, &mut state);
            if host.free < Thresholds::of_budget(host.budget).high {
                continue;
            }
            prop_assert_eq!(plan.state, MemState::High);
            for (vm, plan) in host.vms.iter().zip(&plan.vms) {
                prop_assert_eq!(plan.run, Run::Go);
                let held_back = host.vms.iter().zip(targets(host)).any(|(vm, target)| {
                    vm.consumed.0 < target && vm.ballooned > Pages::ZERO
                });
                if vm.consumed <= vm.allocation.limit && !held_back {
                    prop_assert_eq!(plan.private_max, None);
                    let order = before.balloons.get(&vm.id).map_or(vm.ballooned, |r| r.order);
                    prop_assert!(plan.balloon_target <= order);
                }
            }
        }
    }

    #[test]
    fn nobody_at_or_below_the_target_pays(host in any_host()) {
        let plan = decide(&host, &mut esx());
        for (vm, plan) in host.vms.iter().zip(&plan.vms) {
            if vm.consumed <= plan.target {
                prop_assert!(plan.private_max.is_none_or(|most| most >= vm.private));
                prop_assert_eq!(plan.run, Run::Go);
                prop_assert!(plan.balloon_target <= vm.ballooned);
            } else if let Some(private_max) = plan.private_max {
                let below = vm.private.saturating_sub(private_max);
                prop_assert!(vm.consumed - below >= plan.target);
            }
            prop_assert!(plan.balloon_target <= balloon_ceiling(vm).max(vm.ballooned));
            prop_assert!(vm.balloon_driver || plan.balloon_target == Pages::ZERO);
        }
    }

    #[test]
    fn when_memory_is_short_somebody_above_the_target_can_pay(host in any_host()) {
        let high = Thresholds::of_budget(host.budget).high;
        let short = high.saturating_sub(host.free);
        let excess: Pages = host.vms.iter().zip(targets(&host))
            .map(|(vm, target)| vm.consumed.saturating_sub(Pages(target))).sum();
        let reserved: Pages = host.vms.iter().map(|vm| vm.allocation.reservation).sum();
        let consumed: Pages = host.vms.iter().map(|vm| vm.consumed).sum();
        prop_assert!(excess >= short || reserved + short > consumed);
    }

    #[test]
    fn giving_back_never_takes_the_host_below_high(hosts in proptest::collection::vec(any_host(), 1..8)) {
        let mut state = esx();
        for host in &hosts {
            let before = state.clone();
            let plan = decide(host, &mut state);
            let given: Pages = host.vms.iter().zip(&plan.vms).map(|(vm, plan)| {
                let order = before.balloons.get(&vm.id).map_or(vm.ballooned, |r| r.order);
                order.min(vm.ballooned).saturating_sub(plan.balloon_target)
            }).sum();
            let over: bool = host.vms.iter().any(|vm| vm.consumed > vm.allocation.limit);
            let no_driver = host.vms.iter().any(|vm| !vm.balloon_driver);
            if given > Pages::ZERO && !over && !no_driver {
                prop_assert!(host.free - given >= Thresholds::of_budget(host.budget).high);
            }
        }
    }

    /// Between two visits of a better state, free memory was seen on both sides of the band.
    #[test]
    fn hysteresis_never_flips_without_crossing_both_edges(frees in proptest::collection::vec(0_u64..800, 1..60)) {
        let edges = Thresholds::of_budget(Pages(10_000));
        let mut state = MemState::High;
        for free in frees {
            let free = Pages(free);
            let next = edges.next(state, free);
            let entered_below = |s: MemState| match s {
                MemState::High => Pages(u64::MAX),
                MemState::Soft => edges.soft,
                MemState::Hard => edges.hard,
                MemState::Low => edges.low,
            };
            let left_from = |s: MemState| match s {
                MemState::High => Pages(u64::MAX),
                MemState::Soft => edges.high,
                MemState::Hard => edges.soft,
                MemState::Low => edges.hard,
            };
            if next > state {
                prop_assert!(free < entered_below(next));
            } else if next < state {
                prop_assert!(free >= left_from(state));
            }
            state = next;
        }
    }
}
