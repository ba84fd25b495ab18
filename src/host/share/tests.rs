mod claims;
mod hardened;

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::page::key::key_of;

const A: VmId = VmId(1);
const B: VmId = VmId(2);
const C: VmId = VmId(3);
const BUDGET: Pages = Pages::mib(2);
const ROOM: Pages = Pages(100);
const T0: Duration = Duration::ZERO;

struct Fixture {
    index: ShareIndex,
    seed: u64,
}

fn page(fill: u8) -> [u8; PAGE_SIZE] {
    [fill; PAGE_SIZE]
}

impl Fixture {
    /// A, B and C in one group.
    fn new() -> Fixture {
        let mut index = ShareIndex::new(Box::new(KernelSource));
        let seed = index.join(A, Pages(64), Some("g"), BUDGET).unwrap();
        assert_eq!(index.join(B, Pages(64), Some("g"), BUDGET).unwrap(), seed);
        index.join(C, Pages(64), Some("g"), BUDGET).unwrap();
        Fixture { index, seed }
    }

    fn key(&self, fill: u8) -> Key {
        key_of(&page(fill), self.seed)
    }

    fn offer(&mut self, vm: VmId, gfn: u32, fill: u8) -> OfferAnswer {
        let key = self.key(fill);
        self.index.offer(vm, &[(Gfn(gfn), key)], T0)
    }

    fn content(&mut self, vm: VmId, gfn: u32, fill: u8) -> ContentAnswer {
        let (answer, failed) = self.index.content(vm, [(Gfn(gfn), &page(fill))], ROOM);
        assert!(failed.is_none());
        self.index.audit();
        answer
    }

    fn in_use(&self) -> u32 {
        let pools = self.index.groups.values().filter_map(Group::pool);
        pools.map(FramePool::in_use).sum()
    }

    fn release(&mut self, vm: VmId, frames: &[FrameId]) -> (Pages, Result<(), NotHeld>) {
        self.index.release(vm, frames)
    }

    /// Two pages with one content, shared: the frame.
    fn shared(&mut self) -> FrameId {
        self.offer(A, 10, 7);
        assert_eq!(self.offer(B, 20, 7).wants, [Gfn(20)]);
        let lent = self.content(B, 20, 7).lent;
        assert_eq!(lent.len(), 2);
        lent[0].frame
    }
}

#[test]
fn two_pages_with_one_content_become_one_frame() {
    let mut f = Fixture::new();
    assert_eq!(f.offer(A, 10, 7), OfferAnswer::default());
    // Offering the same page again changes nothing.
    assert_eq!(f.offer(A, 10, 7), OfferAnswer::default());
    assert_eq!(f.offer(B, 20, 7).wants, [Gfn(20)]);
    // A third one waits with them instead of being asked as well.
    assert_eq!(f.offer(C, 30, 7), OfferAnswer::default());
    let answer = f.content(B, 20, 7);
    let frame = answer.lent[0].frame;
    let lent = |vm, gfn| Lent {
        vm,
        gfn: Gfn(gfn),
        frame,
    };
    assert_eq!(answer.lent, [lent(B, 20), lent(A, 10), lent(C, 30)]);
    assert_eq!(f.offer(C, 31, 7).candidates, [(Gfn(31), frame)]);
    assert_eq!((f.index.frames(), f.index.references()), (1, 4));
}

#[test]
fn pages_of_one_vm_share_among_themselves() {
    let mut f = Fixture::new();
    f.offer(A, 10, 7);
    assert_eq!(f.offer(A, 11, 7).wants, [Gfn(11)]);
    assert_eq!(f.content(A, 11, 7).lent.len(), 2);
}

#[test]
fn a_frame_lives_until_its_last_reference_ends() {
    let mut f = Fixture::new();
    let frame = f.shared();
    assert_eq!(f.release(A, &[frame]), (Pages(0), Ok(())));
    assert_eq!(f.release(A, &[frame]), (Pages(0), Err(NotHeld { frame })));
    assert_eq!(f.release(B, &[frame]), (Pages(1), Ok(())));
    assert_eq!(f.in_use(), 0);
    f.index.audit();
    // Its key is forgotten with it.
    assert_eq!(f.offer(C, 1, 7), OfferAnswer::default());
}

#[test]
fn death_returns_everything() {
    let mut f = Fixture::new();
    f.shared();
    f.offer(A, 11, 8);
    f.offer(B, 21, 8);
    assert_eq!(f.index.leave(B), Pages(0));
    f.index.audit();
    // B was asked for content 8; A, who waited for it, is the hint again.
    assert_eq!(f.offer(C, 31, 8).wants, [Gfn(31)]);
    assert_eq!(f.index.leave(A), Pages(1));
    assert_eq!(f.index.leave(C), Pages(0));
    f.index.audit();
    assert!(f.index.groups.is_empty() && f.index.group_of.is_empty());
}

#[test]
fn keys_are_never_believed() {
    let mut f = Fixture::new();
    f.offer(A, 10, 7);
    f.offer(B, 20, 7);
    // The content is another one than the key said.
    let answer = f.content(B, 20, 8);
    assert_eq!((answer.made, f.in_use()), (0, 0));
    // A's page is still there to be shared with.
    assert_eq!(f.offer(C, 30, 7).wants, [Gfn(30)]);
    // Nobody asked for this.
    assert_eq!(f.content(B, 20, 7).unsolicited, 1);
}

#[test]
fn nothing_crosses_groups() {
    let mut f = Fixture::new();
    let frame = f.shared();
    let alone = VmId(9);
    let seed = f.index.join(alone, Pages(64), None, BUDGET).unwrap();
    assert_ne!(seed, f.seed);
    for key in [f.key(7), key_of(&page(7), seed)] {
        assert_eq!(
            f.index.offer(alone, &[(Gfn(1), key)], T0),
            OfferAnswer::default()
        );
    }
    assert!(f.release(alone, &[frame]).1.is_err());
    let other = f.index.join(VmId(10), Pages(64), None, BUDGET).unwrap();
    assert_ne!(other, seed);
}

/// The frame that two of a VM's pages with that content become.
fn frame_of(index: &mut ShareIndex, vm: VmId, seed: u64, content: &[u8; PAGE_SIZE]) -> FrameId {
    let key = key_of(content, seed);
    index.offer(vm, &[(Gfn(0), key), (Gfn(1), key)], T0);
    let (answer, _) = index.content(vm, [(Gfn(1), content)], ROOM);
    let vms: Vec<VmId> = answer.lent.iter().map(|lent| lent.vm).collect();
    assert_eq!(vms, [vm, vm], "nobody else is lent it");
    answer.lent[0].frame
}

#[test]
fn every_group_has_a_pool_of_its_own() {
    let mut index = ShareIndex::new(Box::new(KernelSource));
    let mut join = |vm, name| (vm, index.join(vm, Pages(64), name, BUDGET).unwrap());
    let (named, named_seed) = join(A, Some("g"));
    let (sister, _) = join(B, Some("g"));
    let (alone, alone_seed) = join(C, None);
    let file = |index: &ShareIndex, vm| {
        let reader = index.pool(vm).unwrap().reader().unwrap();
        rustix::fs::fstat(reader).unwrap().st_ino
    };
    assert_eq!(file(&index, named), file(&index, sister));
    assert_ne!(file(&index, named), file(&index, alone));

    // The first frame of each has the same number, and is another page.
    let theirs = frame_of(&mut index, named, named_seed, &page(7));
    let own = frame_of(&mut index, alone, alone_seed, &page(8));
    assert_eq!(theirs, own);
    for (vm, fill) in [(named, 7), (sister, 7), (alone, 8)] {
        let reader = File::from(index.pool(vm).unwrap().reader().unwrap());
        let mut seen = vec![0; usize::try_from(reader.metadata().unwrap().len()).unwrap()];
        std::os::unix::fs::FileExt::read_exact_at(&reader, &mut seen, 0).unwrap();
        let own = usize::try_from(own.offset()).unwrap();
        let rest = seen.split_off(own + PAGE_SIZE);
        let page = seen.split_off(own);
        assert!(
            page.iter().all(|&byte| byte == fill),
            "{vm:?} reads {}",
            page[0]
        );
        let others = seen.iter().chain(&rest);
        assert!(others.copied().all(|byte| byte == 0), "{vm:?} reads more");
    }

    // A number that is lent in one group is nothing in another, even where it exists.
    assert_eq!(index.release(alone, &[own, own]), (Pages(1), Ok(())));
    assert_eq!(
        index.release(alone, &[theirs]),
        (Pages(0), Err(NotHeld { frame: theirs }))
    );
    assert_eq!((index.references_of(named), index.frames()), (2, 1));
    index.audit();
    // The pool ends with the group's last VM, and not before.
    index.leave(named);
    assert!(index.pool(sister).is_some());
    index.leave(sister);
    index.leave(alone);
    assert!(index.groups.is_empty());
}

#[test]
fn a_want_expires_and_its_late_answer_is_ignored() {
    let mut f = Fixture::new();
    f.offer(A, 10, 7);
    f.offer(B, 20, 7);
    f.index.expire(WANT_EXPIRY);
    f.index.audit();
    assert_eq!(f.content(B, 20, 7).unsolicited, 1);
    assert_eq!(f.offer(B, 20, 7).wants, [Gfn(20)]);
}

#[test]
fn without_room_no_frame_is_made() {
    let mut f = Fixture::new();
    f.offer(A, 10, 7);
    f.offer(B, 20, 7);
    let content = page(7);
    let (answer, _) = f.index.content(B, [(Gfn(20), &content)], Pages::ZERO);
    assert_eq!(answer, ContentAnswer::default());
    assert_eq!(f.offer(B, 20, 7).wants, [Gfn(20)]);
}

#[test]
fn who_is_behind_is_lent_nothing_and_asked_nothing() {
    let mut f = Fixture::new();
    let frame = f.shared();
    f.index.set_reach(C, Reach::Behind);
    assert_eq!(f.offer(C, 30, 7), OfferAnswer::default());
    f.offer(A, 11, 8);
    assert_eq!(f.offer(C, 31, 8), OfferAnswer::default());
    // It waits for a content, and does not get it.
    assert_eq!(f.offer(B, 21, 8).wants, [Gfn(21)]);
    f.offer(C, 31, 8);
    let lent = f.content(B, 21, 8).lent;
    assert_eq!(lent.iter().filter(|lent| lent.vm == C).count(), 0);
    assert_eq!(f.index.references_of(C), 0);
    f.index.set_reach(C, Reach::Open);
    assert_eq!(f.offer(C, 30, 7).candidates, [(Gfn(30), frame)]);
}

#[test]
fn a_vm_cannot_fill_the_index() {
    let mut f = Fixture::new();
    for n in 0..10_000_u32 {
        f.index.offer(A, &[(Gfn(n), Key(u64::from(n)))], T0);
        f.index.offer(B, &[(Gfn(n), Key(u64::from(n)))], T0);
    }
    f.index.audit();
    let group = f.index.group(B).unwrap();
    assert!(group.member(B).unwrap().wants.len() <= WANTS_MAX);
    assert!(group.hints_of(A) <= 64 && group.hints_of(B) <= 64);
}

proptest! {
    /// Random offers, contents, releases, deaths: the counts always balance, and a frame's content
    /// never changes while somebody holds it.
    #[test]
    fn the_index_balances(steps in prop::collection::vec((0..6_u8, 1..4_u32, 0..12_u32, 0..5_u8), 0..300)) {
        let mut f = Fixture::new();
        let mut wanted: BTreeMap<(VmId, Gfn), u8> = BTreeMap::new();
        let mut held: Vec<(VmId, FrameId, u8)> = Vec::new();
        for (kind, vm, gfn, fill) in steps {
            let vm = VmId(vm);
            match kind {
                0..=2 => {
                    let answer = f.offer(vm, gfn, fill);
                    for gfn in answer.wants {
                        wanted.insert((vm, gfn), fill);
                    }
                    held.extend(answer.candidates.iter().map(|&(_, frame)| (vm, frame, fill)));
                }
                3 => {
                    let fill = wanted.remove(&(vm, Gfn(gfn))).unwrap_or(fill);
                    let answer = f.content(vm, gfn, fill);
                    held.extend(answer.lent.iter().map(|lent| (lent.vm, lent.frame, fill)));
                }
                4 => {
                    if let Some(place) = held.iter().position(|&(holder, ..)| holder == vm) {
                        let (_, frame, _) = held.swap_remove(place);
                        prop_assert!(f.release(vm, &[frame]).1.is_ok());
                    }
                }
                _ => {
                    f.index.leave(vm);
                    held.retain(|&(holder, ..)| holder != vm);
                    wanted.retain(|&(holder, _), _| holder != vm);
                    f.seed = f.index.join(vm, Pages(64), Some("g"), BUDGET).unwrap();
                }
            }
            f.index.audit();
            prop_assert_eq!(f.index.references(), held.len() as u64);
        }
        for (vm, frame, fill) in held {
            let reader = File::from(f.index.pool(vm).unwrap().reader().unwrap());
            let mut seen = page(!fill);
            std::os::unix::fs::FileExt::read_exact_at(&reader, &mut seen, frame.offset()).unwrap();
            prop_assert_eq!(seen, page(fill));
        }
    }
}

/// A storm of writes releases thousands of frames at once, and nobody waits until all their memory has
/// gone back. Until it has, it is in use: neither free in the ledger nor another frame's.
#[test]
fn the_memory_of_many_released_frames_goes_back_later_and_together() {
    const FRAMES: u8 = 200;
    let mut f = Fixture::new();
    for fill in 1..=FRAMES {
        f.offer(A, u32::from(fill), fill);
        f.offer(B, u32::from(fill), fill);
        f.content(B, u32::from(fill), fill);
    }
    let frames: Vec<FrameId> = (1..=FRAMES)
        .map(|fill| f.offer(C, u32::from(fill), fill).candidates[0].1)
        .collect();
    for vm in [A, B] {
        assert_eq!(f.release(vm, &frames), (Pages(0), Ok(())));
    }
    assert_eq!(f.release(C, &frames), (Pages(0), Ok(())));
    // No reference is left, and nobody is lent one of them.
    assert_eq!(f.index.references(), 0);
    assert!(f.offer(C, 1, 1).candidates.is_empty());
    let all = u64::from(FRAMES);
    assert_eq!(f.index.frames(), all);
    f.index.audit();
    f.offer(A, 300, 250);
    f.offer(B, 300, 250);
    let lent = f.content(B, 300, 250).lent;
    assert!(
        lent.iter().all(|lent| !frames.contains(&lent.frame)),
        "{lent:?}"
    );
    // Neighbours go together.
    assert!(f.index.has_leftovers());
    assert_eq!(f.index.give_back(), Pages(all));
    assert!(!f.index.has_leftovers());
    f.index.audit();
    // What is retired when the last VM goes, goes with it.
    f.release(A, &[lent[0].frame]).1.unwrap();
    f.release(B, &[lent[0].frame]).1.unwrap();
    assert_eq!(f.index.frames(), 0);
}
