//! When the memory of frames that a VM has released comes back, and to whom.

use super::*;

/// Two VMs share their first pages, so many; the frames, of each of which both have a reference.
fn share(manager: &mut Manager, a: VmId, b: VmId, pages: u32) -> Vec<FrameId> {
    let seed = welcome(manager, b).key_seed;
    let content = |gfn: u32| [u8::try_from(gfn).unwrap() + 1; PAGE_SIZE];
    let offer = ToHost::Offer {
        pages: (0..pages)
            .map(|gfn| (Gfn(gfn), key_of(&content(gfn), seed)))
            .collect(),
    };
    manager.message(a, offer.clone(), at(0)).unwrap();
    manager.message(b, offer, at(0)).unwrap();
    let contents = ToHost::Content {
        pages: (0..pages)
            .map(|gfn| (Gfn(gfn), ByteBuf::from(content(gfn))))
            .collect(),
    };
    manager.message(b, contents, at(0)).unwrap();
    let of_a = |out: Outgoing| match out {
        Outgoing::Send(vm, ToVm::Candidates { pages }) if vm == a => Some(pages),
        _ => None,
    };
    let lent = manager.take_outgoing().into_iter().find_map(of_a).unwrap();
    assert_eq!(lent.len(), pages as usize);
    lent.into_iter().map(|(_, frame)| frame).collect()
}

/// While memory is plenty, what a storm has left behind waits until the storm is over, or two seconds.
#[test]
fn many_released_frames_wait_for_the_last_of_them_unless_memory_is_wanted() {
    const SHARED: u32 = 100;
    let storm = |manager: &mut Manager| {
        let a = manager.join(hello("a", 16)).unwrap();
        let b = manager.join(hello("b", 16)).unwrap();
        let frames = share(manager, a, b, SHARED);
        for (vm, ms) in [(a, 101), (b, 120)] {
            let frames = frames.clone();
            let release = ToHost::Release { frames };
            manager.message(vm, release, at(ms)).unwrap();
        }
        assert_eq!(manager.ledger.frames(), Pages(SHARED.into()));
    };
    let mut waits = manager();
    storm(&mut waits);
    assert_eq!(waits.give_back(at(130)), Some(at(420)));
    assert_eq!(waits.ledger.frames(), Pages(SHARED.into()));
    assert_eq!(waits.give_back(at(420)), None);
    assert_eq!(waits.ledger.frames(), Pages::ZERO);
    waits.audit();
    let mut hurries = manager();
    storm(&mut hurries);
    hurries.ledger.set_budget(hurries.ledger.in_use());
    assert_eq!(hurries.give_back(at(130)), None);
    assert_eq!(hurries.ledger.frames(), Pages::ZERO);
    // Without an end it goes on.
    let mut endless = manager();
    storm(&mut endless);
    endless.note_retired(at(2000), true);
    assert_eq!(endless.leftovers_due(), Some(at(2120)));
}

/// A page that the guest has written is charged twice until its reference is given back. At its limit
/// the VM waits for exactly that, with its vCPUs held: it must not wait for the tick as well.
#[test]
fn a_vm_at_its_limit_is_granted_what_it_releases_at_once() {
    const SHARED: u32 = 16;
    let mut manager = manager();
    let a = manager.join(hello("a", 16)).unwrap();
    let b = manager.join(hello("b", 16)).unwrap();
    let frames = share(&mut manager, a, b, SHARED);
    manager.tick(at(100));
    // Half of each frame is its own: with them it is at its limit.
    take_all(&mut manager, a);
    let credit = manager.ledger().charge(a);
    assert_eq!(credit, Pages::mib(16) - Pages(u64::from(SHARED) / 2));
    let release = ToHost::Release { frames };
    manager.message(a, release, at(101)).unwrap();
    assert_eq!(granted(&mut manager, a), Pages(u64::from(SHARED) / 2));
    manager.audit();
}

/// In a hardened group frames are what a VM gives back: its orders speak of them too.
#[test]
fn the_pages_of_a_hardened_group_are_to_be_swapped_as_others_are() {
    const PAGES: u32 = 200;
    let mut manager = manager();
    let hardened = |name| Registration {
        sharing: Sharing::Hardened,
        ..hello(name, 16)
    };
    let a = manager.join(hardened("a")).unwrap();
    let b = manager.join(hardened("b")).unwrap();
    assert!(manager.join(hello("c", 16)).is_err(), "a plain VM");
    let seed = welcome(&mut manager, a).key_seed;
    for vm in [a, b] {
        let offer = ToHost::Offer {
            pages: (0..PAGES)
                .map(|gfn| (Gfn(gfn), key_of(&content(gfn), seed)))
                .collect(),
        };
        manager.message(vm, offer, at(0)).unwrap();
        let contents = ToHost::Content {
            pages: (0..PAGES)
                .map(|gfn| (Gfn(gfn), ByteBuf::from(content(gfn))))
                .collect(),
        };
        manager.message(vm, contents, at(0)).unwrap();
    }
    manager.tick(at(100));
    let pages = u64::from(PAGES);
    assert_eq!(manager.ledger.frames(), Pages(pages));
    // Half of each frame is its own, and to give that back it swaps all of them.
    let half = Pages(pages / 2);
    assert_eq!(manager.frames_to_give(a), (half, half));
    let snapshot = manager.snapshot(at(101));
    let private = manager.swappable(a) + half;
    assert_eq!(snapshot.vms[0].private, private);
    let plain = manager.join(Registration {
        share_group: Some("plain".to_owned()),
        ..hello("d", 16)
    });
    let plain = plain.unwrap();
    assert_eq!(manager.frames_to_give(plain), (Pages::ZERO, Pages::ZERO));
    manager.audit();
}

fn content(gfn: u32) -> [u8; PAGE_SIZE] {
    [u8::try_from(gfn).unwrap() + 1; PAGE_SIZE]
}
