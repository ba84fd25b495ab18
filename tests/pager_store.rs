//! Where swapped pages go, at its limits: a compressed store that fills up, a swap file of which any
//! one call fails.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
mod pager;

use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use common::Capability;
use pager::faults::READERS;
use pager::pool::Pool;
use pager::rig::{Rig, merge, merge_all};
use pager::{both_paths, stamped, unique};
use tidemark::mem::credit::CreditBook;
use tidemark::mem::reclaim::Reclaimer;
use tidemark::mem::returns::Prefetch;
use tidemark::mem::store::STORE_PERCENT_MAX;
use tidemark::units::{Gfn, GfnRange, PAGE_SIZE, Pages};
use tidemark::words::TakePath;

/// Within this time after a read has failed, the reason must be known.
const REASON_WITHIN: Duration = Duration::from_secs(1);
/// Far above what anything here takes: beyond it something hangs.
const DEADLINE: Duration = Duration::from_secs(20);
/// Number of `mremap` on the machines that KVM runs guests of ours on.
const MREMAP: &str = "25 ";

/// A page that LZ4 brings to a little more than `random` bytes.
fn compressible(number: u32, random: usize) -> [u8; PAGE_SIZE] {
    let mut page = [0; PAGE_SIZE];
    page[..random].copy_from_slice(&unique(u64::from(number)).0[..random]);
    page
}

/// Reclaims until nothing more goes.
fn reclaim_all(rig: &Rig) {
    let mut reclaimer = Reclaimer::new(1);
    while reclaimer.step(&rig.pager, 32).unwrap().pages > 0 {}
}

#[test]
fn a_full_compressed_store_loses_nothing() {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    const PAGES: u32 = 1000;
    const STORE: u64 = PAGES as u64 * STORE_PERCENT_MAX / 100;
    both_paths(|path| {
        // A quarter and half a page each: so many fill the store, and as many do not.
        for random in [900, 1900] {
            let rig = Rig::unlimited(path, PAGES);
            (0..PAGES).for_each(|n| rig.write(Gfn(n), &compressible(n, random)));
            // Beyond the store only the swap file is left, and as long as that fails, memory.
            rig.store.fail_writes(true);
            let mut reclaimer = Reclaimer::new(1);
            let mut failed = false;
            while !failed {
                failed = reclaimer.step(&rig.pager, 32).unwrap().failure.is_some();
            }
            let report = rig.pager.report().unwrap();
            assert_eq!(
                report.holding.compressed_store.0, STORE,
                "{random}: {report:?}"
            );
            assert_eq!(report.measured.gauges.swapped.0, 0);
            rig.store.fail_writes(false);
            reclaim_all(&rig);
            let report = rig.pager.report().unwrap();
            assert_eq!(
                report.holding.compressed_store.0, STORE,
                "{random}: {report:?}"
            );
            assert_eq!(report.measured.gauges.taken_out().0, u64::from(PAGES));
            for n in (0..PAGES).rev() {
                assert!(rig.read(Gfn(n)) == compressible(n, random), "page {n}");
            }
            let report = rig.pager.report().unwrap();
            assert_eq!(report.holding.compressed_store.0, 0);
            assert_eq!(report.measured.counters.swap_in_pages, u64::from(PAGES));
            rig.pager.audit().unwrap();
            rig.finish().unwrap();
        }
    });
}

/// A VM that may use little gets its compressed pages out too, though the disk fails now and then.
#[test]
fn a_store_that_takes_too_much_goes_to_the_swap_file() {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    const PAGES: u32 = 1000;
    both_paths(|path| {
        let rig = Rig::unlimited(path, PAGES);
        (0..PAGES).for_each(|n| rig.write(Gfn(n), &compressible(n, 900)));
        reclaim_all(&rig);
        let before = rig.pager.report().unwrap();
        assert!(before.holding.compressed_store.0 > 40, "{before:?}");
        rig.pager.bound_store(Some(Pages(160)));
        // A failed write gives its pages back to the guest; they are taken again.
        rig.store.fail_writes(true);
        let failed = Reclaimer::new(2).step(&rig.pager, 32).unwrap();
        assert!(failed.failure.is_some() && failed.pages == 0);
        rig.pager.audit().unwrap();
        rig.store.fail_writes(false);
        reclaim_all(&rig);
        let after = rig.pager.report().unwrap();
        assert!(after.holding.compressed_store.0 <= 40, "{after:?}");
        assert_eq!(after.measured.gauges.taken_out().0, u64::from(PAGES));
        for n in (0..PAGES).rev() {
            assert!(rig.read(Gfn(n)) == compressible(n, 900), "page {n}");
        }
        rig.pager.audit().unwrap();
        rig.finish().unwrap();
    });
}

const SCRIPT_PAGES: u32 = 64;

/// Pages of the script that map frames at first; half of them are written then.
fn is_shared(n: u32) -> bool {
    n % 4 < 2
}

/// Shares, breaks, swaps and reads 64 pages, twice, all in one thread.
fn script(rig: &Rig) {
    let mut pool = Pool::new(SCRIPT_PAGES);
    let view = pool.view();
    let mut reclaimer = Reclaimer::new(1);
    let expected: Vec<[u8; PAGE_SIZE]> =
        (0..SCRIPT_PAGES).map(|n| unique(u64::from(n)).0).collect();
    let page_of = |n: u32, round: u32| match is_shared(n) && n % 4 == 1 {
        true => unique(u64::from(n + 1000 * round)).0,
        false => expected[n as usize],
    };
    (0..SCRIPT_PAGES).for_each(|n| rig.write(Gfn(n), &expected[n as usize]));
    for round in 1..3 {
        let mut candidates: Vec<_> = (0..SCRIPT_PAGES)
            .filter(|n| is_shared(*n))
            .map(|n| (Gfn(n), pool.lend(&rig.read(Gfn(n))).unwrap()))
            .collect();
        let done = merge(&rig.pager, &view, &mut candidates);
        pool.release(&done.rejected);
        let broken = (0..SCRIPT_PAGES).filter(|n| is_shared(*n) && n % 4 == 1);
        broken.for_each(|n| rig.write(Gfn(n), &page_of(n, round)));
        rig.pager.census().unwrap();
        pool.release(&rig.pager.take_released());
        // A failed write gives pages back: they are taken again, a bounded number of times.
        for _ in 0..8 {
            reclaimer.step(&rig.pager, 32).unwrap();
        }
        for n in 0..SCRIPT_PAGES {
            assert!(rig.read(Gfn(n)) == page_of(n, round), "page {n}");
        }
    }
}

fn start_script(rig: &Arc<Rig>) -> JoinHandle<()> {
    let rig = rig.clone();
    std::thread::spawn(move || script(&rig))
}

#[test]
fn any_failed_write_loses_nothing() {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    both_paths(|path| {
        for nth in 1.. {
            let rig = Arc::new(Rig::unlimited(path, SCRIPT_PAGES));
            rig.store.fail_write(nth);
            let script = start_script(&rig);
            common::wait_for("the script", DEADLINE, || script.is_finished());
            script.join().unwrap();
            assert!(rig.failure().is_none());
            rig.pager.audit().unwrap();
            if rig.store.failed_at().is_none() {
                println!("{}: {} writes failed in turn", path.name(), nth - 1);
                assert!(nth > 4, "the script writes too seldom to show anything");
                return;
            }
            let report = rig.pager.report().unwrap();
            assert!(
                report.measured.counters.swap_errors > 0,
                "write {nth} failed"
            );
        }
    });
}

/// Waits for the end of a VM whose read has failed; the reason must be known in time.
#[track_caller]
fn assert_ended_by_the_read(rig: &Rig) {
    let failure = rig.wait_failure(DEADLINE);
    let failed_at = rig.store.failed_at().expect("a read failed");
    let took = failure.at.duration_since(failed_at);
    assert!(took < REASON_WITHIN, "{took:?} until {failure:?}");
    assert!(failure.reason.contains("cannot read"), "{failure:?}");
}

/// A page that cannot be read is lost when it is touched, and not before: the guest gets no other,
/// and all others are what they were.
#[test]
fn any_lost_slot_ends_the_vm_with_its_reason() {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    both_paths(|path| {
        for nth in 1.. {
            let rig = Arc::new(Rig::unlimited(path, SCRIPT_PAGES));
            rig.store.lose_slot_at(nth);
            let script = start_script(&rig);
            common::wait_for("the script or its failure", DEADLINE, || {
                script.is_finished() || rig.failure().is_some()
            });
            if rig.store.failed_at().is_none() {
                script.join().unwrap();
                println!("{}: {} reads failed in turn", path.name(), nth - 1);
                assert!(nth > 20, "the script reads too seldom to show anything");
                return;
            }
            assert_ended_by_the_read(&rig);
            // Whoever touched the page waits for it until the process ends, and gets no other.
            assert!(!script.is_finished(), "read {nth} failed and a page came");
        }
    });
}

/// A read that fails or lies once ends the VM where the page was to be read alone; a page that was
/// read with others is read again.
fn once_wrong(what: &str, reason: &str, wrong: impl Fn(&Rig, u64)) {
    both_paths(|path| {
        let (mut ended, mut survived) = (0, 0);
        for nth in 1.. {
            let rig = Arc::new(Rig::unlimited(path, SCRIPT_PAGES));
            wrong(&rig, nth);
            let script = start_script(&rig);
            common::wait_for("the script or its failure", DEADLINE, || {
                script.is_finished() || rig.failure().is_some()
            });
            if let Some(failure) = rig.failure() {
                assert!(failure.reason.contains(reason), "{failure:?}");
                assert!(!script.is_finished(), "read {nth} {what} and a page came");
                ended += 1;
                continue;
            }
            script.join().unwrap();
            rig.pager.audit().unwrap();
            if rig.store.reads() < nth {
                break;
            }
            survived += 1;
        }
        println!(
            "{}: {ended} reads alone {what}, {survived} with others",
            path.name()
        );
        assert!(ended > 0 && survived > 0, "{ended} and {survived}");
    });
}

#[test]
fn a_run_that_fails_once_loses_nothing() {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    once_wrong("failed", "cannot read", |rig, nth| rig.store.fail_read(nth));
}

#[test]
fn a_run_that_is_wrong_once_loses_nothing() {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    once_wrong("lied", "checksum", |rig, nth| rig.store.lie_at(nth));
}

/// Pages of the tests below: a chunk.
const CHUNK: u32 = 512;

/// A guest whose chunk is all swapped, and which has touched so many pages of it, far apart.
fn comes_back(path: TakePath, touched: u32, credit: CreditBook) -> Rig {
    let rig = Rig::new(path, CHUNK, credit);
    rig.pager.allow_prefetch(Prefetch::Allowed);
    (0..CHUNK).for_each(|n| rig.write(Gfn(n), &unique(u64::from(n)).0));
    reclaim_all(&rig);
    for n in (0..touched).map(|n| n * 40) {
        assert!(rig.read(Gfn(n)) == unique(u64::from(n)).0, "{n}");
    }
    assert_eq!(rig.store.reads(), u64::from(touched), "each alone");
    rig
}

fn swapped(rig: &Rig) -> u64 {
    rig.pager.report().unwrap().measured.gauges.swapped.0
}

/// Prefetches until nothing is wanted; pages read.
fn prefetch_all(rig: &Rig) -> u32 {
    let (mut pages, mut steps) = (0, 0);
    while rig.pager.wants_prefetch() {
        pages += rig.pager.prefetch(&mut Vec::new()).unwrap();
        steps += 1;
        assert!(steps < 2 * CHUNK, "no end of it");
    }
    pages
}

/// A guest that comes back to a chunk here and there gets the rest of it in long reads.
#[test]
fn what_the_guest_comes_back_to_is_prefetched() {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    both_paths(|path| {
        let rig = comes_back(path, 7, CreditBook::unlimited());
        assert!(!rig.pager.wants_prefetch(), "a few touches may be all");
        rig.finish().unwrap();

        let rig = comes_back(path, 9, CreditBook::unlimited());
        assert!(rig.pager.drain_starved() || rig.pager.wants_prefetch());
        rig.pager.inflate(&[Gfn(100)]).unwrap();
        assert_eq!(prefetch_all(&rig), CHUNK - 9 - 1);
        assert_eq!(swapped(&rig), 0);
        for n in (0..CHUNK).filter(|n| *n != 100) {
            assert!(rig.read(Gfn(n)) == unique(u64::from(n)).0, "{n}");
        }
        rig.pager.audit().unwrap();
        rig.finish().unwrap();
    });
}

/// Nothing is prefetched where memory is short, nor beyond the credit; and what cannot be read, or
/// is not as it was written, stays where it is until it is touched.
#[test]
fn a_prefetch_harms_nobody() {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    both_paths(|path| {
        let rig = comes_back(path, 9, CreditBook::unlimited());
        rig.pager.allow_prefetch(Prefetch::Forbidden);
        assert_eq!(prefetch_all(&rig), 0);

        let rig = comes_back(path, 9, CreditBook::unlimited());
        rig.pager.with_credit(|credit| {
            let used = credit.used();
            credit.restart(used + Pages(300), Pages(16));
        });
        prefetch_all(&rig);
        let left = rig.pager.with_credit(|credit| credit.headroom());
        assert!(left > Pages(96) && left <= Pages(128), "{left} of 300");

        type Wrong = fn(&Rig, bool);
        let wrongs: [Wrong; 2] = [
            |rig, wrong| rig.store.fail_reads(wrong),
            |rig, wrong| rig.store.flip_bit(wrong),
        ];
        for wrong in wrongs {
            let rig = comes_back(path, 9, CreditBook::unlimited());
            wrong(&rig, true);
            prefetch_all(&rig);
            assert_eq!(swapped(&rig), u64::from(CHUNK) - 9);
            assert!(rig.failure().is_none());
            wrong(&rig, false);
            for n in 0..CHUNK {
                assert!(rig.read(Gfn(n)) == unique(u64::from(n)).0, "{n}");
            }
            rig.pager.audit().unwrap();
            rig.finish().unwrap();
        }
    });
}

/// Pages 0 to 31, all swapped, and the read that brings 8 to 15 back waits. The thread that touched
/// 8 comes with it.
fn while_read_ahead(path: TakePath, credit: CreditBook) -> (Arc<Rig>, JoinHandle<()>) {
    let rig = Arc::new(Rig::new(path, SCRIPT_PAGES, credit));
    (0..SCRIPT_PAGES).for_each(|n| rig.write(Gfn(n), &unique(u64::from(n)).0));
    reclaim_all(&rig);
    // The window opens: 0, 1, 2 and 3, 4 to 7.
    (0..8).for_each(|n| assert!(rig.read(Gfn(n)) == unique(u64::from(n)).0));
    assert_eq!((rig.store.reads(), rig.store.run_pages()), (8, 6));
    rig.store.hold_reads(true);
    let touch = start_touch(&rig, Gfn(8));
    common::wait_for("the read", DEADLINE, || rig.store.held_reads() == 1);
    (rig, touch)
}

/// Whoever waits for a page that was read ahead in vain gets it by a read of its own.
#[test]
fn a_run_that_fails_leaves_nobody_waiting() {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    both_paths(|path| {
        let (rig, touch) = while_read_ahead(path, CreditBook::unlimited());
        let (waiter, state) = start_waiter(&rig, Gfn(12));
        let waits = || std::fs::read_to_string(&state).is_ok_and(|text| text.contains(") S "));
        common::wait_for("the waiter to wait", DEADLINE, waits);
        // The first page of the run is the ninth read of all.
        rig.store.fail_read(rig.store.reads() + 1);
        rig.store.hold_reads(false);
        for touch in [touch, waiter] {
            common::wait_for("a page", DEADLINE, || touch.is_finished());
        }
        assert!(rig.failure().is_none());
        for n in 8..16 {
            assert!(rig.read(Gfn(n)) == unique(u64::from(n)).0, "{n}");
        }
        rig.pager.audit().unwrap();
    });
}

/// A touch in a thread of its own, and how to see whether it waits.
fn start_waiter(rig: &Arc<Rig>, gfn: Gfn) -> (JoinHandle<()>, String) {
    let rig = rig.clone();
    let (tell, told) = mpsc::channel();
    let touch = std::thread::spawn(move || {
        tell.send(rustix::thread::gettid()).unwrap();
        rig.read(gfn);
    });
    let thread = told.recv().unwrap().as_raw_nonzero();
    (touch, format!("/proc/self/task/{thread}/stat"))
}

/// What the guest gives up while it is being read ahead is dropped, and takes no memory; what it
/// touches meanwhile comes.
#[test]
fn what_dies_while_it_is_read_ahead_is_dropped() {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    both_paths(|path| {
        let (rig, touch) = while_read_ahead(path, CreditBook::unlimited());
        let ballooned: Vec<Gfn> = (9..11).map(Gfn).collect();
        rig.pager.inflate(&ballooned).unwrap();
        rig.pager.report_free(GfnRange::new(Gfn(12), 2)).unwrap();
        // Given back again before the read is done, and touched: nothing of its content is left.
        rig.pager.deflate(&ballooned[1..]);
        let touches = [Gfn(9), Gfn(10), Gfn(11)].map(|gfn| start_touch(&rig, gfn));
        // The page that was touched is not dead, whatever the guest says.
        rig.pager.report_free(GfnRange::one(Gfn(8))).unwrap();
        rig.store.hold_reads(false);
        for touch in touches.into_iter().chain([touch]) {
            common::wait_for("a page", DEADLINE, || touch.is_finished());
        }
        let gauges = rig.pager.report().unwrap().measured.gauges;
        assert_eq!(gauges.ballooned, Pages::ZERO, "both were touched");
        assert_eq!(gauges.swapped, Pages(u64::from(SCRIPT_PAGES) - 16));
        for n in [9, 10, 12, 13] {
            assert!(rig.read(Gfn(n)) == [0; PAGE_SIZE], "{n}");
        }
        for n in [8, 11, 14, 15, 16, 40] {
            assert!(rig.read(Gfn(n)) == unique(u64::from(n)).0, "{n}");
        }
        rig.pager.audit().unwrap();
    });
}

/// A page that the balloon took while it was read ahead stays with the balloon.
#[test]
fn what_the_balloon_takes_while_it_is_read_ahead_stays_there() {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    both_paths(|path| {
        let (rig, touch) = while_read_ahead(path, CreditBook::unlimited());
        let all: Vec<Gfn> = (8..16).map(Gfn).collect();
        rig.pager.inflate(&all).unwrap();
        rig.store.hold_reads(false);
        common::wait_for("the page", DEADLINE, || touch.is_finished());
        let report = rig.pager.report().unwrap();
        assert_eq!(report.measured.gauges.ballooned, Pages(7), "all but 8");
        assert_eq!(rig.pager.census().unwrap().anonymous, Pages(9));
        rig.pager.audit().unwrap();
    });
}

/// Pages that are being read ahead are in the account before they take memory, whatever is measured
/// meanwhile; and they never take the credit that the next fault needs.
#[test]
fn what_is_read_ahead_keeps_within_the_credit() {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    both_paths(|path| {
        let credit = CreditBook::new(Pages(200), Pages(16));
        let (rig, touch) = while_read_ahead(path, credit);
        let used = || {
            rig.pager.census().unwrap();
            rig.pager.with_credit(|credit| credit.used())
        };
        // Other tests of this process may give memory back while it is counted.
        let used = [(); 5].map(|()| used()).into_iter().max().unwrap();
        assert!(used >= Pages(16), "{used} used, 8 there and 8 on their way");
        rig.store.hold_reads(false);
        common::wait_for("the page", DEADLINE, || touch.is_finished());
        // The window is 32 pages now; only 6 may be mapped, of which each fault leaves half.
        rig.pager.with_credit(|credit| {
            let used = credit.used();
            credit.restart(used + Pages(6), Pages(16));
        });
        let mut left = Vec::new();
        for n in [16, 24, 40] {
            let touch = start_touch(&rig, Gfn(n));
            let what = "a page that the credit reaches to";
            common::wait_for(what, DEADLINE, || touch.is_finished());
            assert!(rig.read(Gfn(n)) == unique(u64::from(n)).0, "{n}");
            left.push(rig.pager.with_credit(|credit| credit.headroom().0));
        }
        assert!(left[0] >= 3 && left[1] >= 1, "{left:?} of 6 left");
        assert_eq!(rig.pager.starving_faults(), 0);
        rig.pager.audit().unwrap();
    });
}

/// A pager with half of its pages swapped, and half broken off their frames.
fn swapped_and_broken(path: TakePath) -> (Arc<Rig>, Vec<Gfn>) {
    let rig = Arc::new(Rig::unlimited(path, SCRIPT_PAGES));
    let (swapped, broken) = (0..SCRIPT_PAGES / 2, SCRIPT_PAGES / 2..SCRIPT_PAGES);
    swapped
        .clone()
        .for_each(|n| rig.write(Gfn(n), &unique(u64::from(n)).0));
    reclaim_all(&rig);
    let mut pool = Pool::new(SCRIPT_PAGES);
    let mut candidates = Vec::new();
    for n in broken.clone() {
        rig.write(Gfn(n), &stamped(n));
        candidates.push((Gfn(n), pool.lend(&stamped(n)).unwrap()));
    }
    merge_all(&rig.pager, &pool.view(), &candidates);
    broken.for_each(|n| rig.write(Gfn(n), &unique(u64::from(n)).0));
    let census = rig.pager.census().unwrap();
    assert_eq!(census.broken, u64::from(SCRIPT_PAGES / 2));
    (rig, swapped.map(Gfn).collect())
}

/// One step of the worker in a thread of its own, and how to see where it is.
fn start_step(rig: &Arc<Rig>) -> (JoinHandle<()>, String) {
    let rig = rig.clone();
    let (tell, told) = mpsc::channel();
    let step = std::thread::spawn(move || {
        tell.send(rustix::thread::gettid()).unwrap();
        // Whether it fails as well does not matter: the VM ends.
        let _ = Reclaimer::new(2).step(&rig.pager, 32);
    });
    let thread = told.recv().unwrap().as_raw_nonzero();
    (step, format!("/proc/self/task/{thread}/syscall"))
}

fn start_touch(rig: &Arc<Rig>, gfn: Gfn) -> JoinHandle<()> {
    let rig = rig.clone();
    std::thread::spawn(move || {
        rig.read(gfn);
    })
}

/// A disk that does not answer holds whoever needs a page from it, and nobody else: neither other
/// faults nor the worker, whose moves of mappings wait until an event was read.
#[test]
fn a_slow_read_holds_no_other_fault() {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    both_paths(|path| {
        let (rig, swapped) = swapped_and_broken(path);
        rig.store.hold_reads(true);
        let touches: Vec<_> = swapped[..READERS + 2]
            .iter()
            .map(|gfn| start_touch(&rig, *gfn))
            .collect();
        common::wait_for("the reads", DEADLINE, || rig.store.held_reads() == READERS);
        let ballooned = Gfn(SCRIPT_PAGES - 1);
        rig.pager.inflate(&[ballooned]).unwrap();
        let fill = start_touch(&rig, ballooned);
        common::wait_for("a first touch", DEADLINE, || fill.is_finished());
        let (step, _) = start_step(&rig);
        common::wait_for("the worker's step", DEADLINE, || step.is_finished());
        step.join().unwrap();
        assert!(touches.iter().all(|touch| !touch.is_finished()));
        assert_eq!(rig.store.held_reads(), READERS);
        rig.store.hold_reads(false);
        for touch in touches {
            common::wait_for("a page from disk", DEADLINE, || touch.is_finished());
        }
        for gfn in swapped {
            assert!(rig.read(gfn) == unique(u64::from(gfn.0)).0, "{gfn}");
        }
        rig.pager.audit().unwrap();
    });
}

/// The worker moves mappings, for which the kernel waits until a fault thread has read an event:
/// also when a page was lost before.
#[test]
fn the_worker_comes_back_after_a_failed_read() {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    both_paths(|path| {
        let (rig, swapped) = swapped_and_broken(path);
        rig.store.fail_reads(true);
        let touch = start_touch(&rig, swapped[3]);
        assert_ended_by_the_read(&rig);
        let (step, _) = start_step(&rig);
        let what = "the worker's step after a failure";
        common::wait_for(what, DEADLINE, || step.is_finished());
        step.join().unwrap();
        assert!(!touch.is_finished(), "a page came that cannot be read");
    });
}

/// The same, with a read that fails just while the worker waits in `mremap`.
#[test]
fn the_worker_comes_back_from_a_move_when_a_read_fails() {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    both_paths(|path| {
        let (rig, swapped) = swapped_and_broken(path);
        rig.store.hold_reads(true);
        rig.store.fail_reads(true);
        let touch = start_touch(&rig, swapped[3]);
        common::wait_for("the read", DEADLINE, || rig.store.held_reads() == 1);
        let (step, syscall) = start_step(&rig);
        let moves = || std::fs::read_to_string(&syscall).is_ok_and(|text| text.starts_with(MREMAP));
        let what = "the worker to wait in mremap, or not to need it";
        common::wait_for(what, DEADLINE, || moves() || step.is_finished());
        rig.store.hold_reads(false);
        assert_ended_by_the_read(&rig);
        let what = "the worker's step during a failure";
        common::wait_for(what, DEADLINE, || step.is_finished());
        step.join().unwrap();
        assert!(!touch.is_finished(), "a page came that cannot be read");
    });
}
