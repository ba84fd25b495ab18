//! A person at a guest's console: the built program on a pseudo-terminal.
#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers are tests too: a panic is their way to fail"
)]

mod common;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use common::Capability::{Kvm, Uffd};
use common::fleet::{Folder, Process, SOON, alone, is_alive, kill};
use common::{Log, require, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, tcgetattr};

const CTRL_C: &[u8] = b"\x03";
const CTRL_D: &[u8] = b"\x04";
const CTRL_BRACKET: &[u8] = b"\x1d";

/// The program on a terminal of its own, which controls it as a shell's would.
struct Person {
    keyboard: File,
    terminal: File,
    before: Termios,
    screen: Log,
    child: Child,
}

impl Person {
    fn types(folder: &Folder, args: &[&str]) -> Person {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC);
        let master = master.unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let terminal = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(name)
            .unwrap();
        let before = tcgetattr(&terminal).unwrap();
        // It runs the program in its own place, as the leader of a session with that terminal.
        let child = Command::new("setsid")
            .args(["--ctty", env!("CARGO_BIN_EXE_tidemark")])
            .args(args)
            .env("XDG_RUNTIME_DIR", folder.path())
            .env_remove("TIDEMARK_SOCKET")
            .current_dir(folder.path())
            .stdin(terminal.try_clone().unwrap())
            .stdout(terminal.try_clone().unwrap())
            .stderr(terminal.try_clone().unwrap())
            .spawn()
            .unwrap();
        let keyboard = File::from(master);
        let (mut from, screen) = (keyboard.try_clone().unwrap(), Log::default());
        let mut to = screen.clone();
        std::thread::spawn(move || {
            // Ends with an error when the last holder of the terminal is gone.
            let _ = std::io::copy(&mut from, &mut to);
        });
        Person {
            keyboard,
            terminal,
            before,
            screen,
            child,
        }
    }

    fn presses(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).unwrap();
    }

    fn sees(&self, text: &str) {
        let sees = || self.screen.text().contains(text);
        wait_for(&format!("{text:?} on the terminal"), SOON, sees);
    }

    fn waits(&mut self) -> ExitStatus {
        let mut status = None;
        wait_for("the end of the program", SOON, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.terminal).unwrap();
        !modes.local_modes.contains(LocalModes::ICANON)
    }

    /// The terminal is as it was.
    fn has_their_terminal(&self) {
        let now = tcgetattr(&self.terminal).unwrap();
        assert_eq!(now.input_modes, self.before.input_modes);
        assert_eq!(now.output_modes, self.before.output_modes);
        assert_eq!(now.local_modes, self.before.local_modes);
        assert_eq!(now.control_modes, self.before.control_modes);
    }

    /// The process of the program's VM.
    fn vm_process(&self) -> u32 {
        let pid = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        children.trim().parse().unwrap()
    }
}

impl Drop for Person {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- on the terminal:\n{}", self.screen.text());
        }
    }
}

const RUN: &[&str] = &[
    "run",
    "--guest",
    "echo",
    "--memory",
    "16M",
    "--host-memory",
    "64M",
];

#[test]
fn keys_reach_the_guest_and_ctrl_bracket_leaves() {
    let Some(_) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let folder = Folder::new();
    let mut person = Person::types(&folder, RUN);
    person.sees("Ctrl-] leaves");
    person.sees("echo is ready");
    person.presses(b"tide\r");
    person.sees("ready\r\ntide\r\n");
    // No signal, no flow control, no line editing.
    person.presses(b"\x03\x1a\x13\x11\x7f|");
    person.sees("^C^Z^S^Q?|");
    // More than the port's queue and the terminal's hold together.
    let paste = "0123456789".repeat(2000);
    person.presses(format!("<{paste}>").as_bytes());
    person.sees(&format!("<{paste}>"));
    assert!(person.is_raw());
    let vm = person.vm_process();
    person.presses(CTRL_BRACKET);
    assert_eq!(person.waits().code(), Some(0));
    person.has_their_terminal();
    person.sees("stopped");
    assert!(!is_alive(vm));
}

#[test]
fn the_terminal_is_put_back_however_the_vm_ends() {
    let Some(_) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let folder = Folder::new();
    // The guest ends it.
    let mut person = Person::types(&folder, RUN);
    person.sees("echo is ready");
    person.presses(CTRL_D);
    assert_eq!(person.waits().code(), Some(0));
    person.has_their_terminal();
    // Its process is killed.
    let mut person = Person::types(&folder, RUN);
    person.sees("echo is ready");
    kill(person.vm_process());
    assert_eq!(person.waits().code(), Some(1));
    person.has_their_terminal();
    // The program is asked to end.
    let mut person = Person::types(&folder, RUN);
    person.sees("echo is ready");
    kill_process(Pid::from_child(&person.child), Signal::TERM).unwrap();
    assert_eq!(person.waits().code(), Some(0));
    person.has_their_terminal();
    // The program is killed: its VM notices, and puts the terminal back.
    let mut person = Person::types(&folder, RUN);
    person.sees("echo is ready");
    let vm = person.vm_process();
    kill_process(Pid::from_child(&person.child), Signal::KILL).unwrap();
    assert_eq!(person.waits().code(), None);
    wait_for("the end of the VM", SOON, || !is_alive(vm));
    person.has_their_terminal();
}

#[test]
fn a_vm_on_a_terminal_joins_a_fleet_that_runs() {
    let Some(_) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let folder = Folder::new();
    // Two of 64 MiB, and the person's: twice what there is.
    let fleet = "run --guest verify --cmdline fill=60 --memory 64M --count 2 --host-memory 96M";
    let words: Vec<&str> = fleet.split(' ').collect();
    let mut fleet = Process::start(folder.command(&words));
    let running = |name: &str| {
        let running = || folder.vm(name).is_some_and(|vm| vm["state"] == "running");
        wait_for(&format!("{name} in the fleet"), SOON, running);
    };
    running("verify-1");
    let mut person = Person::types(&folder, &["vm", "--guest=echo", "--memory=64M"]);
    person.sees("echo is ready");
    running("echo");
    person.presses(b"shell?");
    person.sees("shell?");
    person.presses(CTRL_C);
    person.sees("^C");
    person.presses(CTRL_BRACKET);
    assert_eq!(person.waits().code(), Some(0));
    person.has_their_terminal();
    running("verify-0");
    fleet.signal(Signal::TERM);
    assert!(fleet.wait(SOON).success());
}

#[test]
fn without_a_person_there_is_no_console() {
    let Some(_) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let folder = Folder::new();
    // A log file, and figures for a program: the terminal stays as it is.
    for more in [&["--console", "log"][..], &["--json"]] {
        let args = [RUN, more, &["--for", "2s"]].concat();
        let mut person = Person::types(&folder, &args);
        std::thread::sleep(Duration::from_secs(1));
        assert!(!person.is_raw(), "{more:?}");
        assert_eq!(person.waits().code(), Some(0));
    }
    assert!(folder.read("log").contains("echo is ready"));
}
