use std::fs::File;
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::mem::share::merge;
use crate::mem::test_guest::with_guest;
use crate::units::{PAGE_SIZE, Pages};

/// Pages that map a frame each.
const SHARED: u32 = 8;

fn content(number: u32) -> [u8; PAGE_SIZE] {
    let mut page = [0; PAGE_SIZE];
    fastrand::Rng::with_seed(u64::from(number)).fill(&mut page);
    page
}

/// Runs `work` on a guest whose first pages map frame `n` at page `n`.
fn with_shared_pages(work: impl FnOnce(&Pager)) {
    with_guest(Pages::mib(8), |pager| {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = File::from(rustix::fs::memfd_create("pool", flags).unwrap());
        let mut candidates = Vec::new();
        for number in 0..SHARED {
            let (gfn, frame) = (Gfn(number), FrameId(number));
            let page = content(number);
            file.write_all_at(&page, frame.offset()).unwrap();
            let memory = pager.ram().memory();
            memory.write_slice(&page, GuestAddress(gfn.gpa())).unwrap();
            candidates.push((gfn, frame));
        }
        let pool = PoolView::new(file.into(), SHARED);
        let merged = merge(pager, &pool, &mut candidates).unwrap();
        assert_eq!(merged.pages, SHARED, "{merged:?}");
        work(pager);
    });
}

fn frames(numbers: impl IntoIterator<Item = u32>) -> Vec<FrameId> {
    numbers.into_iter().map(FrameId).collect()
}

/// The guest reads a frame until its mapping is replaced, and a frame that was released may hold
/// another VM's page: a page that is being dropped keeps its reference until then.
#[test]
fn a_frame_is_released_after_its_mapping_is_gone() {
    with_shared_pages(|pager| {
        let dropping = pager.memory().begin_drop(Gfn(3)).unwrap();
        let mut page = [0; PAGE_SIZE];
        let at = GuestAddress(Gfn(3).gpa());
        pager.ram().memory().read_slice(&mut page, at).unwrap();
        assert!(page == content(3), "the frame is mapped still");
        assert_eq!(pager.take_released(), []);
        assert_eq!(pager.drop_from_pool(&[dropping]).unwrap(), []);
        assert_eq!(pager.take_released(), frames([3]));
    });
}

/// The same where the page is taken out with its content.
#[test]
fn a_frozen_page_keeps_its_frame_until_it_is_rearmed() {
    with_shared_pages(|pager| {
        let frozen = pager.memory().freeze(Gfn(5)).unwrap().unwrap();
        assert_eq!(pager.take_released(), []);
        let taken = pager.rearm(vec![frozen]).unwrap();
        assert_eq!(pager.take_released(), frames([5]));
        let mut page = PageBuf::ZERO;
        assert!(pager.memory().read_staged(&taken[0], &mut page));
        assert!(page.0 == content(5));
        drop(taken);
        assert_eq!(pager.memory().settle_stage().unwrap(), 1);
        pager.audit().unwrap();
    });
}

/// A host manager that is told anew counts a busy page, which still maps its frame: the release that
/// follows is of a reference that it knows.
#[test]
fn a_busy_page_is_claimed_and_released_after() {
    with_shared_pages(|pager| {
        let dropping = pager.memory().begin_drop(Gfn(2)).unwrap();
        pager.begin_claims();
        assert_eq!(pager.next_claims(1).unwrap(), frames(0..SHARED));
        let _ = pager.drop_from_pool(&[dropping]).unwrap();
        assert_eq!(pager.take_released(), frames([2]));
    });
}

/// A page that leaves its frame before the host manager was told of it is neither claimed nor
/// released; one that leaves it afterwards is both.
#[test]
fn what_was_not_claimed_is_not_released() {
    with_shared_pages(|pager| {
        pager.report_free(GfnRange::one(Gfn(0))).unwrap();
        pager.begin_claims();
        assert_eq!(pager.take_released(), [], "the old host manager's");
        pager.report_free(GfnRange::one(Gfn(1))).unwrap();
        assert_eq!(pager.take_released(), [], "not told of yet");
        assert_eq!(pager.next_claims(1).unwrap(), frames(2..SHARED));
        pager.report_free(GfnRange::one(Gfn(2))).unwrap();
        assert_eq!(pager.take_released(), frames([2]));
        while pager.next_claims(1).is_some() {}
        pager.report_free(GfnRange::one(Gfn(3))).unwrap();
        assert_eq!(pager.take_released(), frames([3]));
    });
}
