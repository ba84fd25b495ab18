//! What a correct driver sees.

use std::sync::{Arc, Mutex};

use super::driver::{ALL, Bench, Call, Driver, LIST, REPORTING, STATS, Sink, VERSION_1, WRITE};
use crate::devices::sink::BalloonSink;
use crate::units::{Gfn, GfnRange, Pages};
use crate::words::GuestMemoryStats;

#[test]
fn the_registers_describe_a_balloon() {
    let bench = Bench::new();
    assert_eq!(bench.read(0), u32::from_le_bytes(*b"virt"));
    assert_eq!((bench.read(4), bench.read(8)), (2, 5));
    bench.write(0x14, 0);
    assert_eq!(u64::from(bench.read(0x10)), ALL & 0xffff_ffff);
    bench.write(0x14, 1);
    assert_eq!(bench.read(0x10), 1);
    bench.write(0x30, 5);
    assert_eq!(bench.read(0x34), 0, "there are five queues");
}

#[test]
fn only_offered_features_and_version_1_are_agreed_on() {
    let bench = Bench::new();
    assert!(bench.negotiate(ALL));
    assert!(bench.negotiate(VERSION_1));
    assert!(!bench.negotiate(ALL & !VERSION_1));
    assert!(!bench.negotiate(ALL | 1 << 4));
    assert!(!bench.negotiate(ALL | 1 << 28));
    bench.write(0x70, 15);
    assert!(!bench.balloon.driver_up(), "no start without agreement");
}

#[test]
fn lists_reach_the_sink_sorted_without_duplicates() {
    let bench = Bench::new();
    let mut driver = Driver::start(&bench, ALL);
    let first = driver.list(LIST, &[300, 200, 300, 201]);
    let second = driver.list(LIST + 0x1000, &[100]);
    driver.send(0, &[first, second]);
    let third = driver.list(LIST, &[200]);
    driver.send(1, &[third]);
    assert_eq!(
        bench.calls(),
        [
            Call::Inflate(vec![100, 200, 201, 300]),
            Call::Deflate(vec![200])
        ]
    );
    assert_eq!((driver.returned(0), driver.returned(1)), (1, 1));
    assert_eq!((bench.edges.count(), bench.read(0x60)), (2, 1));
    bench.write(0x64, 1);
    assert_eq!(bench.read(0x60), 0);
}

#[test]
fn several_chains_are_served_by_one_notification() {
    let bench = Bench::new();
    let mut driver = Driver::start(&bench, ALL);
    for n in 0..10 {
        let list = driver.list(LIST + u64::from(n) * 0x1000, &[n + 500]);
        driver.add(0, &[list]);
    }
    driver.notify(0);
    assert_eq!(bench.calls().len(), 10);
    assert_eq!((driver.returned(0), bench.edges.count()), (10, 1));
}

#[test]
fn an_empty_list_is_harmless() {
    let bench = Bench::new();
    let mut driver = Driver::start(&bench, ALL);
    driver.send(0, &[(LIST, 0, 0)]);
    driver.send(0, &[(u64::MAX, 0, 0)]);
    assert_eq!(bench.calls(), []);
    assert_eq!(driver.returned(0), 2);
    assert!(!bench.failed());
}

#[test]
fn a_new_target_interrupts_a_running_driver_once() {
    let bench = Bench::new();
    bench.balloon.set_target(Pages(5));
    assert_eq!(
        bench.edges.count(),
        0,
        "no interrupt before the driver is up"
    );
    Driver::start(&bench, ALL);
    assert_eq!(bench.read(0x100), 5);
    let generation = bench.read(0xfc);
    bench.balloon.set_target(Pages(6));
    bench.balloon.set_target(Pages(6));
    assert_eq!((bench.edges.count(), bench.read(0x60)), (1, 2));
    assert_ne!(bench.read(0xfc), generation);
    assert_eq!(bench.read(0x100), 6);
    bench.write(0x104, 3);
    assert_eq!((bench.balloon.actual(), bench.read(0x104)), (Pages(3), 3));
    // The target is not the driver's to write, and odd accesses do nothing.
    bench.write(0x100, 9);
    bench.registers.write(0x104, &[1, 2]);
    bench.registers.write(0x106, &[0xff; 4]);
    bench.registers.write(u64::MAX, &[0xff; 4]);
    assert_eq!(bench.balloon.target(), Pages(6));
    assert_eq!(bench.balloon.actual(), Pages(3));
    let mut wide = [0xee; 16];
    bench.registers.read(0x104, &mut wide);
    assert_eq!(wide, [3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn statistics_are_held_and_asked_for() {
    let bench = Bench::new();
    let mut driver = Driver::start(&bench, ALL);
    bench.balloon.request_stats();
    assert_eq!(driver.returned(2), 0, "nothing to give back yet");
    let mut entries = Vec::new();
    for (tag, value) in [(4u16, 1u64 << 20), (5, 4 << 20), (99, 1)] {
        entries.extend_from_slice(&tag.to_le_bytes());
        entries.extend_from_slice(&value.to_le_bytes());
    }
    let buffer = driver.bytes(LIST, &entries);
    driver.send(2, &[buffer]);
    let expected = GuestMemoryStats {
        free_bytes: Some(1 << 20),
        total_bytes: Some(4 << 20),
        ..Default::default()
    };
    assert_eq!(bench.balloon.stats(), expected);
    assert_eq!((driver.returned(2), bench.edges.count()), (0, 0));
    bench.balloon.request_stats();
    bench.balloon.request_stats();
    assert_eq!((driver.returned(2), bench.edges.count()), (1, 1));
    assert_eq!(bench.balloon.stats_updates(), 1);
}

#[test]
fn reported_ranges_lose_their_partial_pages() {
    let bench = Bench::new();
    let mut driver = Driver::start(&bench, ALL);
    driver.send(
        4,
        &[
            (0x20_0000, 0x4000, WRITE),
            (0x30_0800, 0x2000, WRITE),
            (0x30_0001, 0x100, WRITE),
        ],
    );
    assert_eq!(
        bench.calls(),
        [
            Call::ReportFree(GfnRange::new(Gfn(0x200), 4)),
            Call::ReportFree(GfnRange::new(Gfn(0x301), 1))
        ]
    );
    assert_eq!(driver.returned(4), 1);
}

#[test]
fn queues_of_refused_features_do_not_exist() {
    let bench = Bench::new();
    let mut driver = Driver::start(&bench, VERSION_1 | REPORTING);
    driver.send(2, &[(0x20_0000, 0x1000, WRITE)]);
    assert_eq!(
        bench.calls(),
        [Call::ReportFree(GfnRange::new(Gfn(0x200), 1))]
    );
    bench.balloon.request_stats();
    let mut driver = Driver::start(&bench, VERSION_1 | STATS);
    driver.send(3, &[(0x20_0000, 0x1000, WRITE)]);
    assert_eq!(bench.calls(), []);
    assert_eq!(driver.returned(3), 0);
}

/// Looks at the used ring while it is called.
struct Spy {
    ram: Mutex<Option<Arc<crate::sys::ram::GuestRam>>>,
    returned: Mutex<Vec<u16>>,
}

impl Spy {
    fn look(&self, queue: u64) {
        use vm_memory::{Bytes, GuestAddress};
        let ram = self.ram.lock().unwrap();
        let at = GuestAddress(queue * 0x1_0000 + 0x8002);
        let returned = ram.as_ref().unwrap().memory().read_obj(at).unwrap();
        self.returned.lock().unwrap().push(returned);
    }
}

impl BalloonSink for Spy {
    fn inflate(&self, _: &[Gfn]) {
        self.look(0);
    }
    fn deflate(&self, _: &[Gfn]) {
        self.look(1);
    }
    fn report_free(&self, _: GfnRange) {
        self.look(4);
    }
}

#[test]
fn the_sink_hears_of_pages_before_the_driver_gets_its_buffer_back() {
    let spy = Arc::new(Spy {
        ram: Mutex::new(None),
        returned: Mutex::new(Vec::new()),
    });
    let bench = Bench::with_sink(Arc::new(Sink::default()), spy.clone());
    *spy.ram.lock().unwrap() = Some(bench.ram.clone());
    let mut driver = Driver::start(&bench, ALL);
    let list = driver.list(LIST, &[600]);
    driver.send(0, &[list]);
    driver.send(1, &[list]);
    driver.send(4, &[(0x20_0000, 0x1000, WRITE)]);
    assert_eq!(*spy.returned.lock().unwrap(), [0, 0, 0]);
    assert_eq!(driver.returned(4), 1);
}
