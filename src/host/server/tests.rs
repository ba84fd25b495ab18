//! The host manager against fake VM processes that speak the link, without KVM.

mod fakes;
mod identity;
mod links;
mod restart;

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};

use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde_bytes::ByteBuf;

use self::fakes::{Fake, again, hear, registration};
use super::*;
use crate::host::control;
use crate::link::message::*;
use crate::link::socket::{self, Link, Received};
use crate::page::key::key_of;
use crate::policy::PolicyKind;
use crate::policy::lease::OwnerId;
use crate::policy::settings::PolicySettings;
use crate::units::{FrameId, Gfn, PAGE_SIZE, Pages};
use crate::words::{Allocation, Exit, ExitReason, Sampling, Sharing, Token};

const BUDGET: Pages = Pages::mib(256);

fn server() -> Server {
    let settings = Settings {
        budget: BUDGET,
        policy: PolicyKind::Esx,
        policy_settings: PolicySettings::default(),
        sampling: Sampling::default(),
        seed: 1,
    };
    Server::new(settings).unwrap()
}

/// Lets the host manager do all there is to do.
fn pump(server: &mut Server) -> Vec<Event> {
    let mut events = Vec::new();
    for _ in 0..8 {
        events.extend(server.turn(Duration::ZERO).unwrap());
    }
    server.manager().audit();
    events
}

/// Lets the host manager work until `done`, at most ten seconds.
fn pump_until(server: &mut Server, what: &str, mut done: impl FnMut(&mut Server) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done(server) {
        assert!(Instant::now() < deadline, "{what} does not come true");
        server.turn(Duration::from_millis(5)).unwrap();
        server.manager().audit();
    }
}

fn page(fill: u8) -> [u8; PAGE_SIZE] {
    [fill; PAGE_SIZE]
}

#[test]
fn a_vm_joins_takes_credit_and_returns_all_by_dying() {
    let mut server = server();
    let (a, welcome, pool) = Fake::join(&mut server, "a");
    assert_eq!(
        pool.metadata().unwrap().len(),
        u64::from(welcome.pool_frames) << 12
    );
    assert_eq!(welcome.credit, welcome.credit_batch);
    let pages = Pages(512);
    let heard = a.say(&mut server, &ToHost::CreditRequest { pages });
    assert_eq!(heard, [ToVm::Credit { pages }]);
    let held = server.manager().ledger().in_use();
    drop(a);
    pump_until(&mut server, "its end", |server| {
        server.manager().live() == 0
    });
    let after = server.manager().ledger().in_use();
    assert!(after + pages + welcome.credit <= held, "{after} of {held}");
    let figures = server.manager().figures();
    assert_eq!(
        figures.vms[0].exit.as_ref().unwrap().reason,
        ExitReason::Killed
    );
}

#[test]
fn pages_are_shared_through_the_pool_in_runs() {
    let mut server = server();
    let (a, welcome, _) = Fake::join(&mut server, "a");
    let (b, other, pool) = Fake::join(&mut server, "b");
    assert_eq!(welcome.key_seed, other.key_seed);
    let offer = |base: u32| ToHost::Offer {
        pages: (0..8)
            .map(|n| (Gfn(base + u32::from(n)), key_of(&page(n), welcome.key_seed)))
            .collect(),
    };
    assert_eq!(a.say(&mut server, &offer(100)), []);
    let gfns: Vec<Gfn> = (200..208).map(Gfn).collect();
    assert_eq!(b.say(&mut server, &offer(200)), [ToVm::Want { gfns }]);
    // The answer may come in any order and in pieces.
    let content = |n: u8| ToHost::Content {
        pages: vec![(Gfn(200 + u32::from(n)), ByteBuf::from(page(n)))],
    };
    let mut lent = Vec::new();
    for n in [3, 0, 1, 2, 7, 6, 5, 4] {
        for message in b.say(&mut server, &content(n)) {
            let ToVm::Candidates { pages } = message else {
                panic!("{message:?}");
            };
            lent.extend(pages);
        }
    }
    lent.sort_unstable();
    assert_eq!(lent.len(), 8);
    for (n, &(gfn, frame)) in (0_u8..).zip(&lent) {
        assert_eq!(gfn, Gfn(200 + u32::from(n)));
        assert_eq!(frame.0, lent[0].1.0 + u32::from(n), "one run of frames");
        let mut seen = page(0xff);
        pool.read_exact_at(&mut seen, frame.offset()).unwrap();
        assert_eq!(seen, page(n));
    }
    // The owner of the hints was lent its references too.
    let (heard, _) = a.hear();
    assert_eq!(heard.len(), 8);
    // A third VM finds the frames at once.
    let (c, ..) = Fake::join(&mut server, "c");
    let heard = c.say(&mut server, &offer(300));
    let frames: Vec<FrameId> = lent.iter().map(|&(_, frame)| frame).collect();
    let pages = (300..).map(Gfn).zip(frames.clone()).collect();
    assert_eq!(heard, [ToVm::Candidates { pages }]);
    assert_eq!(server.manager().ledger().frames(), Pages(8));
    // Frames outlive everyone but the last who holds them.
    drop(a);
    drop(b);
    pump_until(&mut server, "their end", |server| {
        server.manager().live() == 1
    });
    assert_eq!(server.manager().ledger().frames(), Pages(8));
    c.say(&mut server, &ToHost::Release { frames });
    assert_eq!(server.manager().ledger().frames(), Pages(0));
}

#[test]
fn whoever_breaks_the_protocol_is_killed_and_nobody_else() {
    let mut server = server();
    let (mut good, welcome, _) = Fake::join(&mut server, "good");
    let raw: [&[u8]; 4] = [b"\x01\xff\xff\xff", b"\x02hello", b"{}", b"rubbish"];
    for bytes in raw {
        let (mut bad, ..) = Fake::join(&mut server, "bad");
        socket::send_datagram(&bad.link, bytes, None).unwrap();
        pump_until(&mut server, "its end", |server| {
            server.manager().live() == 1
        });
        assert!(bad.body.has_ended() && !bad.hear().1, "{bytes:?}");
    }
    let messages = [
        ToHost::Hello,
        ToHost::Again {
            token: Token::of([0, 0]),
            held: Pages::ZERO,
        },
        ToHost::CreditReturn {
            pages: Pages(1 << 40),
        },
        ToHost::Release {
            frames: vec![FrameId(7)],
        },
        ToHost::Claim { frames: vec![] },
        ToHost::Claimed,
    ];
    for message in messages {
        let (mut bad, ..) = Fake::join(&mut server, "bad");
        bad.link.send(&message).unwrap();
        pump_until(&mut server, "its end", |server| {
            server.manager().live() == 1
        });
        assert!(bad.body.has_ended() && !bad.hear().1, "{message:?}");
    }
    // Content that nobody asked for is ignored.
    let pages = vec![(Gfn(1), ByteBuf::from(page(1)))];
    assert_eq!(good.say(&mut server, &ToHost::Content { pages }), []);
    // First words that are none of ours: nobody is killed for a word before the first.
    for bytes in raw {
        let mut stranger = Fake::connect(&mut server, "stranger");
        socket::send_datagram(&stranger.link, bytes, None).unwrap();
        pump(&mut server);
        assert!(!stranger.body.has_ended());
    }
    assert_eq!(server.manager().live(), 1);
    assert!(good.hear().1 && !good.body.has_ended());
    let pages = welcome.credit_batch;
    assert_eq!(
        good.say(&mut server, &ToHost::CreditRequest { pages }),
        [ToVm::Credit { pages }]
    );
}

#[test]
fn refusals_reach_the_vm() {
    let mut server = server();
    let (_a, ..) = Fake::join(&mut server, "a");
    let twin = Fake::connect(&mut server, "a");
    let heard = twin.say(&mut server, &ToHost::Hello);
    assert!(matches!(&heard[..], [ToVm::Refused { reason }] if reason.contains("already")));
}

#[test]
fn how_a_vm_ended_is_known_though_it_left_mail_unread() {
    let mut server = server();
    let (a, ..) = Fake::join(&mut server, "a");
    let id = server.manager().find("a").unwrap();
    server.manager().stop(id);
    let exit = Exit {
        reason: ExitReason::Stopped,
        code: 0,
        message: None,
    };
    a.link.send(&ToHost::Exited(exit.clone())).unwrap();
    drop(a);
    pump_until(&mut server, "its end", |server| {
        server.manager().live() == 0
    });
    assert_eq!(server.manager().figures().vms[0].exit, Some(exit));
}

/// Serves until `done`, at most ten seconds.
fn serve_while<T: Send + 'static>(
    server: &mut Server,
    client: impl FnOnce() -> T + Send + 'static,
) -> T {
    let client = std::thread::spawn(client);
    let deadline = Instant::now() + Duration::from_secs(10);
    while !client.is_finished() && Instant::now() < deadline {
        server.turn(Duration::from_millis(5)).unwrap();
    }
    client.join().unwrap()
}

#[test]
fn control_requests_are_answered_over_the_same_socket() {
    use control::{CallError, Request, call};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sub/host.sock");
    let mut server = server();
    server.listen(&path).unwrap();
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let (a, ..) = Fake::join(&mut server, "a");
    let ask = |server: &mut Server, request: Request| {
        let path = path.clone();
        serve_while(server, move || call(&path, &request))
    };
    let figures = ask(&mut server, Request::Ps).unwrap();
    assert_eq!(figures["vms"][0]["name"], "a");
    assert_eq!(figures["host"]["memory_bytes"], BUDGET.bytes());
    let version = ask(&mut server, Request::Version).unwrap();
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
    let set = |vm: &str, key: &str, value: &str| Request::Set {
        vm: vm.to_owned(),
        changes: [(key.to_owned(), value.to_owned())].into(),
    };
    ask(&mut server, set("a", "limit", "32M")).unwrap();
    ask(&mut server, set("host", "memory", "128M")).unwrap();
    let refused = |result: Result<_, CallError>| result.unwrap_err().to_string();
    assert!(
        refused(ask(&mut server, set("a", "reservation", "48M")))
            .ends_with("must be at most `limit` (32.0 MiB)")
    );
    assert!(refused(ask(&mut server, set("b", "limit", "1M"))).contains("there are a"));
    assert!(refused(ask(&mut server, set("host", "policy", "magic"))).contains("esx"));
    ask(&mut server, Request::Stop { vm: "a".to_owned() }).unwrap();
    assert_eq!(a.hear().0, [ToVm::Stop]);
    assert_eq!(server.manager().ledger().budget(), Pages::mib(128));
    drop(server);
    assert!(!path.exists(), "the socket file goes with its host manager");
}

#[test]
fn only_dead_sockets_are_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.sock");
    let mut first = server();
    first.listen(&path).unwrap();
    assert!(matches!(server().listen(&path), Err(Error::InUse { .. })));
    // As a host manager that was killed leaves it.
    let file = fs::File::create(folder.path().join("other")).unwrap();
    let stale = folder.path().join("stale.sock");
    let fd = net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    );
    net::bind(fd.unwrap(), &SocketAddrUnix::new(&stale).unwrap()).unwrap();
    server().listen(&stale).unwrap();
    // Anything else is left alone.
    drop(file);
    assert!(matches!(
        server().listen(&folder.path().join("other")),
        Err(Error::Listen { .. })
    ));
    assert!(folder.path().join("other").exists());
}

#[test]
fn a_lease_lives_as_long_as_its_connection() {
    use control::{Request, take_lease};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.sock");
    let mut server = server();
    server.listen(&path).unwrap();
    let take = |server: &mut Server, time: Option<&str>| {
        let path = path.clone();
        let request = Request::Reserve {
            size: "64M".to_owned(),
            max: None,
            time: time.map(str::to_owned),
        };
        serve_while(server, move || take_lease(&path, &request)).unwrap()
    };
    let leased = |server: &mut Server| server.manager().figures().host.leased_bytes;
    // Hung up: over at once.
    let held = take(&mut server, None);
    assert_eq!(held.lease["reservation_bytes"], Pages::mib(64).bytes());
    assert!(leased(&mut server) > 64 << 20);
    drop(held);
    let deadline = Instant::now() + Duration::from_secs(10);
    while leased(&mut server) > 0 && Instant::now() < deadline {
        server.turn(Duration::from_millis(5)).unwrap();
    }
    assert_eq!(leased(&mut server), 0);
    // Over by itself: the owner is told.
    let held = take(&mut server, Some("50ms"));
    let end = serve_while(&mut server, move || held.wait()).unwrap();
    assert_eq!(end["end"], "expired");
    assert!(server.connections.is_empty());
    assert_eq!(leased(&mut server), 0);
}

#[test]
fn a_request_is_answered_in_the_turn_that_lets_it_in() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let mut server = server();
    server.listen(&path).unwrap();
    let (a, welcome, _) = Fake::join(&mut server, "a");
    // The guest's offers came first, and take longer than a turn has.
    server.links_time = Duration::ZERO;
    let offer = |gfn| ToHost::Offer {
        pages: vec![(Gfn(gfn), key_of(&page(1), welcome.key_seed))],
    };
    for gfn in 0..4 {
        a.link.send(&offer(gfn)).unwrap();
    }
    let client = socket::connect(&path).unwrap();
    socket::send_datagram(&client, br#"{"verb":"ps"}"#, None).unwrap();
    server.turn(Duration::from_secs(1)).unwrap();
    let mut reply = vec![0; 64 * 1024];
    let answered = socket::recv_datagram(&client, &mut reply, socket::TakeFd::Never).unwrap();
    assert_eq!(reply[..answered.bytes].first(), Some(&control::LAST));
    assert_eq!(a.hear().0, [], "of its messages the first was read");
    // The others are, one a turn: the second page has the same content as the first.
    server.turn(Duration::from_secs(1)).unwrap();
    assert_eq!(a.hear().0, [ToVm::Want { gfns: vec![Gfn(1)] }]);
    let pages = vec![(Gfn(1), ByteBuf::from(page(1)))];
    let heard = a.say(&mut server, &ToHost::Content { pages });
    let [ToVm::Candidates { pages }] = heard.as_slice() else {
        panic!("{heard:?}");
    };
    let gfns: Vec<u32> = pages.iter().map(|(gfn, _)| gfn.0).collect();
    assert_eq!(gfns, [0, 1, 2, 3], "all messages were read in the end");
}
