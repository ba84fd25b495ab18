//! The built program under test: fleets, host managers and VM processes that end with the test.
//!
//! Everything a test starts lives in a folder of its own (sockets, swap files, consoles) and is
//! killed by its process id when the test ends, however it ends. What the processes said is printed
//! when a test fails.

use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::{Log, wait_for};

/// For whatever should take a moment, on a machine that may be very busy.
pub const SOON: Duration = Duration::from_secs(30);

/// One MiB.
pub const MIB: u64 = 1 << 20;

/// Fleets fill the machine's CPUs: one at a time in each test file. Hold it for the whole test.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The folder of one test.
pub struct Folder(TempDir);

impl Folder {
    /// A new one.
    pub fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file into it.
    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path().join(name), text).unwrap();
    }

    /// What a file in it says; empty while it is missing.
    pub fn read(&self, name: &str) -> String {
        let bytes = fs::read(self.path().join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// A command of the program, with this folder as its runtime folder and working directory.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidemark"));
        command
            .args(args)
            .env("XDG_RUNTIME_DIR", self.path())
            .env_remove("TIDEMARK_SOCKET")
            .env_remove("TIDEMARK_TAKE")
            .env_remove("RUST_LOG")
            .current_dir(self.path())
            .stdin(Stdio::null());
        command
    }

    /// Where the host manager of [`Folder::host`] listens.
    pub fn socket(&self) -> PathBuf {
        self.path().join("tidemark/host.sock")
    }

    /// A host manager of its own, that listens already.
    pub fn host(&self, memory: &str) -> Process {
        let socket = self.socket();
        let socket = socket.to_str().unwrap();
        let process =
            Process::start(self.command(&["host", "--memory", memory, "--socket", socket]));
        wait_for("the host manager", SOON, || {
            process.log().contains("listens at")
        });
        process
    }

    /// A VM with the guest `verify` that joins that host manager, in share group `g`.
    pub fn join(&self, name: &str, memory: &str, cmdline: &str) -> Process {
        self.join_with(name, memory, cmdline, &[])
    }

    /// The same with further flags.
    pub fn join_with(&self, name: &str, memory: &str, cmdline: &str, more: &[&str]) -> Process {
        let socket = self.socket();
        let flags = [
            "vm",
            "--host",
            socket.to_str().unwrap(),
            "--swap-dir",
            ".",
            "--guest",
            "verify",
            "--memory",
            memory,
            "--share-group",
            "g",
            "--name",
            name,
            "--cmdline",
            cmdline,
        ];
        Process::start(self.command(&[&flags, more].concat()))
    }

    /// Runs a command to its end.
    pub fn output(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs a command that must fail with `status` and one line on standard error; that line.
    pub fn fails(&self, args: &[&str], status: i32) -> String {
        let output = self.output(args);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{args:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
        assert!(output.stdout.is_empty(), "{args:?}");
        said
    }

    /// `tidemark ps --json`; `None` while no host manager answers.
    pub fn ps(&self) -> Option<Value> {
        let output = self.output(&["ps", "--json"]);
        let figures = serde_json::from_slice(&output.stdout).ok();
        figures.filter(|_| output.status.success())
    }

    /// One VM's figures in `ps`, while it is listed there.
    pub fn vm(&self, name: &str) -> Option<Value> {
        find_vm(&self.ps()?, name).cloned()
    }

    /// Names of the files in it with an ending, sockets and all, at any depth.
    pub fn files(&self) -> Vec<String> {
        let mut names = Vec::new();
        let mut folders = vec![self.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap().flatten() {
                match entry.file_type().unwrap().is_dir() {
                    true => folders.push(entry.path()),
                    false => names.push(entry.file_name().to_string_lossy().into_owned()),
                }
            }
        }
        names
    }
}

/// A VM of some figures.
pub fn find_vm<'a>(figures: &'a Value, name: &str) -> Option<&'a Value> {
    figures["vms"]
        .as_array()?
        .iter()
        .find(|vm| vm["name"] == name)
}

/// A figure that must be there.
pub fn number(value: &Value, path: &str) -> u64 {
    let found = path.split('.').fold(value, |value, key| &value[key]);
    found
        .as_u64()
        .unwrap_or_else(|| panic!("no number {path} in {value}"))
}

/// A process of the program, and what it says.
pub struct Process {
    child: Child,
    stderr: Log,
    stdout: Log,
    readers: Vec<JoinHandle<()>>,
    /// VM processes seen below it, to be ended with it.
    below: Vec<u32>,
}

fn reader(mut from: impl Read + Send + 'static, mut to: Log) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
    })
}

impl Process {
    /// Starts it.
    pub fn start(mut command: Command) -> Process {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdout, stderr) = (Log::default(), Log::default());
        let readers = vec![
            reader(child.stdout.take().unwrap(), stdout.clone()),
            reader(child.stderr.take().unwrap(), stderr.clone()),
        ];
        Process {
            child,
            stderr,
            stdout,
            readers,
            below: Vec::new(),
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to standard error so far: logs and consoles.
    pub fn log(&self) -> String {
        self.stderr.text()
    }

    /// What it wrote to standard output so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Whether it has ended.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for its end and for all it said.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let mut status = None;
        let pid = self.pid();
        wait_for(&format!("the end of process {pid}"), limit, || {
            status = self.status();
            status.is_some()
        });
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        status.unwrap()
    }

    /// The VM processes that it started: name and process id.
    pub fn vms(&mut self) -> Vec<(String, u32)> {
        let pid = self.pid();
        let children =
            fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let vms: Vec<(String, u32)> = children
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok())
            .filter_map(|pid| Some((vm_name(pid)?, pid)))
            .collect();
        for (_, pid) in &vms {
            if !self.below.contains(pid) {
                self.below.push(*pid);
            }
        }
        vms
    }

    /// The process of one VM.
    pub fn vm_pid(&mut self, name: &str) -> u32 {
        let mut pid = None;
        wait_for(&format!("the process of {name}"), SOON, || {
            pid = self.vms().into_iter().find(|(vm, _)| vm == name);
            pid.is_some()
        });
        pid.unwrap().1
    }
}

/// The open swap file of a VM process, by its path under /proc; it has no other name.
pub fn swap_file(pid: u32) -> PathBuf {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let unnamed = |path: &PathBuf| {
        fs::read_link(path).is_ok_and(|target| {
            let target = target.to_string_lossy().into_owned();
            target.contains("/#") && target.ends_with(" (deleted)")
        })
    };
    open.flatten()
        .map(|entry| entry.path())
        .find(unnamed)
        .expect("a swap file without a name")
}

/// The name of the VM that a process runs; `None` if it runs none.
fn vm_name(pid: u32) -> Option<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut args = line.split(|byte| *byte == 0).skip(1);
    if args.next()? != b"vm" {
        return None;
    }
    let name = args.find_map(|arg| arg.strip_prefix(b"--name="))?;
    Some(String::from_utf8_lossy(name).into_owned())
}

/// Whether a process exists and is no zombie.
pub fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')')
        .is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

/// Kills a process at once.
pub fn kill(pid: u32) {
    let pid = Pid::from_raw(pid.cast_signed()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}

/// Anonymous memory of a process as the kernel counts it.
pub fn rss_anon_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

impl Drop for Process {
    fn drop(&mut self) {
        self.vms();
        let _ = self.child.kill();
        let _ = self.child.wait();
        // They end by themselves when what started them does: whether they do is a test of its own.
        for &pid in &self.below {
            if is_alive(pid) && vm_name(pid).is_some() {
                kill(pid);
            }
        }
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        if std::thread::panicking() {
            eprintln!(
                "--- process {} said:\n{}\n--- and on standard output:\n{}",
                self.pid(),
                self.log(),
                self.stdout()
            );
        }
    }
}

/// `tidemark run` of a fleet file.
pub struct Fleet {
    pub process: Process,
    pub folder: Folder,
}

/// A fleet that has ended.
pub struct End {
    pub status: ExitStatus,
    pub figures: Value,
    pub log: String,
}

impl Fleet {
    /// Starts a fleet; its swap files and sockets are in a folder of its own.
    pub fn start(toml: &str, args: &[&str]) -> Fleet {
        Fleet::start_with(toml, args, |_| {})
    }

    /// The same, with a last word on the command.
    pub fn start_with(toml: &str, args: &[&str], change: impl FnOnce(&mut Command)) -> Fleet {
        let folder = Folder::new();
        folder.write("fleet.toml", toml);
        let mut all = vec!["run", "fleet.toml", "--json"];
        all.extend(args);
        let mut command = folder.command(&all);
        change(&mut command);
        Fleet {
            process: Process::start(command),
            folder,
        }
    }

    /// Polls `ps` until `condition` holds of its figures; those figures.
    pub fn until(&mut self, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        self.until_within(SOON, what, condition)
    }

    /// The same with a limit of its own.
    pub fn until_within(
        &mut self,
        limit: Duration,
        what: &str,
        condition: impl Fn(&Value) -> bool,
    ) -> Value {
        let deadline = Instant::now() + limit;
        loop {
            let figures = self.folder.ps();
            match figures {
                Some(figures) if condition(&figures) => return figures,
                figures => assert!(
                    Instant::now() < deadline && self.process.status().is_none(),
                    "{what} does not come true in {limit:?}; the last figures: {figures:?}"
                ),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits for its end.
    pub fn end(mut self, limit: Duration) -> End {
        self.process.vms();
        let status = self.process.wait(limit);
        let stdout = self.process.stdout();
        let figures = serde_json::from_str(&stdout)
            .unwrap_or_else(|error| panic!("{error} in the output {stdout:?}"));
        for &pid in &self.process.below {
            assert!(!is_alive(pid), "VM process {pid} is left");
        }
        let left: Vec<String> = self.folder.files();
        let sockets = left.iter().filter(|name| name.ends_with(".sock"));
        assert_eq!(sockets.count(), 0, "sockets are left: {left:?}");
        End {
            status,
            figures,
            log: self.process.log(),
        }
    }
}

impl End {
    /// One VM's closing figures.
    pub fn vm(&self, name: &str) -> &Value {
        find_vm(&self.figures, name).unwrap_or_else(|| panic!("no VM {name} in {}", self.figures))
    }

    /// Sum of a figure over the VMs.
    pub fn sum(&self, path: &str) -> u64 {
        let vms = self.figures["vms"].as_array().unwrap();
        vms.iter().map(|vm| number(vm, path)).sum()
    }

    /// The run and every VM ended well, every guest compared something and found all of it right,
    /// the figures add up, and the budget was kept.
    pub fn check(&self) {
        for vm in self.figures["vms"].as_array().unwrap() {
            assert_eq!(vm["exit"]["reason"], "stopped", "{vm}\n{}", self.log);
            self.check_guest(vm);
        }
        assert_eq!(self.status.code(), Some(0), "{}", self.log);
        self.check_sums();
    }

    /// One guest compared something and found all of it right.
    pub fn check_guest(&self, vm: &Value) {
        assert!(number(vm, "guest.pages_verified") > 0, "{vm}\n{}", self.log);
        assert_eq!(number(vm, "guest.pages_corrupt"), 0, "{vm}\n{}", self.log);
    }

    /// The figures add up and the budget was kept.
    pub fn check_sums(&self) {
        check_sums(&self.figures);
        let host = &self.figures["host"];
        assert!(
            number(host, "consumed_bytes_peak") <= number(host, "memory_bytes"),
            "{host}\n{}",
            self.log
        );
    }
}

/// The identities of the contract, to the byte.
pub fn check_sums(figures: &Value) {
    let host = &figures["host"];
    let mut consumed = number(host, "overhead_bytes");
    for vm in figures["vms"].as_array().unwrap() {
        consumed += number(vm, "consumed_bytes");
        let parts =
            number(vm, "private_bytes") + number(vm, "shared_bytes") - number(vm, "saved_bytes");
        // The compressed store takes less than the pages in it; the rest is exact.
        let store = number(vm, "consumed_bytes").checked_sub(parts);
        assert!(
            store.is_some_and(|store| store <= number(vm, "compressed_bytes")),
            "consumed is not private + shared - saved + store: {vm}"
        );
    }
    assert_eq!(consumed, number(host, "consumed_bytes"), "{figures}");
    assert!(
        number(host, "consumed_bytes") <= number(host, "consumed_bytes_peak"),
        "{host}"
    );
}

/// How a process ended, with the signal.
pub fn describe(status: ExitStatus) -> String {
    format!("code {:?}, signal {:?}", status.code(), status.signal())
}
