//! Mapping frames of the pool over guest memory, and making that memory private again.
//!
//! | case | unit |
//! |---|---|
//! | `map/N` | N = 1, 16, 256 neighbours mapped in one call over armed memory, given per page |
//! | `rearm/N` | the same pages replaced by armed empty memory, with the wait for the fault thread |
//!
//! Each case runs both in turn and times one of them. Nothing touches the pages.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::Capability;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tidemark::sys::space::{GuestSpace, Mapping};
use tidemark::units::{FrameId, Gfn, GfnRange};
use tidemark::words::TakePath;

const PAGES: u32 = 256;

#[derive(Clone, Copy, PartialEq)]
enum Timed {
    Map,
    Rearm,
}

/// Reads the events of `space`, all of them remaps, until the process ends.
fn read_events(space: Arc<GuestSpace>) {
    std::thread::spawn(move || {
        loop {
            space.uffd().wait(None).expect("events");
            let mut events = Vec::new();
            space.uffd().read_events(&mut events).expect("events");
        }
    });
}

fn bench(c: &mut Criterion) {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    let space = Arc::new(common::space(PAGES, TakePath::Copy));
    read_events(space.clone());
    let pool = common::pool(PAGES);
    for (name, timed) in [("map", Timed::Map), ("rearm", Timed::Rearm)] {
        let mut group = c.benchmark_group(name);
        for count in [1, 16, PAGES] {
            let range = GfnRange::new(Gfn(0), count);
            group.throughput(Throughput::Elements(count.into()));
            group.bench_function(BenchmarkId::from_parameter(count), |b| {
                b.iter_custom(|iters| {
                    let mut total = Duration::ZERO;
                    for _ in 0..iters {
                        let start = Instant::now();
                        let mapped = space.map_frames(range, &pool, FrameId(0));
                        let middle = Instant::now();
                        let rearmed = space.rearm(range).expect("mapped frames");
                        assert_eq!(rearmed, Mapping::Done);
                        assert_eq!(mapped.expect("armed memory"), Mapping::Done);
                        total += match timed {
                            Timed::Map => middle - start,
                            Timed::Rearm => middle.elapsed(),
                        };
                    }
                    total
                });
            });
        }
        group.finish();
    }
}

criterion_group! { name = benches; config = common::criterion(); targets = bench }
criterion_main!(benches);
