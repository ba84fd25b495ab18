//! Page faults of guest memory, timed in the thread that touches.
//!
//! | case | unit |
//! |---|---|
//! | `fault/zero_fill/chunk` | first touch of a 2 MiB chunk, all of which is filled, given per fault |
//! | `fault/zero_fill/page` | touch of a ballooned page, which comes back alone |
//! | `fault/swap_in` | touch of a page in a swap store that is no disk |
//! | `fault/decompress` | touch of a page in the compressed store |
//! | `fault/break/{mapped,read}` | write to a shared page, never touched or read before: the kernel's |
//! | `fault/guest` | a guest under KVM fills 64 MiB and compares it, given per page |
//!
//! All but the break include waking the fault thread and being woken by it.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::Capability;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tidemark::boot::builtin;
use tidemark::boot::image::Image;
use tidemark::devices::console::Console;
use tidemark::devices::sink::BalloonSink;
use tidemark::mem::Pager;
use tidemark::mem::reclaim::{BATCH_PAGES, Reclaimer};
use tidemark::sys::space::{Mapping, PageBuf, TakePath};
use tidemark::units::{CHUNK_PAGES, FrameId, Gfn, GfnRange};
use tidemark::vm::machine::{Machine, MachineSpec};
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

struct NoBalloon;

impl BalloonSink for NoBalloon {
    fn inflate(&self, _: &[Gfn]) {}
    fn deflate(&self, _: &[Gfn]) {}
    fn report_free(&self, _: GfnRange) {}
}

/// From the guest's first instruction to its end.
fn run_guest() -> Duration {
    let ram = common::ram(GUEST_PAGES);
    let pager = common::pager(ram.clone(), best_path());
    let spec = MachineSpec {
        disks: Vec::new(),
        kernel: Image::Builtin(builtin::find("touch").expect("it is built in")),
        initrd: None,
        cmdline: "set=64M passes=1 seed=1".into(),
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
    group.bench_function("guest", |b| {
        b.iter_custom(|iters| (0..iters).map(|_| run_guest()).sum());
    });
    group.finish();
}

criterion_group! { name = benches; config = common::criterion(); targets = pager_faults, guest_faults }
criterion_main!(benches);
