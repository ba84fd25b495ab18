//! Every guest byte survives any interleaving of sharing, copy on write, swapping, compression and
//! ballooning, on both ways of taking pages out.
//!
//! No KVM: threads of this process play the guest. They touch the RAM like any vCPU does, through
//! page faults that the pager serves, and know what every page must hold. A second set of hands
//! meanwhile scans, merges, swaps and counts in an order drawn from a printed seed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
mod pager;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::Capability;
use pager::interleave::{self, PAGES, Plan};
use pager::pool::{KEY_SEED, Pool};
use pager::rig::{Rig, merge};
use pager::{both_paths, seed, stamped, unique};
use tidemark::mem::credit::CreditBook;
use tidemark::mem::reclaim::Reclaimer;
use tidemark::mem::share::Scanner;
use tidemark::units::{Gfn, PAGE_SIZE, Pages};
use tidemark::words::{Measured, TakePath};
use vm_memory::{Bytes, GuestAddress};

/// Operations of the worker in one interleaving.
const OPERATIONS: u64 = 1500;
/// With this seed a leaked stage slot once stopped nearly all merging on the moving path.
const SLOT_LEAK_SEED: u64 = 31689;

#[test]
fn every_byte_survives_any_interleaving() {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    for (seed, encrypted) in [(seed(), true), (SLOT_LEAK_SEED, false)] {
        let mut merged = Vec::new();
        both_paths(|path| {
            let plan = Plan {
                path,
                seed,
                operations: OPERATIONS,
                encrypted,
            };
            let outcome = interleave::run(plan, |_, _| {});
            outcome.assert_complete(plan);
            merged.push(outcome.merged);
        });
        // The same work finds as much to merge, however pages are taken out.
        let (least, most) = (merged.iter().min().unwrap(), merged.iter().max().unwrap());
        assert!(least * 5 >= most * 4, "seed {seed}: merged {merged:?}");
    }
}

/// Memory that the balloon takes while the worker has it out must not leave anything behind in the
/// worker's hands: once a stage slot was lost each time, and in the end nothing could be taken.
#[test]
fn batches_stay_whole_beside_the_balloon() {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    let seed = seed();
    both_paths(|path| {
        let rig = Rig::unlimited(path, PAGES);
        assert_eq!(rig.six_batches(seed), [32; 6], "before");
        let end = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| balloon_and_write(&rig, seed, &end));
            share_and_swap(&rig, seed, Duration::from_secs(2));
            end.store(true, Ordering::Relaxed);
        });
        assert_eq!(rig.six_batches(seed), [32; 6], "after, seed {seed}");
        rig.pager.audit().unwrap();
        rig.finish().unwrap();
    });
}

/// A guest that writes pages of few contents and balloons others.
fn balloon_and_write(rig: &Rig, seed: u64, end: &AtomicBool) {
    let mut rng = fastrand::Rng::with_seed(seed);
    while !end.load(Ordering::Relaxed) {
        let gfn = Gfn(rng.u32(0..PAGES));
        if rng.bool() {
            rig.pager.inflate(&[gfn]).unwrap();
            rig.pager.deflate(&[gfn]);
        } else {
            rig.write(gfn, &unique(rng.u64(0..16)).0);
        }
    }
}

/// A worker that merges all it finds, looks for broken pages, and swaps.
fn share_and_swap(rig: &Rig, seed: u64, time: Duration) {
    let mut reclaimer = Reclaimer::new(seed);
    reclaimer.offer_with(Some(KEY_SEED));
    let mut scanner = Scanner::new(rig.pager.ram().layout(), KEY_SEED);
    let mut now = Duration::ZERO;
    let mut pool = Pool::new(PAGES);
    let view = pool.view();
    let deadline = Instant::now() + time;
    while Instant::now() < deadline {
        // So fast that every chunk is due again.
        now += Duration::from_secs(60);
        let found = scanner.step(&rig.pager, 128, now).unwrap();
        let mut candidates: Vec<_> = found
            .offers
            .into_iter()
            .chain(reclaimer.take_offers())
            .filter_map(|(gfn, _)| pool.lend(&rig.read(gfn)).map(|frame| (gfn, frame)))
            .collect();
        let done = merge(&rig.pager, &view, &mut candidates);
        pool.release(&done.rejected);
        rig.pager.census().unwrap();
        reclaimer.step(&rig.pager, 32).unwrap();
        pool.release(&rig.pager.take_released());
    }
}

/// Writes page after page over `gfn` and reads each back, while `work` is done over and over beside
/// it, which says how many pages it has done. The windows in which a step could lose a write are a
/// few instructions wide: hence one page, and no pause. Ends after a while, but not before `least`
/// pages have been done and a hundred written, which takes long on a busy machine.
fn beside_a_busy_writer(
    rig: &Rig,
    gfn: Gfn,
    least: u32,
    page: impl Fn(u64) -> [u8; PAGE_SIZE] + Sync,
    mut work: impl FnMut() -> u32,
) {
    const TIME: Duration = Duration::from_millis(1500);
    const PROGRESS: Duration = Duration::from_secs(60);
    const WRITES_MIN: u64 = 100;
    let writes = AtomicU64::new(0);
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            while !end.load(Ordering::Relaxed) {
                let number = writes.load(Ordering::Relaxed);
                let page = page(number);
                rig.write(gfn, &page);
                assert!(rig.read(gfn) == page, "write {number} is lost");
                writes.store(number + 1, Ordering::Relaxed);
            }
        });
        let start = Instant::now();
        let mut done = 0;
        let is_enough = |done| done > least && writes.load(Ordering::Relaxed) > WRITES_MIN;
        while !writer.is_finished() && (start.elapsed() < TIME || !is_enough(done)) {
            done += work();
            if start.elapsed() > PROGRESS {
                break;
            }
        }
        end.store(true, Ordering::Relaxed);
        writer.join().unwrap();
        assert!(is_enough(done), "{done} done beside {writes:?} writes");
    });
}

/// Taking a page out and giving it back loses no write to it, nor a wake-up of whoever writes.
#[test]
fn a_page_that_is_written_all_the_time_can_be_taken() {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    both_paths(|path| {
        let rig = Rig::unlimited(path, PAGES);
        beside_a_busy_writer(
            &rig,
            Gfn(5),
            100,
            |number| stamped(u32::try_from(number).unwrap()),
            || {
                let taken = rig.pager.begin_sample(&[Gfn(5)]).unwrap();
                rig.pager.end_sample().unwrap();
                taken
            },
        );
        rig.finish().unwrap();
    });
}

/// The same where the page lies in a pool mapping and equals its frame every other time: it is
/// compared and mapped over where it lies.
#[test]
fn a_page_that_equals_a_frame_now_and_then_loses_no_write() {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    both_paths(|path| {
        let rig = Rig::unlimited(path, PAGES);
        let mut pool = Pool::new(8);
        let view = pool.view();
        let common = unique(1).0;
        let kept = pool.lend(&common).unwrap();
        beside_a_busy_writer(
            &rig,
            Gfn(5),
            10,
            |number| match number % 2 {
                0 => common,
                _ => stamped(u32::try_from(number).unwrap()),
            },
            || {
                rig.pager.census().unwrap();
                let frame = pool.lend(&common).unwrap();
                let done = merge(&rig.pager, &view, &mut [(Gfn(5), frame)]);
                pool.release(&done.rejected);
                pool.release(&rig.pager.take_released());
                done.pages
            },
        );
        pool.release(&[kept]);
        rig.finish().unwrap();
    });
}

#[test]
fn a_failing_swap_file_keeps_pages_in_memory() {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    both_paths(|path| {
        let rig = Rig::unlimited(path, PAGES);
        let mut page = [0; PAGE_SIZE];
        fastrand::Rng::with_seed(3).fill(&mut page);
        rig.write(Gfn(5), &page);
        rig.store.fail_writes(true);
        let done = Reclaimer::new(1).step(&rig.pager, 8).unwrap();
        assert!(done.pages == 0 && done.failure.is_some());
        assert_eq!(rig.read(Gfn(5)), page);
        let report = rig.pager.report().unwrap();
        let Measured {
            gauges, counters, ..
        } = report.measured;
        assert_eq!((gauges.swapped, counters.swap_errors), (Pages(0), 1));
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
        let rig = Rig::unlimited(TakePath::Copy, PAGES);
        let mut page = [0; PAGE_SIZE];
        fastrand::Rng::with_seed(3).fill(&mut page);
        rig.write(Gfn(5), &page);
        assert_eq!(Reclaimer::new(1).step(&rig.pager, 8).unwrap().pages, 1);
        rig.store.flip_bit(flip);
        rig.store.fail_reads(!flip);
        let pager = rig.pager.clone();
        // This thread waits for a page that never comes, as a vCPU would until the process ends.
        std::thread::spawn(move || {
            let mut byte = [0];
            let _never = pager
                .ram()
                .memory()
                .read_slice(&mut byte, GuestAddress(Gfn(5).gpa()));
        });
        let failure = rig.wait_failure(Duration::from_secs(5));
        assert!(failure.reason.contains(expected), "{failure:?}");
    }
}

/// Faults beyond the credit wait, and go on when credit arrives.
#[test]
fn credit_is_enforced_at_the_fault() {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    both_paths(|path| {
        let rig = Rig::new(path, PAGES, CreditBook::new(Pages(100), Pages(16)));
        std::thread::scope(|scope| {
            let guest = scope.spawn(|| {
                for gfn in 0..200 {
                    rig.write(Gfn(gfn), &[1; PAGE_SIZE]);
                }
            });
            common::wait_for("a starving fault", Duration::from_secs(5), || {
                rig.pager.starving_faults() == 1
            });
            assert!(rig.pager.census().unwrap().anonymous <= Pages(100));
            assert!(!guest.is_finished());
            rig.pager.with_credit(|credit| credit.grant(Pages(200)));
            rig.pager.retry_starving().unwrap();
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
        let rig = Rig::unlimited(path, PAGES);
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

/// A page that comes back from swap or the compressed store with others was not touched: while it is
/// sampled it stays out.
#[test]
fn a_sampled_page_is_not_read_ahead() {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    let mut compressible = [0; PAGE_SIZE];
    compressible[..64].fill(1);
    both_paths(|path| {
        for page in [unique(1).0, compressible] {
            let rig = Rig::unlimited(path, 64);
            (0..64).for_each(|gfn| rig.write(Gfn(gfn), &page));
            let mut reclaimer = Reclaimer::new(1);
            while reclaimer.step(&rig.pager, 32).unwrap().pages > 0 {}
            let sampled: Vec<Gfn> = [6, 7, 20, 40].map(Gfn).to_vec();
            assert_eq!(rig.pager.begin_sample(&sampled).unwrap(), 4);
            let others = (0..64).map(Gfn).filter(|gfn| !sampled.contains(gfn));
            for gfn in others.chain([Gfn(20)]) {
                assert!(rig.read(gfn) == page, "{gfn}");
            }
            assert_eq!(rig.pager.touched_in_sample().unwrap(), 1);
            rig.pager.end_sample().unwrap();
            assert!(rig.read(Gfn(6)) == page);
            rig.pager.audit().unwrap();
            rig.finish().unwrap();
        }
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
        let rig = Rig::unlimited(path, PAGES);
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
    let rig = Rig::unlimited(TakePath::Copy, PAGES);
    for gfn in 0..600 {
        rig.write(Gfn(gfn), &[1; PAGE_SIZE]);
    }
    let exact = rig.pager.census().unwrap().anonymous;
    assert_eq!(exact, Pages(600));
    let report = rig.pager.report().unwrap();
    assert!(
        report.holding.private.0.abs_diff(600) <= 128,
        "measured {:?}",
        report.holding.private
    );
    rig.finish().unwrap();
}
