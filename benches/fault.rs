//! Page faults of guest memory, timed in the thread that touches.
//!
//! | case | unit |
//! |---|---|
//! | `fault/zero_fill/chunk` | first touch of a 2 MiB chunk, all of which is filled, given per fault |
//! | `fault/zero_fill/page` | touch of a ballooned page, which comes back alone |
//! | `fault/swap_in` | touch of a page in a swap store that is no disk |
//! | `fault/decompress` | touch of a page in the compressed store |
//! | `fault/break/{mapped,read}` | write to a shared page, never touched or read before: the kernel's |
//! | `fault/beside/{nothing,reclaim,scan,merge}` | as `zero_fill/page`, while the worker does that; how long a fault waits for the books is the difference. Median and 99th percentile are printed |
//! | `fault/guest/{scarce,plenty}` | a guest under KVM writes to each page of 64 MiB in order and compares it, given per page; while memory is scarce or plenty |
//!
//! All but the break include waking the fault thread and being woken by it.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::Capability;
use common::pager::pool::Pool;
use common::pager::rig::{Rig, merge};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tidemark::boot::builtin;
use tidemark::boot::image::Image;
use tidemark::devices::console::Console;
use tidemark::devices::sink::BalloonSink;
use tidemark::machine::{Machine, MachineSpec};
use tidemark::mem::Pager;
use tidemark::mem::credit::CreditBook;
use tidemark::mem::reclaim::{BATCH_PAGES, Reclaimer};
use tidemark::mem::share::Scanner;
use tidemark::sys::ram::Layout;
use tidemark::sys::space::{Mapping, PageBuf};
use tidemark::units::{CHUNK_PAGES, FrameId, Gfn, GfnRange, Pages};
use tidemark::words::TakePath;
use vm_memory::{Bytes, GuestAddress};

/// RAM of the guest that touches: a part of it is filled.
const GUEST_PAGES: u32 = 128 << 8;
/// What it fills, pages.
const GUEST_FILL_PAGES: u64 = 64 << 8;
const CHUNKS: u32 = 16;

fn best_path() -> TakePath {
    *common::take_paths().last().expect("there is one at least")
}

/// Times `touch` of every page in `gfns`, over and over; `before` makes them ready each time.
fn timed(
    iters: u64,
    gfns: &[Gfn],
    mut before: impl FnMut(&[Gfn]),
    touch: impl Fn(Gfn),
) -> Duration {
    let mut total = Duration::ZERO;
    let mut left = usize::try_from(iters).expect("few iterations");
    while left > 0 {
        let part = &gfns[..left.min(gfns.len())];
        before(part);
        let start = Instant::now();
        part.iter().for_each(|gfn| touch(*gfn));
        total += start.elapsed();
        left -= part.len();
    }
    total
}

/// Swaps or compresses every page that takes memory.
fn reclaim_all(pager: &Pager, reclaimer: &mut Reclaimer) {
    while reclaimer.step(pager, BATCH_PAGES).expect("memory").pages > 0 {}
}

fn pager_faults(c: &mut Criterion) {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    let mut group = c.benchmark_group("fault");
    group.throughput(Throughput::Elements(1));
    let pager = common::pager(common::ram(CHUNKS * CHUNK_PAGES), best_path());
    let ram = pager.ram().clone();
    let chunks: Vec<Gfn> = (0..CHUNKS).map(|chunk| Gfn(chunk * CHUNK_PAGES)).collect();
    group.bench_function("zero_fill/chunk", |b| {
        b.iter_custom(|iters| {
            let free = |part: &[Gfn]| {
                for chunk in part {
                    let range = GfnRange::new(*chunk, CHUNK_PAGES);
                    pager.report_free(range).expect("a free page may go");
                }
            };
            timed(iters, &chunks, free, |gfn| common::touch(&ram, gfn))
        });
    });
    let pages: Vec<Gfn> = (0..256).map(Gfn).collect();
    group.bench_function("zero_fill/page", |b| {
        b.iter_custom(|iters| {
            let inflate = |part: &[Gfn]| pager.inflate(part).expect("a ballooned page may go");
            timed(iters, &pages, inflate, |gfn| common::touch(&ram, gfn))
        });
    });

    let mut compressible = PageBuf::ZERO;
    compressible.0[..1000].copy_from_slice(&common::unique(1).0[..1000]);
    for (name, content) in [("swap_in", common::unique(1)), ("decompress", compressible)] {
        let pager = common::pager(common::ram(CHUNKS * CHUNK_PAGES), best_path());
        let ram = pager.ram().clone();
        let mut reclaimer = Reclaimer::new(common::SEED);
        let mut order = pages.clone();
        fastrand::Rng::with_seed(common::SEED).shuffle(&mut order);
        for gfn in &order {
            let at = GuestAddress(gfn.gpa());
            ram.memory().write_slice(&content.0, at).expect("RAM");
        }
        group.bench_function(name, |b| {
            b.iter_custom(|iters| {
                let out = |_: &[Gfn]| reclaim_all(&pager, &mut reclaimer);
                timed(iters, &order, out, |gfn| common::touch(&ram, gfn))
            });
        });
    }

    let space = common::space(256, TakePath::Copy);
    let pool = common::pool(256);
    let ram = space.ram().clone();
    for (name, read) in [("break/mapped", false), ("break/read", true)] {
        group.bench_function(name, |b| {
            b.iter_custom(|iters| {
                let map = |part: &[Gfn]| {
                    let range = GfnRange::new(Gfn(0), 256);
                    let mapped = space.map_frames(range, &pool, FrameId(0));
                    assert_eq!(mapped.expect("guest memory"), Mapping::Done);
                    part.iter()
                        .filter(|_| read)
                        .for_each(|gfn| common::touch(&ram, *gfn));
                };
                timed(iters, &pages, map, |gfn| common::dirty(&ram, gfn))
            });
        });
    }
    group.finish();
}

/// Pages of the guest that is worked on beside the faults: 256 MiB.
const BESIDE_PAGES: u32 = 256 << 8;
/// Pages that are touched there, at its start.
const TOUCHED_PAGES: u32 = 256;

/// What the worker does over and over while faults are timed.
type Work = Box<dyn FnMut(&Pager) + Send>;
type MakeWork = fn() -> Work;

fn reclaims() -> Work {
    let mut reclaimer = Reclaimer::new(common::SEED);
    let mut next = 0;
    Box::new(move |pager| {
        reclaimer.step(pager, BATCH_PAGES).expect("memory");
        // As many pages come back as go, so that there are always some to find.
        for _ in 0..BATCH_PAGES {
            next = (next + 1) % (BESIDE_PAGES - TOUCHED_PAGES);
            common::dirty(pager.ram(), Gfn(TOUCHED_PAGES + next));
        }
    })
}

fn scans() -> Work {
    let layout = Layout::new(Pages(u64::from(BESIDE_PAGES)));
    let mut scanner = Scanner::new(&layout, common::SEED);
    let mut now = Duration::ZERO;
    Box::new(move |pager| {
        // So fast that every chunk is due again.
        now += Duration::from_secs(60);
        scanner.step(pager, 512, now).expect("memory");
    })
}

fn merges() -> Work {
    let mut pool = Pool::new(BESIDE_PAGES);
    let view = pool.view();
    let mut next = 0;
    Box::new(move |pager| {
        let mut candidates = Vec::new();
        for _ in 0..BATCH_PAGES {
            next = (next + 1) % (BESIDE_PAGES - TOUCHED_PAGES);
            let (gfn, page) = (Gfn(TOUCHED_PAGES + next), common::unique(u64::from(next)).0);
            let at = GuestAddress(gfn.gpa());
            // Private again, as a page is that was freed and is used anew.
            pager.inflate(&[gfn]).expect("a ballooned page may go");
            pager.ram().memory().write_slice(&page, at).expect("RAM");
            pool.release(&pager.take_released());
            candidates.extend(pool.lend(&page).map(|frame| (gfn, frame)));
        }
        let merged = merge(pager, &view, &mut candidates);
        pool.release(&merged.rejected);
    })
}

/// A guest every page of which has content of its own.
fn filled() -> Rig {
    let ram = common::ram(BESIDE_PAGES);
    let rig = Rig::over(ram, best_path(), CreditBook::unlimited());
    for n in 0..BESIDE_PAGES {
        rig.write(Gfn(n), &common::unique(u64::from(n)).0);
    }
    rig
}

/// How long one touch of a ballooned page takes while another thread does `work`.
fn faults_beside(c: &mut Criterion) {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    let mut group = c.benchmark_group("fault/beside");
    let works: [(&str, MakeWork); 4] = [
        ("nothing", || {
            Box::new(|_| std::thread::sleep(Duration::from_millis(1)))
        }),
        ("reclaim", reclaims),
        ("scan", scans),
        ("merge", merges),
    ];
    for (name, work) in works {
        let mut times = Vec::new();
        // Made at the first call, which a filter may leave out; there is a call for each sample.
        let mut made = None;
        group.bench_function(name, |b| {
            let (rig, work) = made.get_or_insert_with(|| (filled(), work()));
            let end = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !end.load(Ordering::Relaxed) {
                        work(&rig.pager);
                    }
                });
                b.iter_custom(|iters| touches(&rig.pager, iters, &mut times));
                end.store(true, Ordering::Relaxed);
            });
        });
        times.sort_unstable();
        if let Some(last) = times.len().checked_sub(1) {
            let (median, p99) = (times[last / 2], times[last * 99 / 100]);
            println!("fault/beside/{name}: median {median:?}, 99 % within {p99:?}");
        }
    }
    group.finish();
}

/// Touches ballooned pages one after the other; the time of each goes to `times`.
fn touches(pager: &Pager, iters: u64, times: &mut Vec<Duration>) -> Duration {
    let mut total = Duration::ZERO;
    for n in 0..iters {
        let gfn = Gfn(u32::try_from(n % u64::from(TOUCHED_PAGES)).expect("a small number"));
        pager.inflate(&[gfn]).expect("a ballooned page may go");
        let start = Instant::now();
        common::touch(pager.ram(), gfn);
        let took = start.elapsed();
        times.push(took);
        total += took;
    }
    total
}

struct NoBalloon;

impl BalloonSink for NoBalloon {
    fn inflate(&self, _: &[Gfn]) {}
    fn deflate(&self, _: &[Gfn]) {}
    fn report_free(&self, _: GfnRange) {}
}

/// From the guest's first instruction to its end.
fn run_guest(plenty: bool) -> Duration {
    let ram = common::ram(GUEST_PAGES);
    let pager = common::pager(ram.clone(), best_path());
    pager.set_plenty(plenty).expect("an empty stock");
    let spec = MachineSpec {
        disks: Vec::new(),
        kernel: Image::Builtin(builtin::find("touch").expect("it is built in")),
        initrd: None,
        cmdline: "set=64M passes=1 seed=1 write=1".into(),
        balloon: true,
        cpus: 1,
    };
    let console = Arc::new(Console::new("", Box::new(std::io::sink())));
    let mut machine = Machine::new(spec, ram, Arc::new(NoBalloon), console).expect("a machine");
    machine.start().expect("a vCPU");
    let exit = machine
        .wait(Duration::from_secs(20))
        .expect("the guest ends");
    let ended = Instant::now();
    assert_eq!(exit.code, 0, "{exit:?}");
    drop(pager);
    ended - machine.first_run().expect("it ran")
}

fn guest_faults(c: &mut Criterion) {
    let Some(_host) = common::require(&[Capability::Uffd, Capability::Kvm]) else {
        return;
    };
    let mut group = c.benchmark_group("fault");
    group
        .sample_size(10)
        .throughput(Throughput::Elements(GUEST_FILL_PAGES));
    for (name, plenty) in [("guest/scarce", false), ("guest/plenty", true)] {
        group.bench_function(name, |b| {
            b.iter_custom(|iters| (0..iters).map(|_| run_guest(plenty)).sum());
        });
    }
    group.finish();
}

criterion_group! { name = benches; config = common::criterion(); targets = pager_faults, faults_beside, guest_faults }
criterion_main!(benches);
