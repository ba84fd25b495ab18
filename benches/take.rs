//! Taking pages out of the guest and giving them back, without the books.
//!
//! | case | unit |
//! |---|---|
//! | `take/{copy,move}/N` | N = 1, 64, 512 neighbours taken in one call, given per page |
//! | `give_back/{copy,move}/N` | the same pages given back |
//!
//! Each case runs take and give back in turn and times one of them.

mod common;

use std::time::{Duration, Instant};

use common::Capability;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tidemark::sys::staging::StageSlot;
use tidemark::units::{Gfn, GfnRange};

const PAGES: u32 = 512;

#[derive(Clone, Copy, PartialEq)]
enum Timed {
    Take,
    GiveBack,
}

fn bench(c: &mut Criterion) {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    for (name, timed) in [("take", Timed::Take), ("give_back", Timed::GiveBack)] {
        let mut group = c.benchmark_group(name);
        for path in common::take_paths() {
            let space = common::space(PAGES, path);
            let slot = StageSlot(space.slots_for_taking().start);
            let page = common::unique(1);
            for gfn in (0..PAGES).map(Gfn) {
                space.install(gfn, &page).expect("a missing page");
            }
            for count in [1, 64, PAGES] {
                let range = GfnRange::new(Gfn(0), count);
                group.throughput(Throughput::Elements(count.into()));
                group.bench_function(BenchmarkId::new(path.name(), count), |b| {
                    b.iter_custom(|iters| {
                        let mut total = Duration::ZERO;
                        for _ in 0..iters {
                            let start = Instant::now();
                            let taken = space.take(range, slot).expect("present pages");
                            let middle = Instant::now();
                            space.give_back(range, slot).expect("staged pages");
                            assert_eq!(taken.pages, count);
                            total += match timed {
                                Timed::Take => middle - start,
                                Timed::GiveBack => middle.elapsed(),
                            };
                        }
                        total
                    });
                });
            }
        }
        group.finish();
    }
}

criterion_group! { name = benches; config = common::criterion(); targets = bench }
criterion_main!(benches);
