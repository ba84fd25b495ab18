//! What strangers, files and other users do to the program: it neither waits, nor ends, nor says
//! anything to the wrong one. The answers of `ps` are counted, not timed: one that fails is a failure.

#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers are tests too: a panic is their way to fail"
)]

mod common;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::fleet::{Folder, Process, SOON};
use common::{Capability, require, skip, wait_for};
use rustix::process::Signal;
use tidemark::link::socket;

/// Runs a command that must fail with `status` and one line, and must not take its time.
fn refuses(folder: &Folder, args: &[&str], status: i32, words: &[&str]) {
    let mut process = Process::start(folder.command(args));
    let code = process.wait(SOON).code();
    let said = process.log();
    assert_eq!(code, Some(status), "{args:?}: {said}");
    assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{args:?}: no {word:?} in {said}");
    }
}

fn fifo(path: &Path) {
    let made = Command::new("mkfifo").arg(path).status().unwrap();
    assert!(made.success());
}

#[test]
fn what_is_no_file_is_neither_waited_for_nor_read_to_its_end() {
    let folder = Folder::new();
    fifo(&folder.path().join("pipe"));
    let long = File::create(folder.path().join("long")).unwrap();
    long.set_len((4 << 30) + 1).unwrap();
    let _listener = UnixListener::bind(folder.path().join("socket")).unwrap();
    let mut kernel = b"no kernel".to_vec();
    kernel.resize(4096, 0);
    fs::write(folder.path().join("kernel"), kernel).unwrap();
    let kinds = [
        ("pipe", "must be a regular file"),
        ("/dev/zero", "must be a regular file"),
        ("long", "may have"),
        (".", "is a folder"),
    ];
    for (file, problem) in kinds {
        refuses(&folder, &["run", file], 2, &[file, problem]);
        refuses(&folder, &["simulate", file], 2, &[file, problem]);
        for verb in ["run", "vm"] {
            let kernel = [verb, "--kernel", file];
            refuses(&folder, &kernel, 2, &["kernel", file, problem]);
            let initrd = [verb, "--kernel", "kernel", "--initrd", file];
            refuses(&folder, &initrd, 2, &["initrd", file, problem]);
        }
        if file != "long" {
            let disk = ["run", "--guest", "hello", "--disk", file];
            refuses(&folder, &disk, 2, &["disk", file, problem]);
        }
    }
    refuses(&folder, &["run", "socket"], 2, &["socket", "cannot read"]);
    folder.write("latin", "");
    fs::write(folder.path().join("latin"), [0xe9]).unwrap();
    refuses(&folder, &["run", "latin"], 2, &["latin", "UTF-8"]);
}

#[test]
fn figures_that_are_out_of_all_bounds_are_mistakes() {
    let folder = Folder::new();
    let most = u64::MAX.to_string();
    for size in [most.as_str(), "16777216T", "9223372036854775808"] {
        let run = ["run", "--guest", "hello", "--memory", size];
        refuses(&folder, &run, 2, &["memory"]);
        let shares = [
            "run", "--guest", "hello", "--memory", size, "--shares", "high",
        ];
        refuses(&folder, &shares, 2, &["memory"]);
        refuses(&folder, &["host", "--memory", size], 2, &["memory"]);
    }
}

/// Nobody's user: what it runs may do nothing here.
const NOBODY: u32 = 65534;

#[test]
fn nothing_is_said_to_a_host_manager_of_another_user() {
    if !rustix::process::geteuid().is_root() {
        return skip("only root can be another user");
    }
    let folder = Folder::new();
    let open = fs::Permissions::from_mode(0o777);
    fs::set_permissions(folder.path(), open).unwrap();
    let program = folder.path().join("theirs");
    fs::copy(env!("CARGO_BIN_EXE_tidemark"), &program).unwrap();
    let mut command = Command::new(&program);
    command
        .args(["host", "--memory", "64M", "--socket", "theirs.sock"])
        .current_dir(folder.path())
        .env_clear()
        .uid(NOBODY)
        .gid(NOBODY);
    let theirs = Process::start(command);
    wait_for("another user's host manager", SOON, || {
        theirs.log().contains("listens at")
    });
    let words = ["user 65534 listens at theirs.sock"];
    refuses(&folder, &["ps", "--socket", "theirs.sock"], 1, &words);
    let vm = ["vm", "--guest", "hello", "--host", "theirs.sock"];
    refuses(&folder, &vm, 1, &words);
    // Nor is its socket taken for one that nobody listens at.
    let host = ["host", "--memory", "64M", "--socket", "theirs.sock"];
    refuses(&folder, &host, 1, &["cannot listen at theirs.sock"]);
}

#[test]
fn a_closed_terminal_and_a_full_log_do_not_end_a_host_manager() {
    let folder = Folder::new();
    let mut host = folder.host("64M");
    for signal in [Signal::HUP, Signal::XFSZ, Signal::PIPE] {
        host.signal(signal);
        assert!(folder.ps().is_some(), "{signal:?}");
    }
    assert_eq!(host.status(), None);
    host.signal(Signal::TERM);
    assert_eq!(host.wait(SOON).code(), Some(0));
}

/// Runs `attack` over and over while `ps` is asked a hundred times, each of which must be answered.
/// Both are other processes than the host manager, and `ps` another one than the attacker.
fn answers_during(folder: &Folder, attack: impl Fn(usize) + Sync) {
    let (over, rounds) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                attack(rounds.fetch_add(1, Ordering::Relaxed));
            }
        });
        wait_for("the attack", SOON, || rounds.load(Ordering::Relaxed) > 100);
        let answers = (0..100).filter(|_| folder.ps().is_some()).count();
        over.store(true, Ordering::Relaxed);
        assert_eq!(answers, 100, "of 100");
    });
    assert!(rounds.load(Ordering::Relaxed) > 200, "{rounds:?}");
}

/// A connection to the host manager of `folder`; one that closes others may refuse it.
fn stranger(folder: &Folder) -> Option<OwnedFd> {
    socket::connect(&folder.socket()).ok()
}

#[test]
fn silent_connections_make_way_for_those_who_speak() {
    let folder = Folder::new();
    let _host = folder.host("64M");
    let silent: Vec<_> = (0..500).map(|_| std::sync::Mutex::new(None)).collect();
    answers_during(&folder, |round| {
        *silent[round % silent.len()].lock().unwrap() = stranger(&folder);
    });
}

#[test]
fn nonsense_is_answered_with_a_closed_connection() {
    let folder = Folder::new();
    let host = folder.host("64M");
    answers_during(&folder, |round| {
        let Some(connection) = stranger(&folder) else {
            return;
        };
        let bytes = match round % 4 {
            0 => b"{".repeat(1 << 14),
            1 => b"[[[[".repeat(1 << 10),
            2 => b"{\"verb\":\"ps\"}".to_vec(),
            _ => vec![0xff; 1 << 12],
        };
        // It may be closed already. An answer is not read.
        let _ = rustix::net::send(&connection, &bytes, rustix::net::SendFlags::NOSIGNAL);
    });
    let lines = host.log().lines().count();
    assert!(lines < 1000, "{lines} lines");
}

#[test]
fn a_host_manager_without_descriptors_answers() {
    let folder = Folder::new();
    let socket = folder.socket();
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -n 40 && exec \"$0\" \"$@\""])
        .arg(env!("CARGO_BIN_EXE_tidemark"))
        .args(["host", "--memory", "64M", "--socket"])
        .arg(&socket)
        .stdin(Stdio::null());
    let host = Process::start(command);
    wait_for("the host manager", SOON, || {
        host.log().contains("listens at")
    });
    let silent: Vec<_> = (0..500).map(|_| std::sync::Mutex::new(None)).collect();
    answers_during(&folder, |round| {
        *silent[round % silent.len()].lock().unwrap() = stranger(&folder);
    });
    // Nothing was spun on.
    let lines = host.log().lines().count();
    assert!(lines < 1000, "{lines} lines");
}

#[test]
fn a_fleet_for_which_there_are_no_descriptors_is_refused_before_its_first_vm() {
    if require(&[Capability::Kvm, Capability::Uffd]).is_none() {
        return;
    }
    let folder = Folder::new();
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -n 256 && exec \"$0\" \"$@\""])
        .arg(env!("CARGO_BIN_EXE_tidemark"))
        .args(["run", "--guest", "hello", "--memory", "1M", "--count", "30"])
        .args(["--host-memory", "1G", "--swap-dir", ".", "--console", "log"])
        .env("XDG_RUNTIME_DIR", folder.path())
        .current_dir(folder.path())
        .stdin(Stdio::null());
    let mut run = Process::start(command);
    assert_eq!(run.wait(SOON).code(), Some(1));
    let said = run.log();
    for word in ["30 VMs", "for 26 of them", "ulimit -n"] {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
    assert!(!folder.files().contains(&"log-0".to_owned()));
}

/// Reads until `end` comes, at most [`SOON`]; what came.
fn read_until(from: &mut impl Read, end: &str) -> String {
    let (deadline, mut text, mut bytes) = (Instant::now() + SOON, String::new(), [0; 1 << 16]);
    while !text.contains(end) {
        assert!(
            Instant::now() < deadline,
            "no {end:?} in {} bytes",
            text.len()
        );
        let count = from.read(&mut bytes).unwrap();
        assert!(count > 0, "closed without {end:?}");
        text.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
    text
}

#[test]
fn a_log_that_nobody_reads_holds_no_host_manager_and_its_gaps_are_told() {
    let folder = Folder::new();
    let socket = folder.socket();
    let socket = socket.to_str().unwrap();
    let mut command = folder.command(&["-vv", "host", "--memory", "64M", "--socket", socket]);
    let mut host = command.stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the host manager", SOON, || folder.ps().is_some());
    // Each is a line: more than the pipe and the queue before it take.
    for _ in 0..20_000 {
        drop(stranger(&folder));
    }
    let answers = (0..20).filter(|_| folder.ps().is_some()).count();
    let said = read_until(&mut host.stderr.take().unwrap(), "lines dropped");
    let _ = host.kill();
    let _ = host.wait();
    assert_eq!(answers, 20);
    assert!(said.contains("listens at"), "{}", &said[..500]);
}

#[test]
fn no_terminal_sequence_of_a_guest_reaches_whoever_watches_a_run() {
    if require(&[Capability::Kvm, Capability::Uffd]).is_none() {
        return;
    }
    let folder = Folder::new();
    let mut run = Process::start(folder.command(&[
        "run",
        "--guest",
        "hello",
        "--cmdline",
        "\x1b]0;owned\x07 \u{9b}31m",
        "--memory",
        "16M",
        "--host-memory",
        "64M",
        "--swap-dir",
        ".",
    ]));
    run.wait(Duration::from_secs(60));
    let said = run.log() + &run.stdout();
    let steers = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    assert!(!said.contains(steers), "{said:?}");
}

#[test]
fn a_descriptor_of_a_stranger_is_no_use_to_a_host_manager() {
    let folder = Folder::new();
    let host = folder.host("64M");
    let path = format!("/proc/{}/fd", host.pid());
    let open = || fs::read_dir(&path).unwrap().count();
    let before = open();
    let mut sink = File::options().write(true).open("/dev/null").unwrap();
    sink.write_all(b"x").unwrap();
    for _ in 0..200 {
        let connection = stranger(&folder).unwrap();
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
        let fds = [sink.as_fd(); 3];
        control.push(rustix::net::SendAncillaryMessage::ScmRights(&fds));
        let bytes = [std::io::IoSlice::new(b"{\"verb\":\"ps\"}")];
        let flags = rustix::net::SendFlags::NOSIGNAL;
        rustix::net::sendmsg(&connection, &bytes, &mut control, flags).unwrap();
    }
    wait_for("the descriptors to be closed", SOON, || open() <= before);
}
