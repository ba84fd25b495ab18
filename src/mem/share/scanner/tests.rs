use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::mem::share::chunks::SLICE_PAGES;
use crate::mem::test_guest::with_guest;
use crate::units::{CHUNK_PAGES, PAGE_SIZE, Pages};

const SEED: u64 = 7;
const ALL: u32 = u32::MAX;

fn write(pager: &Pager, gfn: u32, byte: u8) {
    let at = GuestAddress(Gfn(gfn).gpa());
    let memory = pager.ram().memory();
    memory.write_slice(&[byte; PAGE_SIZE], at).unwrap();
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn offered(found: &Scanned) -> Vec<u32> {
    found.offers.iter().map(|(gfn, _)| gfn.0).collect()
}

#[test]
fn a_page_is_offered_when_it_was_the_same_at_two_looks() {
    with_guest(Pages::mib(2), |pager| {
        (0..4).for_each(|gfn| write(pager, gfn, 1));
        let mut scanner = Scanner::new(pager.ram().layout(), SEED);
        let first = scanner.step(pager, ALL, at(0)).unwrap();
        assert_eq!((offered(&first), first.zeros), (vec![], 0));
        assert_eq!(scanner.next_look(), at(1));
        // Not due: nothing is looked at.
        assert_eq!(scanner.step(pager, ALL, at(0)).unwrap().pages, 0);
        write(pager, 2, 2);
        let second = scanner.step(pager, ALL, at(1)).unwrap();
        assert_eq!(offered(&second), [0, 1, 3]);
        let key = key_of(&[1; PAGE_SIZE], SEED);
        assert!(second.offers.iter().all(|(_, offered)| *offered == key));
        // It stays offered while it stays; what changed follows a look later.
        let third = scanner.step(pager, ALL, at(60)).unwrap();
        assert_eq!(offered(&third), [0, 1, 2, 3]);
        pager.audit().unwrap();
    });
}

#[test]
fn a_zero_page_is_dropped_when_it_was_zero_at_two_looks() {
    with_guest(Pages::mib(2), |pager| {
        for gfn in 0..6 {
            write(pager, gfn, 1);
            write(pager, gfn, u8::from(gfn % 2 == 1));
        }
        let mut scanner = Scanner::new(pager.ram().layout(), SEED);
        let first = scanner.step(pager, ALL, at(0)).unwrap();
        assert_eq!((first.zeros, first.offers.len()), (0, 0));
        // One of them is written between two looks, and zero again.
        write(pager, 2, 1);
        let second = scanner.step(pager, ALL, at(1)).unwrap();
        assert_eq!((second.zeros, offered(&second)), (2, vec![1, 3, 5]));
        write(pager, 2, 0);
        assert_eq!(scanner.step(pager, ALL, at(60)).unwrap().zeros, 0);
        assert_eq!(scanner.step(pager, ALL, at(120)).unwrap().zeros, 1);
        assert_eq!(pager.report().unwrap().measured.gauges.zero, Pages(3));
        let mut page = [1; PAGE_SIZE];
        let memory = pager.ram().memory();
        memory.read_slice(&mut page, GuestAddress(0)).unwrap();
        assert_eq!(page, [0; PAGE_SIZE]);
        pager.audit().unwrap();
    });
}

/// A step may end anywhere in a chunk, and another begins there.
#[test]
fn steps_of_any_size_find_the_same() {
    with_guest(Pages::mib(4), |pager| {
        (100..1000).for_each(|gfn| write(pager, gfn, 1));
        let mut scanner = Scanner::new(pager.ram().layout(), SEED);
        let mut all = Vec::new();
        for now in [0, 1] {
            loop {
                let found = scanner.step(pager, 1, at(now)).unwrap();
                assert!(found.pages <= SLICE_PAGES);
                all.extend(offered(&found));
                if found.pages == 0 {
                    break;
                }
            }
        }
        all.sort_unstable();
        assert_eq!(all, (100..1000).collect::<Vec<_>>());
    });
}

/// A guest that fills memory long after it was found empty is not kept waiting for the calm gap.
#[test]
fn filled_memory_is_looked_at_soon() {
    with_guest(Pages::mib(8), |pager| {
        let mut scanner = Scanner::new(pager.ram().layout(), SEED);
        scanner.step(pager, ALL, at(0)).unwrap();
        scanner.step(pager, ALL, at(100)).unwrap();
        assert!(!pager.is_stirred() && scanner.next_look() > at(101));
        (2 * CHUNK_PAGES..3 * CHUNK_PAGES).for_each(|gfn| write(pager, gfn, 1));
        assert!(pager.is_stirred());
        assert_eq!(scanner.step(pager, ALL, at(101)).unwrap().pages, 0);
        assert_eq!(scanner.next_look(), at(102));
        let first = scanner.step(pager, ALL, at(102)).unwrap();
        assert!(first.pages > 0 && first.offers.is_empty());
        let found = scanner.step(pager, ALL, at(103)).unwrap();
        assert_eq!(found.offers.len(), CHUNK_PAGES as usize);
    });
}

/// With another seed nothing is known: a key of the old one must not be taken for one of the new.
#[test]
fn another_seed_starts_over() {
    with_guest(Pages::mib(2), |pager| {
        write(pager, 3, 1);
        let mut scanner = Scanner::new(pager.ram().layout(), SEED);
        scanner.step(pager, ALL, at(0)).unwrap();
        let mut scanner = Scanner::new(pager.ram().layout(), SEED + 1);
        let first = scanner.step(pager, ALL, at(0)).unwrap();
        assert!(first.pages > 0 && first.offers.is_empty());
        let found = scanner.step(pager, ALL, at(1)).unwrap();
        let expected = key_of(&[1; PAGE_SIZE], SEED + 1);
        assert_eq!(found.offers, [(Gfn(3), expected)]);
    });
}
