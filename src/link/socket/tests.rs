//! The link over real sockets: who may be slow, who may go, and what arrives.
#![expect(clippy::cast_possible_truncation, reason = "test figures are small")]

use serde_bytes::ByteBuf;

use super::*;
use crate::link::message::{CONTENT_PAGES_MAX, LIST_MAX, OFFER_PAGES_MAX, Orders, TEXT_BYTES_MAX};
use crate::link::outbox::QUEUE_MESSAGES_MAX;
use crate::units::{FrameId, Gfn, PAGE_SIZE, Pages};
use crate::words::{Exit, ExitReason, Holding, Key, MemState, Report, Run};

fn ends() -> (HostLink, Link) {
    let (host, vm) = pair().unwrap();
    (HostLink::new(host), Link::new(vm).unwrap())
}

#[test]
fn a_descriptor_travels_with_a_message() {
    let (mut host, vm) = ends();
    let memfd = rustix::fs::memfd_create("t", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&memfd, 4096).unwrap();
    host.send(ToVm::Stop, Some(memfd)).unwrap();
    match vm.recv(Some(Duration::from_secs(5))).unwrap() {
        Received::Message(ToVm::Stop, Some(fd)) => {
            assert_eq!(rustix::fs::fstat(&fd).unwrap().st_size, 4096);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn both_sides_see_the_other_leave() {
    let (mut host, vm) = ends();
    let mut buffer = vec![0; MESSAGE_BYTES_MAX];
    assert!(matches!(host.recv(&mut buffer), Ok(None)));
    vm.send(&ToHost::CreditRequest { pages: Pages(3) }).unwrap();
    assert_eq!(
        host.recv(&mut buffer).unwrap(),
        Some(ToHost::CreditRequest { pages: Pages(3) })
    );
    let wait = Some(Duration::from_millis(1));
    assert!(matches!(vm.recv(wait), Ok(Received::TimedOut)));
    drop(host);
    assert!(matches!(vm.recv(None), Ok(Received::Closed)));
    let gone = vm.send(&ToHost::CreditReturn { pages: Pages(1) });
    assert!(matches!(gone, Err(Error::Closed)), "{gone:?}");
}

#[test]
fn a_vm_that_does_not_read_costs_the_same_for_ever() {
    let (mut host, vm) = ends();
    let orders = |balloon| {
        ToVm::Orders(Orders {
            state: MemState::Soft,
            balloon_target: Pages(balloon),
            hint_rounds: 0,
            private_max: None,
            run: Run::Go,
            scan_pages_per_second: 1,
        })
    };
    let mut credit = 0;
    for n in 0..20_000 {
        host.send(ToVm::Credit { pages: Pages(n) }, None).unwrap();
        host.send(orders(n), None).unwrap();
        host.send(ToVm::Stop, None).unwrap();
        credit += n;
    }
    assert!(host.queue.len() <= 3 && !host.is_behind());
    // Nothing is lost of what counts.
    let (mut got, mut last) = (0, None);
    loop {
        host.flush().unwrap();
        match vm.recv(Some(Duration::ZERO)).unwrap() {
            Received::Message(ToVm::Credit { pages }, _) => got += pages.0,
            Received::Message(ToVm::Orders(orders), _) => last = Some(orders.balloon_target),
            Received::Message(..) => {}
            Received::TimedOut => break,
            Received::Closed => panic!("the link is up"),
        }
    }
    assert_eq!((got, last), (credit, Some(Pages(19_999))));
}

#[test]
fn a_queue_of_what_cannot_be_folded_has_a_bound() {
    let (mut host, vm) = ends();
    let mut sent = 0;
    let error = loop {
        let gfns = vec![Gfn(1)];
        match host.send(ToVm::Want { gfns }, None) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
        assert!(sent < 2 * OUT_MESSAGES_MAX, "the queue has a bound");
    };
    assert!(host.is_behind());
    assert!(matches!(error, Error::Backlog { .. }), "{error}");
    assert!(matches!(vm.recv(None), Ok(Received::Message(..))));
}

#[test]
fn last_words_are_heard_though_the_peer_left_mail_unread() {
    let (mut host, vm) = ends();
    host.send(ToVm::Stop, None).unwrap();
    let last = ToHost::CreditReturn { pages: Pages(5) };
    vm.send(&last).unwrap();
    drop(vm);
    host.send(ToVm::Stop, None).unwrap();
    let mut buffer = vec![0; MESSAGE_BYTES_MAX];
    assert_eq!(host.recv(&mut buffer).unwrap(), Some(last));
    assert!(matches!(host.recv(&mut buffer), Err(Error::Closed)));
}

fn release(frame: u32) -> ToHost {
    let frames = vec![FrameId(frame)];
    ToHost::Release { frames }
}

fn report(private: u64) -> ToHost {
    ToHost::Report(Box::new(Report {
        holding: Holding::private(Pages(private)),
        ..Report::default()
    }))
}

fn offer() -> ToHost {
    let pages = (0..OFFER_PAGES_MAX as u32)
        .map(|n| (Gfn(n), Key(u64::from(n) << 50)))
        .collect();
    ToHost::Offer { pages }
}

fn content(pages: u32) -> ToHost {
    let page = |n: u32| (Gfn(n), ByteBuf::from(vec![n as u8; PAGE_SIZE]));
    ToHost::Content {
        pages: (0..pages).map(page).collect(),
    }
}

/// Everything that is there.
fn read_all(host: &mut HostLink, vm: &Link) -> Vec<ToHost> {
    let mut buffer = vec![0; MESSAGE_BYTES_MAX];
    let mut heard = Vec::new();
    loop {
        match host.recv(&mut buffer).unwrap() {
            Some(message) => heard.push(message),
            None if vm.is_behind() => vm.flush().unwrap(),
            None => return heard,
        }
    }
}

#[test]
fn a_host_manager_that_never_reads_costs_neither_time_nor_memory() {
    let (_host, vm) = ends();
    let start = Instant::now();
    for n in 0..20_000 {
        vm.send(&report(n)).unwrap();
        vm.send(&offer()).unwrap();
        vm.flush().unwrap();
        if !vm.is_behind() {
            vm.send(&release(0)).unwrap();
        }
    }
    assert!(vm.is_behind());
    // The newest report, and the release that found no room.
    assert!(vm.outbox().len() <= 2, "{:?}", vm.outbox());
    // Who does not ask is told, and the link is as good as before.
    for n in 0..QUEUE_MESSAGES_MAX as u32 {
        let _ = vm.send(&release(n));
    }
    let full = vm.send(&release(0));
    assert!(matches!(full, Err(Error::Backlog { .. })), "{full:?}");
    assert!(vm.outbox().len() <= QUEUE_MESSAGES_MAX);
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn what_is_kept_arrives_in_order_when_the_host_manager_reads_again() {
    let (mut host, vm) = ends();
    let mut frames = 0;
    while !vm.is_behind() {
        vm.send(&offer()).unwrap();
        vm.send(&release(frames)).unwrap();
        frames += 1;
    }
    let offers = frames;
    for n in 0..30 {
        vm.send(&report(n)).unwrap();
        vm.send(&offer()).unwrap();
        vm.send(&release(frames)).unwrap();
        frames += 1;
    }
    let pages = Pages(7);
    vm.send(&ToHost::CreditReturn { pages }).unwrap();
    let heard = read_all(&mut host, &vm);
    let released: Vec<ToHost> = heard
        .iter()
        .filter(|message| matches!(message, ToHost::Release { .. }))
        .cloned()
        .collect();
    assert_eq!(released, (0..frames).map(release).collect::<Vec<_>>());
    let reports: Vec<&ToHost> = heard
        .iter()
        .filter(|message| matches!(message, ToHost::Report(_)))
        .collect();
    assert_eq!(reports, [&report(29)]);
    assert_eq!(heard.last(), Some(&ToHost::CreditReturn { pages }));
    let offered = heard.iter().filter(|message| **message == offer()).count();
    assert!(offered <= offers as usize);
    // And from now on everything arrives again.
    vm.send(&offer()).unwrap();
    vm.send(&report(30)).unwrap();
    assert_eq!(read_all(&mut host, &vm), [offer(), report(30)]);
}

#[test]
fn a_host_manager_that_is_behind_may_also_go() {
    let (host, vm) = ends();
    while !vm.is_behind() {
        vm.send(&release(0)).unwrap();
    }
    drop(host);
    let gone = vm.flush();
    assert!(matches!(gone, Err(Error::Closed)), "{gone:?}");
    assert_eq!(vm.outbox().len(), 0);
    assert!(matches!(vm.recv(None), Ok(Received::Closed)));
}

#[test]
fn what_is_longer_than_the_buffer_comes_in_parts() {
    let (mut host, vm) = ends();
    // The least that the kernel allows: a page and little more.
    net::sockopt::set_socket_send_buffer_size(&vm, 1).unwrap();
    let least = net::sockopt::socket_send_buffer_size(&vm).unwrap();
    assert!(least < 2 * PAGE_SIZE, "{least}");
    vm.send(&content(CONTENT_PAGES_MAX as u32)).unwrap();
    let mut heard = read_all(&mut host, &vm);
    let frames: Vec<FrameId> = (0..LIST_MAX as u32)
        .map(|n| FrameId(u32::MAX - n))
        .collect();
    vm.send(&ToHost::Release {
        frames: frames.clone(),
    })
    .unwrap();
    heard.extend(read_all(&mut host, &vm));
    let mut gfns = Vec::new();
    let mut released = Vec::new();
    for message in heard {
        match message {
            ToHost::Content { pages } => {
                for (gfn, bytes) in pages {
                    assert!(bytes.iter().all(|byte| u32::from(*byte) == gfn.0));
                    gfns.push(gfn.0);
                }
            }
            ToHost::Release { frames } => released.extend(frames),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(gfns, (0..CONTENT_PAGES_MAX as u32).collect::<Vec<_>>());
    assert_eq!(released, frames);
}

#[test]
fn there_is_room_for_the_longest_message() {
    let (host, vm) = pair().unwrap();
    for fd in [&host, &vm] {
        net::sockopt::set_socket_send_buffer_size(fd, 8192).unwrap();
    }
    let (mut host, vm) = (HostLink::new(host), Link::new(vm).unwrap());
    vm.send(&content(CONTENT_PAGES_MAX as u32)).unwrap();
    let heard = read_all(&mut host, &vm);
    assert_eq!(heard, [content(CONTENT_PAGES_MAX as u32)]);
    let gfns = vec![Gfn(u32::MAX); LIST_MAX];
    host.send(ToVm::Want { gfns }, None).unwrap();
    assert!(!host.is_behind());
}

fn exited() -> ToHost {
    ToHost::Exited(Exit {
        reason: ExitReason::Stopped,
        code: 0,
        message: Some("x".repeat(TEXT_BYTES_MAX)),
    })
}

#[test]
fn there_is_room_for_the_last_words() {
    let (mut host, vm) = ends();
    while !vm.is_behind() {
        vm.send(&content(CONTENT_PAGES_MAX as u32)).unwrap();
    }
    vm.send(&release(1)).unwrap();
    vm.send(&report(1)).unwrap();
    vm.send_last(&exited(), Duration::ZERO).unwrap();
    drop(vm);
    let mut buffer = vec![0; MESSAGE_BYTES_MAX];
    let mut heard = Vec::new();
    while let Ok(Some(message)) = host.recv(&mut buffer) {
        heard.push(message);
    }
    assert!(heard.ends_with(&[release(1), report(1), exited()]));
}

#[test]
fn a_vm_does_not_wait_for_ever_to_be_heard() {
    let (_host, vm) = ends();
    while !vm.is_behind() {
        vm.send(&content(CONTENT_PAGES_MAX as u32)).unwrap();
    }
    // More than even the last room takes.
    let frames = vec![FrameId(u32::MAX); LIST_MAX];
    while vm.outbox().len() < QUEUE_MESSAGES_MAX - 1 {
        let frames = frames.clone();
        vm.send(&ToHost::Release { frames }).unwrap();
    }
    let start = Instant::now();
    let unheard = vm.send_last(&exited(), Duration::from_millis(50));
    assert!(matches!(unheard, Err(Error::SendTimeout)), "{unheard:?}");
    assert!(start.elapsed() >= Duration::from_millis(50));
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_closed_link_ends_for_both() {
    let (mut host, vm) = ends();
    vm.close();
    assert!(matches!(vm.recv(None), Ok(Received::Closed)));
    let heard = host.recv(&mut vec![0; MESSAGE_BYTES_MAX]);
    assert!(matches!(heard, Err(Error::Closed)), "{heard:?}");
}

#[test]
fn an_oversized_datagram_breaks_the_link() {
    let (mut host, vm) = ends();
    send_datagram(&vm, &vec![1; MESSAGE_BYTES_MAX + 1], None).unwrap();
    let error = host.recv(&mut vec![0; MESSAGE_BYTES_MAX]).unwrap_err();
    assert!(matches!(
        error,
        Error::Codec(codec::Error::Oversized { .. })
    ));
}

#[test]
fn connecting_to_nobody_names_the_path() {
    let error = connect(Path::new("/nonexistent/host.sock")).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/host.sock"));
}
