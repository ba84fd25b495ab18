//! Every guest byte survives any interleaving of sharing, copy on write, swapping, compression and
//! ballooning, on both ways of taking pages out.
//!
//! No KVM: threads of this process play the guest. They touch the RAM like any vCPU does, through
//! page faults that the pager serves, and know what every page must hold. A second set of hands
//! meanwhile scans, merges, swaps and counts in an order drawn from a printed seed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::Capability;
use rustix::event::{PollFd, PollFlags, poll};
use tidemark::link::message::Key;
use tidemark::mem::credit::CreditBook;
use tidemark::mem::pager::Settings;
use tidemark::mem::reclaim::Reclaimer;
use tidemark::mem::share::{Scanner, merge};
use tidemark::mem::swapfile::SwapStore;
use tidemark::mem::{Error, Pager};
use tidemark::page::key::key_of;
use tidemark::sys::pool_view::PoolView;
use tidemark::sys::ram::{GuestRam, Layout};
use tidemark::sys::space::{PageBuf, TakePath};
use tidemark::units::{FrameId, Gfn, PAGE_SIZE, Pages, SwapSlot};
use vm_memory::{Bytes, GuestAddress};

const PAGES: u32 = 1024;
const KEY_SEED: u64 = 99;

/// A swap store in memory that fails or lies when told to.
#[derive(Debug, Default, Clone)]
struct MemoryStore {
    slots: Arc<Mutex<HashMap<u32, Box<[u8; PAGE_SIZE]>>>>,
    fail_writes: Arc<AtomicBool>,
    fail_reads: Arc<AtomicBool>,
    flip_bit: Arc<AtomicBool>,
}

impl SwapStore for MemoryStore {
    fn write(&self, first: SwapSlot, pages: &[PageBuf]) -> io::Result<()> {
        if self.fail_writes.load(Ordering::Relaxed) {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        let mut slots = self.slots.lock().unwrap();
        for (slot, page) in (first.0..).zip(pages) {
            slots.insert(slot, Box::new(page.0));
        }
        Ok(())
    }

    fn read(&self, slot: SwapSlot, page: &mut PageBuf) -> io::Result<()> {
        if self.fail_reads.load(Ordering::Relaxed) {
            return Err(io::Error::from(io::ErrorKind::Other));
        }
        page.0 = **self
            .slots
            .lock()
            .unwrap()
            .get(&slot.0)
            .expect("a slot that was written");
        if self.flip_bit.load(Ordering::Relaxed) {
            page.0[100] ^= 4;
        }
        Ok(())
    }
}

/// The host manager's half of sharing, as small as it can be.
struct Pool {
    file: File,
    frames: u32,
    index: HashMap<Key, FrameId>,
    references: HashMap<FrameId, u32>,
}

impl Pool {
    fn new() -> Pool {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = File::from(rustix::fs::memfd_create("pool", flags).unwrap());
        file.set_len(u64::from(PAGES) * PAGE_SIZE as u64).unwrap();
        Pool {
            file,
            frames: 0,
            index: HashMap::new(),
            references: HashMap::new(),
        }
    }

    fn view(&self) -> PoolView {
        PoolView::new(self.file.try_clone().unwrap().into(), PAGES)
    }

    /// A frame with this content, one reference lent.
    fn lend(&mut self, page: &[u8; PAGE_SIZE]) -> Option<FrameId> {
        let key = key_of(page, KEY_SEED);
        let frame = match self.index.get(&key) {
            Some(frame) => *frame,
            None if self.frames == PAGES => return None,
            None => {
                let frame = FrameId(self.frames);
                self.frames += 1;
                self.file.write_all_at(page, frame.offset()).unwrap();
                self.index.insert(key, frame);
                frame
            }
        };
        *self.references.entry(frame).or_default() += 1;
        Some(frame)
    }

    fn release(&mut self, frames: &[FrameId]) {
        for frame in frames {
            let count = self
                .references
                .get_mut(frame)
                .expect("a frame that was lent");
            *count = count.checked_sub(1).expect("a reference that was lent");
        }
    }
}

/// The pager with a thread that serves its faults until the end.
struct Rig {
    pager: Arc<Pager>,
    store: MemoryStore,
    end: Arc<AtomicBool>,
    server: Option<std::thread::JoinHandle<Result<(), Error>>>,
}

impl Rig {
    fn new(path: TakePath, credit: CreditBook) -> Rig {
        let ram = GuestRam::new(Layout::new(Pages(u64::from(PAGES)))).unwrap();
        let store = MemoryStore::default();
        let settings = Settings {
            path,
            swap: Box::new(store.clone()),
            seed: 5,
            credit,
            mappings_max: 60_000,
        };
        let pager = Arc::new(Pager::new(ram, settings).unwrap());
        let end = Arc::new(AtomicBool::new(false));
        let (served, ended) = (pager.clone(), end.clone());
        let server = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                let fds = served.space().uffd().poll_fds();
                let mut fds = fds.each_ref().map(|fd| PollFd::new(fd, PollFlags::IN));
                let timeout = rustix::event::Timespec {
                    tv_sec: 0,
                    tv_nsec: 10_000_000,
                };
                poll(&mut fds, Some(&timeout)).unwrap();
                if let Err(error) = served.serve() {
                    common::note(&format!("the fault thread gives up: {error}"));
                    return Err(error);
                }
            }
            Ok(())
        });
        Rig {
            pager,
            store,
            end,
            server: Some(server),
        }
    }

    fn unlimited(path: TakePath) -> Rig {
        Rig::new(path, CreditBook::unlimited())
    }

    fn write(&self, gfn: Gfn, page: &[u8; PAGE_SIZE]) {
        self.pager
            .ram()
            .memory()
            .write_slice(page, GuestAddress(gfn.gpa()))
            .unwrap();
    }

    fn read(&self, gfn: Gfn) -> [u8; PAGE_SIZE] {
        let mut page = [0; PAGE_SIZE];
        self.pager
            .ram()
            .memory()
            .read_slice(&mut page, GuestAddress(gfn.gpa()))
            .unwrap();
        page
    }

    fn finish(mut self) -> Result<(), Error> {
        self.end.store(true, Ordering::Relaxed);
        self.server.take().expect("finished once").join().unwrap()
    }
}

/// What a page holds, by kind: zero, common to many pages, hard or easy to compress.
fn content(rng: &mut fastrand::Rng) -> [u8; PAGE_SIZE] {
    let mut page = [0; PAGE_SIZE];
    match rng.u32(0..10) {
        0 | 1 => {}
        2..=5 => fastrand::Rng::with_seed(rng.u64(0..40)).fill(&mut page),
        6 | 7 => page[..64].fill(rng.u8(1..)),
        _ => rng.fill(&mut page),
    }
    page
}

fn both_paths(test: impl Fn(TakePath)) {
    test(TakePath::Copy);
    let features = tidemark::sys::uffd::probe().unwrap();
    if TakePath::choose(features, None) == Ok(TakePath::Move) {
        test(TakePath::Move);
    } else {
        common::note("UFFDIO_MOVE is not offered: only the copying path was tested");
    }
}

#[test]
fn every_byte_survives_any_interleaving() {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    let seed = common::seed();
    both_paths(|path| interleave(path, seed));
}

fn interleave(path: TakePath, seed: u64) {
    let rig = Rig::unlimited(path);
    let end = AtomicBool::new(false);
    let checked = AtomicU64::new(0);
    let deadline = Instant::now() + Duration::from_secs(6);
    std::thread::scope(|scope| {
        // Two vCPUs, each with its half of the pages.
        for vcpu in 0..2u32 {
            let (rig, end, checked) = (&rig, &end, &checked);
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(seed ^ u64::from(vcpu));
                let mut expected: HashMap<u32, [u8; PAGE_SIZE]> = HashMap::new();
                while !end.load(Ordering::Relaxed) {
                    let gfn = rng.u32(0..PAGES / 2) * 2 + vcpu;
                    match rng.u32(0..20) {
                        0..=8 => {
                            let page = content(&mut rng);
                            rig.write(Gfn(gfn), &page);
                            expected.insert(gfn, page);
                        }
                        9 => {
                            // Into the balloon and out again: the content is gone.
                            rig.pager.inflate(&[Gfn(gfn)]).unwrap();
                            rig.pager.deflate(&[Gfn(gfn)]);
                            expected.remove(&gfn);
                        }
                        _ => {
                            if let Some(page) = expected.get(&gfn) {
                                let found = rig.read(Gfn(gfn));
                                assert!(found == *page, "seed {seed}: page {gfn} is corrupt");
                                checked.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    }
                }
                for (gfn, page) in expected {
                    assert!(
                        rig.read(Gfn(gfn)) == page,
                        "seed {seed}: page {gfn} is corrupt"
                    );
                }
            });
        }
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut reclaimer = Reclaimer::new(seed);
        let mut scanner = Scanner::new(KEY_SEED);
        let mut pool = Pool::new();
        let view = pool.view();
        let mut merged = 0;
        while Instant::now() < deadline {
            match rng.u32(0..10) {
                0..=2 => {
                    reclaimer.step(&rig.pager, rng.usize(1..32)).unwrap();
                }
                3..=7 => {
                    let found = scanner.step(&rig.pager, 64).unwrap();
                    let mut candidates = Vec::new();
                    for (gfn, _key) in found.offers {
                        // A lying or late host manager: now and then a wrong frame.
                        let mut page = PageBuf::ZERO;
                        let lie = rng.u32(0..10) == 0;
                        if lie {
                            page.0 = content(&mut rng);
                        } else {
                            page.0 = rig.read(gfn);
                        }
                        candidates.extend(pool.lend(&page.0).map(|frame| (gfn, frame)));
                    }
                    let done = merge(&rig.pager, &view, &mut candidates).unwrap();
                    pool.release(&done.rejected);
                    merged += done.pages;
                }
                8 if rng.bool() => {
                    rig.pager.census().unwrap();
                }
                8 => {
                    let drawn: Vec<Gfn> = (0..40).map(|_| Gfn(rng.u32(0..PAGES))).collect();
                    rig.pager.begin_sample(&drawn).unwrap();
                }
                _ => rig
                    .store
                    .fail_writes
                    .store(rng.u32(0..4) == 0, Ordering::Relaxed),
            }
            pool.release(&rig.pager.take_released());
        }
        end.store(true, Ordering::Relaxed);
        assert!(merged > 0, "nothing was ever merged");
    });
    let report = rig.pager.report().unwrap();
    assert!(checked.load(Ordering::Relaxed) > 1000);
    assert!(report.swap_in_pages > 0 && report.swap_out_pages > 0 && report.cow_breaks > 0);
    rig.pager.audit().unwrap();
    rig.finish().unwrap();
}

#[test]
fn a_failing_swap_file_keeps_pages_in_memory() {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    both_paths(|path| {
        let rig = Rig::unlimited(path);
        let mut page = [0; PAGE_SIZE];
        fastrand::Rng::with_seed(3).fill(&mut page);
        rig.write(Gfn(5), &page);
        rig.store.fail_writes.store(true, Ordering::Relaxed);
        let done = Reclaimer::new(1).step(&rig.pager, 8).unwrap();
        assert!(done.pages == 0 && done.failure.is_some());
        assert_eq!(rig.read(Gfn(5)), page);
        let report = rig.pager.report().unwrap();
        assert_eq!((report.swapped, report.swap_errors), (Pages(0), 1));
        rig.finish().unwrap();
    });
}

/// A page that cannot be read, or not as it was written, is never handed to the guest.
#[test]
fn a_lost_page_stops_the_vm() {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    for (flip, expected) in [(true, "checksum"), (false, "cannot read")] {
        let rig = Rig::unlimited(TakePath::Copy);
        let mut page = [0; PAGE_SIZE];
        fastrand::Rng::with_seed(3).fill(&mut page);
        rig.write(Gfn(5), &page);
        assert_eq!(Reclaimer::new(1).step(&rig.pager, 8).unwrap().pages, 1);
        rig.store.flip_bit.store(flip, Ordering::Relaxed);
        rig.store.fail_reads.store(!flip, Ordering::Relaxed);
        let pager = rig.pager.clone();
        // This thread waits for a page that never comes, as a vCPU would until the process ends.
        std::thread::spawn(move || {
            let mut byte = [0];
            let _never = pager
                .ram()
                .memory()
                .read_slice(&mut byte, GuestAddress(Gfn(5).gpa()));
        });
        common::wait_for(
            "the fault thread to give up",
            Duration::from_secs(5),
            || {
                rig.server
                    .as_ref()
                    .is_some_and(|server| server.is_finished())
            },
        );
        let mut rig = rig;
        let error = rig.server.take().unwrap().join().unwrap().unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

/// Faults beyond the credit wait, and go on when credit arrives.
#[test]
fn credit_is_enforced_at_the_fault() {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    both_paths(|path| {
        let rig = Rig::new(path, CreditBook::new(Pages(100), Pages(16)));
        std::thread::scope(|scope| {
            let guest = scope.spawn(|| {
                for gfn in 0..200 {
                    rig.write(Gfn(gfn), &[1; PAGE_SIZE]);
                }
            });
            common::wait_for("a held fault", Duration::from_secs(5), || {
                rig.pager.held_faults() == 1
            });
            assert!(rig.pager.census().unwrap().anonymous <= Pages(100));
            assert!(!guest.is_finished());
            rig.pager.with_credit(|credit| credit.grant(Pages(200)));
            rig.pager.retry_held().unwrap();
        });
        let census = rig.pager.census().unwrap();
        assert_eq!(census.anonymous, Pages(200));
        rig.finish().unwrap();
    });
}

/// A known working set is seen as such: touched pages are counted once, and nothing else is.
#[test]
fn a_sample_counts_what_is_touched() {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    both_paths(|path| {
        let rig = Rig::unlimited(path);
        for gfn in 0..100 {
            rig.write(Gfn(gfn), &[1; PAGE_SIZE]);
        }
        let sample: Vec<Gfn> = (0..50).chain(500..550).map(Gfn).collect();
        assert_eq!(rig.pager.begin_sample(&sample).unwrap(), 100);
        assert_eq!(rig.pager.touched_in_sample().unwrap(), 0);
        for _ in 0..2 {
            for gfn in 0..20 {
                assert_eq!(rig.read(Gfn(gfn)), [1; PAGE_SIZE]);
            }
        }
        // Of the pages that were absent, the first write maps the zero page over the others too.
        rig.write(Gfn(510), &[2; PAGE_SIZE]);
        assert_eq!(rig.pager.touched_in_sample().unwrap(), 21);
        rig.pager.end_sample().unwrap();
        assert_eq!(rig.read(Gfn(40)), [1; PAGE_SIZE]);
        rig.pager.audit().unwrap();
        rig.finish().unwrap();
    });
}

/// The kernel serves the first write to a page that reads as zero without asking the pager. Sampling
/// drops such pages, and once dropped one that had just been written.
#[test]
fn a_write_to_a_zero_page_survives_being_sampled() {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    const SAMPLED: u32 = 64;
    both_paths(|path| {
        let rig = Rig::unlimited(path);
        let gfns: Vec<Gfn> = (0..SAMPLED).map(Gfn).collect();
        let deadline = Instant::now() + Duration::from_secs(2);
        while Instant::now() < deadline {
            rig.pager.inflate(&gfns).unwrap();
            rig.pager.deflate(&gfns);
            for gfn in &gfns {
                assert_eq!(rig.read(*gfn), [0; PAGE_SIZE]);
            }
            std::thread::scope(|scope| {
                scope.spawn(|| gfns.iter().for_each(|gfn| rig.write(*gfn, &[7; PAGE_SIZE])));
                rig.pager.begin_sample(&gfns).unwrap();
            });
            for gfn in &gfns {
                assert_eq!(rig.read(*gfn), [7; PAGE_SIZE], "{gfn}");
            }
        }
        rig.pager.audit().unwrap();
        rig.finish().unwrap();
    });
}

/// The cheap measurement and the exact census agree, up to the kernel's per-CPU counters.
#[test]
fn measurement_agrees_with_the_census() {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    let rig = Rig::unlimited(TakePath::Copy);
    for gfn in 0..600 {
        rig.write(Gfn(gfn), &[1; PAGE_SIZE]);
    }
    let exact = rig.pager.census().unwrap().anonymous;
    assert_eq!(exact, Pages(600));
    let report = rig.pager.report().unwrap();
    assert!(
        report.private.0.abs_diff(600) <= 128,
        "measured {:?}",
        report.private
    );
    rig.finish().unwrap();
}
