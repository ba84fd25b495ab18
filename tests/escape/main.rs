//! What a VM process that its guest has taken over can still do: it enters the sandbox as each thread
//! of the table does, and tries to get out.
//!
//! Most attempts end the process, so each has one of its own: the test runs its own program again,
//! which makes one system call and tells by its status how that went.
#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers are tests too: a panic is their way to fail"
)]
#![allow(
    clippy::cast_sign_loss,
    clippy::cast_possible_truncation,
    clippy::allow_attributes,
    reason = "arguments of system calls are passed as they are"
)]
#![expect(unsafe_code)]
// UNSAFETY: system calls by number, those of an attacker.

#[path = "../common/mod.rs"]
mod common;

mod attacks;
mod walls;

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use tidemark::link::door::Door;
use tidemark::sys::cpu_time::{ALARM, ThreadTime};
use tidemark::sys::signals;
use tidemark::threads::jail::Jail;
use tidemark::threads::{
    BUILDER, INSPECTOR, MAIN, Need, STATISTICS, Stack, TABLE, Thread, VCPU, sandbox,
};

use attacks::{ALLOWED, ATTACKS, Tools};
use common::note;

/// What the program is to do when it runs again: `row:attempt:folder`.
const ORDER: &str = "TIDEMARK_ESCAPE";
/// A user without privileges.
const NOBODY: u32 = 65534;
/// What the guest wrote, and what it must not become.
const LOG: &str = "* * * * * root touch /owned\n";
const KEYS: &str = "a good key\n";

/// What was opened before, beside an attacker's tools.
struct Opened {
    pagemap: File,
    status: File,
    pair: (UnixStream, UnixStream),
    door: Door,
}

/// What every thread of a live VM process does now and then.
fn usual_work(tools: &Tools) {
    // Memory, much and little, grown and given back.
    for bytes in [64, 200 << 10, 64 << 20] {
        assert_eq!(
            vec![1u8; bytes].iter().filter(|byte| **byte == 1).count(),
            bytes
        );
    }
    let many: Vec<Vec<u8>> = (0..1000).map(|_| vec![2; 10_000]).collect();
    drop(many);
    thread::sleep(Duration::from_micros(10));
    let _hashed: HashMap<u32, u32> = HashMap::new();
    (&tools.log).write_all(b"a line\n").unwrap();
    signal_hook::low_level::raise(libc::SIGUSR1).unwrap();
    // The allocator and a backtrace try that, and go on.
    let _ = File::open("/proc/sys/vm/overcommit_memory");
    let _ = std::env::current_dir();
}

/// What the needs of a row are for, as far as it takes no KVM and no guest.
fn needed_work(need: Need, tools: &Tools, open: &mut Opened) {
    match need {
        Need::Memory => {
            let place = tools.memory as u64 / 4096 * 8;
            open.pagemap.read_exact_at(&mut [0; 8], place).unwrap();
        }
        Need::Swap => {
            let parts = [IoSlice::new(b"one"), IoSlice::new(b"two")];
            assert_eq!(rustix::io::pwritev(&tools.log, &parts, 0), Ok(6));
        }
        Need::Disk => {
            tools.log.write_all_at(b"sector", 0).unwrap();
            tools.log.sync_data().unwrap();
        }
        Need::Link => {
            open.pair.0.write_all(b"x").unwrap();
            open.pair.1.read_exact(&mut [0]).unwrap();
            open.pair.1.shutdown(std::net::Shutdown::Both).unwrap();
        }
        Need::Keys => open.status.read_exact(&mut [0; 4]).unwrap(),
        Need::Door => assert!(open.door.accept().is_none()),
        Need::Alarms => {
            let own = ThreadTime::of(rustix::thread::gettid()).unwrap();
            own.set_alarm(Duration::from_secs(1000));
            assert!(own.had().is_some());
        }
        Need::Image => open.pagemap.read_exact_at(&mut [0; 8], 0).unwrap(),
        Need::Spawn => STATISTICS.spawn(|| ()).unwrap().join().unwrap(),
        Need::Build | Need::Vcpu => {}
    }
}

/// The program that was run again. Its status: 0 for a call that was made, or the error's number.
#[test]
fn again() {
    let Ok(order) = std::env::var(ORDER) else {
        return;
    };
    let mut parts = order.splitn(3, ':');
    let mut next = || parts.next().unwrap().to_owned();
    let (row, attempt, folder) = (next(), next(), PathBuf::from(next()));
    let row: &'static Thread = TABLE.iter().find(|known| known.name == row).unwrap();
    let attempt_is_of_a_jail = attempt.ends_with("jail");
    let log = OpenOptions::new().write(true).open(folder.join("log"));
    let tools = Tools::new(folder, log.unwrap());
    let mut door = Door::open(&tools.folder.join("host")).unwrap();
    // As a VM's is, whose host manager has let it in.
    door.keep();
    let mut opened = Opened {
        pagemap: File::open("/proc/self/pagemap").unwrap(),
        status: File::open("/proc/self/status").unwrap(),
        pair: UnixStream::pair().unwrap(),
        door,
    };
    let heard = signals::pipe(&[libc::SIGUSR1, ALARM]).unwrap();
    let work = move || {
        let _heard = heard;
        let code = match attempt.as_str() {
            "work" => {
                usual_work(&tools);
                for need in row.needs {
                    needed_work(*need, &tools, &mut opened);
                }
                0
            }
            "panic" => panic!("as a broken invariant does"),
            "abort" => std::process::abort(),
            "a child that may more" => {
                let accept = move || {
                    opened.door.accept();
                };
                MAIN.spawn(accept).unwrap().join().unwrap();
                0
            }
            "jail" | "no jail" => attacks::forked(|| {
                let jail = Jail {
                    user: None,
                    hardened: attempt == "jail",
                };
                let succeeded = walls::succeeded(&tools.folder, jail);
                eprintln!("{succeeded:?}");
                succeeded.len() as i32
            }),
            "32 bits" => {
                attacks::call_as_32_bits();
                0
            }
            name => {
                let attack = ATTACKS.iter().find(|(known, ..)| *known == name);
                attacks::make(attack.unwrap(), &tools).err().unwrap_or(0)
            }
        };
        // SAFETY: ends the process, where no destructor of a test's has a say.
        unsafe { libc::_exit(code) }
    };
    if attempt_is_of_a_jail {
        // The jail alone, with no filter.
        return work();
    }
    sandbox::begin().unwrap();
    if row.stack == Stack::Process {
        sandbox::enter(row).unwrap();
        return work();
    }
    row.spawn(work).unwrap().join().unwrap();
}

/// A folder as an attacker finds it, and the program to run in it.
struct World {
    folder: tempfile::TempDir,
    user: Option<u32>,
    _host: OwnedFd,
}

impl World {
    /// For processes of `user`, if it is another one.
    fn new(user: Option<u32>) -> World {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let mode = |name: &str, mode| {
            fs::set_permissions(path.join(name), Permissions::from_mode(mode)).unwrap();
        };
        fs::write(path.join("log"), LOG).unwrap();
        fs::write(path.join("keys"), KEYS).unwrap();
        fs::copy(std::env::current_exe().unwrap(), path.join("program")).unwrap();
        let host = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        let place = SocketAddrUnix::new(path.join("host")).unwrap();
        rustix::net::bind(&host, &place).unwrap();
        rustix::net::listen(&host, 100).unwrap();
        if user.is_some() {
            mode("", 0o777);
            mode("log", 0o666);
            mode("host", 0o666);
        }
        World {
            folder,
            user,
            _host: host,
        }
    }

    /// Runs the program again.
    fn run(&self, row: &Thread, attempt: &str) -> Output {
        let folder = self.folder.path();
        let mut command = Command::new(folder.join("program"));
        command.args(["--exact", "again", "--nocapture"]).env(
            ORDER,
            format!("{}:{attempt}:{}", row.name, folder.display()),
        );
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        loop {
            match command.output() {
                // Another test's child had the program open for writing, until it ran its own.
                Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => thread::yield_now(),
                output => return output.unwrap(),
            }
        }
    }

    /// Makes all attacks as `row`, but for those that it needs.
    fn attack_as(&self, row: &Thread) {
        let allowed = |name: &&str| {
            ALLOWED
                .iter()
                .any(|(need, names)| row.needs.contains(need) && names.contains(name))
        };
        let names = ATTACKS.iter().map(|(name, ..)| *name);
        let mut succeeded = Vec::new();
        for name in names.chain(["32 bits"]).filter(|name| !allowed(name)) {
            let output = self.run(row, name);
            let ended = output.status.signal() == Some(libc::SIGSYS);
            // What libraries try is refused, and they go on.
            let refused = [libc::EPERM, libc::ENOSYS]
                .map(Some)
                .contains(&output.status.code());
            if !ended && !refused {
                succeeded.push((name, output));
            }
        }
        assert!(succeeded.is_empty(), "{}: {succeeded:#?}", row.name);
        let read = |name: &str| fs::read_to_string(self.folder.path().join(name)).unwrap();
        assert!(!self.folder.path().join("owned").exists());
        assert_eq!((read("keys"), read("log")), (KEYS.into(), LOG.into()));
    }

    /// Does what a thread of this row does.
    fn work_as(&self, row: &Thread) {
        let output = self.run(row, "work");
        assert!(output.status.success(), "{}: {output:?}", row.name);
        // A broken invariant is told of, and ends the process as it should.
        let output = self.run(row, "panic");
        let said = String::from_utf8_lossy(&output.stderr);
        let told = said.contains("as a broken invariant does");
        assert!(
            told && output.status.signal().is_none(),
            "{}: {output:?}",
            row.name
        );
        let output = self.run(row, "abort");
        assert_eq!(
            output.status.signal(),
            Some(libc::SIGABRT),
            "{}: {output:?}",
            row.name
        );
    }
}

#[test]
fn no_thread_gets_out() {
    let world = World::new(None);
    thread::scope(|scope| {
        for row in TABLE {
            scope.spawn(|| world.attack_as(row));
        }
    });
}

#[test]
fn every_thread_does_its_work() {
    for row in TABLE {
        World::new(None).work_as(row);
    }
    if rustix::process::geteuid().is_root() {
        for row in TABLE {
            World::new(Some(NOBODY)).work_as(row);
        }
    }
}

#[test]
fn a_thread_may_do_no_more_than_the_one_that_started_it() {
    let output = World::new(None).run(&BUILDER, "a child that may more");
    let signal = output.status.signal();
    assert_eq!(signal, Some(libc::SIGSYS), "{output:?}");
}

#[test]
fn nor_does_one_of_a_user_without_privileges() {
    if !rustix::process::geteuid().is_root() {
        return note("not root: the other tests are of a user without privileges");
    }
    let world = World::new(Some(NOBODY));
    for row in [&MAIN, &VCPU, &INSPECTOR] {
        world.attack_as(row);
    }
}

/// Without any filter, a process that has left the host's namespaces and its launcher's user finds
/// nothing; the same attacks succeed from outside.
#[test]
fn a_jail_is_empty_even_for_who_may_make_every_call() {
    if !rustix::process::geteuid().is_root() {
        return note("not root: without a user of its own a process may signal its user's others");
    }
    let run = |attempt| World::new(None).run(&MAIN, attempt);
    let (inside, outside) = (run("jail"), run("no jail"));
    assert_eq!(inside.status.code(), Some(0), "{inside:#?}");
    assert_eq!(outside.status.code(), Some(13), "{outside:#?}");
}

/// The test of the tests: outside a sandbox attacks succeed, or fail for reasons of their own.
#[test]
fn without_a_sandbox_the_attacks_are_real() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("log"), LOG).unwrap();
    fs::write(folder.path().join("keys"), KEYS).unwrap();
    let log = OpenOptions::new()
        .write(true)
        .open(folder.path().join("log"));
    let tools = Tools::new(folder.path().to_owned(), log.unwrap());
    let names = [
        "link a log to a name",
        "rename over a file",
        "link symbolically",
        "open for writing",
        "a link's socket",
        "memory to run",
        "make memory run",
        "shared memory",
        "a memory file",
        "a pidfd",
        "kill",
        "place another",
    ];
    for name in names {
        let attack = ATTACKS.iter().find(|(known, ..)| *known == name).unwrap();
        let answer = attacks::make(attack, &tools);
        // The name is taken by then; a mask of no CPUs is none.
        let expected = match name {
            "link symbolically" => Err(libc::EEXIST),
            "place another" => Err(libc::EINVAL),
            _ => Ok(()),
        };
        assert_eq!(answer, expected, "{name}");
    }
    let keys = fs::read_to_string(folder.path().join("keys")).unwrap();
    assert_eq!(keys, LOG);
}
