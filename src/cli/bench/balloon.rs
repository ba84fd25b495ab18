//! Ballooning a Linux guest, beside QEMU's balloon with the same kernel and the same guest.
//!
//! The guest (`guest-images/linux`, started with `tidemark.cache`) reads its disk until its memory is
//! full of page cache, and again when it sees that memory has become free. Its balloon is then
//! ordered to take a part of that cache, and to give it back: ours by a limit that is lowered and
//! lifted, as a person or a host that is short does; QEMU's by its command `balloon`.
//!
//! | row | figure |
//! |---|---|
//! | `balloon_out` | from the order until the anonymous memory of the VM's process has fallen by nine tenths of it |
//! | `balloon_back` | from the order to give it back until that memory has risen as much: the guest has filled its cache again |
//!
//! Each run of either arm boots a guest. It takes a host whose KVM boots Linux; in the emulated host of
//! `tests/lab` all times are an emulator's, so that only their ratio means anything, and a note says so.
//! QEMU gives the guest's memory back page by page; where it is in large pages of the host's, the
//! kernel counts it as gone before it is free.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;

use super::fleet::{Fleet, warm};
use super::qemu::{Plan, Qemu};
use super::row::{Better, Ran, Row, Spread};
use super::{Bench, Error, Side};
use crate::sys::proc::anonymous;

/// The rows.
pub(super) const KEYS: &[&str] = &["balloon_out", "balloon_back"];
/// Memory that the balloon takes unless said otherwise.
pub(super) const SIZE: u64 = 96 << 20;
/// Memory of a guest beside twice that: its kernel, and what it needs to unpack that.
const GUEST_BYTES: u64 = 64 << 20;
/// What the guest says each time when its memory is full.
const FILLED: &str = "tidemark-guest: cache filled";
/// Memory has settled when it has not changed by [`NOISE_BYTES`] for so long.
const STILL: Duration = Duration::from_secs(3);
const NOISE_BYTES: u64 = 1 << 20;

/// What the guests are made of.
#[derive(Debug, Args)]
pub(super) struct Files {
    /// Kernel of the guests, as `make linux-guest` makes it
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// Initial RAM disk of the guests, likewise
    #[arg(long, value_name = "FILE")]
    initrd: PathBuf,
}

/// What is the same for both arms.
struct Setting<'a> {
    kernel: PathBuf,
    initrd: PathBuf,
    cmdline: String,
    memory_bytes: u64,
    disk: &'a Path,
    /// What the balloon is ordered to take.
    wanted: u64,
}

/// One arm.
#[derive(Debug, Clone, Copy)]
struct Ballooned {
    out: Duration,
    back: Duration,
    /// Pages that were swapped instead.
    swapped: u64,
}

/// Measures the rows that are wanted.
pub(super) fn measure(bench: &Bench<'_>, files: &Files) -> Result<Vec<Row>, Error> {
    let path = |path: &Path| {
        let absolute = fs::canonicalize(path);
        absolute.map_err(super::io(format!("find {}", path.display())))
    };
    let memory_bytes = (2 * bench.size + GUEST_BYTES).next_multiple_of(1 << 20);
    let disk = bench.scratch.file("disk");
    let setting = Setting {
        kernel: path(&files.kernel)?,
        initrd: path(&files.initrd)?,
        cmdline: format!("console=ttyS0 quiet tidemark.cache={}", bench.size >> 21),
        memory_bytes,
        disk: &disk,
        wanted: bench.size,
    };
    fill(&disk, memory_bytes).map_err(super::io("write the guests' disk"))?;
    let version = Qemu::version();
    let (ours, theirs) = bench.alternate("balloon", 0, |side| match (side, &version) {
        (Side::Ours, _) => managed(bench, &setting).map(Ok),
        (Side::Peer, Err(why)) => Ok(Err(why.clone())),
        (Side::Peer, Ok(_)) => match peer(bench, &setting) {
            Err(Error::Interrupted) => Err(Error::Interrupted),
            result => Ok(result.map_err(|error| error.to_string())),
        },
    })?;
    let (ours, theirs) = (Ran::of(ours).good, Ran::of(theirs));
    let figures = |runs: &[Ballooned], figure: fn(&Ballooned) -> f64| {
        runs.iter().map(figure).collect::<Vec<f64>>()
    };
    let mut rows = Vec::new();
    for (key, figure) in [
        (
            "balloon_out",
            (|run| run.out.as_secs_f64()) as fn(&Ballooned) -> f64,
        ),
        ("balloon_back", |run| run.back.as_secs_f64()),
    ] {
        let mut row = Row::new(key, "s", Better::Lower, figures(&ours, figure));
        row.beside(&theirs, |runs| figures(runs, figure));
        let version = version.as_deref().unwrap_or("QEMU");
        row.peer_is = format!("{version}, microvm, virtio-balloon by QMP");
        row.note("taken_bytes", json!(setting.wanted));
        row.note("guest_bytes", json!(memory_bytes));
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
        let swapped = Spread::of(&figures(&ours, |run| run.swapped as f64));
        row.note("ours_swapped_pages", json!(swapped.map(|it| it.median)));
        if is_emulated() {
            row.note(
                "times",
                json!("of an emulated machine: only the ratio counts"),
            );
        }
        rows.push(row);
    }
    rows.retain(|row| bench.wants(row.key));
    Ok(rows)
}

/// Writes a file of which no two pages are alike.
fn fill(path: &Path, bytes: u64) -> io::Result<()> {
    let mut random = File::open("/dev/urandom")?.take(bytes);
    io::copy(&mut random, &mut File::create(path)?)?;
    Ok(())
}

/// Whether this machine is QEMU's emulator.
fn is_emulated() -> bool {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    text.contains("QEMU TCG CPU")
}

/// A VM with a balloon.
trait Vm {
    /// Process that has the guest's memory.
    fn pid(&self) -> i32;
    /// File with what the guest has written.
    fn console(&self) -> PathBuf;
    /// Orders the balloon to take so much.
    fn take(&mut self, bytes: u64) -> Result<(), Error>;
    /// Orders it to give everything back.
    fn give_back(&mut self) -> Result<(), Error>;
    /// Looks until `look` has seen it.
    fn until<T>(&mut self, what: &str, look: impl FnMut() -> Option<T>) -> Result<T, Error>;

    /// Waits until memory neither grows nor shrinks.
    fn settle(&mut self) -> Result<u64, Error> {
        let pid = self.pid();
        let (mut last, mut since) = (0_u64, Instant::now());
        self.until("memory that has settled", || {
            let now = anonymous(pid).bytes();
            if now.abs_diff(last) > NOISE_BYTES {
                (last, since) = (now, Instant::now());
            }
            (since.elapsed() >= STILL).then_some(now)
        })
    }
}

/// Takes memory from a guest that boots, and gives it back.
fn balloon(vm: &mut impl Vm, wanted: u64) -> Result<(Duration, Duration), Error> {
    let (pid, console) = (vm.pid(), vm.console());
    let part = wanted / 10 * 9;
    vm.until("a guest that has filled its memory", || {
        let text = fs::read(&console).unwrap_or_default();
        String::from_utf8_lossy(&text)
            .contains(FILLED)
            .then_some(())
    })?;
    let before = vm.settle()?;
    let start = Instant::now();
    vm.take(wanted)?;
    let out = vm.until("memory in the balloon", || {
        (anonymous(pid).bytes() + part <= before).then(|| start.elapsed())
    })?;
    let low = vm.settle()?;
    let start = Instant::now();
    vm.give_back()?;
    let back = vm.until("memory back from the balloon", || {
        (anonymous(pid).bytes() >= low + part).then(|| start.elapsed())
    })?;
    Ok((out, back))
}

struct Ours<'a> {
    fleet: Fleet<'a>,
    console: PathBuf,
    memory_bytes: u64,
}

impl Vm for Ours<'_> {
    fn pid(&self) -> i32 {
        self.fleet.vm_processes().first().copied().unwrap_or(0)
    }

    fn console(&self) -> PathBuf {
        self.console.clone()
    }

    fn take(&mut self, bytes: u64) -> Result<(), Error> {
        let consumed = self.fleet.until("its memory", |fleet| {
            Some(fleet.figures()?.vms.first()?.memory.consumed_bytes)
        })?;
        let limit = consumed.saturating_sub(bytes) / 4096 * 4096;
        self.fleet.set("a", "limit", &limit.to_string())
    }

    fn give_back(&mut self) -> Result<(), Error> {
        self.fleet.set("a", "limit", &self.memory_bytes.to_string())
    }

    fn until<T>(&mut self, what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T, Error> {
        self.fleet.until(what, |_| look())
    }
}

fn managed(bench: &Bench<'_>, setting: &Setting<'_>) -> Result<Ballooned, Error> {
    let memory = setting.memory_bytes;
    let text = format!(
        "[host]\nmemory = {}\nswap_dir = \".\"\nseed = 1\n\
         [[vm]]\nname = \"a\"\nmemory = {memory}\nkernel = {:?}\ninitrd = {:?}\n\
         cmdline = {:?}\ndisk = {:?}\ndisk_read_only = true\nconsole = \"a.log\"\n",
        2 * memory + (256 << 20),
        setting.kernel,
        setting.initrd,
        setting.cmdline,
        setting.disk,
    );
    let mut fleet = Fleet::of(bench, &text, memory)?;
    fleet.until("a VM", |fleet| fleet.vm_processes().first().copied())?;
    let mut vm = Ours {
        console: fleet.file("a.log"),
        fleet,
        memory_bytes: memory,
    };
    let (out, back) = balloon(&mut vm, setting.wanted)?;
    let figures = vm.fleet.stop()?;
    let swapped = figures.vms.first().map(|vm| vm.counters.swap_out_pages);
    Ok(Ballooned {
        out,
        back,
        swapped: swapped.unwrap_or(0),
    })
}

struct Theirs<'a> {
    qemu: Qemu<'a>,
    memory_bytes: u64,
}

impl Vm for Theirs<'_> {
    fn pid(&self) -> i32 {
        self.qemu.pid()
    }

    fn console(&self) -> PathBuf {
        self.qemu.console().to_owned()
    }

    fn take(&mut self, bytes: u64) -> Result<(), Error> {
        self.qemu.leave(self.memory_bytes - bytes)
    }

    fn give_back(&mut self) -> Result<(), Error> {
        self.qemu.leave(self.memory_bytes)
    }

    fn until<T>(&mut self, what: &str, look: impl FnMut() -> Option<T>) -> Result<T, Error> {
        self.qemu.until(what, look)
    }
}

fn peer(bench: &Bench<'_>, setting: &Setting<'_>) -> Result<Ballooned, Error> {
    warm(setting.memory_bytes);
    let plan = Plan {
        kernel: &setting.kernel,
        initrd: &setting.initrd,
        cmdline: &setting.cmdline,
        memory_bytes: setting.memory_bytes,
        disk: setting.disk,
    };
    let mut vm = Theirs {
        qemu: Qemu::start(bench, &plan)?,
        memory_bytes: setting.memory_bytes,
    };
    let (out, back) = balloon(&mut vm, setting.wanted)?;
    Ok(Ballooned {
        out,
        back,
        swapped: 0,
    })
}
