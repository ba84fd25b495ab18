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
use common::asm::Code;
use common::fleet::{Folder, Process, SOON, alone, is_alive, kill};
use common::{Log, require, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, tcgetattr};
use tidemark_guest_protocol::{PORT_EXIT, PORT_IDLE};

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
        let person = Person::looks_away(folder, args);
        person.looks();
        person
    }

    /// The terminal takes no more than it holds, as under Ctrl-S, until the person [looks].
    ///
    /// [looks]: Person::looks
    fn looks_away(folder: &Folder, args: &[&str]) -> Person {
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
        Person {
            keyboard: File::from(master),
            terminal,
            before,
            screen: Log::default(),
            child,
        }
    }

    fn looks(&self) {
        let (mut from, mut to) = (self.keyboard.try_clone().unwrap(), self.screen.clone());
        std::thread::spawn(move || {
            // Ends with an error when the last holder of the terminal is gone.
            let _ = std::io::copy(&mut from, &mut to);
        });
    }

    /// Waits until the terminal takes no more.
    fn waits_until_full(&self) {
        let mut held = 0;
        wait_for("a full terminal", SOON, || {
            std::thread::sleep(Duration::from_millis(300));
            let before = held;
            held = rustix::io::ioctl_fionread(&self.keyboard).unwrap();
            held > 0 && held == before
        });
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
            self.looks();
            std::thread::sleep(Duration::from_secs(1));
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

/// A run of a guest that prints more than a terminal holds, and then does what `end` says.
fn talker(folder: &Folder, end: impl FnOnce(Code) -> Code) -> Vec<&'static str> {
    // Time enough to be seen at its start.
    let mut code = Code::default().out(PORT_IDLE, 2000);
    for n in 0..2000 {
        code = code.print(&format!(
            "line {n:04} of a guest that talks all the time\r\n"
        ));
    }
    std::fs::write(folder.path().join("talker"), end(code).ring3()).unwrap();
    let words = "run --name talker --kernel talker --memory 16M --host-memory 64M";
    words.split(' ').collect()
}

#[test]
fn a_terminal_that_takes_nothing_holds_neither_the_guest_nor_ctrl_bracket() {
    let Some(_) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    // It has more to say than the terminal takes, and comes to its end all the same.
    let folder = Folder::new();
    let args = talker(&folder, |code| code.out(PORT_EXIT, 0));
    let mut person = Person::looks_away(&folder, &args);
    wait_for("the VM", SOON, || folder.vm("talker").is_some());
    let vm = person.vm_process();
    wait_for("the end of the guest", SOON, || !is_alive(vm));
    person.looks();
    assert_eq!(person.waits().code(), Some(0));
    person.sees("line 0001");
    person.sees("exit 0");
    person.has_their_terminal();
    // Another one never ends: a key does it, before the run kills what it cannot stop.
    let folder = Folder::new();
    let args = talker(&folder, Code::start_over);
    let mut person = Person::looks_away(&folder, &args);
    wait_for("the VM", SOON, || folder.vm("talker").is_some());
    person.waits_until_full();
    let vm = person.vm_process();
    person.presses(CTRL_BRACKET);
    wait_for("the end of the VM", SOON, || !is_alive(vm));
    person.looks();
    assert_eq!(person.waits().code(), Some(0));
    person.sees("stopped");
    person.has_their_terminal();
}
