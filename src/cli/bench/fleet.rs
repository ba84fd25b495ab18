//! One fleet under measurement.
//!
//! It is a child process, `tidemark run` of this same program, in a folder of its own with all that
//! it writes. However the measurement ends, the child is asked to stop, waited for, and killed if it
//! does not; its VMs end with it. It also ends by itself some time after the bench would have given
//! up, in case the bench was killed.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::cpu;
use super::meter::Said;
use super::{Bench, Error, io};
use crate::host::accounts::{Figures, VmFigures};
use crate::host::control::{Request, call};
use crate::words::{Advice, ExitReason};

/// How long anything may take before the bench gives up.
pub(super) const PATIENCE: Duration = Duration::from_secs(180);
/// How much longer a fleet lives without a bench.
const ORPHANED: Duration = Duration::from_secs(60);
/// How long a fleet may take to stop: longer than it gives its VMs.
const GRACE: Duration = Duration::from_secs(8);
/// Time between two looks.
const LOOK: Duration = Duration::from_millis(10);
/// Memory of a guest beside its set: image, tables, and up to a large page to align the set.
const GUEST_BYTES: u64 = 6 << 20;
const LARGE_BYTES: u64 = 2 << 20;

/// A folder that is removed with all that is in it.
#[derive(Debug)]
pub(super) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// A new folder in `parent`.
    pub fn new(parent: &Path) -> Result<Scratch, Error> {
        let path = parent.join(format!("tidemark-bench-{}", std::process::id()));
        fs::create_dir(&path).map_err(io(format!("create {}", path.display())))?;
        Ok(Scratch { path })
    }

    /// Where a file of this name would be.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            log::error!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Who manages a guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arm {
    /// tidemark.
    Managed,
    /// The kernel, with this advice.
    Plain(Advice),
}

/// A guest `meter`.
#[derive(Debug, Clone)]
pub(super) struct Guest {
    pub name: String,
    pub arm: Arm,
    /// Memory that it works on.
    pub set_bytes: u64,
    /// Options beside `set` and `tsc_khz`.
    pub options: String,
    pub group: Option<&'static str>,
    /// Memory that it may have, bytes; `None`: all of its VM's.
    pub limit: Option<u64>,
}

impl Guest {
    /// So many guests that are alike but for their names, and share with nobody.
    pub fn several(count: u32, arm: Arm, set_bytes: u64, options: &str) -> Vec<Guest> {
        let guest = |number: u32| Guest {
            name: format!("g{number}"),
            arm,
            set_bytes,
            options: options.to_owned(),
            group: None,
            limit: None,
        };
        (0..count).map(guest).collect()
    }

    /// The options of its guest.
    pub fn command_line(&self, tsc_khz: u32) -> String {
        let Guest {
            set_bytes, options, ..
        } = self;
        format!("set={set_bytes} tsc_khz={tsc_khz} {options}")
    }

    /// Memory of its VM.
    pub fn memory_bytes(&self) -> u64 {
        // Two numbers of eight bytes a page are its tables.
        (self.set_bytes + self.set_bytes / 256 + GUEST_BYTES).next_multiple_of(LARGE_BYTES)
    }
}

/// A running fleet.
pub(super) struct Fleet<'a> {
    bench: &'a Bench<'a>,
    child: Child,
    folder: PathBuf,
    started: Instant,
    /// Told to stop or gone.
    over: bool,
}

impl<'a> Fleet<'a> {
    /// Starts these guests in a budget that has room for twice their memory. Memory that the outer
    /// hypervisor has not backed yet is touched before, so that no arm pays for it.
    pub fn start(bench: &'a Bench<'a>, guests: &[Guest]) -> Result<Fleet<'a>, Error> {
        let memory: u64 = guests.iter().map(Guest::memory_bytes).sum();
        let budget = 2 * memory + (256 << 20);
        Fleet::of(bench, &text(bench, guests, budget), memory)
    }

    /// Starts the fleet of a fleet file with this text, whose guests will touch so much memory.
    pub fn of(bench: &'a Bench<'a>, text: &str, memory: u64) -> Result<Fleet<'a>, Error> {
        bench.check()?;
        warm(memory);
        let folder = bench.scratch.path.join("fleet");
        fs::create_dir(&folder).map_err(io("create the fleet's folder"))?;
        let file = folder.join("fleet.toml");
        fs::write(&file, text).map_err(io("write the fleet file"))?;
        let create = |name: &str| {
            File::create(folder.join(name)).map_err(io(format!("create the fleet's {name}")))
        };
        let life = (PATIENCE + ORPHANED).as_secs();
        let program = std::env::current_exe().map_err(io("find this program's file"))?;
        let started = Instant::now();
        let child = Command::new(program)
            .arg("run")
            .arg(&file)
            .arg("--json")
            .arg(format!("--for={life}s"))
            .arg("--socket")
            .arg(folder.join("socket"))
            .stdin(Stdio::null())
            .stdout(create("out")?)
            .stderr(create("err")?)
            // Ctrl-C on the terminal is for the bench, which stops it.
            .process_group(0)
            .spawn()
            .map_err(io("start the fleet"))?;
        Ok(Fleet {
            bench,
            child,
            folder,
            started,
            over: false,
        })
    }

    /// When it was started.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// What a guest has said so far.
    pub fn said(&self, guest: &str) -> Said {
        let text = fs::read(self.folder.join(format!("{guest}.log"))).unwrap_or_default();
        Said::read(&String::from_utf8_lossy(&text))
    }

    /// Where a file of this name in its folder would be.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Where its host manager is.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("socket")
    }

    /// The host manager's figures; `None` while it does not answer.
    pub fn figures(&self) -> Option<Figures> {
        let answer = call(&self.socket(), &Request::Ps).ok()?;
        serde_json::from_value(answer).ok()
    }

    /// Changes a key of a VM.
    pub fn set(&self, vm: &str, key: &str, value: &str) -> Result<(), Error> {
        let request = Request::Set {
            vm: vm.to_owned(),
            changes: [(key.to_owned(), value.to_owned())].into(),
        };
        let answer = call(&self.socket(), &request);
        answer.map(drop).map_err(|error| Error::Fleet {
            what: format!("set {vm} {key}={value}"),
            why: error.to_string(),
        })
    }

    /// The processes of all VMs.
    pub fn vm_processes(&self) -> Vec<i32> {
        let children = cpu::children(self.child.id());
        children.into_iter().map(|(pid, _)| pid).collect()
    }

    /// CPU time of the host manager and of the VM processes, so far.
    pub fn cpu(&self, threads: cpu::Threads) -> Duration {
        let host = cpu::time(self.host_process(), threads);
        let vms = self.vm_processes();
        host + vms
            .into_iter()
            .map(|pid| cpu::time(pid, threads))
            .sum::<Duration>()
    }

    /// The host manager's process.
    pub fn host_process(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or(i32::MAX)
    }

    /// Looks until `look` has seen it.
    pub fn until<T>(
        &mut self,
        what: &str,
        look: impl FnMut(&Fleet<'_>) -> Option<T>,
    ) -> Result<T, Error> {
        self.until_every(LOOK, what, look)
    }

    /// The same, so often.
    pub fn until_every<T>(
        &mut self,
        period: Duration,
        what: &str,
        mut look: impl FnMut(&Fleet<'_>) -> Option<T>,
    ) -> Result<T, Error> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // The end is looked at first: what was said before it is then seen.
            let ended = self.child.try_wait().ok().flatten();
            if let Some(seen) = look(self) {
                return Ok(seen);
            }
            self.bench.check()?;
            if let Some(status) = ended {
                return Err(self.failed(what, &format!("the fleet ended with {status}")));
            }
            if Instant::now() > deadline {
                return Err(self.failed(what, "not in time"));
            }
            std::thread::sleep(period);
        }
    }

    /// Waits until all these guests have filled their memory.
    pub fn fill(&mut self, guests: &[Guest]) -> Result<(), Error> {
        self.until("full guests", |fleet| {
            let mut names = guests.iter().map(|guest| &guest.name);
            names
                .all(|name| fleet.said(name).phase(0).is_some())
                .then_some(())
        })
    }

    /// Waits for all guests to end by themselves; the closing figures.
    pub fn end(mut self) -> Result<Figures, Error> {
        let what = "the fleet's end";
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match self.child.try_wait().map_err(io("wait for the fleet"))? {
                Some(status) => break status,
                None if Instant::now() > deadline => return Err(self.failed(what, "not in time")),
                None => self.bench.check()?,
            }
            std::thread::sleep(LOOK);
        };
        self.over = true;
        self.closing(status)
    }

    /// Asks all guests to stop; the closing figures.
    pub fn stop(mut self) -> Result<Figures, Error> {
        let status = self.ask_to_stop().map_err(io("wait for the fleet"))?;
        self.closing(status)
    }

    fn closing(&self, status: ExitStatus) -> Result<Figures, Error> {
        let text = fs::read(self.folder.join("out")).map_err(io("read the fleet's figures"))?;
        let figures: Option<Figures> = serde_json::from_slice(&text).ok();
        let Some(figures) = figures else {
            return Err(self.failed("the fleet's figures", &status.to_string()));
        };
        for vm in &figures.vms {
            check(vm)?;
        }
        match status.success() {
            true => Ok(figures),
            false => Err(self.failed("the fleet's end", &status.to_string())),
        }
    }

    fn failed(&self, what: &str, why: &str) -> Error {
        let text = fs::read_to_string(self.folder.join("err")).unwrap_or_default();
        let last = text.lines().rev().find(|line| line.contains("tidemark"));
        let said = last.map_or(String::new(), |line| format!("; it said: {line}"));
        Error::Fleet {
            what: what.to_owned(),
            why: format!("{why}{said}"),
        }
    }

    fn ask_to_stop(&mut self) -> std::io::Result<ExitStatus> {
        self.over = true;
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        // Not waited for yet, so the number is still its own.
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let deadline = Instant::now() + GRACE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(LOOK);
        }
        self.child.kill()?;
        self.child.wait()
    }
}

impl Drop for Fleet<'_> {
    fn drop(&mut self) {
        if !self.over
            && let Err(error) = self.ask_to_stop()
        {
            log::error!("cannot stop a fleet: {error}");
        }
        // The next fleet has the same folder.
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            log::error!("cannot remove {}: {error}", self.folder.display());
        }
    }
}

/// A VM that ended badly makes the measurement worthless.
fn check(vm: &VmFigures) -> Result<(), Error> {
    let corrupt = vm.guest.map_or(0, |guest| guest.pages_corrupt);
    if corrupt > 0 {
        return Err(Error::Corrupt {
            guest: vm.name.clone(),
            pages: corrupt,
        });
    }
    let good = vm.exit.as_ref().is_some_and(|exit| match exit.reason {
        ExitReason::GuestExit => exit.code == 0,
        ExitReason::Stopped => true,
        _ => false,
    });
    match good {
        true => Ok(()),
        false => Err(Error::Fleet {
            what: format!("the end of guest {}", vm.name),
            why: match &vm.exit {
                Some(exit) => format!("{exit:?}"),
                None => "unknown".to_owned(),
            },
        }),
    }
}

/// Touches as much memory and gives it back.
pub(super) fn warm(bytes: u64) {
    if let Ok(bytes) = usize::try_from(bytes) {
        std::hint::black_box(vec![1_u8; bytes]);
    }
}

fn text(bench: &Bench<'_>, guests: &[Guest], budget: u64) -> String {
    let mut text = format!("[host]\nmemory = {budget}\nswap_dir = \".\"\nseed = 1\n");
    for guest in guests {
        let command_line = guest.command_line(bench.tsc_khz);
        // Nothing can fail to be written to a text.
        let _ = write!(
            text,
            "[[vm]]\nname = {:?}\nguest = \"meter\"\nmemory = {}\nconsole = \"{}.log\"\n\
             cmdline = \"{command_line}\"\n",
            guest.name,
            guest.memory_bytes(),
            guest.name,
        );
        if let Arm::Plain(advice) = guest.arm {
            let _ = write!(text, "memory_management = false\nadvise = \"{advice}\"\n");
        }
        if let Some(limit) = guest.limit {
            let _ = writeln!(text, "limit = {limit}");
        }
        if let Some(group) = guest.group {
            let _ = writeln!(text, "share_group = {group:?}");
        }
    }
    text
}
