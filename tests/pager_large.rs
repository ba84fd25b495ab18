//! Large pages: who gets them, what splits them, and that no byte and no memory is lost with them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
mod pager;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use common::Capability::Uffd;
use common::{note, require, wait_for};
use pager::os::has_large_pages;
use pager::pool::Pool;
use pager::rig::{Rig, merge};
use pager::{take_paths, unique};
use tidemark::mem::credit::CreditBook;
use tidemark::mem::reclaim::Reclaimer;
use tidemark::mem::share::{Scanned, Scanner, WORTH_PAGES};
use tidemark::units::{CHUNK_PAGES, Gfn, GfnRange, Pages};
use tidemark::words::TakePath;

const CHUNKS: u32 = 16;
const LONG: Duration = Duration::from_secs(10);

/// The kernel's count of large pages is the process's: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn chunk(number: u32) -> GfnRange {
    GfnRange::new(Gfn(number * CHUNK_PAGES), CHUNK_PAGES)
}

fn page(gfn: Gfn) -> [u8; 4096] {
    unique(u64::from(gfn.0)).0
}

/// What a guest may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Granted {
    All,
    Only(Pages),
}

/// How chunks become large pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// A zeroed one is moved there.
    Moved,
    /// The same where the kernel keeps page tables, as before Linux 6.14.
    MovedAfresh,
    /// The kernel fills the chunk.
    Populated,
}

impl Way {
    const BY_MOVING: [Way; 2] = [Way::Moved, Way::MovedAfresh];
    const ALL: [Way; 3] = [Way::Moved, Way::MovedAfresh, Way::Populated];

    fn path(self) -> TakePath {
        match self {
            Way::Moved | Way::MovedAfresh => TakePath::Move,
            Way::Populated => TakePath::Copy,
        }
    }

    fn is_here(self) -> bool {
        let here = has_large_pages() && take_paths().contains(&self.path());
        if !here {
            note(&format!(
                "{self:?}: no large pages here, or no moving: not tested"
            ));
        }
        here
    }

    /// The first chunk of memory that is filled in order that is large.
    fn first_large(self) -> u32 {
        match self {
            // The touch of the one before was the first that wanted a large page.
            Way::Moved | Way::MovedAfresh => 2,
            Way::Populated => 1,
        }
    }

    fn rig(self, granted: Granted) -> Rig {
        let credit = match granted {
            Granted::All => CreditBook::unlimited(),
            Granted::Only(pages) => CreditBook::new(pages, Pages(256)),
        };
        let rig = Rig::new(self.path(), CHUNKS * CHUNK_PAGES, credit);
        let space = rig.pager.space();
        space.assume_tables_stay(self == Way::MovedAfresh);
        rig.pager.set_plenty(true).unwrap();
        rig
    }
}

/// Runs `test` with a guest that has filled all its memory in order, so slowly that there was a large
/// page for each chunk that wanted one, if it may hold all; nowhere, where there are no large pages to be
/// had.
fn filled(ways: &[Way], granted: Granted, test: impl Fn(Way, Rig)) {
    let _alone = alone();
    if require(&[Uffd]).is_none() {
        return;
    }
    for &way in ways.iter().filter(|way| way.is_here()) {
        let rig = way.rig(granted);
        let end = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // As the VM process's worker.
            scope.spawn(|| {
                while !end.load(Ordering::Relaxed) {
                    rig.pager.measure().unwrap();
                    rig.pager.retry_starving().unwrap();
                    std::thread::yield_now();
                }
            });
            // Also where the test fails: the scope waits for the thread.
            let _guard = End(&end);
            fill(&rig, way, granted);
        });
        test(way, rig);
    }
}

/// Ends the worker.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn fill(rig: &Rig, way: Way, granted: Granted) {
    for number in 0..CHUNKS {
        let has_stock = || rig.pager.stock_expires().is_some();
        let from_stock = way != Way::Populated && number >= way.first_large();
        if from_stock && granted == Granted::All {
            wait_for("a large page in stock", LONG, has_stock);
        }
        for gfn in chunk(number).iter() {
            rig.write(gfn, &page(gfn));
        }
    }
}

fn large(rig: &Rig) -> Pages {
    rig.pager.report().unwrap().measured.gauges.large
}

fn zero_pages(rig: &Rig) -> Pages {
    rig.pager.report().unwrap().measured.gauges.zero
}

/// Compares all pages with what was written, but those that `but` names.
fn compare(rig: &Rig, but: impl Fn(Gfn) -> bool) {
    for gfn in (0..CHUNKS).flat_map(|number| chunk(number).iter()) {
        assert!(but(gfn) || rig.read(gfn) == page(gfn), "{gfn} is corrupt");
    }
}

/// Memory of this process in large pages, as the kernel counts it.
fn anon_huge() -> Pages {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = text.lines().find(|line| line.starts_with("AnonHugePages:"));
    let kib: u64 = line
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    Pages::in_bytes(kib << 10)
}

/// Drops the stock, also what a fault thread is about to put there.
fn empty_stock(rig: &Rig) {
    rig.pager.set_plenty(false).unwrap();
    wait_for("an empty stock", LONG, || {
        rig.pager.drop_stock().unwrap();
        rig.pager.stock() == Pages::ZERO
    });
    rig.pager.set_plenty(true).unwrap();
}

#[test]
fn memory_filled_in_order_is_large() {
    filled(&Way::ALL, Granted::All, |way, rig| {
        let chunks = CHUNKS - way.first_large();
        assert_eq!(
            large(&rig),
            Pages(u64::from(chunks * CHUNK_PAGES)),
            "{way:?}"
        );
        assert!(mappings(&rig) <= 1, "{way:?}");
        assert!(anon_huge() >= large(&rig), "{:?}", anon_huge());
        rig.pager.audit().unwrap();
        compare(&rig, |_| false);
        rig.finish().unwrap();
    });
}

#[test]
fn scarce_memory_is_not() {
    filled(&Way::ALL, Granted::All, |_, rig| {
        rig.pager.set_plenty(false).unwrap();
        assert_eq!(rig.pager.stock_expires(), None, "the stock is dropped");
        let before = large(&rig);
        for number in 0..CHUNKS {
            rig.pager.report_free(chunk(number)).unwrap();
        }
        assert_eq!(large(&rig), Pages::ZERO, "{before:?} before");
        for gfn in (0..CHUNKS).flat_map(|number| chunk(number).iter()) {
            rig.write(gfn, &page(gfn));
        }
        assert_eq!(large(&rig), Pages::ZERO);
        compare(&rig, |_| false);
        rig.finish().unwrap();
    });
}

/// What is dropped of a large page would not be free: the kernel keeps it whole until memory is
/// short.
#[test]
fn a_large_page_is_split_before_a_part_is_dropped() {
    filled(&Way::ALL, Granted::All, |_, rig| {
        empty_stock(&rig);
        let before = large(&rig);
        assert!(before > Pages::ZERO);
        let dead = |gfn: Gfn| gfn.0 % 8 == 3;
        for number in 0..CHUNKS {
            let gfns: Vec<Gfn> = chunk(number).iter().filter(|gfn| dead(*gfn)).collect();
            rig.pager.inflate(&gfns).unwrap();
        }
        let counters = rig.pager.report().unwrap().measured.counters;
        assert_eq!((large(&rig), counters.split_refusals), (Pages::ZERO, 0));
        assert_eq!(anon_huge(), Pages::ZERO, "{before:?} before");
        rig.pager.audit().unwrap();
        compare(&rig, dead);
        rig.finish().unwrap();
    });
}

/// A guest that sleeps has all its large pages out while it is sampled: they are shared all the same.
#[test]
fn what_is_sampled_is_scanned_and_merged() {
    filled(&Way::BY_MOVING, Granted::All, |_, rig| {
        let last = chunk(CHUNKS - 1);
        let zero = GfnRange::new(last.start, WORTH_PAGES);
        let same = Gfn(zero.end().0 + 70);
        for gfn in zero.iter() {
            rig.write(gfn, &[0; 4096]);
        }
        let drawn = [Gfn(last.start.0 + 1), Gfn((CHUNKS - 2) * CHUNK_PAGES)];
        assert_eq!(rig.pager.begin_sample(&drawn).unwrap(), 2);
        let mut scanner = Scanner::new(rig.pager.ram().layout(), 3);
        assert_eq!(look(&rig, &mut scanner, 0).offers.len(), 0, "at one look");
        let second = look(&rig, &mut scanner, 2);
        assert!(second.offers.iter().any(|(gfn, _)| *gfn == same));
        // The kernel finds some of them itself when it splits the page.
        look(&rig, &mut scanner, 2);
        assert_eq!(zero_pages(&rig), Pages(u64::from(WORTH_PAGES)));
        // The other large page has nothing that is zero, and is still out.
        let other = Gfn((CHUNKS - 2) * CHUNK_PAGES + 5);
        assert_eq!(rig.pager.copies(&[other]).unwrap().len(), 1);
        rig.pager.set_plenty(false).unwrap();
        let mut pool = Pool::new(4);
        let view = pool.view();
        let frame = pool.lend(&page(other)).unwrap();
        assert_eq!(merge(&rig.pager, &view, &mut [(other, frame)]).pages, 1);
        rig.pager.end_sample().unwrap();
        rig.pager.audit().unwrap();
        compare(&rig, |gfn| zero.contains(gfn));
        assert!(rig.read(zero.start) == [0; 4096]);
        rig.finish().unwrap();
    });
}

/// Looks at all that is due so many seconds after the scan began.
fn look(rig: &Rig, scanner: &mut Scanner, seconds: u64) -> Scanned {
    let now = Duration::from_secs(seconds);
    scanner.step(&rig.pager, CHUNKS * CHUNK_PAGES, now).unwrap()
}

/// While memory is plenty a large page serves the guest better than a few pages saved: what could be
/// saved is noted, and saved when a quarter could be, or when memory is not plenty any more.
#[test]
fn a_large_page_is_split_for_a_quarter_of_it_or_when_memory_gets_scarce() {
    filled(&Way::ALL, Granted::All, |_, rig| {
        empty_stock(&rig);
        let (rare, ripe) = (chunk(CHUNKS - 1), chunk(CHUNKS - 2));
        let half = WORTH_PAGES / 2;
        let zeros = [
            GfnRange::new(rare.start, half),
            GfnRange::new(ripe.start, half),
        ];
        for gfn in zeros.iter().flat_map(|range| range.iter()) {
            rig.write(gfn, &[0; 4096]);
        }
        let before = large(&rig);
        let mut scanner = Scanner::new(rig.pager.ram().layout(), 3);
        look(&rig, &mut scanner, 0);
        look(&rig, &mut scanner, 2);
        assert_eq!((zero_pages(&rig), large(&rig)), (Pages::ZERO, before));
        // One page fewer than a quarter in one, a quarter in the other.
        let mut pool = Pool::new(2 * CHUNK_PAGES);
        let view = pool.view();
        let mut lend = |gfn: Gfn| (gfn, pool.lend(&page(gfn)).unwrap());
        let few = GfnRange::new(zeros[0].end(), half - 1);
        let enough = GfnRange::new(zeros[1].end(), half);
        let mut candidates: Vec<_> = few.iter().chain(enough.iter()).map(&mut lend).collect();
        let merged = merge(&rig.pager, &view, &mut candidates);
        assert_eq!(
            (merged.pages, large(&rig)),
            (1, before - Pages(512)),
            "the last of the quarter"
        );
        assert_eq!(merged.rejected.len(), 2 * half as usize - 2);
        pool.release(&merged.rejected);
        // What is ripe is due at once, and what is known of the other is not offered again.
        let third = look(&rig, &mut scanner, 2);
        assert_eq!(zero_pages(&rig), Pages(u64::from(half)));
        let offered = |found: &Scanned, range: GfnRange| {
            let offers = found.offers.iter();
            offers.filter(|(gfn, _)| range.contains(*gfn)).count()
        };
        assert_eq!(offered(&third, enough), half as usize - 1);
        let later = look(&rig, &mut scanner, 4);
        assert_eq!(offered(&later, few), 0);
        assert!(
            offered(&later, rare) > 0,
            "what is not known to be shareable is"
        );
        // A page that was written is another page.
        rig.write(few.start, &unique(7).0);
        look(&rig, &mut scanner, 8);
        assert_eq!(large(&rig), before - Pages(512));
        rig.pager.set_plenty(false).unwrap();
        let scarce = look(&rig, &mut scanner, 8);
        assert_eq!(zero_pages(&rig), Pages(u64::from(2 * half)));
        assert_eq!(offered(&scarce, few), half as usize - 1);
        assert_eq!(large(&rig), before - Pages(2 * 512));
        rig.pager.audit().unwrap();
        compare(&rig, |gfn| {
            gfn == few.start || zeros.iter().any(|range| range.contains(gfn))
        });
        assert!(rig.read(few.start) == unique(7).0);
        rig.finish().unwrap();
    });
}

/// A large page that is sampled is out of the guest, and would be out of reach.
#[test]
fn what_is_sampled_goes_to_swap_when_memory_is_scarce() {
    filled(&Way::BY_MOVING, Granted::All, |_, rig| {
        let drawn: Vec<Gfn> = (0..CHUNKS)
            .map(|number| Gfn(number * CHUNK_PAGES + 9))
            .collect();
        assert_eq!(rig.pager.begin_sample(&drawn).unwrap(), CHUNKS);
        let (large, other) = (drawn[CHUNKS as usize - 1], drawn[CHUNKS as usize - 2]);
        assert!(rig.read(large) == page(large));
        rig.pager.set_plenty(false).unwrap();
        rig.pager.audit().unwrap();
        // It goes on, with the pages that were drawn.
        let beside = Gfn(other.0 + 1);
        assert!(rig.read(beside) == page(beside));
        assert_eq!(rig.pager.touched_in_sample().unwrap(), 1);
        assert!(rig.read(other) == page(other));
        assert_eq!(rig.pager.touched_in_sample().unwrap(), 2);
        let mut reclaimer = Reclaimer::new(7);
        let mut taken = 0;
        while taken < CHUNKS * CHUNK_PAGES - CHUNKS {
            let pages = reclaimer.step(&rig.pager, 32).unwrap().pages;
            assert!(pages > 0, "{taken} pages taken, and no more");
            taken += pages;
        }
        compare(&rig, |_| false);
        rig.finish().unwrap();
    });
}

#[test]
fn a_large_page_goes_to_swap_a_part_at_a_time() {
    filled(&Way::ALL, Granted::All, |_, rig| {
        let mut reclaimer = Reclaimer::new(7);
        let mut taken = 0;
        while taken < CHUNKS * CHUNK_PAGES {
            taken += reclaimer.step(&rig.pager, 32).unwrap().pages;
        }
        rig.pager.audit().unwrap();
        compare(&rig, |_| false);
        rig.finish().unwrap();
    });
}

/// Ten samples: the large pages that were touched count, and all are as large as before.
#[test]
fn a_sample_splits_nothing() {
    filled(&Way::BY_MOVING, Granted::All, |_, rig| {
        empty_stock(&rig);
        let (before, huge) = (large(&rig), anon_huge());
        assert_eq!(huge, before);
        for round in 0..10 {
            // Two pages of each chunk, so that a large one is drawn twice.
            let drawn: Vec<Gfn> = (0..CHUNKS)
                .flat_map(|number| [round, 300].map(|place| Gfn(number * CHUNK_PAGES + place)))
                .collect();
            assert_eq!(rig.pager.begin_sample(&drawn).unwrap(), 2 * CHUNKS);
            rig.pager.audit().unwrap();
            // A page that was not drawn, in the last chunk, which is large, and one in the first.
            let last = Gfn((CHUNKS - 1) * CHUNK_PAGES + 411);
            assert!(rig.read(last) == page(last));
            assert_eq!(rig.pager.touched_in_sample().unwrap(), 2);
            let first = Gfn(300);
            assert!(rig.read(first) == page(first));
            assert_eq!(rig.pager.touched_in_sample().unwrap(), 3);
        }
        // The guest frees one that is out, and a part of another.
        rig.pager.report_free(chunk(CHUNKS - 2)).unwrap();
        let part = GfnRange::new(chunk(CHUNKS - 3).start, 5);
        rig.pager.report_free(part).unwrap();
        rig.pager.end_sample().unwrap();
        assert_eq!(large(&rig) + Pages(2 * u64::from(CHUNK_PAGES)), before);
        assert_eq!(anon_huge() + Pages(2 * u64::from(CHUNK_PAGES)), huge);
        rig.pager.audit().unwrap();
        compare(&rig, |gfn| {
            chunk(CHUNKS - 2).contains(gfn) || part.contains(gfn)
        });
        rig.finish().unwrap();
    });
}

/// What is in stock is used, as the account sees it, and is not when nobody wants it any more.
#[test]
fn the_stock_is_charged_and_freed() {
    filled(&Way::BY_MOVING, Granted::All, |_, rig| {
        wait_for("a stock", LONG, || rig.pager.stock_expires().is_some());
        let used = || {
            rig.pager.measure().unwrap();
            rig.pager.with_credit(|credit| credit.used())
        };
        rig.pager.census().unwrap();
        let with_stock = used();
        rig.pager.drop_stock().unwrap();
        assert_eq!(rig.pager.stock_expires(), None);
        let freed = with_stock.saturating_sub(used());
        // The kernel's count is kept per CPU, a little off.
        assert!(freed.0 >= u64::from(CHUNK_PAGES) - 128, "{freed:?}");
        rig.finish().unwrap();
    });
}

/// A guest with little credit gets what the credit covers, and large pages never beyond it.
#[test]
fn large_pages_keep_within_the_credit() {
    let granted = Pages(u64::from((CHUNKS + 1) * CHUNK_PAGES) + 400);
    filled(&Way::ALL, Granted::Only(granted), |_, rig| {
        rig.pager.measure().unwrap();
        let used = rig.pager.with_credit(|credit| credit.used());
        assert!(used <= granted + Pages(128), "{used:?} of {granted:?}");
        compare(&rig, |_| false);
        rig.finish().unwrap();
    });
}

/// Kernel mappings that begin in the guest's memory; one that begins before may reach into it.
fn mappings(rig: &Rig) -> usize {
    let ram = rig.pager.ram();
    let start = ram.hva(Gfn(0));
    let end = start + (CHUNKS * CHUNK_PAGES) as usize * 4096;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let starts = maps.lines().filter_map(|line| {
        let (start, _) = line.split_once('-')?;
        usize::from_str_radix(start, 16).ok()
    });
    starts.filter(|at| (start..end).contains(at)).count()
}

/// While a chunk is mapped afresh, or is not registered, the kernel serves whoever touches it: what comes
/// of that is the guest's, is charged, and is not lost.
#[test]
fn vcpus_that_touch_one_chunk_meet_no_zeros_but_the_first() {
    const VCPUS: u32 = 3;
    let _alone = alone();
    if require(&[Uffd]).is_none() {
        return;
    }
    for way in Way::ALL.into_iter().filter(|way| way.is_here()) {
        let rig = way.rig(Granted::All);
        for round in 0..8 {
            std::thread::scope(|scope| {
                for vcpu in 0..VCPUS {
                    let rig = &rig;
                    scope.spawn(move || fill_a_part(rig, vcpu, VCPUS));
                }
            });
            compare(&rig, |_| false);
            rig.pager.audit().unwrap();
            let census = rig.pager.census().unwrap();
            let all = Pages(u64::from(CHUNKS * CHUNK_PAGES));
            assert_eq!(census.anonymous, all, "{way:?}");
            // A chunk that is touched while it is mapped afresh stays apart.
            let most = 1 + 2 * CHUNKS as usize;
            assert!(mappings(&rig) <= most, "{way:?}, round {round}");
            for number in 0..CHUNKS {
                rig.pager.report_free(chunk(number)).unwrap();
            }
        }
        let counters = rig.pager.report().unwrap().measured.counters;
        assert!(counters.large_fills > 0, "{way:?}");
        // Until it is mapped afresh again by one that is alone.
        (0..CHUNKS * CHUNK_PAGES).for_each(|gfn| rig.write(Gfn(gfn), &page(Gfn(gfn))));
        println!(
            "{way:?}: {} large fills, {} mappings",
            counters.large_fills,
            mappings(&rig)
        );
        rig.finish().unwrap();
    }
}

/// Writes every `of`-th page in order, and reads each a little later.
fn fill_a_part(rig: &Rig, vcpu: u32, of: u32) {
    let mine = || (vcpu..CHUNKS * CHUNK_PAGES).step_by(of as usize).map(Gfn);
    for (gfn, before) in mine().zip(std::iter::repeat_n(None, 7).chain(mine().map(Some))) {
        rig.write(gfn, &page(gfn));
        let is_lost = |gfn| rig.read(gfn) != page(gfn);
        assert!(!before.is_some_and(is_lost), "{before:?} is lost");
    }
}

/// Where a part of a large page must go, it is a part of the coldest, and all of that before another.
#[test]
fn the_coldest_is_split_first() {
    filled(&Way::BY_MOVING, Granted::All, |way, rig| {
        empty_stock(&rig);
        let first = way.first_large();
        let drawn: Vec<Gfn> = (first..CHUNKS).map(|number| chunk(number).start).collect();
        // In a second sample all but two are touched, in the first all.
        for cold in [0, 2] {
            let sampled = rig.pager.begin_sample(&drawn).unwrap();
            assert_eq!(sampled, CHUNKS - first);
            for gfn in &drawn[cold..] {
                assert!(rig.read(*gfn) == page(*gfn));
            }
        }
        rig.pager.end_sample().unwrap();
        let before = large(&rig);
        rig.pager.set_plenty(false).unwrap();
        let mut reclaimer = Reclaimer::new(7);
        let mut taken = 0;
        let is_large = |rig: &Rig, gfn: Gfn| {
            let range = GfnRange::new(gfn, CHUNK_PAGES);
            rig.pager.space().is_large(range).unwrap() == Some(true)
        };
        let cold_large = |rig: &Rig| drawn[..2].iter().filter(|gfn| is_large(rig, **gfn)).count();
        while cold_large(&rig) > 0 {
            taken += reclaimer.step(&rig.pager, 32).unwrap().pages;
            let split = (before - large(&rig)).0 / u64::from(CHUNK_PAGES);
            assert_eq!(
                cold_large(&rig) as u64 + split,
                2,
                "{way:?}: after {taken} pages"
            );
        }
        assert!(taken > 0, "{way:?}");
        compare(&rig, |_| false);
        rig.finish().unwrap();
    });
}

/// Where a large page cannot be taken out whole, a sample takes it for touched and leaves it alone.
#[test]
fn a_sample_leaves_alone_what_it_cannot_take_whole() {
    filled(&[Way::Populated], Granted::All, |_, rig| {
        let before = (large(&rig), anon_huge());
        let drawn: Vec<Gfn> = (0..CHUNKS).map(|number| chunk(number).start).collect();
        assert_eq!(rig.pager.begin_sample(&drawn).unwrap(), CHUNKS);
        assert_eq!(rig.pager.touched_in_sample().unwrap(), CHUNKS - 1);
        rig.pager.end_sample().unwrap();
        assert_eq!((large(&rig), anon_huge()), before);
        compare(&rig, |_| false);
        rig.finish().unwrap();
    });
}
