//! What a hostile driver achieves: its own device stops, nothing else.

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::driver::{ALL, Bench, Call, Driver, LIST, NEXT, RAM_PAGES, WRITE};

const RAM_BYTES: u64 = RAM_PAGES as u64 * 4096;

/// Runs `attack` against a fresh device and expects it to stop, to say so, and to come back after
/// a reset.
fn stops(name: &str, attack: impl FnOnce(&mut Driver<'_>)) {
    let bench = Bench::new();
    let mut driver = Driver::start(&bench, ALL);
    attack(&mut driver);
    assert!(bench.failed(), "{name}");
    assert!(!bench.balloon.driver_up(), "{name}");
    assert_eq!(bench.balloon.malformed_count(), 1, "{name}");
    assert_ne!(bench.read(0x60) & 2, 0, "{name}: configuration interrupt");
    assert_eq!(bench.calls(), [], "{name}");
    // A stopped device serves nobody and the driver cannot talk it out of that.
    let list = driver.list(LIST, &[700]);
    driver.add(1, &[list]);
    driver.notify(1);
    bench.write(0x70, 15);
    bench.balloon.request_stats();
    assert_eq!(bench.calls(), [], "{name}");
    let mut driver = Driver::start(&bench, ALL);
    let list = driver.list(LIST, &[700]);
    driver.send(0, &[list]);
    assert_eq!(bench.calls(), [Call::Inflate(vec![700])], "{name}");
}

#[test]
fn broken_chains_stop_the_device() {
    stops("loop of one", |driver| {
        driver.add_raw(0, &[(LIST, 4, NEXT, 0)]);
        driver.notify(0);
    });
    stops("loop of two", |driver| {
        driver.add_raw(0, &[(LIST, 4, NEXT, 1), (LIST, 4, NEXT, 0)]);
        driver.notify(0);
    });
    stops("next outside the table", |driver| {
        driver.add_raw(1, &[(LIST, 4, NEXT, 128)]);
        driver.notify(1);
    });
    stops("head outside the table", |driver| {
        let ring = driver.avail_addr(0);
        let memory = driver.bench.ram.memory();
        memory.write_obj(0x80u16, GuestAddress(ring + 4)).unwrap();
        memory.write_obj(1u16, GuestAddress(ring + 2)).unwrap();
        driver.notify(0);
    });
    stops("jump of the available index", |driver| {
        let ring = driver.avail_addr(0);
        let memory = driver.bench.ram.memory();
        memory.write_obj(129u16, GuestAddress(ring + 2)).unwrap();
        driver.notify(0);
    });
    stops("indirect table of 65535 entries", |driver| {
        for at in 0..0x1000u64 {
            let entry =
                (u128::from(LIST)) | 4 << 64 | u128::from(NEXT) << 96 | u128::from(at + 1) << 112;
            let memory = driver.bench.ram.memory();
            memory
                .write_obj(entry.to_le(), GuestAddress(0x20_0000 + at * 16))
                .unwrap();
        }
        driver.add_raw(0, &[(0x20_0000, 65535 * 16, 4, 0)]);
        driver.notify(0);
    });
}

#[test]
fn bad_buffers_stop_the_device() {
    let cases = [
        ("one gibibyte", 0, (LIST, 1 << 30, 0)),
        ("as long as memory", 0, (0, RAM_BYTES as u32, 0)),
        ("one byte too long a list", 0, (LIST, 4097, 0)),
        ("not whole entries", 1, (LIST, 6, 0)),
        ("start outside", 0, (RAM_BYTES, 4, 0)),
        ("end outside", 1, (RAM_BYTES - 2, 4, 0)),
        ("wrap-around", 0, (u64::MAX - 1, 4, 0)),
        ("writable list", 0, (LIST, 4, WRITE)),
        ("writable statistics", 2, (LIST, 10, WRITE)),
        ("statistics outside", 2, (RAM_BYTES - 10, 11, 0)),
        ("readable report", 4, (LIST, 4096, 0)),
        ("report beyond the end", 4, (RAM_BYTES - 4096, 8192, WRITE)),
        ("report of 4 GiB", 4, (0x1000, u32::MAX, WRITE)),
        (
            "report around the end",
            4,
            (u64::MAX - 0xfff, 0x2000, WRITE),
        ),
    ];
    for (name, queue, buffer) in cases {
        stops(name, |driver| driver.send(queue, &[buffer]));
    }
    stops("too long a chain", |driver| {
        driver.send(0, &[(LIST, 4096, 0); 5]);
    });
}

#[test]
fn rings_outside_memory_stop_the_device() {
    let end = RAM_BYTES as u32;
    for (name, register, value) in [
        ("descriptors", 0x80, end - 16),
        ("available ring", 0x90, end - 16),
        ("used ring", 0xa0, end - 16),
        ("high half", 0x84, 1),
        ("wrap-around", 0xa4, u32::MAX),
        ("misaligned", 0x80, 8),
        ("size zero", 0x38, 0),
        ("size no power of two", 0x38, 100),
        ("size too large", 0x38, 256),
        ("size far too large", 0x38, 0x1_0080),
    ] {
        stops(name, |driver| {
            driver.bench.write(0x30, 1);
            driver.bench.write(0x44, 0);
            driver.bench.write(register, value);
            driver.bench.write(0x44, 1);
        });
    }
}

#[test]
fn pages_outside_memory_are_counted_and_ignored() {
    let bench = Bench::new();
    let mut driver = Driver::start(&bench, ALL);
    let list = driver.list(LIST, &[RAM_PAGES, 5, u32::MAX, RAM_PAGES - 1, 1 << 20]);
    driver.send(0, &[list]);
    assert_eq!(bench.calls(), [Call::Inflate(vec![5, RAM_PAGES - 1])]);
    assert_eq!(bench.balloon.malformed_pfns(), 3);
    assert!(!bench.failed());
}

#[test]
fn a_mebibyte_of_statistics_is_read_no_further_than_its_bound() {
    let bench = Bench::new();
    let mut driver = Driver::start(&bench, ALL);
    driver.send(2, &[(LIST, 1 << 20, 0)]);
    assert!(!bench.failed());
    assert_eq!(bench.balloon.stats().swap_in_bytes, Some(0));
    driver.send(2, &[(LIST, 10, 0)]);
    assert_eq!(driver.returned(2), 1, "the first buffer comes back");
}

#[test]
fn nothing_happens_before_the_driver_is_up() {
    let bench = Bench::new();
    for queue in 0..6 {
        bench.write(0x50, queue);
    }
    bench.write(0x50, u32::MAX);
    assert_eq!((bench.edges.count(), bench.failed()), (0, false));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Random memory under the rings and random register writes: no panic, no endless loop, and
    /// only RAM reaches the sink.
    #[test]
    fn random_drivers_hurt_nobody_else(
        seed: u64,
        writes in prop::collection::vec((0u64..0x120, prop_oneof![0u32..16, any::<u32>()]), 0..40),
    ) {
        let bench = Bench::new();
        let driver = Driver::start(&bench, ALL);
        bench.balloon.begin_hints();
        let mut random = fastrand::Rng::with_seed(seed);
        for queue in 0..5u64 {
            for at in 0..64u64 {
                let gpa = random.u64(0..RAM_BYTES + 0x2000);
                let length = u64::from(random.u32(0..0x3000)) & !3;
                let (flags, next) = (u64::from(random.u16(0..4)), u64::from(random.u16(0..130)));
                let descriptor = [gpa, length | flags << 32 | next << 48];
                let place = GuestAddress(queue * 0x1_0000 + at * 16);
                let bytes = descriptor.map(u64::to_le_bytes).concat();
                bench.ram.memory().write_slice(&bytes, place).unwrap();
            }
            let ring = driver.avail_addr(queue as usize);
            let available = random.u16(0..140);
            bench.ram.memory().write_obj(available, GuestAddress(ring + 2)).unwrap();
            for at in 0..64u64 {
                let head = random.u16(0..130);
                bench.ram.memory().write_obj(head, GuestAddress(ring + 4 + 2 * at)).unwrap();
            }
        }
        for queue in 0..5 {
            driver.notify(queue);
            bench.balloon.request_stats();
        }
        for (register, value) in writes {
            bench.write(register, value);
            bench.read(register);
        }
        for call in bench.calls() {
            match call {
                Call::Inflate(gfns) | Call::Deflate(gfns) => {
                    prop_assert!(gfns.iter().all(|gfn| *gfn < RAM_PAGES));
                    prop_assert!(gfns.windows(2).all(|pair| pair[0] < pair[1]));
                }
                Call::ReportFree(range) => prop_assert!(range.end().0 <= RAM_PAGES),
            }
        }
    }
}
