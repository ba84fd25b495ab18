//! A VM process that offers its memory to the kernel's merging of equal pages (KSM), as one does that
//! was started with `MemoryKSM=yes`: no page is lost. The setting is per process, hence a file of
//! its own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
mod pager;

use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use common::Capability;
use pager::interleave::{self, Plan};
use pager::os::{self, Ksm};
use pager::pool::KEY_SEED;
use pager::rig::Rig;
use pager::{both_paths, seed, stamped};
use tidemark::mem::reclaim::Reclaimer;
use tidemark::mem::share::Scanner;
use tidemark::units::{Gfn, PAGE_SIZE};

/// Pages merged are counted for the whole process: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());
/// Equal pages.
const PAGES: u32 = 64;
/// How long the kernel may take to merge them.
const MERGED_WITHIN: Duration = Duration::from_secs(30);

/// KSM at our disposal, or a visible skip.
fn ksm() -> Option<Ksm> {
    let offered = os::offer_memory_for_merging();
    let acquired = offered.and_then(|()| Ksm::acquire());
    acquired
        .inspect_err(|error| common::skip(&format!("cannot use KSM: {error}")))
        .ok()
}

/// Merges equal pages of the guest in the kernel; then `work` does what once took them for zero.
fn with_merged_pages(what: &str, work: impl Fn(&Rig)) {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    both_paths(|path| {
        let Some(ksm) = ksm() else { return };
        let rig = Rig::unlimited(path, PAGES);
        let page: [u8; PAGE_SIZE] = stamped(7);
        (0..PAGES).for_each(|gfn| rig.write(Gfn(gfn), &page));
        let before = Ksm::merged();
        ksm.start().unwrap();
        common::wait_for("the kernel to merge", MERGED_WITHIN, || {
            Ksm::merged() >= before + u64::from(PAGES) * 9 / 10
        });
        work(&rig);
        let lost: Vec<u32> = (0..PAGES)
            .filter(|gfn| rig.read(Gfn(*gfn)) != page)
            .collect();
        assert!(lost.is_empty(), "{what}, {path:?}: pages {lost:?} are lost");
        ksm.unmerge().unwrap();
        // Pages of its own again; what the worker could not take must not be lost to it for good.
        (0..PAGES).for_each(|gfn| rig.write(Gfn(gfn), &stamped(gfn)));
        for gfn in 0..PAGES {
            assert!(rig.read(Gfn(gfn)) == stamped(gfn));
        }
        rig.pager.end_sample().unwrap();
        rig.pager.audit().unwrap();
        rig.finish().unwrap();
    });
}

#[test]
fn merged_pages_survive_being_sampled() {
    with_merged_pages("sampled", |rig| {
        let gfns: Vec<Gfn> = (0..PAGES).map(Gfn).collect();
        rig.pager.begin_sample(&gfns).unwrap();
        rig.pager.touched_in_sample().unwrap();
        rig.pager.begin_sample(&gfns).unwrap();
    });
}

#[test]
fn merged_pages_survive_being_scanned_and_reclaimed() {
    with_merged_pages("scanned and reclaimed", |rig| {
        let mut scanner = Scanner::new(rig.pager.ram().layout(), KEY_SEED);
        let mut reclaimer = Reclaimer::new(1);
        for minute in 0..4 {
            // Two looks at all of it, at which no page has changed.
            let now = Duration::from_secs(60 * minute);
            let scanned = scanner.step(&rig.pager, PAGES, now).unwrap();
            assert_eq!(scanned.zeros, 0);
            reclaimer.step(&rig.pager, 32).unwrap();
            rig.pager.census().unwrap();
        }
    });
}

#[test]
fn every_byte_survives_merging_by_the_kernel() {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let seed = seed();
    both_paths(|path| {
        let Some(ksm) = ksm() else { return };
        let plan = Plan {
            path,
            seed,
            operations: 500,
            encrypted: false,
        };
        interleave::run(plan, move |_, end| {
            ksm.start().unwrap();
            let mut merged_most = 0;
            while !end.load(Ordering::Relaxed) {
                merged_most = merged_most.max(Ksm::merged());
                std::thread::sleep(Duration::from_millis(1));
            }
            // Books and batches are looked at afterwards, when the kernel holds no page.
            ksm.unmerge().unwrap();
            match merged_most {
                0 => common::note("the kernel merged nothing: nothing was shown"),
                pages => println!("{pages} pages were merged at a time"),
            }
        });
    });
}
