use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::mem::reclaim::Reclaimer;
use crate::mem::test_guest::with_guest;
use crate::units::Pages;

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
