//! A host manager that takes over from one that was killed.

use super::links::{allocated, candidates, check_frames, share, welcomed};
use super::*;
use crate::host::manager::VmRecord;

/// A host manager that is gone without a word: its sockets, its record and its pool's writer.
fn killed(server: Server) {
    drop(server);
}

/// A host manager at `path`, and how many VMs it expects.
fn start(path: &Path) -> (Server, usize) {
    let mut server = server();
    server.listen(path).unwrap();
    let expected = server.take_over().unwrap();
    (server, expected)
}

fn claim(server: &mut Server, link: &Link, frames: &[FrameId]) {
    let frames = frames.to_vec();
    link.send(&ToHost::Claim { frames }).unwrap();
    link.send(&ToHost::Claimed).unwrap();
    pump(server);
}

fn vm_figures(server: &mut Server, name: &str) -> crate::host::accounts::VmFigures {
    let figures = server.manager().figures();
    let vm = figures.vms.into_iter().find(|vm| vm.name == name);
    vm.unwrap()
}

#[test]
fn frames_are_adopted_counted_once_and_punched_at_their_last_release() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.sock");
    let (mut first, _) = start(&path);
    let (a, welcome, pool) = Fake::join(&mut first, "a");
    let (b, ..) = Fake::join(&mut first, "b");
    let frames = share(&mut first, &a, &b, welcome.key_seed);
    killed(first);
    assert_eq!(allocated(&pool), 8 << 12, "the VMs map it still");

    let (mut second, expected) = start(&path);
    assert_eq!(expected, 2);
    assert_eq!(vm_figures(&mut second, "a").state.name(), "detached");
    let new_a = again(&mut second, a, 10, &pool);
    let terms = welcomed(&new_a.link);
    assert!(terms.adopted && terms.key_seed != welcome.key_seed);
    assert_eq!(terms.pool_frames, welcome.pool_frames);
    assert_eq!(second.manager().ledger().frames(), Pages(8));
    // a maps five of the eight; b may map any of the others.
    claim(&mut second, &new_a.link, &frames[..5]);
    assert_eq!(second.manager().ledger().frames(), Pages(8));
    check_frames(&pool, &frames);
    new_a
        .link
        .send(&ToHost::Release {
            frames: frames[..1].to_vec(),
        })
        .unwrap();
    pump(&mut second);
    check_frames(&pool, &frames);
    // b maps three of them and one more.
    let new_b = again(&mut second, b, 10, &pool);
    assert!(welcomed(&new_b.link).adopted);
    claim(&mut second, &new_b.link, &frames[3..6]);
    // 1 to 4 are a's, 3 to 5 are b's; nobody maps 0, 6 and 7.
    assert_eq!(second.manager().ledger().frames(), Pages(5));
    assert_eq!(allocated(&pool), 5 << 12);
    let figures = second.manager().figures();
    assert_eq!(figures.host.pages_sharing, 7);
    let a_part = vm_figures(&mut second, "a");
    assert_eq!(a_part.memory.shared_bytes, 4 << 12);
    assert_eq!(
        a_part.memory.saved_bytes,
        1 << 12,
        "two of them are half another's"
    );
    // Their keys are known again: a newcomer is lent what it has too.
    second.manager().tick(Duration::from_secs(1));
    let (c, other, _) = Fake::join(&mut second, "c");
    assert_eq!(other.key_seed, terms.key_seed);
    let pages = vec![(Gfn(1), key_of(&page(6), terms.key_seed))];
    assert_eq!(
        candidates(c.say(&mut second, &ToHost::Offer { pages })),
        frames[5..6]
    );
    drop(c);
    for (link, part) in [(&new_a.link, 1..5), (&new_b.link, 3..6)] {
        let frames = frames[part].to_vec();
        link.send(&ToHost::Release { frames }).unwrap();
    }
    pump_until(&mut second, "all frames back", |server| {
        server.manager().ledger().frames() == Pages::ZERO
    });
    assert_eq!(allocated(&pool), 0);
}

#[test]
fn frames_that_only_a_dead_vm_could_have_claimed_are_punched() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.sock");
    let (mut first, _) = start(&path);
    let (a, welcome, pool) = Fake::join(&mut first, "a");
    let (mut b, ..) = Fake::join(&mut first, "b");
    let frames = share(&mut first, &a, &b, welcome.key_seed);
    killed(first);
    let (mut second, _) = start(&path);
    let new_a = again(&mut second, a, 0, &pool);
    welcomed(&new_a.link);
    claim(&mut second, &new_a.link, &frames[..2]);
    // b is stopped, or slow: everything stays for as long as it lives.
    assert_eq!(allocated(&pool), 8 << 12);
    b.body.kill();
    pump_until(&mut second, "the end of b", |server| {
        server.manager().live() == 1
    });
    assert_eq!(second.manager().ledger().frames(), Pages(2));
    assert_eq!(allocated(&pool), 2 << 12);
    check_frames(&pool, &frames[..2]);
}

#[test]
fn promises_come_from_the_record_not_from_the_vm() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.sock");
    let (mut first, _) = start(&path);
    let owner = OwnerId(99);
    let lease = first
        .manager()
        .reserve(Pages::mib(40), None, owner, Duration::MAX);
    let (_, token, _) = lease.unwrap();
    let terms = Registration {
        lease: Some(token),
        ..registration("a")
    };
    let (a, _, pool) = Fake::launch(&mut first, terms).joined(&mut first);
    let set = br#"{"verb":"set","vm":"a","changes":{"shares":"777"}}"#;
    control::answer(first.manager(), set, owner, Duration::ZERO);
    let set = br#"{"verb":"set","vm":"host","changes":{"memory":"200M"}}"#;
    control::answer(first.manager(), set, owner, Duration::ZERO);
    pump(&mut first);
    killed(first);

    let (mut second, expected) = start(&path);
    assert_eq!(expected, 1);
    assert_eq!(second.manager().ledger().budget(), Pages::mib(200));
    // It counts before the VM is back: no other may be promised its memory.
    let greedy = Registration {
        allocation: Allocation {
            reservation: Pages::mib(165),
            ..Allocation::of(Pages::mib(190))
        },
        ..registration("rival")
    };
    let rival = Fake::launch(&mut second, greedy);
    let heard = rival.say(&mut second, &ToHost::Hello);
    assert!(
        matches!(&heard[..], [ToVm::Refused { reason }] if reason.contains("40.0 MiB")),
        "{heard:?}"
    );
    let new = again(&mut second, a, 0, &pool);
    assert!(welcomed(&new.link).adopted);
    let id = second.manager().find("a").unwrap();
    let allocation = second.manager().allocation(id).unwrap();
    assert_eq!(allocation.reservation, Pages::mib(40));
    assert_eq!(allocation.shares, 777);
}

#[test]
fn who_is_not_in_the_record_is_not_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.sock");
    let (mut first, _) = start(&path);
    let (a, _, pool) = Fake::join(&mut first, "a");
    let (b, ..) = Fake::join(&mut first, "b");
    killed(first);
    let record = Record::path(&path);
    // b's line is gone; a's tells of another pool.
    let text = fs::read_to_string(&record).unwrap();
    let lines: Vec<String> = text
        .lines()
        .filter(|line| !line.contains("\"b\""))
        .map(|line| line.replace("\"inode\":", "\"inode\":1"))
        .collect();
    fs::write(&record, lines.join("\n") + "\n").unwrap();
    let (mut second, expected) = start(&path);
    assert_eq!(expected, 1);
    let new_a = again(&mut second, a, 30, &pool);
    let terms = welcomed(&new_a.link);
    assert!(!terms.adopted);
    assert_eq!(terms.credit, Pages(30) + terms.credit_batch);
    let (door, _) = b.body.door.as_ref().unwrap();
    assert!(net::accept_with(door, SocketFlags::CLOEXEC).is_err());
    assert_eq!(second.manager().live(), 1);
    assert_eq!(second.manager().ledger().frames(), Pages::ZERO);
}

#[test]
fn a_hostile_record_costs_nothing_but_itself() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.sock");
    let (mut first, _) = start(&path);
    let (_a, ..) = Fake::join(&mut first, "a");
    killed(first);
    let record = Record::path(&path);
    let text = fs::read_to_string(&record).unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("{\"vm\""))
        .unwrap();
    let vm: serde_json::Value = serde_json::from_str(line).unwrap();
    let good: VmRecord = serde_json::from_value(vm["vm"].clone()).unwrap();
    let bad = |name: &str, change: &dyn Fn(&mut VmRecord)| {
        let mut vm = good.clone();
        vm.name = name.to_owned();
        change(&mut vm);
        let note = serde_json::json!({ "vm": vm });
        format!("{note}\n")
    };
    let mut text = text.clone();
    text.push_str(&bad("../x", &|_| {}));
    text.push_str(&bad("twin", &|_| {}));
    // A door of another VM's would be removed with it.
    text.push_str(&bad("door", &|vm| vm.process = init()));
    text.push_str(&bad("dead", &|vm| vm.process.started += 1));
    text.push_str(&bad("init", &|vm| vm.process.pid = -1));
    text.push_str(&bad("huge", &|vm| {
        vm.process = Process::find(own_id()).unwrap().id();
        vm.allocation.size = Pages(u64::MAX);
    }));
    text.push_str(&bad("pool", &|vm| {
        (vm.process, vm.way) = (own_id(), None);
        vm.pool.frames = u32::MAX;
    }));
    text.push_str(&bad("over", &|vm| {
        vm.process = own_id();
        vm.allocation.reservation = Pages(vm.allocation.size.0 + 1);
    }));
    text.push_str("{\"vm\":[[[[[[\n\0\u{7f}{{{{\n");
    fs::write(&record, text).unwrap();
    let (mut second, expected) = start(&path);
    // Where only the pool is wrong, the promises count.
    assert_eq!(expected, 2);
    let names: Vec<_> = second.manager().names().map(str::to_owned).collect();
    assert_eq!(names, ["a", "pool"]);
    pump(&mut second);
}

fn init() -> crate::host::process::ProcessId {
    let started = proc::started(1).unwrap();
    crate::host::process::ProcessId { pid: 1, started }
}

fn own_id() -> crate::host::process::ProcessId {
    let (ours, _theirs) = socket::pair().unwrap();
    Process::peer(&ours).unwrap().id()
}

#[test]
fn pools_of_a_damaged_record_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.sock");
    let (mut first, _) = start(&path);
    let (a, welcome, pool) = Fake::join(&mut first, "a");
    let (b, ..) = Fake::join(&mut first, "b");
    let frames = share(&mut first, &a, &b, welcome.key_seed);
    killed(first);
    // The line of b cannot be read: what b maps must stay, whatever a claims.
    let record = Record::path(&path);
    let text = fs::read_to_string(&record).unwrap();
    fs::write(&record, text.replace("\"name\":\"b\"", "\"name\":b")).unwrap();
    let (mut second, expected) = start(&path);
    assert_eq!(expected, 1);
    let new_a = again(&mut second, a, 0, &pool);
    assert!(!welcomed(&new_a.link).adopted);
    drop(b);
    pump(&mut second);
    check_frames(&pool, &frames);
}

#[test]
fn who_cannot_be_recorded_is_not_let_in() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.sock");
    let (mut server, _) = start(&path);
    // A file that takes nothing, as of a full disk.
    server.record.as_mut().unwrap().fail();
    fs::create_dir(folder.path().join("host.sock.record.new")).unwrap();
    let vm = Fake::connect(&mut server, "a");
    let heard = vm.say(&mut server, &ToHost::Hello);
    assert!(
        matches!(&heard[..], [ToVm::Refused { reason }] if reason.contains("recorded")),
        "{heard:?}"
    );
    assert_eq!(server.manager().live(), 0);
    fs::remove_dir(folder.path().join("host.sock.record.new")).unwrap();
    let (_b, ..) = Fake::join(&mut server, "b");
}

#[test]
fn nothing_is_left_when_the_last_vm_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.sock");
    let (mut server, _) = start(&path);
    let (a, ..) = Fake::join(&mut server, "a");
    assert!(Record::path(&path).exists());
    drop(a);
    pump_until(&mut server, "its end", |server| {
        server.manager().live() == 0
    });
    drop(server);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
