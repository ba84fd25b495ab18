//! Pages that come back from swap, timed in the thread that touches them.
//!
//! | case | unit |
//! |---|---|
//! | `swap_in/{memory,disk,encrypted}/{order,random}` | 16 MiB that are all swapped are touched page by page, in order or at random, given per page; from a store that is no disk, or from a swap file beside the executable, encrypted or not |
//! | `swap_in/compressed/{order,random}` | the same with pages of the compressed store, of which there are fewer |
//! | `swap_in/guest` | a guest under KVM, all of whose 64 MiB were swapped, has gone through them in order; given per page |
//!
//! Median and 99th percentile of a touch are printed: of all touches, those of pages that are there
//! already included.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::Capability;
use common::pager::faults::{FaultThreads, READERS};
use common::pager::store::MemoryStore;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tidemark::boot::builtin;
use tidemark::boot::image::Image;
use tidemark::devices::console::Console;
use tidemark::devices::sink::BalloonSink;
use tidemark::machine::gate::Hold;
use tidemark::machine::{Machine, MachineSpec};
use tidemark::mem::Pager;
use tidemark::mem::credit::CreditBook;
use tidemark::mem::encrypted::Encrypted;
use tidemark::mem::pager::Settings;
use tidemark::mem::reclaim::{BATCH_PAGES, Reclaimer};
use tidemark::mem::swapfile::{SwapFile, SwapStore};
use tidemark::sys::space::PageBuf;
use tidemark::units::{Gfn, GfnRange, Pages};
use vm_memory::{Bytes, GuestAddress};

/// Pages that are swapped.
const SWAPPED_PAGES: u32 = 16 << 8;
/// Pages that the compressed store has room for, a quarter of a page each.
const COMPRESSED_PAGES: u32 = 1 << 10;
/// RAM of the guest under KVM, and what it fills.
const GUEST_PAGES: u32 = 128 << 8;
const GUEST_FILL_PAGES: u64 = 64 << 8;
/// Far above what anything here takes.
const DEADLINE: Duration = Duration::from_secs(60);

/// A pager whose faults are served until the process ends, with a swap store of its own.
fn pager(pages: u32, swap: Box<dyn SwapStore>) -> Arc<Pager> {
    let settings = Settings {
        path: *common::take_paths().last().expect("there is one at least"),
        swap,
        readers: READERS,
        credit: CreditBook::unlimited(),
        large_pages: true,
        mappings_max: 60_000,
        observer: None,
    };
    let pager = Pager::new(common::ram(pages), settings);
    let pager = Arc::new(pager.expect("userfaultfd was asked for"));
    let faults = FaultThreads::start(&pager, |error| panic!("{error}"));
    std::mem::forget(faults);
    pager
}

/// A file on the disk that the build is on.
fn swap_file() -> SwapFile {
    let folder = std::env::current_exe().expect("it runs");
    let folder = folder.parent().unwrap_or(Path::new("."));
    SwapFile::create(folder).expect("a swap file")
}

fn disk() -> Box<dyn SwapStore> {
    Box::new(swap_file())
}

fn encrypted() -> Box<dyn SwapStore> {
    Box::new(Encrypted::new(swap_file()).expect("a key in memory"))
}

/// Swaps or compresses every page that takes memory.
fn reclaim_all(pager: &Pager, reclaimer: &mut Reclaimer) {
    while reclaimer.step(pager, BATCH_PAGES).expect("memory").pages > 0 {}
}

fn compressible(number: u64) -> PageBuf {
    let mut page = PageBuf::ZERO;
    page.0[..900].copy_from_slice(&common::unique(number).0[..900]);
    page
}

/// Pages that are out are touched.
fn touches(c: &mut Criterion) {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    let mut group = c.benchmark_group("swap_in");
    group.sample_size(10);
    type Store = fn() -> Box<dyn SwapStore>;
    let memory: Store = || Box::new(MemoryStore::default());
    let stores: [(&str, Store, u32); 4] = [
        ("memory", memory, SWAPPED_PAGES),
        ("disk", disk, SWAPPED_PAGES),
        ("encrypted", encrypted, SWAPPED_PAGES),
        ("compressed", memory, COMPRESSED_PAGES),
    ];
    for (name, store, count) in stores {
        group.throughput(Throughput::Elements(count.into()));
        for order in ["order", "random"] {
            let mut made = None;
            let mut times = Vec::new();
            group.bench_function(format!("{name}/{order}"), |b| {
                let (pager, reclaimer, gfns) = made.get_or_insert_with(|| {
                    // The store takes a tenth of the guest's memory.
                    let pager = pager(SWAPPED_PAGES, store());
                    let mut gfns: Vec<Gfn> = (0..count).map(Gfn).collect();
                    for gfn in &gfns {
                        let number = u64::from(gfn.0);
                        let page = match name {
                            "compressed" => compressible(number),
                            _ => common::unique(number),
                        };
                        let at = GuestAddress(gfn.gpa());
                        pager.ram().memory().write_slice(&page.0, at).expect("RAM");
                    }
                    if order == "random" {
                        fastrand::Rng::with_seed(common::SEED).shuffle(&mut gfns);
                    }
                    (pager, Reclaimer::new(common::SEED), gfns)
                });
                b.iter_custom(|iters| {
                    let mut total = Duration::ZERO;
                    for _ in 0..iters {
                        reclaim_all(pager, reclaimer);
                        for gfn in gfns.iter() {
                            let start = Instant::now();
                            common::touch(pager.ram(), *gfn);
                            let took = start.elapsed();
                            times.push(took);
                            total += took;
                        }
                    }
                    total
                });
            });
            print_times(&format!("{name}/{order}"), &mut times);
        }
    }
    group.finish();
}

fn print_times(name: &str, times: &mut [Duration]) {
    times.sort_unstable();
    if let Some(last) = times.len().checked_sub(1) {
        let (median, p99) = (times[last / 2], times[last * 99 / 100]);
        println!("swap_in/{name}: median {median:?}, 99 % within {p99:?}");
    }
}

struct NoBalloon;

impl BalloonSink for NoBalloon {
    fn inflate(&self, _: &[Gfn]) {}
    fn deflate(&self, _: &[Gfn]) {}
    fn report_free(&self, _: GfnRange) {}
}

fn swapped(pager: &Pager) -> Pages {
    pager.report().expect("figures").measured.gauges.taken_out()
}

/// From the moment at which a guest may run, all of whose memory is out, until nearly all is back.
fn wake_guest() -> Duration {
    let pager = pager(GUEST_PAGES, disk());
    let spec = MachineSpec {
        disks: Vec::new(),
        kernel: Image::Builtin(builtin::find("touch").expect("it is built in")),
        initrd: None,
        cmdline: "set=64M passes=0 seed=1".into(),
        balloon: true,
        cpus: 1,
    };
    let console = Arc::new(Console::new("", Box::new(std::io::sink())));
    let ram = pager.ram().clone();
    let mut machine = Machine::new(spec, ram, Arc::new(NoBalloon), console).expect("a machine");
    machine.start().expect("a vCPU");
    let filled = || pager.census().expect("a census").anonymous >= Pages(GUEST_FILL_PAGES);
    common::wait_for("a guest that has filled its memory", DEADLINE, filled);
    machine.gate().close(Hold::Paused);
    assert!(machine.gate().wait_empty(DEADLINE), "it stands still");
    reclaim_all(&pager, &mut Reclaimer::new(common::SEED));
    let out = swapped(&pager);
    assert!(out.0 >= GUEST_FILL_PAGES, "{out} are out");
    machine.gate().open(Hold::Paused);
    let start = Instant::now();
    while swapped(&pager).0 > out.0 / 50 {
        std::thread::sleep(Duration::from_millis(1));
        assert!(start.elapsed() < DEADLINE, "memory does not come back");
    }
    let took = start.elapsed();
    machine.stop();
    machine.wait(DEADLINE);
    took
}

fn guests(c: &mut Criterion) {
    let Some(_host) = common::require(&[Capability::Uffd, Capability::Kvm]) else {
        return;
    };
    let mut group = c.benchmark_group("swap_in");
    group
        .sample_size(10)
        .throughput(Throughput::Elements(GUEST_FILL_PAGES));
    group.bench_function("guest", |b| {
        b.iter_custom(|iters| (0..iters).map(|_| wake_guest()).sum());
    });
    group.finish();
}

criterion_group! { name = benches; config = common::criterion(); targets = touches, guests }
criterion_main!(benches);
