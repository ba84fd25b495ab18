//! What a VM holds ends with its process, whatever becomes of its link.

use super::*;

/// A host manager with a socket, beside which VMs have their doors.
fn listening() -> (tempfile::TempDir, Server) {
    let folder = tempfile::tempdir().unwrap();
    let mut server = server();
    server.listen(&folder.path().join("host.sock")).unwrap();
    (folder, server)
}

/// Two VMs that share eight pages: the VMs, the frames and the pool's file.
fn sharing(server: &mut Server) -> (Fake, Fake, Welcome, Vec<FrameId>, fs::File) {
    let (a, welcome, pool) = Fake::join(server, "a");
    let (b, ..) = Fake::join(server, "b");
    let frames = share(server, &a, &b, welcome.key_seed);
    (a, b, welcome, frames, pool)
}

/// Eight pages of `a` and `b` with the same contents become frames; each holds one reference to each.
pub(super) fn share(server: &mut Server, a: &Fake, b: &Fake, seed: u64) -> Vec<FrameId> {
    let offer = |base: u32| ToHost::Offer {
        pages: (0..8)
            .map(|n| (Gfn(base + u32::from(n)), key_of(&page(n + 1), seed)))
            .collect(),
    };
    a.say(server, &offer(100));
    b.say(server, &offer(200));
    let pages = (0..8)
        .map(|n| (Gfn(200 + u32::from(n)), ByteBuf::from(page(n + 1))))
        .collect();
    let mut frames = candidates(b.say(server, &ToHost::Content { pages }));
    assert_eq!(candidates(a.hear().0).len(), 8);
    frames.sort_unstable();
    assert_eq!(frames.len(), 8);
    frames
}

pub(super) fn candidates(messages: Vec<ToVm>) -> Vec<FrameId> {
    let lent = messages.into_iter().map(|message| match message {
        ToVm::Candidates { pages } => pages,
        other => panic!("{other:?}"),
    });
    lent.flatten().map(|(_, frame)| frame).collect()
}

/// Bytes of memory that the pool has.
pub(super) fn allocated(pool: &fs::File) -> u64 {
    rustix::fs::fstat(pool).unwrap().st_blocks.cast_unsigned() * 512
}

pub(super) fn check_frames(pool: &fs::File, frames: &[FrameId]) {
    for (n, frame) in (1..).zip(frames) {
        let mut seen = page(0xff);
        pool.read_exact_at(&mut seen, frame.offset()).unwrap();
        assert_eq!(seen, page(n), "{frame:?}");
    }
}

fn state(server: &mut Server, name: &str) -> &'static str {
    let figures = server.manager().figures();
    let vm = figures.vms.iter().find(|vm| vm.name == name);
    vm.unwrap().state.name()
}

#[test]
fn frames_stay_while_the_process_lives_though_its_link_is_gone() {
    let mut server = server();
    let (a, mut b, _, frames, pool) = sharing(&mut server);
    let held = server.manager().ledger().in_use();
    let Fake { link, mut body, .. } = a;
    drop(link);
    b.body.kill();
    pump_until(&mut server, "the end of b", |server| {
        server.manager().live() == 1
    });
    assert_eq!(state(&mut server, "a"), "detached");
    assert_eq!(server.manager().ledger().frames(), Pages(8));
    assert_eq!(allocated(&pool), 8 << 12);
    check_frames(&pool, &frames);
    // It is charged what it was, promises and all, and nothing is queued for it.
    let after = server.manager().ledger().in_use();
    assert!(after < held && after > Pages(8), "{after} of {held}");
    let id = server.manager().find("a").unwrap();
    server.manager().stop(id);
    pump(&mut server);
    body.kill();
    pump_until(&mut server, "the end of a", |server| {
        server.manager().live() == 0
    });
    assert_eq!(server.manager().ledger().frames(), Pages(0));
    assert_eq!(allocated(&pool), 0);
}

pub(super) fn welcomed(link: &Link) -> Welcome {
    match link.recv(Some(Duration::ZERO)).unwrap() {
        Received::Message(ToVm::Welcome(welcome), Some(_)) => welcome,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_new_link_of_the_same_process_replaces_the_old_one() {
    let (_folder, mut server) = listening();
    let (a, b, welcome, frames, pool) = sharing(&mut server);
    let id = server.manager().find("a").unwrap();
    server.manager().audit();
    let new = again(&mut server, a, 50, &pool);
    let terms = welcomed(&new.link);
    assert!(terms.adopted);
    assert_eq!(terms.key_seed, welcome.key_seed);
    assert_eq!(terms.credit, Pages(50) + terms.credit_batch);
    assert_eq!(server.manager().find("a"), Some(id));
    assert_eq!(server.manager().ledger().credit(id), terms.credit);
    // Of eight it maps five, one of them twice; it has lost one meanwhile.
    let mut claims = frames[..5].to_vec();
    claims.push(frames[0]);
    new.say(&mut server, &ToHost::Claim { frames: claims });
    let lost = vec![frames[4]];
    new.say(&mut server, &ToHost::Release { frames: lost });
    // Until it has said everything its references are the old ones.
    assert_eq!(
        server.manager().figures().vms[0].memory.shared_bytes,
        8 << 12
    );
    new.say(&mut server, &ToHost::Claimed);
    let figures = server.manager().figures();
    assert_eq!(figures.vms[0].memory.shared_bytes, 5 << 12);
    assert_eq!(figures.host.pages_sharing, 5 + 8);
    check_frames(&pool, &frames);
    // What b releases is freed where a does not map it.
    b.say(
        &mut server,
        &ToHost::Release {
            frames: frames.clone(),
        },
    );
    assert_eq!(server.manager().ledger().frames(), Pages(4));
    assert_eq!(allocated(&pool), 4 << 12);
    check_frames(&pool, &frames[..4]);
    // It is a member like any other again.
    let pages = vec![(Gfn(300), key_of(&page(1), welcome.key_seed))];
    let lent = candidates(new.say(&mut server, &ToHost::Offer { pages }));
    assert_eq!(lent, [frames[0]]);
}

#[test]
fn a_vm_is_lent_nothing_before_it_has_claimed() {
    let (_folder, mut server) = listening();
    let (a, _b, welcome, frames, pool) = sharing(&mut server);
    let new = again(&mut server, a, 0, &pool);
    welcomed(&new.link);
    let offer = || ToHost::Offer {
        pages: vec![(Gfn(300), key_of(&page(1), welcome.key_seed))],
    };
    assert_eq!(new.say(&mut server, &offer()), []);
    new.say(&mut server, &ToHost::Claimed);
    assert_eq!(candidates(new.say(&mut server, &offer())), [frames[0]]);
}

#[test]
fn false_claims_are_violations() {
    type Claim = fn(&[FrameId]) -> Vec<FrameId>;
    let claims: [Claim; 3] = [
        |_| vec![FrameId(77)],
        |_| vec![FrameId(u32::MAX)],
        |frames| vec![frames[0]; LIST_MAX],
    ];
    for (case, claim) in claims.iter().enumerate() {
        let (_folder, mut server) = listening();
        let (a, _b, _, frames, pool) = sharing(&mut server);
        let mut new = again(&mut server, a, 0, &pool);
        welcomed(&new.link);
        // As many messages as a VM of 64 MiB can need, and one more.
        for _ in 0..(64 << 8) / LIST_MAX + 2 {
            let frames = claim(&frames);
            if new.link.send(&ToHost::Claim { frames }).is_err() {
                break;
            }
            pump(&mut server);
        }
        pump_until(&mut server, "its end", |server| {
            server.manager().live() == 1
        });
        assert!(new.body.has_ended(), "case {case}");
        check_frames(&pool, &frames);
    }
}

#[test]
fn who_cannot_rejoin_is_refused_and_keeps_what_it_has() {
    let (_folder, mut server) = listening();
    let (a, _b, _, frames, pool) = sharing(&mut server);
    let refused = |fake: &Fake| match &fake.hear().0[..] {
        [ToVm::Refused { reason }] => reason.clone(),
        other => panic!("{other:?}"),
    };
    // Another pool, more memory than it has, another token.
    let other = tempfile::tempfile().unwrap();
    let a = again(&mut server, a, 0, &other);
    assert!(refused(&a).contains("another frame pool"));
    let a = again(&mut server, a, 1 << 30, &pool);
    assert!(refused(&a).contains("holds"));
    let (a, _) = a.knocked(&mut server);
    let wrong = ToHost::Again {
        token: Token::of([1, 2]),
        held: Pages::ZERO,
    };
    a.link.send_first(&wrong, pool.as_fd()).unwrap();
    pump(&mut server);
    assert!(refused(&a).contains("another token"));
    assert_eq!(state(&mut server, "a"), "detached");
    check_frames(&pool, &frames);
    // It may try again as long as it lives.
    let a = again(&mut server, a, 0, &pool);
    assert!(welcomed(&a.link).adopted);
}

#[test]
fn a_vm_that_does_not_read_loses_nothing_and_harms_nobody() {
    let mut server = server();
    let (good, welcome, _) = Fake::join(&mut server, "good");
    let (mut deaf, ..) = Fake::join(&mut server, "deaf");
    let ask = ToHost::CreditRequest { pages: Pages(1) };
    let back = ToHost::CreditReturn { pages: Pages(1) };
    let offer = ToHost::Offer {
        pages: (0..64)
            .map(|n| (Gfn(n), key_of(&page(9), welcome.key_seed)))
            .collect(),
    };
    for _ in 0..20_000 {
        for message in [&ask, &back, &offer] {
            deaf.link.send(message).unwrap();
        }
        server.turn(Duration::ZERO).unwrap();
    }
    pump(&mut server);
    server.manager().tick(Duration::from_secs(100));
    assert_eq!(server.manager().live(), 2);
    assert!(!deaf.body.has_ended());
    let waiting = server
        .connections
        .values()
        .filter_map(|connection| match connection {
            Connection::Vm { link, .. } => Some(link.is_behind()),
            _ => None,
        });
    assert_eq!(waiting.filter(|behind| *behind).count(), 0);
    let pages = welcome.credit_batch;
    assert_eq!(
        good.say(&mut server, &ToHost::CreditRequest { pages }),
        [ToVm::Credit { pages }]
    );
    // It reads at last: every page of credit is there.
    let mut granted = 0;
    for _ in 0..10_000 {
        let (heard, up) = deaf.hear();
        assert!(up);
        if heard.is_empty() {
            break;
        }
        for message in heard {
            if let ToVm::Credit { pages } = message {
                granted += pages.0;
            }
        }
        pump(&mut server);
    }
    assert_eq!(granted, 20_000);
}
