//! Guests as large and as scattered as they come: `vm.max_map_count`, and the search for a few pages
//! in a lot of memory.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
mod pager;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use common::Capability;
use pager::pool::Pool;
use pager::rig::{MAPPINGS_DEFAULT, Rig, merge_all};
use pager::{seed, stamped, take_paths, unique};
use tidemark::mem::reclaim::Reclaimer;
use tidemark::units::{CHUNK_PAGES, FrameId, Gfn, PAGE_SIZE, Pages};
use tidemark::words::TakePath;

/// Shared pages: 547 MiB, twice as many and more as there may be mappings.
const SHARED: u32 = 140_000;
/// The limit is the process's: one test at a time.
static MAPPINGS: Mutex<()> = Mutex::new(());

fn best_path() -> TakePath {
    *take_paths().last().expect("there is one at least")
}

fn mappings_max() -> u64 {
    let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
    text.trim().parse().unwrap()
}

/// A guest whose pages map frames in long runs; `None` after a visible line where the host allows so
/// many mappings that the test would show nothing.
fn shared_in_runs() -> Option<Rig> {
    common::require(&[Capability::Uffd])?;
    let allowed = mappings_max();
    if allowed > MAPPINGS_DEFAULT {
        common::skip(&format!(
            "vm.max_map_count is {allowed}, not {MAPPINGS_DEFAULT}"
        ));
        return None;
    }
    let rig = Rig::unlimited(best_path(), SHARED);
    let mut pool = Pool::new(SHARED);
    let view = pool.view();
    for start in (0..SHARED).step_by(512) {
        let chunk = start..SHARED.min(start + 512);
        let mut candidates = Vec::new();
        for n in chunk {
            let page = stamped(n);
            rig.write(Gfn(n), &page);
            assert_eq!(pool.lend(&page), Some(FrameId(n)));
            candidates.push((Gfn(n), FrameId(n)));
        }
        merge_all(&rig.pager, &view, &candidates);
    }
    Some(rig)
}

/// A ballooned page in the middle of a run of frames is a hole in a mapping.
#[test]
fn ballooning_every_other_shared_page_ends_well() {
    let _alone = MAPPINGS.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(rig) = shared_in_runs() else { return };
    let every_other: Vec<Gfn> = (0..SHARED).step_by(2).map(Gfn).collect();
    for gfns in every_other.chunks(256) {
        rig.pager.inflate(gfns).unwrap();
    }
    let report = rig.pager.report().unwrap();
    assert_eq!(
        report.measured.gauges.ballooned,
        Pages(u64::from(SHARED / 2))
    );
    rig.pager.deflate(&every_other);
    for n in 0..SHARED {
        let found = rig.read(Gfn(n));
        // A ballooned page may keep its content or lose it, and never gets another's.
        let dead = n % 2 == 0 && found == [0; PAGE_SIZE];
        assert!(dead || found == stamped(n), "page {n}");
    }
    for gfn in &every_other[..1000] {
        rig.write(*gfn, &stamped(gfn.0 + SHARED));
    }
    for n in 0..2000 {
        let number = if n % 2 == 0 { n + SHARED } else { n };
        assert!(rig.read(Gfn(n)) == stamped(number), "page {n}");
    }
    rig.pager.audit().unwrap();
    rig.finish().unwrap();
}

/// So is a page that was written, which made it the guest's own, and is swapped.
#[test]
fn swapping_every_other_shared_page_ends_well() {
    let _alone = MAPPINGS.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(rig) = shared_in_runs() else { return };
    let number = |n: u32| if n.is_multiple_of(2) { n + SHARED } else { n };
    for n in (0..SHARED).step_by(2) {
        rig.write(Gfn(n), &stamped(number(n)));
    }
    assert_eq!(rig.pager.census().unwrap().broken, u64::from(SHARED / 2));
    let mut reclaimer = Reclaimer::new(1);
    let mut out = 0;
    loop {
        let pages = reclaimer.step(&rig.pager, 32).unwrap().pages;
        if pages == 0 {
            break;
        }
        out += pages;
    }
    println!("{out} of {} pages went out", SHARED / 2);
    assert!(out > 10_000, "only {out} pages went out");
    for n in 0..SHARED {
        assert!(rig.read(Gfn(n)) == stamped(number(n)), "page {n}");
    }
    rig.pager.audit().unwrap();
    rig.finish().unwrap();
}

/// 8 GiB of zeros with eight pages among them that take memory.
#[test]
fn few_victims_in_much_memory_are_found() {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    const GIB: u32 = 1 << 18;
    /// Steps within which the pages are found, however little a step looks at: a chunk at least.
    const STEPS_MAX: u32 = 8 * GIB / CHUNK_PAGES;
    /// What a search that finds nothing again may take, far below reading all page tables.
    const AT_ONCE: Duration = Duration::from_millis(50);
    let seed = seed();
    let mut rng = fastrand::Rng::with_seed(seed);
    let rig = Rig::unlimited(best_path(), 8 * GIB);
    let ranges = rig.pager.ram().layout().ranges().to_vec();
    let gfns: Vec<Gfn> = ranges.iter().flat_map(|range| range.iter()).collect();
    // A read maps the zero page over the whole chunk; some chunks stay without memory.
    for chunk in gfns.chunks(CHUNK_PAGES as usize).skip(16) {
        rig.read(chunk[0]);
    }
    let mut reclaimer = Reclaimer::new(seed);
    let mut find = |gfns: &[Gfn]| {
        gfns.iter()
            .for_each(|gfn| rig.write(*gfn, &unique(seed ^ u64::from(gfn.0)).0));
        // Tells the pager that there is something, as the agent does in time.
        rig.pager.census().unwrap();
        let mut left = gfns.len();
        let mut steps = 0;
        while left > 0 {
            assert!(steps < STEPS_MAX, "seed {seed}: {left} pages are not found");
            left -= reclaimer.step(&rig.pager, 32).unwrap().pages as usize;
            steps += 1;
        }
        println!("{} pages were found in {steps} steps", gfns.len());
        // The first may have to look at all there is.
        assert_eq!(reclaimer.step(&rig.pager, 32).unwrap().pages, 0);
        // The quickest of a few: a busy machine may take the processor away from one.
        let took = (0..3).map(|_| {
            let start = Instant::now();
            assert_eq!(reclaimer.step(&rig.pager, 32).unwrap().pages, 0);
            start.elapsed()
        });
        let took = took.min().unwrap();
        assert!(took < AT_ONCE, "{took:?} to find nothing again");
    };
    let drawn: Vec<Gfn> = (0..8).map(|_| gfns[rng.usize(..gfns.len())]).collect();
    find(&drawn);
    // What changes afterwards is found as well: a write to a zero page, of which nobody is told.
    let other = gfns[rng.usize(..gfns.len())];
    find(&[other]);
    for gfn in drawn.into_iter().chain([other]) {
        let expected = unique(seed ^ u64::from(gfn.0)).0;
        assert!(rig.read(gfn) == expected, "seed {seed}: {gfn} is corrupt");
    }
    rig.finish().unwrap();
}
