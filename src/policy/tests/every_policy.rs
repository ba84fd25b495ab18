//! Properties that hold under every policy.

use super::super::settings::{IdleTax, MinFree, PolicySettings};
use super::*;

prop_compose! {
    /// A host as [`any_host`] makes it, with dynamic ranges, sampled guests and guests that report.
    fn any_rich_host()(
        mut host in any_host(),
        extras in proptest::collection::vec((0..=100_u64, 0..=100_u64, any::<bool>(), any::<bool>()), 10),
    ) -> Snapshot {
        for (vm, (low, part, sampled, reports)) in host.vms.iter_mut().zip(extras) {
            let of = &mut vm.allocation;
            // A limit that is set later may lie below it.
            of.dynamic_min = of.reservation + Pages((of.size - of.reservation).0 * low / 100);
            vm.active = sampled.then_some(Pages(vm.consumed.0 * part / 100));
            vm.swap_in_pages = part * 3;
            if reports {
                let total = of.size.saturating_sub(vm.ballooned).bytes();
                vm.guest.total_bytes = Some(total);
                vm.guest.available_bytes = Some(total * part / 100);
                vm.guest.major_faults = Some(part);
            }
        }
        host
    }
}

fn any_kind() -> impl Strategy<Value = PolicyKind> {
    prop::sample::select(PolicyKind::ALL)
}

fn any_settings() -> impl Strategy<Value = PolicySettings> {
    let scale = prop::sample::select(MinFree::ALL);
    (0..=IdleTax::PERCENT_MAX, scale).prop_map(|(percent, min_free)| PolicySettings {
        idle_tax: IdleTax::new(percent).expect("in range"),
        min_free,
        ..PolicySettings::default()
    })
}

fn targets(host: &Snapshot, kind: PolicyKind) -> Vec<Pages> {
    let plan = decide(host, &mut PolicyState::new(kind));
    plan.vms.iter().map(|vm| vm.target).collect()
}

/// Targets within the VM's bounds and, together, within the host.
fn check_targets(host: &Snapshot, plan: &Plan, state: &PolicyState) -> Result<(), TestCaseError> {
    let entitled = |vm: &VmSnapshot| state.kind().entitlement(&vm.allocation);
    let entitlements: Pages = host.vms.iter().map(entitled).sum();
    let fits = entitlements <= host.budget.saturating_sub(host.overhead);
    for (vm, plan) in host.vms.iter().zip(&plan.vms) {
        prop_assert!(vm.allocation.reservation <= plan.target);
        prop_assert!(plan.target <= vm.allocation.limit);
        prop_assert!(!fits || entitled(vm) <= plan.target);
        prop_assert!(!plan.why.to_string().is_empty());
    }
    let sum: Pages = plan.vms.iter().map(|vm| vm.target).sum();
    let thresholds = state.thresholds(host.budget);
    prop_assert!(sum <= distributable(host, &thresholds).max(entitlements));
    Ok(())
}

/// What balloons give back is free already, above the high threshold.
fn check_growth(host: &Snapshot, plan: &Plan, before: &PolicyState) -> Result<(), TestCaseError> {
    let given = |(vm, plan): (&VmSnapshot, &VmPlan)| {
        let drives = vm.balloon_driver;
        let known = before.balloons.get(&vm.id);
        let order = known.map_or(vm.ballooned, |known| known.order);
        let order = if drives { order } else { Pages::ZERO };
        order.min(vm.ballooned).saturating_sub(plan.balloon_target)
    };
    let given: Pages = host.vms.iter().zip(&plan.vms).map(given).sum();
    let room = host
        .free
        .saturating_sub(before.thresholds(host.budget).high);
    prop_assert!(given <= room, "{given} of {room}");
    Ok(())
}

proptest! {
    #[test]
    fn targets_and_growth_keep_their_bounds_while_policies_change(
        hosts in proptest::collection::vec((any_rich_host(), any_kind()), 1..6), settings in any_settings(),
    ) {
        let mut state = PolicyState::with_settings(PolicyKind::Esx, settings);
        let mut now = Duration::ZERO;
        for (mut host, kind) in hosts {
            now += host.now;
            host.now = now;
            state.set_kind(kind);
            let before = state.clone();
            let plan = decide(&host, &mut state);
            check_targets(&host, &plan, &state)?;
            check_growth(&host, &plan, &before)?;
            prop_assert_eq!(plan.state, before.thresholds(host.budget).next(before.mem_state(), host.free));
        }
    }

    #[test]
    fn more_budget_never_lowers_a_target(host in any_rich_host(), kind in any_kind(), more in 0_u64..5000) {
        let mut larger = host.clone();
        larger.budget += Pages(more);
        larger.free += Pages(more);
        for (before, after) in targets(&host, kind).iter().zip(targets(&larger, kind)) {
            prop_assert!(*before <= after, "{before:?} {after:?}");
        }
    }

    #[test]
    fn more_shares_never_lower_a_target(
        host in any_rich_host(), kind in any_kind(), which in any::<prop::sample::Index>(), more in 0_u64..500,
    ) {
        let which = which.index(host.vms.len());
        let mut richer = host.clone();
        richer.vms[which].allocation.shares += more;
        prop_assert!(targets(&host, kind)[which] <= targets(&richer, kind)[which]);
    }

    #[test]
    fn the_same_input_gives_the_same_plan(
        hosts in proptest::collection::vec(any_rich_host(), 1..5), kind in any_kind(),
    ) {
        let (mut one, mut two) = (PolicyState::new(kind), PolicyState::new(kind));
        for host in &hosts {
            prop_assert_eq!(decide(host, &mut one), decide(host, &mut two));
            prop_assert_eq!(&one, &two);
        }
    }

    /// With enough free and everybody within its target nobody is ballooned on demand, swapped or
    /// blocked; and never is a VM swapped below its target.
    #[test]
    fn nobody_within_its_target_pays(host in any_rich_host(), kind in any_kind()) {
        let mut state = PolicyState::new(kind);
        let plan = decide(&host, &mut state);
        for (vm, plan) in host.vms.iter().zip(&plan.vms) {
            let swapped = plan.private_max.map_or(Pages::ZERO, |max| vm.private.saturating_sub(max));
            prop_assert!(swapped <= vm.consumed.saturating_sub(plan.target));
            if vm.consumed <= plan.target {
                prop_assert_eq!(plan.run, Run::Go);
                prop_assert!(kind != PolicyKind::Esx || plan.balloon_target <= vm.ballooned);
            }
        }
    }

    /// A directed balloon never leaves its guest less than its target or its entitlement.
    #[test]
    fn a_directed_balloon_leaves_the_target(host in any_rich_host(), kind in any_kind()) {
        if kind.manner() == Manner::Directed {
            let plan = decide(&host, &mut PolicyState::new(kind));
            for (vm, plan) in host.vms.iter().zip(&plan.vms) {
                let most = vm.allocation.size.saturating_sub(plan.target).max(vm.ballooned);
                prop_assert!(plan.balloon_target <= most);
            }
        }
    }
}

/// 100,000 pages, two VMs of 80,000 that hold 40,000 each; the range of the second is half as wide.
fn ranges() -> Snapshot {
    let mut host = two(20_000);
    for vm in &mut host.vms {
        vm.consumed = Pages(40_000);
        vm.private = Pages(40_000);
        vm.allocation.dynamic_min = Pages(20_000);
    }
    host.vms[1].allocation.dynamic_max = Pages(50_000);
    host
}

#[test]
fn proportional_gives_all_the_same_fraction_of_their_range() {
    // 94,000 to distribute, 40,000 are minimums, 4 for inaccuracy; ranges 60,000 and 30,000.
    let targets = targets(&ranges(), PolicyKind::Proportional);
    assert_eq!(targets, [Pages(20_000 + 35_997), Pages(20_000 + 17_998)]);
}

#[test]
fn proportional_targets_no_more_than_a_limit_that_was_set_below_the_minimum() {
    let mut host = ranges();
    host.vms[0].allocation.limit = Pages(10_000);
    let targets = targets(&host, PolicyKind::Proportional);
    assert_eq!(targets[0], Pages(10_000));
    let promised = PolicyKind::Proportional.entitlement(&host.vms[0].allocation);
    assert_eq!(promised, Pages(10_000));
}

#[test]
fn proportional_counts_down_to_reservations_when_minimums_do_not_fit() {
    let mut host = ranges();
    for vm in &mut host.vms {
        vm.allocation.dynamic_min = Pages(60_000);
        vm.allocation.dynamic_max = Pages(60_000);
    }
    assert_eq!(targets(&host, PolicyKind::Proportional), [Pages(47_000); 2]);
}

#[test]
fn self_goes_up_at_once_and_down_by_tenths() {
    let mut host = two(20_000);
    host.vms.truncate(1);
    let mib = |mib: u64| Some(Pages::mib(mib).bytes());
    let vm = &mut host.vms[0];
    vm.consumed = Pages::mib(256);
    vm.private = vm.consumed;
    vm.guest.total_bytes = mib(312);
    vm.guest.available_bytes = mib(312 - 200);
    let mut state = PolicyState::new(PolicyKind::Own);
    let mut target = |host: &Snapshot| decide(host, &mut state).vms[0].target;
    // 200 MiB used, an eighth more is committed; it begins where the guest is.
    assert_eq!(target(&host), Pages::mib(256));
    host.now += own::INTERVAL;
    assert_eq!(
        target(&host),
        Pages(Pages::mib(256).0 - Pages::mib(31).0.div_ceil(10))
    );
    host.now += own::INTERVAL / 2;
    assert_eq!(
        target(&host),
        Pages(Pages::mib(256).0 - Pages::mib(31).0.div_ceil(10))
    );
    host.vms[0].guest.available_bytes = mib(312 - 240);
    host.now += own::INTERVAL;
    assert_eq!(target(&host), Pages::mib(270));
}

/// A guest that grows faster than its wish is followed has its balloon give pages back, and says that it
/// has nothing left: with free memory beside it, nothing of it is swapped.
#[test]
fn a_guest_above_its_wish_is_held_only_where_memory_is_short() {
    let kept = |kind, short| {
        let mut host = ranges();
        host.vms.truncate(1);
        host.vms[0].guest.available_bytes = Some(0);
        let mut state = PolicyState::new(kind);
        let target = decide(&host, &mut state).vms[0].target;
        host.vms[0].consumed = target + Pages(4000);
        host.vms[0].private = host.vms[0].consumed;
        host.free = state.thresholds(host.budget).high - short;
        let plan = decide(&host, &mut state);
        assert!(plan.vms[0].target < host.vms[0].consumed);
        plan.vms[0].private_max
    };
    assert_eq!(kept(PolicyKind::Own, Pages::ZERO), None);
    assert!(kept(PolicyKind::Own, Pages(1)).is_some());
    // What the host distributes is no wish of the guest's.
    assert!(kept(PolicyKind::Proportional, Pages::ZERO).is_some());
}

/// Linux leaves ballooned pages in its total when its driver deflates on out-of-memory.
#[test]
fn a_total_with_the_balloon_in_it_and_one_without_mean_the_same() {
    let mut host = two(20_000);
    let vm = &mut host.vms[0];
    vm.ballooned = Pages(30_000);
    vm.guest.available_bytes = Some(Pages(10_000).bytes());
    for kind in [PolicyKind::Own, PolicyKind::Pref] {
        let mut with_total = |total: Pages| {
            host.vms[0].guest.total_bytes = Some(total.bytes());
            targets(&host, kind)
        };
        let size = Pages(80_000);
        assert_eq!(
            with_total(size),
            with_total(size - Pages(30_000)),
            "{kind:?}"
        );
    }
}

#[test]
fn the_floors_of_self_come_in_pieces() {
    for (size, floor) in [
        (64, 40),
        (128, 72),
        (256, 104),
        (512, 168),
        (1024, 232),
        (4096, 424),
    ] {
        assert_eq!(own::floor(Pages::mib(size)), Pages::mib(floor), "{size}");
    }
    assert_eq!(own::floor(Pages::mib(4)), Pages::mib(4));
}

#[test]
fn a_guest_cannot_claim_more_than_it_is_measured_to_hold() {
    let mut host = two(20_000);
    for kind in [PolicyKind::Own, PolicyKind::Pref] {
        let honest = targets(&host, kind);
        host.vms[1].guest.total_bytes = Some(Pages(80_000).bytes());
        host.vms[1].guest.available_bytes = Some(0);
        assert_eq!(targets(&host, kind), honest, "{kind:?}");
        let why = decide(&host, &mut PolicyState::new(kind)).vms[1]
            .why
            .to_string();
        assert!(why.contains("measured: the guest says more"), "{why}");
    }
}

#[test]
fn pref_donors_pay_before_acceptors_and_refuse_what_they_do_not_have() {
    let mut host = two(10_000);
    // The first uses little of its 70,000 pages, the second all of its 20,000.
    host.vms[0].guest.total_bytes = Some(Pages(80_000).bytes());
    host.vms[0].guest.available_bytes = Some(Pages(20_000).bytes());
    let settings = PolicySettings::default();
    assert_eq!(targets(&host, PolicyKind::Pref), [Pages(47_000); 2]);
    // A start may take what donors have above their pref. That of the first is 78,000: nobody has.
    let spare = |vm: &VmSnapshot| vm.consumed - pref::keeps(vm, &settings);
    assert_eq!(spare(&host.vms[0]), Pages::ZERO);
    host.vms[0].guest.available_bytes = Some(Pages(75_000).bytes());
    assert_eq!(spare(&host.vms[0]), Pages(18_800));
}

#[test]
fn pressure_tightens_by_a_percent_and_backs_off_at_once() {
    let mut host = two(50_000);
    host.vms.truncate(1);
    host.vms[0].consumed = Pages(50_000);
    host.budget = Pages(200_000);
    host.free = Pages(150_000);
    let mut state = PolicyState::new(PolicyKind::Pressure);
    let mut play = |host: &mut Snapshot, seconds: u32| {
        let mut target = Pages::ZERO;
        for _ in 0..seconds {
            host.now += Duration::from_secs(1);
            target = decide(host, &mut state).vms[0].target;
        }
        target
    };
    assert_eq!(play(&mut host, 1), Pages(50_000));
    assert_eq!(play(&mut host, 6), Pages(49_500));
    assert_eq!(play(&mut host, 6), Pages(49_005));
    host.vms[0].swap_in_pages += 2 * pressure::REFAULTS_MAX;
    assert_eq!(play(&mut host, 1), Pages(49_005 + 49_005 * 4 / 10));
    host.vms[0].swap_in_pages += 100 * pressure::REFAULTS_MAX;
    assert_eq!(play(&mut host, 1), Pages(80_000));
}

#[test]
fn another_policy_takes_over_at_the_next_decision() {
    let host = ranges();
    let mut state = PolicyState::new(PolicyKind::Esx);
    assert_eq!(decide(&host, &mut state).vms[0].balloon_target, Pages::ZERO);
    state.set_kind(PolicyKind::Proportional);
    let plan = decide(&host, &mut state);
    assert!(plan.vms[1].balloon_target > Pages::ZERO);
    assert!(
        plan.vms[1].why.to_string().contains("dynamic range"),
        "{}",
        plan.vms[1].why
    );
}

#[test]
fn a_directed_balloon_grows_only_into_what_is_not_promised() {
    let mut host = ranges();
    let mut state = PolicyState::new(PolicyKind::Proportional);
    for vm in &mut host.vms {
        vm.ballooned = Pages(60_000);
        vm.consumed = Pages(20_000);
        vm.private = Pages(20_000);
    }
    host.free = Pages(60_000);
    for _ in 0..2 {
        decide(&host, &mut state);
    }
    // 94,000 less twice the 20,000 that are allotted: both together may grow by 54,000.
    let plan = decide(&host, &mut state);
    let given: u64 = plan.vms.iter().map(|vm| 60_000 - vm.balloon_target.0).sum();
    assert!(given <= 54_000, "{given}");
}
