//! A VM process that reports whatever it likes harms its own account only, and that up to its size.

use proptest::prelude::*;

use super::*;
use crate::words::{Counters, Gauges, GuestMemoryStats, GuestReport, Holding, Measured};

const SIZE: Pages = Pages::mib(16);

/// Figures as an attacker chooses them: right, at the edges, and far beyond.
fn figure() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..=SIZE.0,
        SIZE.0 - 1..=SIZE.0 + 1,
        u64::MAX - 1..=u64::MAX,
        any::<u64>(),
        any::<u32>().prop_map(|shift| u64::MAX >> (shift % 64)),
    ]
}

fn guest_memory() -> impl Strategy<Value = GuestMemoryStats> {
    prop::array::uniform14(prop::option::of(figure())).prop_map(|n| GuestMemoryStats {
        swap_in_bytes: n[0],
        swap_out_bytes: n[1],
        major_faults: n[2],
        minor_faults: n[3],
        free_bytes: n[4],
        total_bytes: n[5],
        available_bytes: n[6],
        caches_bytes: n[7],
        oom_kills: n[8],
        alloc_stalls: n[9],
        async_scan_bytes: n[10],
        direct_scan_bytes: n[11],
        async_reclaim_bytes: n[12],
        direct_reclaim_bytes: n[13],
    })
}

fn hostile_report() -> impl Strategy<Value = Report> {
    let figures = prop::array::uniform18(figure());
    let others = (prop::option::of(figure()), any::<bool>(), guest_memory());
    (figures, others).prop_map(|(n, (active, balloon_driver, guest_memory))| Report {
        holding: Holding {
            private: Pages(n[0]),
            compressed_store: Pages(n[1]),
            orphaned: Pages(n[2]),
        },
        overhead: Pages(n[3]),
        measured: Measured {
            shared: Pages(n[4]),
            gauges: Gauges {
                zero: Pages(n[5]),
                ballooned: Pages(n[6]),
                compressed: Pages(n[7]),
                swapped: Pages(n[8]),
                large: Pages(n[17]),
            },
            counters: Counters {
                swap_in_pages: n[9],
                swap_out_pages: n[10],
                cow_breaks: n[11],
                swap_errors: n[12],
                ..Counters::default()
            },
            take_path: None,
            swap_full: n[0].is_multiple_of(2),
            stalled: n[0].is_multiple_of(3),
            active: active.map(Pages),
            active_error: Pages(n[13]),
            balloon_driver,
            balloon_actual: Pages(n[14]),
            guest_memory,
            start_us: None,
            guest: Some(GuestReport {
                pages_verified: n[15],
                pages_corrupt: n[16],
            }),
        },
    })
}

/// Three VMs under one policy: two of them lie, in turn and as often as they like.
fn play(kind: PolicyKind, reports: &[Report]) -> (Manager, VmId) {
    let mut manager = Manager::new(Settings {
        policy: kind,
        ..manager().settings
    });
    let honest = manager.join(hello("honest", 16)).unwrap();
    manager.message(honest, report(10), at(0)).unwrap();
    let liars = [0, 1].map(|n| manager.join(hello(&format!("liar-{n}"), 16)).unwrap());
    for (n, report) in reports.iter().enumerate() {
        let report = ToHost::Report(Box::new(report.clone()));
        manager.message(liars[n % 2], report, at(0)).unwrap();
        manager.tick(at(100 * (n as u64 + 1)));
    }
    (manager, honest)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_lying_vm_is_charged_its_size_at_most(
        reports in prop::collection::vec(hostile_report(), 1..5),
        kind in prop::sample::select(PolicyKind::ALL),
    ) {
        let (mut manager, honest) = play(kind, &reports);
        let figures = manager.figures();
        for vm in &figures.vms {
            let now = &vm.memory;
            prop_assert!(now.consumed_bytes <= SIZE.bytes(), "{vm:?}");
            prop_assert!(now.credit_bytes <= SIZE.bytes(), "{vm:?}");
            prop_assert!(now.active_bytes + now.active_error_bytes <= 2 * SIZE.bytes(), "{vm:?}");
            prop_assert!(now.gauges.taken_out() <= SIZE, "{vm:?}");
            let parts = now.private_bytes + now.shared_bytes - now.saved_bytes;
            let store = now.consumed_bytes - parts;
            prop_assert!(store <= now.gauges.compressed.bytes(), "{vm:?}");
        }
        let of_vms: u64 = figures.vms.iter().map(|vm| vm.memory.consumed_bytes).sum();
        prop_assert_eq!(of_vms + figures.host.overhead_bytes, figures.host.consumed_bytes);
        let verified = figures.vms.iter().filter_map(|vm| vm.guest);
        verified.map(|guest| guest.pages_verified).sum::<u64>();
        prop_assert_eq!(manager.ledger().charge(honest), manager.ledger().credit(honest));
        manager.audit();
    }

    #[test]
    fn what_can_be_is_left_as_it_is(report in hostile_report()) {
        let once = report.within(SIZE);
        prop_assert!(once.holding.total() <= SIZE);
        prop_assert_eq!(once.clone().within(SIZE), once);
    }
}

#[test]
fn a_vm_that_joins_again_is_believed_up_to_what_its_process_has() {
    let mut manager = manager();
    let process = ProcessId { pid: 9, started: 1 };
    let vm = manager.admit(hello("liar", 16), process, Some(7)).unwrap();
    let token = welcome(&mut manager, vm).token.unwrap();
    let pool = manager.pool(vm).unwrap().reader().unwrap();
    let mut again = |token, held, resident| {
        let rejoined = manager.rejoin(vm, token, [Pages(held), Pages(resident)], Some(&pool));
        let welcome = rejoined.map(|()| welcome(&mut manager, vm));
        manager.audit();
        welcome.map(|welcome| welcome.credit - welcome.credit_batch)
    };
    for held in [SIZE.0 + 1, u64::MAX] {
        let refused = again(token, held, SIZE.0).unwrap_err().to_string();
        assert!(refused.contains("holds"), "{refused}");
    }
    let stranger = again(Token::of([1, 2]), 1, 1);
    assert!(matches!(stranger, Err(Refused::Token)), "{stranger:?}");
    assert_eq!(again(token, SIZE.0, 100).unwrap(), Pages(100));
    assert_eq!(again(token, 50, 100).unwrap(), Pages(50));
}

#[test]
fn a_name_a_process_and_a_door_are_one_vms() {
    let mut manager = manager();
    let process = |pid| ProcessId { pid, started: 1 };
    manager.admit(hello("a", 16), process(1), Some(7)).unwrap();
    let mut refused = |name, pid, door| {
        let refused = manager.admit(hello(name, 16), process(pid), door);
        refused.unwrap_err().to_string()
    };
    assert!(refused("a", 2, None).contains("runs already"));
    assert!(refused("b", 1, None).contains("process 1 runs"));
    assert!(refused("b", 2, Some(7)).contains("listens there"));
    manager.admit(hello("b", 16), process(2), None).unwrap();
    manager.admit(hello("c", 16), process(3), None).unwrap();
}

#[test]
fn what_a_vm_says_last_steers_no_terminal() {
    let mut manager = manager();
    let a = manager.join(hello("a", 4)).unwrap();
    let message = "\x1b]0;owned\x07\nb: all is well".to_owned();
    let last = ToHost::Exited(Exit::error(message));
    manager.message(a, last, at(0)).unwrap();
    manager.gone(a);
    let exit = manager.figures().vms[0].exit.clone().unwrap();
    let shown = "\\x1b]0;owned\\x07\\x0ab: all is well";
    assert_eq!(exit.message.as_deref(), Some(shown));
}

#[test]
fn who_joins_and_leaves_does_not_push_out_who_ran() {
    let mut manager = manager();
    let a = manager.join(hello("a", 4)).unwrap();
    let measured = Measured {
        start_us: Some(1),
        ..Measured::default()
    };
    let report = Report {
        measured,
        ..Report::default()
    };
    let report = ToHost::Report(Box::new(report));
    manager.message(a, report, at(0)).unwrap();
    manager.gone(a);
    for n in 0..2 * ENDED_MAX {
        let b = manager.join(hello(&format!("b{n}"), 4)).unwrap();
        manager.gone(b);
    }
    let ended = manager.figures().vms;
    assert_eq!((ended.len(), ended[0].name.as_str()), (ENDED_MAX, "a"));
    assert_eq!(
        ended.last().unwrap().name,
        format!("b{}", 2 * ENDED_MAX - 1)
    );
}
