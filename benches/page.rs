//! What is done with the 4096 bytes of one page.
//!
//! | case | unit |
//! |---|---|
//! | `page/key` | one page hashed |
//! | `page/compare` | a pair of equal pages compared in full |
//! | `page/is_zero/{zero,unique}` | one page looked at: to its end, or to its first words |
//! | `page/compress/{partly_zero,unique}` | one page that shrinks below half, or one given up |
//! | `page/decompress` | one stored page |
//!
//! `hot` cases have their pages in the cache; `cold` ones walk through 256 MiB.

mod common;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tidemark::mem::store::{CompressedStore, compress};
use tidemark::page::key::{is_zero, key_of};
use tidemark::sys::space::PageBuf;
use tidemark::units::Pages;

/// Pages of the cold walk: 256 MiB, eight times the largest cache of the development machine.
const COLD_PAGES: usize = 65536;

/// A page that LZ4 brings to a third: random bytes, then zeros.
fn partly_zero() -> PageBuf {
    let mut page = PageBuf::ZERO;
    fastrand::Rng::with_seed(common::SEED).fill(&mut page.0[..1500]);
    page
}

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("page");
    group.throughput(Throughput::Elements(1));
    let (one, other, zero) = (common::unique(1), common::unique(1), PageBuf::ZERO);
    group.bench_function("key/hot", |b| b.iter(|| key_of(black_box(&one.0), 7)));
    group.bench_function("compare/hot", |b| {
        b.iter(|| black_box(&one.0) == black_box(&other.0));
    });
    group.bench_function("is_zero/zero", |b| b.iter(|| is_zero(black_box(&zero.0))));
    group.bench_function("is_zero/unique", |b| b.iter(|| is_zero(black_box(&one.0))));

    let cold = vec![one.clone(); COLD_PAGES];
    let mut next = 0;
    let mut walk = || {
        next = (next + 1) % (COLD_PAGES / 2);
        next
    };
    group.bench_function("key/cold", |b| b.iter(|| key_of(&cold[walk()].0, 7)));
    group.bench_function("compare/cold", |b| {
        b.iter(|| {
            let index = walk();
            cold[index].0 == cold[index + COLD_PAGES / 2].0
        });
    });

    let partly_zero = partly_zero();
    assert!(compress(&partly_zero).is_some() && compress(&one).is_none());
    group.bench_function("compress/partly_zero", |b| {
        b.iter(|| compress(black_box(&partly_zero)))
    });
    group.bench_function("compress/unique", |b| b.iter(|| compress(black_box(&one))));
    let mut store = CompressedStore::new(Pages(100));
    let stored = compress(&partly_zero).expect("it shrinks");
    let slot = store.insert(stored).expect("there is room");
    let mut page = PageBuf::ZERO;
    group.bench_function("decompress", |b| {
        b.iter(|| store.read(slot, &mut page).expect("what was stored"));
    });
    assert!(page.0 == partly_zero.0);
    group.finish();
}

criterion_group! { name = benches; config = common::criterion(); targets = bench }
criterion_main!(benches);
