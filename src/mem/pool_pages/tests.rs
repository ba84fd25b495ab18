use std::fs::File;
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::mem::share::merge;
use crate::mem::test_guest::with_mappings;
use crate::units::{PAGE_SIZE, Pages};

/// Pages that map a frame each.
const SHARED: u32 = 8;
/// Kernel mappings that a guest may take in the tests of that bound.
const FEW: u64 = 7;

fn content(number: u32) -> [u8; PAGE_SIZE] {
    let mut page = [0; PAGE_SIZE];
    fastrand::Rng::with_seed(u64::from(number)).fill(&mut page);
    page
}

/// Runs `work` on a guest whose first pages map frame `n` at page `n`.
fn with_shared_pages(work: impl FnOnce(&Pager)) {
    with_shared(SHARED, 60_000, work);
}

/// The same with so many pages, and so many kernel mappings.
fn with_shared(shared: u32, mappings_max: u64, work: impl FnOnce(&Pager)) {
    with_mappings(Pages::mib(8), mappings_max, |pager| {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = File::from(rustix::fs::memfd_create("pool", flags).unwrap());
        let mut candidates = Vec::new();
        for number in 0..shared {
            let (gfn, frame) = (Gfn(number), FrameId(number));
            let page = content(number);
            file.write_all_at(&page, frame.offset()).unwrap();
            let memory = pager.ram().memory();
            memory.write_slice(&page, GuestAddress(gfn.gpa())).unwrap();
            candidates.push((gfn, frame));
        }
        let pool = PoolView::new(file.into(), shared);
        let merged = merge(pager, &pool, &mut candidates).unwrap();
        assert_eq!(merged.pages, shared, "{merged:?}");
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
        let dropping = pager.memory(Cause::Swap).begin_drop(Gfn(3)).unwrap();
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
        let frozen = pager.memory(Cause::Swap).freeze(Gfn(5)).unwrap().unwrap();
        assert_eq!(pager.take_released(), []);
        let taken = pager.rearm(vec![frozen]).unwrap();
        assert_eq!(pager.take_released(), frames([5]));
        let mut page = PageBuf::ZERO;
        assert!(pager.memory(Cause::Swap).read_staged(&taken[0], &mut page));
        assert!(page.0 == content(5));
        drop(taken);
        assert_eq!(pager.memory(Cause::Swap).settle_stage().unwrap(), 1);
        pager.audit().unwrap();
    });
}

/// A host manager that is told anew counts a busy page, which still maps its frame: the release that
/// follows is of a reference that it knows.
#[test]
fn a_busy_page_is_claimed_and_released_after() {
    with_shared_pages(|pager| {
        let dropping = pager.memory(Cause::Swap).begin_drop(Gfn(2)).unwrap();
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

/// Isolated pages are dropped out of a run of frames as long as there are mappings for it; the
/// others stay mapped, and keep their frames.
#[test]
fn a_page_is_not_dropped_where_that_takes_too_many_mappings() {
    with_shared(64, FEW, |pager| {
        for gfn in (1..64).step_by(2).map(Gfn) {
            pager.inflate(&[gfn]).unwrap();
            assert!(pager.memory(Cause::Swap).books.pmap.mappings() <= FEW);
        }
        let counts = pager.memory(Cause::Swap).counts();
        assert_eq!(counts.ballooned, 32);
        let dropped = pager.take_released().len() as u64;
        assert!(dropped > 0 && dropped < 32, "{dropped}");
        assert_eq!(counts.shared, 64 - dropped);
        pager.audit().unwrap();
    });
}

/// Where an isolated page would take mappings that there are not, it comes out together with those
/// between it and the nearest end of its mapping.
#[test]
fn the_way_out_of_a_run_takes_no_mapping() {
    with_shared(64, FEW, |pager| {
        // Pages 10, 20 and 30 use up the mappings.
        for gfn in [10, 20, 30].map(Gfn) {
            let way = pager.memory(Cause::Swap).way_out(gfn, 32).unwrap();
            assert!(way.contains(gfn));
            take(pager, way);
        }
        let way = pager.memory(Cause::Swap).way_out(Gfn(34), 32).unwrap();
        assert_eq!(way, GfnRange::new(Gfn(31), 4));
        let most = pager.memory(Cause::Swap).way_out(Gfn(61), 2).unwrap();
        assert_eq!(
            most,
            GfnRange::new(Gfn(62), 2),
            "from the end, as far as there is room"
        );
        take(pager, way);
        take(pager, most);
        pager.audit().unwrap();
    });
}

/// Takes pages out of their pool mapping, and gives them back.
fn take(pager: &Pager, way: GfnRange) {
    let frozen = way
        .iter()
        .map(|gfn| pager.memory(Cause::Swap).freeze(gfn).unwrap().unwrap())
        .collect();
    let taken = pager.rearm(frozen).unwrap();
    assert_eq!(taken.len(), way.count as usize);
    assert!(
        pager.memory(Cause::Swap).books.pmap.mappings() <= FEW,
        "{way:?}"
    );
    drop(taken);
    pager.memory(Cause::Swap).settle_stage().unwrap();
}

/// The kernel serves writes to shared pages unseen. What a measurement finds beyond what was mapped may
/// be such writes, until a census has looked.
#[test]
fn writes_to_shared_pages_are_suspected_until_a_census_has_looked() {
    const PAGES: u32 = 400;
    // The kernel keeps its count per CPU: some dozen pages of each.
    const NOISE: Pages = Pages(200);
    with_shared(PAGES, 60_000, |pager| {
        pager.census().unwrap();
        assert_eq!(pager.unseen_writes(), Pages::ZERO);
        for gfn in 0..PAGES {
            let at = GuestAddress(Gfn(gfn).gpa());
            pager.ram().memory().write_slice(&[1], at).unwrap();
        }
        pager.measure().unwrap();
        let unseen = pager.unseen_writes();
        assert!(unseen >= NOISE && unseen <= Pages(PAGES.into()), "{unseen}");
        let census = pager.census().unwrap();
        assert_eq!(census.broken, u64::from(PAGES));
        assert_eq!(pager.unseen_writes(), Pages::ZERO);
    });
}

/// Pages that share in one run take one mapping of the kernel's memory, isolated ones two each.
#[test]
fn isolated_pages_are_charged_for_their_mappings() {
    const PAGES: u32 = 1000;
    with_shared(PAGES, 60_000, |pager| {
        let charged = |pager: &Pager| pager.memory(Cause::Census).mapping_memory();
        assert_eq!(charged(pager), Pages::ZERO);
        let others: Vec<Gfn> = (0..PAGES).step_by(2).map(Gfn).collect();
        pager.inflate(&others).unwrap();
        let isolated = u64::from(PAGES / 2);
        let expected = Pages::in_bytes(isolated * 2 * 306);
        assert_eq!(charged(pager), expected);
        assert_eq!(expected, Pages(74));
        let overhead = pager.report().unwrap().overhead;
        let tables = pager.space().tables().tables().unwrap();
        let own = pager.memory(Cause::Census).own_memory();
        assert_eq!(overhead, own + tables + expected);
    });
}
