//! VMs whose swap files are full.

use super::*;

fn says(held: Pages, swap_full: bool, stalled: bool) -> ToHost {
    let measured = Measured {
        swap_full,
        stalled,
        ..Measured::default()
    };
    ToHost::Report(Box::new(Report {
        holding: Holding::private(held),
        measured,
        ..Report::default()
    }))
}

#[test]
fn a_vm_is_not_blocked_for_what_it_cannot_give() {
    let mut manager = manager();
    let a = manager.join(hello("a", 64)).unwrap();
    let held = welcome(&mut manager, a).credit + take_all(&mut manager, a);
    assert!(held > Pages::mib(40), "{held}");
    manager.join(hello("b", 64)).unwrap();
    manager.set_host(Some(Pages::mib(32)), None).unwrap();
    // (full, stalled, what its vCPUs do, what people see)
    let table = [
        (false, false, Run::Block, VmState::Blocked),
        (true, false, Run::Go, VmState::SwapFull),
        (true, true, Run::Go, VmState::Stalled),
        (false, false, Run::Block, VmState::Blocked),
    ];
    for (ms, (swap_full, stalled, run, state)) in (1..).map(|n| 100 * n).zip(table) {
        let says = says(held, swap_full, stalled);
        manager.message(a, says, at(ms)).unwrap();
        manager.tick(at(ms));
        assert_eq!(manager.policy.mem_state(), MemState::Low);
        assert_eq!(manager.vms[&a].orders.as_ref().unwrap().run, run);
        assert_eq!(manager.vms[&a].state(), state);
        manager.audit();
    }
}

#[test]
fn nor_when_it_has_given_nothing_for_so_long_that_nobody_waits_for_it() {
    let mut manager = manager();
    let a = manager.join(hello("a", 64)).unwrap();
    let held = welcome(&mut manager, a).credit + take_all(&mut manager, a);
    manager.join(hello("b", 64)).unwrap();
    manager.set_host(Some(Pages::mib(32)), None).unwrap();
    let run = |manager: &Manager| manager.vms[&a].orders.as_ref().unwrap().run;
    manager.message(a, says(held, false, false), at(0)).unwrap();
    for ms in (100..4000).step_by(100) {
        manager.tick(at(ms));
    }
    assert!(manager.vms[&a].watch.gives_nothing(at(4000)));
    assert_eq!(run(&manager), Run::Block);
    manager
        .message(a, says(held, true, false), at(4000))
        .unwrap();
    manager.tick(at(4100));
    assert_eq!(run(&manager), Run::Go);
}
