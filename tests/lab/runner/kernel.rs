//! What the host's own kernel does to the memory of a VM process: moves its pages between nodes,
//! swaps them out. Threads of this process play the guest; no KVM.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tidemark::mem::Pager;
use tidemark::mem::credit::CreditBook;
use tidemark::mem::pager::{Settings, mappings_max};
use tidemark::mem::reclaim::Reclaimer;
use tidemark::mem::share::merge;
use tidemark::mem::swapfile::SwapFile;
use tidemark::sys::pagemap::Backing;
use tidemark::sys::pool_view::PoolView;
use tidemark::sys::ram::{GuestRam, Layout};
use tidemark::sys::uffd;
use tidemark::units::{CHUNK_PAGES, FrameId, Gfn, GfnRange, PAGE_SIZE, Pages};
use tidemark::words::TakePath;
use vm_memory::{Bytes, GuestAddress};

use super::faults::{FaultThreads, READERS};
use super::rig::Failure;

/// Pages that share a frame, from the first one; frame n is for page n.
const SHARED: u32 = 3072;
/// Pages behind them that are the guest's own.
const PRIVATE: u32 = 3072;
/// How long the kernel is at it.
const TIME: Duration = Duration::from_secs(25);
/// A control group of this process.
const CGROUP: &str = "/sys/fs/cgroup/lab";
/// The emulated host's disk, for its swap.
const SWAP: &str = "/dev/nvme0n1";

/// What page `gfn` holds.
fn content(gfn: u32) -> [u8; PAGE_SIZE] {
    let mut page = [0; PAGE_SIZE];
    fastrand::Rng::with_seed(u64::from(gfn)).fill(&mut page);
    page
}

/// A pager whose guest holds [`SHARED`] and [`PRIVATE`] pages.
struct Space {
    pager: Arc<Pager>,
    _faults: FaultThreads,
}

impl Space {
    fn new(path: TakePath) -> Result<Space, Failure> {
        let ram = GuestRam::new(Layout::new(Pages(u64::from(SHARED + PRIVATE))))?;
        let settings = Settings {
            path,
            swap: Box::new(SwapFile::create(Path::new("."))?),
            credit: CreditBook::unlimited(),
            readers: READERS,
            large_pages: true,
            mappings_max: mappings_max(),
            observer: None,
        };
        let pager = Arc::new(Pager::new(ram, settings)?);
        let faults = FaultThreads::start(&pager, |error| panic!("cannot serve faults: {error}"));
        let space = Space {
            pager,
            _faults: faults,
        };
        space.fill()?;
        Ok(space)
    }

    fn fill(&self) -> Result<(), Failure> {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let pool = File::from(rustix::fs::memfd_create("pool", flags)?);
        pool.set_len(u64::from(SHARED) * PAGE_SIZE as u64)?;
        for n in 0..SHARED + PRIVATE {
            let page = content(n);
            let at = GuestAddress(Gfn(n).gpa());
            self.pager.ram().memory().write_slice(&page, at)?;
            if n < SHARED {
                pool.write_all_at(&page, FrameId(n).offset())?;
            }
        }
        let view = PoolView::new(pool.into(), SHARED);
        let mut merged = 0;
        for first in (0..SHARED).step_by(64) {
            let mut candidates: Vec<_> =
                (first..first + 64).map(|n| (Gfn(n), FrameId(n))).collect();
            merged += merge(&self.pager, &view, &mut candidates)?.pages;
        }
        match merged {
            SHARED => Ok(()),
            _ => Err(format!("only {merged} of {SHARED} pages were merged").into()),
        }
    }

    /// How many of the shared pages are backed in this way at this moment.
    fn count_shared(&self, backing: Backing) -> Result<usize, Failure> {
        let mut count = 0;
        for first in (0..SHARED).step_by(CHUNK_PAGES as usize) {
            let found = self
                .pager
                .space()
                .backing(GfnRange::new(Gfn(first), CHUNK_PAGES))?;
            count += found.into_iter().filter(|it| *it == backing).count();
        }
        Ok(count)
    }

    fn compare(&self, n: u32) -> Result<(), Failure> {
        let mut page = [0; PAGE_SIZE];
        let at = GuestAddress(Gfn(n).gpa());
        self.pager.ram().memory().read_slice(&mut page, at)?;
        if page == content(n) {
            return Ok(());
        }
        let kind = if n < SHARED { "shared" } else { "private" };
        let zero = if page == [0; PAGE_SIZE] {
            "zeros"
        } else {
            "something else"
        };
        Err(format!("{kind} page {n} is corrupt: it holds {zero}").into())
    }

    /// Reads pages in random order, as a guest does, and compares them; returns how many.
    fn read_until(&self, end: &AtomicBool) -> Result<u64, String> {
        let mut rng = fastrand::Rng::with_seed(11);
        let mut compared = 0;
        while !end.load(Ordering::Relaxed) {
            let n = rng.u32(0..SHARED + PRIVATE);
            self.compare(n).map_err(|failure| failure.to_string())?;
            compared += 1;
        }
        Ok(compared)
    }

    /// Nobody wrote a shared page, so none lost its frame; and every page holds what it did.
    fn check(&self) -> Result<(), Failure> {
        let released = self.pager.take_released();
        let report = self.pager.report()?;
        for n in 0..SHARED + PRIVATE {
            self.compare(n)?;
        }
        self.pager.audit()?;
        if report.measured.counters.cow_breaks > 0 || !released.is_empty() {
            let (breaks, frames) = (report.measured.counters.cow_breaks, released.len());
            return Err(
                format!("{breaks} writes seen, {frames} frames released; nobody wrote").into(),
            );
        }
        Ok(())
    }
}

/// Puts this process into a control group with these controllers.
fn enter_cgroup(controllers: &str) -> Result<(), Failure> {
    let root = Path::new("/sys/fs/cgroup");
    if !root.join("cgroup.procs").exists() {
        run("mount", &["-t", "cgroup2", "cgroup2", "/sys/fs/cgroup"])?;
    }
    fs::write(root.join("cgroup.subtree_control"), controllers)?;
    fs::create_dir_all(CGROUP)?;
    fs::write(
        Path::new(CGROUP).join("cgroup.procs"),
        std::process::id().to_string(),
    )?;
    Ok(())
}

/// Puts it back, so that later tests find the host as it was.
struct Back;

impl Drop for Back {
    fn drop(&mut self) {
        let pid = std::process::id().to_string();
        for result in [
            fs::write("/sys/fs/cgroup/cgroup.procs", pid),
            fs::remove_dir(CGROUP),
        ] {
            if let Err(error) = result {
                println!("  the control group is left: {error}");
            }
        }
    }
}

/// Runs an applet of the host's BusyBox.
pub fn run(applet: &str, arguments: &[&str]) -> Result<(), Failure> {
    let output = Command::new("/bin/busybox")
        .arg(applet)
        .args(arguments)
        .stdin(Stdio::null())
        .output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{applet}: {}", String::from_utf8_lossy(&output.stderr)).into()),
    }
}

/// A counter of the host's kernel.
fn vmstat(name: &str) -> Result<u64, Failure> {
    let text = fs::read_to_string("/proc/vmstat")?;
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    let (_, value) = lines
        .find(|(key, _)| *key == name)
        .ok_or_else(|| format!("no {name} in /proc/vmstat"))?;
    Ok(value.parse()?)
}

/// Both ways of taking pages out that this kernel has.
fn paths() -> Result<Vec<TakePath>, Failure> {
    let mut paths = vec![TakePath::Copy];
    if uffd::probe()? & uffd::FEATURE_MOVE != 0 {
        paths.push(TakePath::Move);
    }
    Ok(paths)
}

/// The kernel moves all pages of the process from node to node, as automatic NUMA balancing,
/// compaction and administrators do, while the pager counts and looks.
pub fn numa_migration(_guest: &Path) -> Result<(), Failure> {
    if !Path::new("/sys/devices/system/node/node1").exists() {
        println!("  does not apply: this host has one node");
        return Ok(());
    }
    enter_cgroup("+cpuset")?;
    let _back = Back;
    let space = Space::new(TakePath::Copy)?;
    let (before, start) = (vmstat("pgmigrate_success")?, Instant::now());
    let end = AtomicBool::new(false);
    let (mut censuses, mut on_the_way) = (0, 0);
    std::thread::scope(|scope| -> Result<(), Failure> {
        let kernel = scope.spawn(|| -> std::io::Result<()> {
            let mems = Path::new(CGROUP).join("cpuset.mems");
            for node in ["0", "1"].into_iter().cycle() {
                fs::write(&mems, node)?;
                if end.load(Ordering::Relaxed) {
                    return fs::write(&mems, "0-1");
                }
            }
            Ok(())
        });
        // A page that nobody has touched is not mapped: there is nothing to move.
        let guest = scope.spawn(|| space.read_until(&end));
        let mut failure = Ok(());
        while failure.is_ok() && start.elapsed() < TIME {
            failure = space.pager.census().map(drop);
            censuses += 1;
            on_the_way += space.count_shared(Backing::Unsettled)?;
        }
        end.store(true, Ordering::Relaxed);
        kernel.join().expect("no panic")?;
        guest.join().expect("no panic")?;
        Ok(failure?)
    })?;
    let moved = vmstat("pgmigrate_success")? - before;
    println!("  {moved} pages moved, {on_the_way} seen on the way, {censuses} censuses");
    space.check()?;
    match moved > u64::from(10 * SHARED) && on_the_way > 0 {
        true => Ok(()),
        false => Err("too little was seen to move for a test".into()),
    }
}

/// Swap of the host's own on its disk; off again with this value.
struct HostSwap;

impl HostSwap {
    fn on() -> Result<HostSwap, Failure> {
        run("mkswap", &[SWAP])?;
        run("swapon", &[SWAP])?;
        Ok(HostSwap)
    }
}

impl Drop for HostSwap {
    fn drop(&mut self) {
        if let Err(error) = run("swapoff", &[SWAP]) {
            println!("  the host keeps its swap: {error}");
        }
    }
}

/// The kernel swaps out guest RAM, stage and pool while pages are taken out of the guest, and the
/// guest wants them back.
pub fn swap_of_the_host(_guest: &Path) -> Result<(), Failure> {
    if !Path::new(SWAP).exists() {
        println!("  does not apply: this host has no disk to swap to");
        return Ok(());
    }
    enter_cgroup("+memory")?;
    let _back = Back;
    let _swap = HostSwap::on()?;
    for path in paths()? {
        swapped_while_taken(path).map_err(|failure| format!("{}: {failure}", path.name()))?;
    }
    Ok(())
}

fn swapped_while_taken(path: TakePath) -> Result<(), Failure> {
    let space = Space::new(path)?;
    let (out, into, start) = (vmstat("pswpout")?, vmstat("pswpin")?, Instant::now());
    let end = AtomicBool::new(false);
    let (mut taken, mut compared) = (0, 0);
    std::thread::scope(|scope| -> Result<(), Failure> {
        let guest = scope.spawn(|| space.read_until(&end));
        let mut worker = || -> Result<(), Failure> {
            let mut reclaimer = Reclaimer::new(3);
            let mut rng = fastrand::Rng::with_seed(5);
            while start.elapsed() < TIME && !guest.is_finished() {
                // Fails with EAGAIN when there is less than that left to take.
                let wanted = format!("{}K", rng.u32(64..8192));
                let _less = fs::write(Path::new(CGROUP).join("memory.reclaim"), wanted);
                for _ in 0..rng.u32(1..16) {
                    let done = reclaimer.step(&space.pager, rng.usize(1..33))?;
                    if let Some(failure) = done.failure {
                        return Err(failure.into());
                    }
                    taken += done.pages;
                }
                if rng.u32(0..8) == 0 {
                    space.pager.census()?;
                }
            }
            Ok(())
        };
        let result = worker();
        end.store(true, Ordering::Relaxed);
        compared = guest.join().expect("no panic")?;
        result
    })?;
    let (out, into) = (vmstat("pswpout")? - out, vmstat("pswpin")? - into);
    println!(
        "  {}: {taken} pages taken, {compared} compared; the kernel swapped {out} out, {into} in",
        path.name()
    );
    space.check()?;
    match out > 1000 && into > 100 && taken > 500 {
        true => Ok(()),
        false => Err("too little was swapped for a test".into()),
    }
}
