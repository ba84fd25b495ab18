//! VM processes that have other than they say, or do other than they are told.

use super::*;
use crate::host::process::Footprint;
use crate::link::message::LIST_MAX;
use crate::words::{Counters, Key, Measured};

/// What the kernel says of a process, in MiB and milliseconds.
fn look(manager: &mut Manager, id: VmId, mib: u64, cpu_ms: u64, now: Duration) {
    let footprint = Footprint {
        memory: Pages::mib(mib),
        whole: false,
        cpu: Duration::from_millis(cpu_ms),
    };
    manager.measured(id, Some(footprint), now);
    manager.audit();
}

fn killed(manager: &mut Manager) -> Option<VmId> {
    manager
        .take_outgoing()
        .into_iter()
        .find_map(|out| match out {
            Outgoing::Kill(id, why) => {
                println!("{why}");
                Some(id)
            }
            _ => None,
        })
}

#[test]
fn who_has_more_than_it_says_is_charged_at_once_and_killed_a_second_later() {
    let mut manager = manager();
    let liar = manager.join(hello("liar", 16)).unwrap();
    manager.message(liar, report(0), at(0)).unwrap();
    let free = manager.ledger().free();
    look(&mut manager, liar, 50, 0, at(100));
    assert!(manager.ledger().free() + Pages::mib(40) < free);
    look(&mut manager, liar, 50, 0, at(600));
    assert_eq!(killed(&mut manager), None);
    look(&mut manager, liar, 50, 0, at(1100));
    assert_eq!(killed(&mut manager), Some(liar));
    // It is told once, and may speak no more.
    look(&mut manager, liar, 50, 0, at(1600));
    assert_eq!(killed(&mut manager), None);
    let last = manager.message(liar, report(0), at(1700));
    assert!(matches!(last, Err(Violation::AfterExit)), "{last:?}");
    manager.gone(liar);
    let figures = manager.figures();
    let exit = figures.vms[0].exit.clone().unwrap();
    assert_eq!(exit.reason, ExitReason::Killed);
    assert!(exit.message.unwrap().contains("50.0 MiB"));
}

#[test]
fn who_says_that_it_has_more_than_it_may_is_killed_too() {
    let mut manager = Manager::new(Settings {
        budget: Pages::mib(512),
        ..manager().settings
    });
    let liar = manager.join(hello("liar", 256)).unwrap();
    let all = Pages::mib(256).0;
    manager.message(liar, report(all), at(0)).unwrap();
    for (ms, guilty) in [(0, false), (500, false), (1000, true)] {
        look(&mut manager, liar, 4, 0, at(ms));
        assert_eq!(killed(&mut manager).is_some(), guilty, "at {ms} ms");
    }
}

#[test]
fn what_a_vm_has_for_a_moment_or_without_a_link_is_no_crime() {
    let mut manager = manager();
    let vm = manager.join(hello("a", 16)).unwrap();
    look(&mut manager, vm, 50, 0, at(0));
    look(&mut manager, vm, 20, 0, at(900));
    look(&mut manager, vm, 50, 0, at(1100));
    manager.detach(vm);
    for ms in [2000, 3000, 4000] {
        look(&mut manager, vm, 50, 0, at(ms));
    }
    assert_eq!(killed(&mut manager), None);
}

#[test]
fn credit_that_is_kept_unused_counts_as_its_holders() {
    let mut manager = manager();
    let hoarder = manager.join(hello("hoarder", 64)).unwrap();
    let pages = Pages::mib(40);
    let ask = ToHost::CreditRequest { pages };
    manager.message(hoarder, ask, at(0)).unwrap();
    let got = granted(&mut manager, hoarder) + credit_batch(BUDGET);
    manager.message(hoarder, report(0), at(0)).unwrap();
    let snapshot = manager.snapshot(at(0));
    let kept = Pages(8 * credit_batch(BUDGET).0);
    assert!(got > pages, "{got}");
    assert_eq!(snapshot.vms[0].consumed, got - kept);
    // Little is nobody's business.
    let pages = got - kept;
    manager
        .message(hoarder, ToHost::CreditReturn { pages }, at(1))
        .unwrap();
    assert_eq!(manager.snapshot(at(1)).vms[0].consumed, Pages::ZERO);
}

/// A good VM that wants memory, and one that has nearly all and was told to give.
fn told_to_give() -> (Manager, VmId, VmId) {
    let mut manager = manager();
    let bad = manager.join(hello("bad", 56)).unwrap();
    let got = take_all(&mut manager, bad) + credit_batch(BUDGET);
    manager.message(bad, report(got.0), at(0)).unwrap();
    let good = manager.join(hello("good", 56)).unwrap();
    take_all(&mut manager, good);
    manager.message(good, report(100), at(0)).unwrap();
    look(&mut manager, bad, 56, 0, at(0));
    manager.tick(at(100));
    manager.tick(at(200));
    assert!(manager.policy.mem_state() >= MemState::Hard);
    (manager, good, bad)
}

/// Ticks every 100 ms and looks at the bad one every half second, until it is killed: when.
fn until_killed(
    manager: &mut Manager,
    bad: VmId,
    cpu_ms_per_s: u64,
    mut each: impl FnMut(&mut Manager, u64),
) -> Option<u64> {
    (3..1000).map(|n| 100 * n).find(|&ms| {
        each(manager, ms);
        manager.tick(at(ms));
        if ms % 500 == 0 {
            look(manager, bad, 56, ms * cpu_ms_per_s / 1000, at(ms));
        }
        killed(manager) == Some(bad)
    })
}

#[test]
fn who_gives_nothing_is_left_out_after_a_second_and_the_others_share_the_rest() {
    let (mut manager, good, bad) = told_to_give();
    let target = |manager: &Manager| manager.vms[&good].target();
    let before = target(&manager);
    for ms in (300..=1500).step_by(100) {
        manager.tick(at(ms));
    }
    let snapshot = manager.snapshot(at(1500));
    assert_eq!(snapshot.vms.len(), 1);
    assert_eq!(snapshot.vms[0].id, good);
    let held = manager.counted(bad);
    assert!(snapshot.overhead >= held);
    assert!(target(&manager) < before && target(&manager) + held <= BUDGET);
    // What it was told stands, and once it gives, it is one of them again.
    let some = ToHost::CreditReturn {
        pages: PROGRESS_MADE,
    };
    manager.message(bad, some, at(1600)).unwrap();
    manager.tick(at(1600));
    assert_eq!(manager.snapshot(at(1600)).vms.len(), 2);
    manager.audit();
}

/// It was told to give for the reserve alone, and that is not worth the others' pages.
#[test]
fn who_gives_nothing_costs_nobody_who_does_not_wait() {
    let mut manager = manager();
    let bad = manager.join(hello("bad", 56)).unwrap();
    let got = take_all(&mut manager, bad) + credit_batch(BUDGET);
    manager.message(bad, report(got.0), at(0)).unwrap();
    let good = manager.join(hello("good", 56)).unwrap();
    manager.tick(at(50));
    manager.take_outgoing();
    let pages = manager.ledger.free() - Pages(64);
    manager
        .message(good, ToHost::CreditRequest { pages }, at(0))
        .unwrap();
    assert_eq!(granted(&mut manager, good), pages);
    manager.message(good, report(pages.0), at(0)).unwrap();
    look(&mut manager, bad, 56, 0, at(0));
    for ms in (100..=2000).step_by(100) {
        manager.tick(at(ms));
    }
    assert!(manager.policy.mem_state() >= MemState::Hard);
    assert!(manager.vms[&bad].watch.gives_nothing(at(2000)));
    assert_eq!(manager.snapshot(at(2000)).vms.len(), 2);
    let target = manager.vms[&good].target();
    assert!(target > pages + Pages::mib(1), "{target}");
    let orders = manager.vms[&good].orders.clone().unwrap();
    assert_eq!((orders.private_max, orders.run), (None, Run::Go));
    // It wants more than there is: now the two share what is not to be had otherwise.
    let pages = Pages::mib(1);
    manager
        .message(good, ToHost::CreditRequest { pages }, at(2050))
        .unwrap();
    manager.tick(at(2100));
    assert_eq!(manager.snapshot(at(2100)).vms.len(), 1);
    manager.audit();
}

/// More than passes for none.
const PROGRESS_MADE: Pages = Pages(100);

#[test]
fn where_there_is_enough_again_nobody_is_left_out() {
    let (mut manager, good, _) = told_to_give();
    manager.ledger.set_budget(Pages::mib(256));
    for ms in (300..=3000).step_by(100) {
        manager.tick(at(ms));
    }
    assert_eq!(manager.snapshot(at(3000)).vms.len(), 2);
    assert!(!manager.waits_for_somebody());
    assert!(manager.vms.contains_key(&good));
}

#[test]
fn who_runs_and_gives_nothing_is_killed_after_five_seconds() {
    let (mut manager, _, bad) = told_to_give();
    let when = until_killed(&mut manager, bad, 500, |_, _| {});
    assert!((5000..=6500).contains(&when.unwrap()), "{when:?}");
}

#[test]
fn who_does_not_run_has_a_minute() {
    let (mut manager, _, bad) = told_to_give();
    let when = until_killed(&mut manager, bad, 10, |_, _| {});
    assert!((60_000..=61_000).contains(&when.unwrap()), "{when:?}");
}

/// It finds what it was sent meanwhile in its mail, and some of that is read later.
#[test]
fn time_in_which_the_host_manager_did_not_run_counts_for_nobody() {
    let (mut manager, _, bad) = told_to_give();
    look(&mut manager, bad, 56, 0, at(500));
    for ms in [70_000, 70_500, 71_000, 71_500, 72_000] {
        look(&mut manager, bad, 56, ms, at(ms));
        assert_eq!(killed(&mut manager), None, "at {ms} ms");
    }
}

#[test]
fn who_gives_a_little_or_says_why_not_lives() {
    let (mut manager, _, bad) = told_to_give();
    let gives = |manager: &mut Manager, ms: u64| {
        if ms.is_multiple_of(4000) {
            let some = ToHost::CreditReturn {
                pages: PROGRESS_MADE,
            };
            manager.message(bad, some, at(ms)).unwrap();
        }
    };
    assert_eq!(until_killed(&mut manager, bad, 500, gives), None);
    let (mut manager, _, bad) = told_to_give();
    let private = manager.ledger.holding(bad).total();
    let says = |manager: &mut Manager, ms: u64, swap_full: bool, swap_errors: u64| {
        let report = Report {
            holding: Holding::private(private),
            measured: Measured {
                counters: Counters {
                    swap_errors,
                    ..Counters::default()
                },
                swap_full,
                ..Measured::default()
            },
            ..Report::default()
        };
        let report = ToHost::Report(Box::new(report));
        manager.message(bad, report, at(ms)).unwrap();
    };
    let fails = |manager: &mut Manager, ms: u64| {
        if ms.is_multiple_of(1000) {
            says(manager, ms, false, ms);
        }
    };
    assert_eq!(until_killed(&mut manager, bad, 500, fails), None);
    // But nobody waits for it.
    let snapshot = manager.snapshot(at(99_900));
    assert!(snapshot.vms.iter().all(|vm| vm.id != bad));
    let (mut manager, _, bad) = told_to_give();
    let full = |manager: &mut Manager, ms: u64| says(manager, ms, true, 0);
    assert_eq!(until_killed(&mut manager, bad, 500, full), None);
}

#[test]
fn a_word_for_overhead_is_worth_what_the_process_has() {
    let mut manager = Manager::new(Settings {
        budget: Pages::mib(512),
        ..manager().settings
    });
    let liar = manager.join(hello("liar", 256)).unwrap();
    look(&mut manager, liar, 4, 0, at(0));
    let lie = Report {
        overhead: Pages::mib(400),
        ..Report::default()
    };
    let lie = ToHost::Report(Box::new(lie));
    manager.message(liar, lie, at(1)).unwrap();
    assert!(manager.ledger().vm_overhead(liar) < Pages::mib(32));
}

/// 8.4 M of them took 143 MiB of a host manager, and were everybody's.
#[test]
fn who_fills_the_host_managers_tables_pays_for_that() {
    let mut manager = Manager::new(Settings {
        budget: Pages::mib(2048),
        ..manager().settings
    });
    let (good, liar) = (hello("good", 16), hello("liar", 1024));
    let (good, liar) = (manager.join(good).unwrap(), manager.join(liar).unwrap());
    let own = Pages::mib(4);
    manager.set_host_overhead(own);
    let overheads = |manager: &Manager| {
        let ledger = manager.ledger();
        (ledger.overhead(), ledger.vm_overhead(good))
    };
    let before = overheads(&manager);
    let liars = manager.ledger().vm_overhead(liar);
    assert_eq!(manager.ledger().kept(liar), Pages::ZERO);
    let pages = u32::try_from(Pages::mib(1024).0).unwrap();
    for first in (0..2 * pages).step_by(LIST_MAX) {
        let keys = (first..).take(LIST_MAX);
        let keys = keys.map(|n| (Gfn(n), Key(u64::from(n) * 77 + 1)));
        let offer = ToHost::Offer {
            pages: keys.collect(),
        };
        manager.message(liar, offer, at(0)).unwrap();
    }
    // It had all that its size lets it have: 17 to 20 bytes a page.
    let grown = Pages::mib(5);
    manager.set_host_overhead(own + grown);
    manager.audit();
    let kept = manager.ledger().kept(liar);
    assert!(
        (Pages::mib(4)..=grown + Pages(26)).contains(&kept),
        "{kept}"
    );
    let (all, goods) = overheads(&manager);
    assert_eq!((all, goods), (before.0 + grown, before.1));
    assert_eq!(manager.figures().vms[1].memory.kept_bytes, kept.bytes());
    // No more than there is, and nothing once it has gone.
    manager.set_host_overhead(Pages::mib(1));
    assert!(manager.ledger().kept(liar) <= Pages::mib(1));
    manager.audit();
    manager.gone(liar);
    manager.set_host_overhead(own);
    assert_eq!(overheads(&manager), (before.0 - liars, before.1));
}
