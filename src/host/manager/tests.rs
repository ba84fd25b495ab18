mod frames;
mod hostile;
mod swap_full;
mod watch;

use serde_bytes::ByteBuf;

use super::*;
use crate::host::registration::Registration;
use crate::page::key::key_of;
use crate::units::FrameId;
use crate::words::{AllocationKeys, Holding, Sharing};

const BUDGET: Pages = Pages::mib(64);

fn manager() -> Manager {
    Manager::new(Settings {
        budget: BUDGET,
        policy: PolicyKind::Esx,
        policy_settings: PolicySettings::default(),
        sampling: Sampling::default(),
        seed: 1,
    })
}

fn hello(name: &str, mib: u64) -> Registration {
    Registration {
        name: name.to_owned(),
        allocation: Allocation {
            shares: 1000,
            dynamic_min: Pages::ZERO,
            ..Allocation::of(Pages::mib(mib))
        },
        share_group: Some("g".to_owned()),
        sharing: Sharing::default(),
        managed: true,
        lease: None,
    }
}

impl Manager {
    /// Admits a VM in a process of its own.
    fn join(&mut self, registration: Registration) -> Result<VmId, Refused> {
        let pid = i32::try_from(self.next_vm + 1000).unwrap();
        self.admit(registration, ProcessId { pid, started: 1 }, None)
    }
}

fn welcome(manager: &mut Manager, id: VmId) -> Welcome {
    manager
        .take_outgoing()
        .into_iter()
        .find_map(|out| match out {
            Outgoing::Welcome(vm, welcome) if vm == id => Some(welcome),
            _ => None,
        })
        .unwrap()
}

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Asks until nothing more comes; what was granted.
fn take_all(manager: &mut Manager, id: VmId) -> Pages {
    let ask = ToHost::CreditRequest {
        pages: Pages::mib(1024),
    };
    manager.message(id, ask, at(0)).unwrap();
    granted(manager, id)
}

fn granted(manager: &mut Manager, id: VmId) -> Pages {
    let outgoing = manager.take_outgoing();
    let credits = outgoing.iter().map(|out| match out {
        Outgoing::Send(vm, ToVm::Credit { pages }) if *vm == id => *pages,
        _ => Pages::ZERO,
    });
    credits.sum()
}

fn report(private: u64) -> ToHost {
    ToHost::Report(Box::new(Report {
        holding: Holding::private(Pages(private)),
        overhead: Pages(100),
        ..Report::default()
    }))
}

#[test]
fn credit_never_exceeds_the_budget_and_death_returns_it() {
    let mut manager = manager();
    let a = manager.join(hello("a", 64)).unwrap();
    let first = welcome(&mut manager, a).credit;
    assert_eq!(first, credit_batch(BUDGET));
    let b = manager.join(hello("b", 64)).unwrap();
    let free = manager.ledger().free();
    let got = take_all(&mut manager, a);
    assert!(got > Pages::mib(32) && got < free, "{got} of {free}");
    manager.audit();
    // What b asks for beyond the last percent waits until a dies.
    take_all(&mut manager, b);
    assert!(manager.urgent);
    let before = manager.ledger().free();
    manager.gone(a);
    let second = granted(&mut manager, b);
    assert!(second > Pages::mib(32), "{second}");
    assert!(manager.ledger().free() + second > before + got);
    manager.gone(b);
    assert_eq!(manager.ledger().free(), BUDGET);
    manager.audit();
}

#[test]
fn a_return_wakes_those_who_wait() {
    let mut manager = manager();
    let a = manager.join(hello("a", 64)).unwrap();
    let b = manager.join(hello("b", 64)).unwrap();
    take_all(&mut manager, a);
    let got = take_all(&mut manager, b);
    let back = ToHost::CreditReturn {
        pages: Pages::mib(8),
    };
    manager.message(a, back, at(1)).unwrap();
    let outgoing = manager.ledger().free();
    assert!(got < Pages::mib(8), "{got}, {outgoing} free");
    manager.tick(at(200));
    manager.audit();
}

#[test]
fn refusals_carry_the_arithmetic() {
    let mut manager = manager();
    let mut big = hello("big", 128);
    big.allocation.reservation = Pages::mib(100);
    let reason = manager.join(big.clone()).unwrap_err();
    assert!(
        reason.to_string().contains("100.0 MiB") && reason.to_string().contains("64.0 MiB"),
        "{reason}"
    );
    big.allocation.reservation = Pages::mib(200);
    assert!(
        manager
            .join(big)
            .unwrap_err()
            .to_string()
            .contains("must be at most `limit`")
    );
    manager.join(hello("a", 8)).unwrap();
    assert!(
        manager
            .join(hello("a", 8))
            .unwrap_err()
            .to_string()
            .contains("already")
    );
    assert!(
        manager
            .join(hello("a/b", 8))
            .unwrap_err()
            .to_string()
            .contains("A-Z a-z")
    );
    assert_eq!(manager.live(), 1);
}

#[test]
fn orders_are_sent_only_when_they_change() {
    let mut manager = manager();
    let a = manager.join(hello("a", 32)).unwrap();
    manager.message(a, report(10), at(0)).unwrap();
    manager.take_outgoing();
    manager.tick(at(100));
    let orders = |out: &Outgoing| matches!(out, Outgoing::Send(_, ToVm::Orders(_)));
    assert_eq!(
        manager
            .take_outgoing()
            .iter()
            .filter(|out| orders(out))
            .count(),
        1
    );
    manager.tick(at(200));
    assert!(!manager.take_outgoing().iter().any(orders));
}

#[test]
fn sharing_goes_through_the_ledger() {
    let mut manager = manager();
    let a = manager.join(hello("a", 16)).unwrap();
    let b = manager.join(hello("b", 16)).unwrap();
    let seed = welcome(&mut manager, b).key_seed;
    let content = [5; PAGE_SIZE];
    let offer = |gfn| ToHost::Offer {
        pages: vec![(Gfn(gfn), key_of(&content, seed))],
    };
    manager.message(a, offer(1), at(0)).unwrap();
    manager.message(b, offer(2), at(0)).unwrap();
    let wanted = ToVm::Want { gfns: vec![Gfn(2)] };
    assert_eq!(manager.take_outgoing(), [Outgoing::Send(b, wanted)]);
    let free = manager.ledger().free();
    let pages = vec![(Gfn(2), ByteBuf::from(content))];
    manager
        .message(b, ToHost::Content { pages }, at(0))
        .unwrap();
    assert_eq!(manager.ledger().free(), free - Pages(1));
    let lent = manager.take_outgoing();
    let frame = match &lent[..] {
        [Outgoing::Send(_, ToVm::Candidates { pages }), _] => pages[0].1,
        other => panic!("{other:?}"),
    };
    let figures = manager.figures();
    let parts: Vec<u64> = figures
        .vms
        .iter()
        .map(|vm| vm.memory.consumed_bytes)
        .collect();
    assert_eq!(parts, [2048, 2048]);
    let overhead = figures.host.overhead_bytes;
    assert_eq!(figures.host.consumed_bytes, 4096 + overhead);
    manager.audit();
    let release = |frame| ToHost::Release {
        frames: vec![frame],
    };
    manager.message(a, release(frame), at(1)).unwrap();
    assert!(manager.message(a, release(frame), at(1)).is_err());
    manager.gone(a);
    manager.gone(b);
    manager.audit();
    assert_eq!(manager.ledger().free(), BUDGET);
}

#[test]
fn violations_are_errors_and_leave_the_accounts_whole() {
    let mut manager = manager();
    let a = manager.join(hello("a", 16)).unwrap();
    let wrong = [
        ToHost::Hello,
        ToHost::Again {
            token: Token::of([0, 0]),
            held: Pages::ZERO,
        },
        ToHost::CreditReturn {
            pages: Pages(u64::MAX),
        },
        ToHost::Release {
            frames: vec![FrameId(u32::MAX)],
        },
    ];
    for message in wrong {
        assert!(
            manager.message(a, message.clone(), at(0)).is_err(),
            "{message:?}"
        );
        manager.audit();
    }
    // A flood of asking and impossible figures harm nobody.
    for _ in 0..3 {
        let ask = ToHost::CreditRequest {
            pages: Pages(u64::MAX),
        };
        manager.message(a, ask, at(0)).unwrap();
    }
    let mut absurd = Report {
        holding: Holding::private(Pages(u64::MAX)),
        overhead: Pages(u64::MAX),
        ..Report::default()
    };
    absurd.measured.gauges.swapped = Pages(u64::MAX);
    manager
        .message(a, ToHost::Report(Box::new(absurd)), at(0))
        .unwrap();
    manager.tick(at(100));
    manager.audit();
    manager.gone(a);
    assert_eq!(manager.ledger().free(), BUDGET);
}

#[test]
fn an_ended_vm_keeps_its_counters_and_how_it_ended() {
    let mut manager = manager();
    let a = manager.join(hello("a", 16)).unwrap();
    let b = manager.join(hello("b", 16)).unwrap();
    manager.message(a, report(500), at(0)).unwrap();
    manager.tick(at(100));
    let exit = Exit {
        reason: ExitReason::GuestExit,
        code: 3,
        message: None,
    };
    manager
        .message(a, ToHost::Exited(exit.clone()), at(110))
        .unwrap();
    assert!(manager.message(a, report(1), at(111)).is_err());
    manager.gone(a);
    manager.gone(b);
    let figures = manager.figures();
    assert_eq!(figures.vms[0].exit, Some(exit));
    assert_eq!(figures.vms[0].peak.consumed_bytes, Pages(500).bytes());
    assert_eq!(figures.vms[0].memory.consumed_bytes, 0);
    assert_eq!(
        figures.vms[1].exit.as_ref().unwrap().reason,
        ExitReason::Killed
    );
}

#[test]
fn settings_are_checked_before_they_hold() {
    let mut manager = manager();
    let a = manager.join(hello("a", 32)).unwrap();
    let reservation = |mib| AllocationKeys {
        reservation: Some(Pages::mib(mib).into()),
        ..AllocationKeys::default()
    };
    manager.set(a, &reservation(20)).unwrap();
    let above = manager.set(a, &reservation(33)).unwrap_err();
    assert_eq!(above.kind(), Kind::Invalid, "{above}");
    let small = manager.set_host(Some(Pages::mib(10)), None).unwrap_err();
    assert_eq!(small.kind(), Kind::Exhausted);
    assert!(small.to_string().contains("20.0 MiB"), "{small}");
    manager.set_host(Some(Pages::mib(40)), None).unwrap();
    manager.set(a, &reservation(32)).unwrap();
    let limit = AllocationKeys {
        limit: Some(Pages::mib(16).into()),
        ..AllocationKeys::default()
    };
    assert!(manager.set(a, &limit).is_err());
    assert_eq!(manager.allocation(a).unwrap().limit, Pages::mib(32));
}

#[test]
fn a_lease_counts_until_its_vm_comes() {
    let mut manager = manager();
    let owner = OwnerId(7);
    let never = Duration::MAX;
    let leased = manager.reserve(Pages::mib(40), None, owner, never);
    let (_, token, lease) = leased.unwrap();
    assert_eq!(lease.reservation, Pages::mib(40));
    let figures = manager.figures();
    assert_eq!(figures.host.leased_bytes, lease.pages().bytes());
    // It is promised: neither a VM, nor another lease, nor a smaller budget gets it.
    let mut big = hello("big", 40);
    big.allocation.reservation = Pages::mib(32);
    assert!(
        manager
            .join(big)
            .unwrap_err()
            .to_string()
            .contains("40.0 MiB")
    );
    assert!(
        manager
            .reserve(Pages::mib(32), None, OwnerId(8), never)
            .is_err()
    );
    assert!(manager.set_host(Some(Pages::mib(40)), None).is_err());
    // The VM it was taken for may need more than was leased, if that can be promised too.
    let mut vm = hello("a", 64);
    // Who does not know its token does not get it.
    vm.lease = Some(Token::of([0, 0]));
    assert!(matches!(manager.join(vm.clone()), Err(Refused::NoLease)));
    vm.lease = Some(token);
    vm.allocation.reservation = Pages::mib(63);
    assert!(manager.join(vm.clone()).is_err());
    assert!(manager.has_lease(owner), "a refused VM leaves the lease");
    vm.allocation.reservation = Pages::ZERO;
    let a = manager.join(vm.clone()).unwrap();
    let end = Outgoing::LeaseEnded(owner, LeaseEnd::Redeemed("a".to_owned()));
    assert!(manager.take_outgoing().contains(&end));
    assert_eq!(manager.vms[&a].allocation.reservation, Pages::mib(40));
    assert_eq!(manager.figures().host.leased_bytes, 0);
    vm.name = "b".to_owned();
    assert!(
        manager
            .join(vm)
            .unwrap_err()
            .to_string()
            .contains("no lease")
    );
    manager.audit();
}

#[test]
fn a_lease_ends_with_its_owner_and_its_time() {
    let mut manager = manager();
    let most = Some(Pages::mib(512));
    let (_, _, lease) = manager
        .reserve(Pages::mib(8), most, OwnerId(1), at(500))
        .unwrap();
    assert_eq!(lease.pages(), BUDGET, "all there is");
    manager.tick(at(400));
    assert!(manager.has_lease(OwnerId(1)));
    manager.tick(at(500));
    let end = Outgoing::LeaseEnded(OwnerId(1), LeaseEnd::Expired);
    assert_eq!(manager.take_outgoing(), [end]);
    manager
        .reserve(Pages::mib(32), None, OwnerId(2), Duration::MAX)
        .unwrap();
    manager.owner_gone(OwnerId(2));
    assert_eq!(manager.figures().host.leased_bytes, 0);
}

#[test]
fn what_is_not_managed_is_promised_in_full_and_stays_so() {
    let mut manager = manager();
    let size = Pages::mib(32);
    let plain = |reservation| Registration {
        managed: false,
        share_group: None,
        allocation: Allocation {
            reservation,
            ..Allocation::of(size)
        },
        ..hello("plain", 32)
    };
    // A VM process that says otherwise could not be held to less than all.
    let refused = manager.join(plain(Pages::mib(31))).unwrap_err();
    assert!(matches!(refused, Refused::NotReserved { .. }), "{refused}");
    let id = manager.join(plain(size)).unwrap();
    let first = welcome(&mut manager, id).credit;
    assert_eq!(first + take_all(&mut manager, id), size);
    manager.audit();
    let keys = |name: &str, value: &str| {
        let mut keys = AllocationKeys::default();
        let key = crate::words::AllocationKey::named(name).unwrap();
        keys.write(key, value.into());
        keys
    };
    for key in ["reservation", "limit", "dynamic_min"] {
        let refused = manager.set(id, &keys(key, "16M")).unwrap_err();
        assert!(
            matches!(refused, Refused::Unmanaged { .. }),
            "{key}: {refused}"
        );
    }
    manager.set(id, &keys("shares", "high")).unwrap();
    // Memory that is promised to others does not fit beside it.
    let second = Registration {
        name: "second".to_owned(),
        ..plain(size)
    };
    assert!(matches!(manager.join(second), Err(Refused::Promise(_))));
    let figures = manager.figures();
    let vm = figures.vms.iter().find(|vm| vm.name == "plain").unwrap();
    assert_eq!(vm.memory_management, Some(false));
    assert_eq!(vm.memory.credit_bytes, size.bytes());
    // The next host manager knows it by the record, before it joins again.
    let record = manager.all_notes().into_iter().find_map(|note| match note {
        Note::Vm(record) => Some(record),
        _ => None,
    });
    let line = serde_json::to_string(&record.unwrap()).unwrap();
    let mut next = self::manager();
    let id = next
        .restore(serde_json::from_str(&line).unwrap(), size)
        .unwrap();
    let refused = next.set(id, &keys("limit", "16M")).unwrap_err();
    assert!(matches!(refused, Refused::Unmanaged { .. }), "{refused}");
}

/// The time of the next decision after one at a second, for a VM of `size` that uses
/// `private` MiB, in a host of 64 MiB.
fn next_after(
    policy: PolicyKind,
    [size, private]: [u64; 2],
    change: impl Fn(&mut Manager, VmId),
) -> Duration {
    let mut manager = manager();
    manager.set_host(None, Some(policy)).unwrap();
    let vm = manager.join(hello("a", size)).unwrap();
    take_all(&mut manager, vm);
    let private = Pages::mib(private);
    manager.message(vm, report(private.0), at(0)).unwrap();
    let spare = manager.ledger().charge(vm) - private;
    let back = ToHost::CreditReturn { pages: spare };
    manager.message(vm, back, at(0)).unwrap();
    change(&mut manager, vm);
    manager.tick(at(1000));
    manager.next_decision()
}

#[test]
fn a_decision_waits_where_there_is_nothing_to_decide() {
    let nothing = |_: &mut Manager, _| {};
    let (soon, late) = (at(1100), at(2000));
    for policy in PolicyKind::ALL {
        // Some targets move with time alone.
        let moves = matches!(policy, PolicyKind::Own | PolicyKind::Pressure);
        let next = if moves { soon } else { late };
        assert_eq!(next_after(*policy, [16, 8], nothing), next, "{policy:?}");
    }
    let esx = |private, change: fn(&mut Manager, VmId)| {
        next_after(PolicyKind::Esx, [64, private], change)
    };
    // Memory is short.
    assert_eq!(esx(61, |_, _| {}), soon);
    // A VM is away.
    assert_eq!(esx(8, |manager, vm| manager.detach(vm)), soon);
    // One waits for more than there is.
    let asks = |manager: &mut Manager, vm| {
        take_all(manager, vm);
    };
    assert_eq!(esx(8, asks), soon);
    // A lease may end.
    let leases = |manager: &mut Manager, _| {
        let owner = OwnerId(1);
        manager
            .reserve(Pages::mib(1), None, owner, at(9000))
            .unwrap();
    };
    assert_eq!(esx(8, leases), soon);
    // A balloon holds memory that may be given back.
    let balloon = |manager: &mut Manager, vm| {
        let mut measured = Measured::default();
        measured.gauges.ballooned = Pages::mib(1);
        let report = Report {
            holding: Holding::private(Pages::mib(8)),
            measured,
            ..Report::default()
        };
        let report = ToHost::Report(Box::new(report));
        manager.message(vm, report, at(0)).unwrap();
    };
    assert_eq!(esx(8, balloon), soon);
}

#[test]
fn what_comes_ends_the_rest() {
    let mut manager = manager();
    let vm = manager.join(hello("a", 16)).unwrap();
    manager.message(vm, report(8), at(0)).unwrap();
    manager.tick(at(1000));
    assert!(manager.rests());
    // After a tick's time a message is decided upon at once, before that at the tick.
    manager.message(vm, report(9), at(1500)).unwrap();
    assert!(!manager.rests() && manager.is_due(at(1500)));
    manager.tick(at(1500));
    assert!(manager.rests());
    manager.message(vm, report(10), at(1530)).unwrap();
    assert_eq!(manager.next_decision(), at(1600));
    manager.tick(at(1600));
    // What cannot wait does not.
    manager.join(hello("b", 16)).unwrap();
    assert!(!manager.rests());
    assert_eq!(manager.next_decision(), at(1610));
}
