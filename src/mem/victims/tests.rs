use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::mem::reclaim::Reclaimer;
use crate::mem::share::merge;
use crate::mem::test_guest::with_guest;
use crate::sys::pool_view::PoolView;
use crate::units::{FrameId, PAGE_SIZE, Pages};

/// A guest of 8 GiB has read all of its memory and written eight pages. They are found, no hold of
/// the lock looks at more than a chunk or reads the page tables twice, and once they are gone the
/// search is not repeated before something changes.
#[test]
fn the_search_is_bounded_and_ends() {
    with_guest(Pages::mib(8192), |pager| {
        let memory = pager.ram().memory();
        let layout = pager.ram().layout();
        let mut walk = Walk::from(Gfn(0));
        loop {
            let (chunk, last) = walk.advance(layout, HOLD_PAGES);
            let byte: u8 = memory.read_obj(GuestAddress(chunk.start.gpa())).unwrap();
            assert_eq!(byte, 0);
            if last {
                break;
            }
        }
        let size = layout.size().0;
        for index in 0..8 {
            let gfn = layout.nth(index * (size / 8) + 77);
            let gpa = GuestAddress(gfn.gpa());
            let noise: Vec<u8> = (0..4096u32).map(|at| (at * at % 251) as u8).collect();
            memory.write_slice(&noise, gpa).unwrap();
        }
        pager.memory(Cause::Swap).books.hold = crate::mem::memory::Hold::default();
        let mut reclaimer = Reclaimer::new(1);
        let mut found = 0;
        let mut steps = 0;
        let chunks = size / u64::from(HOLD_PAGES);
        while found < 8 {
            found += reclaimer.step(pager, 32).unwrap().pages;
            steps += 1;
            assert!(
                steps <= 2 * chunks / u64::from(CHUNKS_A_STEP) + 2,
                "{found} found"
            );
        }
        while !reclaimer.step(pager, 32).unwrap().barren {
            steps += 1;
            assert!(
                steps <= 4 * chunks / u64::from(CHUNKS_A_STEP) + 4,
                "no end is seen"
            );
        }
        let most = pager.memory(Cause::Swap).books.hold;
        assert!(most.pages_most <= HOLD_PAGES, "{most:?}");
        assert!(most.reads_most == 1, "{most:?}");

        // Nothing has changed: nothing is looked at.
        pager.memory(Cause::Swap).books.hold = crate::mem::memory::Hold::default();
        assert!(reclaimer.step(pager, 32).unwrap().barren);
        assert_eq!(pager.memory(Cause::Swap).books.hold.pages_most, 0);
        // One page more is found again.
        memory
            .write_slice(&[7; 3000], GuestAddress(layout.nth(size / 2).gpa()))
            .unwrap();
        pager.measure().unwrap();
        pager.census().unwrap();
        found = 0;
        for _ in 0..=2 * chunks / u64::from(CHUNKS_A_STEP) {
            found += reclaimer.step(pager, 32).unwrap().pages;
        }
        assert_eq!(found, 1);
    });
}

const KEY_SEED: u64 = 3;

/// Every second cluster holds one page over and over, the others noise. What is drawn is offered
/// ahead; what is merged until its turn comes is left alone, and the noise goes.
#[test]
fn victims_that_others_have_are_shared_instead() {
    with_guest(Pages::mib(32), |pager| {
        let layout = pager.ram().layout();
        let common = |gfn: Gfn| (gfn.0 / CLUSTER_PAGES).is_multiple_of(2);
        let page = |seed: u32| {
            let mut page = [0; PAGE_SIZE];
            fastrand::Rng::with_seed(u64::from(seed)).fill(&mut page);
            page
        };
        for gfn in layout.ranges()[0].iter() {
            let content = page(if common(gfn) { u32::MAX } else { gfn.0 });
            let at = GuestAddress(gfn.gpa());
            pager.ram().memory().write_slice(&content, at).unwrap();
        }
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = File::from(rustix::fs::memfd_create("pool", flags).unwrap());
        file.write_all_at(&page(u32::MAX), 0).unwrap();
        let pool = PoolView::new(file.into(), 1);

        let mut search = Search::new(1);
        search.offer_with(Some(KEY_SEED));
        let first = search.step(pager, 1).unwrap();
        assert_eq!(first.count(), 1, "nothing waits for an answer");
        let offers = search.take_offers();
        let drawn: HashSet<u32> = search.ahead.iter().map(|drawn| drawn.start.0).collect();
        let offered: HashSet<Gfn> = offers.iter().map(|(gfn, _)| *gfn).collect();
        assert_eq!(offered.len(), offers.len(), "each once");
        // The first is the one that was taken.
        let clusters = (drawn.len()..=drawn.len() + 1).map(|count| count * CLUSTER_PAGES as usize);
        assert!(clusters.into_iter().any(|pages| pages == offers.len()));
        let key = key_of(&page(u32::MAX), KEY_SEED);
        assert!(offers.iter().all(|(gfn, of)| (*of == key) == common(*gfn)));
        drop(first);
        pager.memory(Cause::Swap).settle_stage().unwrap();

        let known = offers.iter().filter(|(_, of)| *of == key);
        let mut candidates: Vec<_> = known.map(|(gfn, _)| (*gfn, FrameId(0))).collect();
        let merged = merge(pager, &pool, &mut candidates).unwrap();
        assert_eq!(merged.pages as usize, candidates.len());
        let ahead: Vec<GfnRange> = search.ahead.iter().copied().collect();
        for cluster in ahead {
            let mut victims = Victims::default();
            assert_eq!(search.next_cluster(pager).unwrap(), cluster);
            take_from(
                pager,
                Which::Own,
                cluster,
                HOLD_PAGES as usize,
                &mut victims,
            )
            .unwrap();
            assert!(victims.taken.iter().all(|taken| !common(taken.gfn())));
            drop(victims);
            pager.memory(Cause::Swap).settle_stage().unwrap();
        }
        // After so many rounds through all of memory all of it may be offered anew, and not before.
        let mut times: HashMap<Gfn, u64> = HashMap::new();
        let draws = layout.size().0 / u64::from(CLUSTER_PAGES) * OFFER_ROUNDS * 2;
        for _ in 0..draws {
            search.next_cluster(pager).unwrap();
            let offers = search.take_offers();
            offers
                .iter()
                .for_each(|(gfn, _)| *times.entry(*gfn).or_default() += 1);
        }
        assert!(!times.is_empty() && times.values().all(|times| *times <= 3));
        // Nobody hears any more: what was drawn goes, and nothing is offered.
        search.take_offers();
        search.offer_with(None);
        for _ in 0..2 * AHEAD {
            search.next_cluster(pager).unwrap();
        }
        assert_eq!(search.take_offers(), []);
        pager.audit().unwrap();
    });
}
