//! Processes that do not run for a while: a host manager, a `tidemark run` and a VM that are
//! stopped as by Ctrl-Z, and a standard error that nobody reads. Nothing but time is lost.
#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers are tests too: a panic is their way to fail"
)]

mod common;

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::Capability::{Kvm, Uffd};
use common::asm::Code;
use common::fleet::{
    Fleet, Folder, Process, SOON, alone, check_sums, describe, find_vm, is_alive, number,
};
use common::{require, wait_for};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tidemark_guest_protocol::{PORT_EXIT, PORT_IDLE};

/// How long processes are stopped: longer than a socket takes to fill, and than anybody should wait
/// for room in it. `TIDEMARK_STOP_SECONDS` sets another time.
fn stop() -> Duration {
    let given = std::env::var("TIDEMARK_STOP_SECONDS").ok();
    let seconds = given.map_or(25, |seconds| seconds.parse().unwrap());
    Duration::from_secs(seconds)
}

/// Two guests of 48 MiB that compare all they have, in `memory`, and whatever `more` says.
fn toml(memory: &str, more: &str) -> String {
    format!(
        r#"
        [host]
        memory = "{memory}"
        swap_dir = "."
        [[vm]]
        name = "verify"
        count = 2
        memory = "48M"
        guest = "verify"
        share_group = "g"
        {more}
        "#
    )
}

fn verified(figures: &Value, name: &str) -> u64 {
    find_vm(figures, name)
        .and_then(|vm| vm["guest"]["pages_verified"].as_u64())
        .unwrap_or(0)
}

/// Both guests compare.
fn at_work(figures: &Value) -> bool {
    verified(figures, "verify-0") > 0 && verified(figures, "verify-1") > 0
}

/// And some of their memory was swapped.
fn under_pressure(figures: &Value) -> bool {
    let swapped = |name| find_vm(figures, name).map_or(0, |vm| number(vm, "peak.swapped_bytes"));
    at_work(figures) && swapped("verify-0") + swapped("verify-1") > 0
}

fn goes_on(figures: &Value, before: &Value, name: &str) -> bool {
    verified(figures, name) > verified(before, name) + 20_000
}

/// Both VMs run, and their guests have gone on since `before`.
fn both_go_on(figures: &Value, before: &Value) -> bool {
    ["verify-0", "verify-1"].iter().all(|name| {
        find_vm(figures, name).is_some_and(|vm| vm["state"] == "running")
            && goes_on(figures, before, name)
    })
}

/// Stops the process, as Ctrl-Z does, and lets it go on `for_long` later.
fn suspend(pid: u32, for_long: Duration) {
    let pid = Pid::from_raw(pid.cast_signed()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    // That this time passes is what is tested.
    std::thread::sleep(for_long);
    kill_process(pid, Signal::CONT).unwrap();
}

fn a_run_is_stopped() {
    let mut fleet = Fleet::start(&toml("72M", ""), &[]);
    let before = fleet.until_within(SOON * 2, "work under pressure", under_pressure);
    let vms = fleet.process.vms();
    suspend(fleet.process.pid(), stop());
    assert!(vms.iter().all(|(_, pid)| is_alive(*pid)), "a VM has ended");
    fleet.until("both go on", |figures| both_go_on(figures, &before));
    fleet.process.signal(Signal::INT);
    fleet.end(SOON).check();
}

/// The guest's end is heard although its process is long gone, behind all that it said before.
fn a_guest_ends_while_its_run_is_stopped() {
    let folder = Folder::new();
    let mut sleeper = Code::default();
    for _ in 0..(stop() * 3 / 5).as_secs() {
        sleeper = sleeper.out(PORT_IDLE, 1000);
    }
    let image = sleeper.out(PORT_EXIT, 0).ring3();
    std::fs::write(folder.path().join("sleeper"), image).unwrap();
    let words = "run --name sleeper --kernel sleeper --memory 8M --host-memory 32M --json";
    let words: Vec<&str> = words.split(' ').collect();
    let process = Process::start(folder.command(&words));
    let mut fleet = Fleet { process, folder };
    fleet.until("the guest", |figures| {
        find_vm(figures, "sleeper").is_some_and(|vm| vm["state"] == "running")
    });
    let vm = fleet.process.vm_pid("sleeper");
    suspend(fleet.process.pid(), stop());
    assert!(!is_alive(vm), "the guest has not ended by itself");
    let end = fleet.end(SOON);
    assert_eq!(end.vm("sleeper")["exit"]["reason"], "guest-exit");
    assert_eq!(end.status.code(), Some(0));
}

/// A fleet whose standard error nobody reads, and that pipe.
fn unheard(toml: &str) -> (Fleet, File) {
    let folder = Folder::new();
    folder.write("fleet.toml", toml);
    // Prints line after line, with a moment's sleep after each hundred.
    let mut chatter = Code::default();
    for n in 0..100 {
        chatter = chatter.print_at_once(&format!(
            "line {n:03} of a guest that talks all the time{:.<150}\n",
            ""
        ));
    }
    let image = chatter.out(PORT_IDLE, 20).start_over().ring3();
    std::fs::write(folder.path().join("chatter"), image).unwrap();
    let pipe = folder.path().join("unread");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let ours = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&pipe)
        .unwrap();
    let mut command = Command::new("sh");
    command
        .args(["-c", r#"exec "$0" run fleet.toml --json 2<>unread"#])
        .arg(env!("CARGO_BIN_EXE_tidemark"))
        .env("XDG_RUNTIME_DIR", folder.path())
        .env_remove("TIDEMARK_SOCKET")
        .env_remove("TIDEMARK_TAKE")
        .current_dir(folder.path())
        .stdin(Stdio::null());
    let process = Process::start(command);
    (Fleet { process, folder }, ours)
}

fn nobody_reads_standard_error_and_a_vm_is_stopped() {
    let chatter = r#"
        [[vm]]
        name = "chatter"
        memory = "8M"
        kernel = "chatter"
    "#;
    let (mut fleet, mut pipe) = unheard(&toml("78M", chatter));
    let before = fleet.until("work", at_work);
    // The fleet is served all the while, the other VM goes on, and nobody misses the one.
    let stopped = fleet.process.vm_pid("verify-0");
    let suspended = std::thread::spawn(move || suspend(stopped, stop() * 4 / 5));
    fleet.until("the other one goes on", |figures| {
        goes_on(figures, &before, "verify-1")
    });
    wait_for("the end of the stop", stop() * 2, || {
        assert!(fleet.folder.ps().is_some(), "`ps` has no answer");
        suspended.is_finished()
    });
    suspended.join().unwrap();
    let after = fleet.until("figures", |_| true);
    fleet.until("both go on", |figures| both_go_on(figures, &after));
    // Whoever reads at last learns what is missing.
    let mut said = String::new();
    let dropped = "lines dropped: the terminal or pipe did not take them";
    let deadline = Instant::now() + 6 * SOON;
    // On a busy machine the guest may not have said enough by now: it is left unread for longer.
    let mut pause = Duration::from_millis(5);
    while !said.contains(dropped) {
        let late = Instant::now() > deadline;
        assert!(
            !late,
            "no word of the dropped lines in {} bytes:\n{said}",
            said.len()
        );
        let mut bytes = [0; 4096];
        match pipe.read(&mut bytes) {
            Ok(count) => said.push_str(&String::from_utf8_lossy(&bytes[..count])),
            Err(_) => {
                std::thread::sleep(pause);
                pause *= 2;
            }
        }
    }
    assert!(said.contains("chatter: line 001 of a guest"), "{said}");
    // And the end is not held either.
    fleet.process.signal(Signal::INT);
    let end = fleet.end(SOON);
    assert_eq!(end.status.code(), Some(0));
    for name in ["verify-0", "verify-1"] {
        end.check_guest(end.vm(name));
    }
    assert_eq!(end.vm("chatter")["exit"]["reason"], "stopped");
    end.check_sums();
}

fn a_host_manager_is_stopped() {
    let folder = Folder::new();
    let socket = folder.path().join("tidemark/host.sock");
    let socket = socket.to_str().unwrap();
    let host = ["host", "--memory", "72M", "--socket", socket];
    let mut host = Process::start(folder.command(&host));
    wait_for("the host manager", SOON, || {
        host.log().contains("listens at")
    });
    let mut vms = ["verify-0", "verify-1"].map(|name| {
        let words = "vm --swap-dir . --guest verify --memory 48M --share-group g";
        let mut words: Vec<&str> = words.split(' ').collect();
        words.extend(["--host", socket, "--name", name]);
        (name, Process::start(folder.command(&words)))
    });
    let mut before = Value::Null;
    wait_for("work under pressure", SOON * 2, || {
        before = folder.ps().unwrap();
        under_pressure(&before)
    });
    suspend(host.pid(), stop());
    // The figures are those of now, and the budget holds.
    wait_for("fresh figures", Duration::from_secs(5), || {
        let figures = folder.ps().unwrap();
        check_sums(&figures);
        both_go_on(&figures, &before)
    });
    let figures = folder.ps().unwrap();
    assert!(
        number(&figures["host"], "consumed_bytes_peak") <= number(&figures["host"], "memory_bytes"),
        "{figures}"
    );
    for (name, vm) in &mut vms {
        assert_eq!(
            number(find_vm(&figures, name).unwrap(), "guest.pages_corrupt"),
            0
        );
        assert!(folder.output(&["stop", name]).status.success());
        let status = vm.wait(SOON);
        assert_eq!(status.code(), Some(0), "{} {}", describe(status), vm.log());
        assert!(!vm.log().contains("the guest goes on"), "{}", vm.log());
    }
    host.signal(Signal::TERM);
    assert_eq!(host.wait(SOON).code(), Some(0));
}

#[test]
fn whoever_does_not_run_for_a_while_loses_nothing_but_time() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    // Side by side, since they mostly wait.
    std::thread::scope(|scope| {
        scope.spawn(a_run_is_stopped);
        scope.spawn(a_guest_ends_while_its_run_is_stopped);
        scope.spawn(nobody_reads_standard_error_and_a_vm_is_stopped);
        scope.spawn(a_host_manager_is_stopped);
    });
}
