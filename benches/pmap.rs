//! The page map of a guest of 256 MiB.
//!
//! | case | unit |
//! |---|---|
//! | `pmap/apply/in_order` | one transition, pages in ascending order |
//! | `pmap/apply/random` | one transition, pages in random order |
//! | `pmap/audit` | the audit of all 65536 pages, given per page |

mod common;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tidemark::page::pmap::Pmap;
use tidemark::page::state::PageEvent;
use tidemark::units::{FrameId, Gfn};

const PAGES: u32 = 65536;
/// What one page goes through, from unbacked to unbacked.
const LIFE: [PageEvent; 7] = [
    PageEvent::Fill,
    PageEvent::Take(3),
    PageEvent::Share(FrameId(9)),
    PageEvent::Break,
    PageEvent::Begin,
    PageEvent::Install,
    PageEvent::Discard,
];

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("pmap");
    let mut order: Vec<Gfn> = (0..PAGES).map(Gfn).collect();
    for name in ["in_order", "random"] {
        let mut pmap = Pmap::new(Gfn(PAGES));
        let events = LIFE
            .iter()
            .flat_map(|event| order.iter().map(move |gfn| (*gfn, *event)));
        let mut events = events.cycle();
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("apply/{name}"), |b| {
            b.iter(|| {
                let (gfn, event) = events.next().expect("a cycle");
                pmap.apply(gfn, event)
            });
        });
        drop(events);
        fastrand::Rng::with_seed(common::SEED).shuffle(&mut order);
    }

    let mut pmap = Pmap::new(Gfn(PAGES));
    for (number, gfn) in (0..).zip(order) {
        let events = number % LIFE.len();
        for event in &LIFE[..events] {
            // No two pages are in one slot.
            let event = match event {
                PageEvent::Take(_) => PageEvent::Take(gfn.0),
                other => *other,
            };
            pmap.apply(gfn, event);
        }
    }
    group.throughput(Throughput::Elements(PAGES.into()));
    group.bench_function("audit", |b| b.iter(|| pmap.audit()));
    group.finish();
}

criterion_group! { name = benches; config = common::criterion(); targets = bench }
criterion_main!(benches);
