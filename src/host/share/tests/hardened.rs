//! Hardened groups: what is known and what is new fare alike.

use super::*;

const TERMS: GroupTerms<'static> = GroupTerms {
    name: Some("g"),
    sharing: Sharing::Hardened,
};

/// A, B and C in one hardened group.
fn hardened() -> Fixture {
    let mut index = ShareIndex::new(Box::new(KernelSource));
    let seed = index.join(A, Pages(64), TERMS, BUDGET).unwrap();
    index.join(B, Pages(64), TERMS, BUDGET).unwrap();
    index.join(C, Pages(64), TERMS, BUDGET).unwrap();
    Fixture { index, seed }
}

impl Fixture {
    /// Offers a page and sends its content: the frame that it is lent.
    fn framed(&mut self, vm: VmId, gfn: u32, fill: u8) -> FrameId {
        let asked = OfferAnswer {
            wants: vec![Gfn(gfn)],
            candidates: Vec::new(),
        };
        assert_eq!(self.offer(vm, gfn, fill), asked);
        let lent = self.content(vm, gfn, fill).lent;
        assert_eq!((lent.len(), lent[0].vm, lent[0].gfn), (1, vm, Gfn(gfn)));
        lent[0].frame
    }
}

#[test]
fn every_page_is_asked_for_and_gets_a_frame() {
    let mut f = hardened();
    let known = f.framed(A, 10, 7);
    assert_eq!(f.framed(B, 20, 7), known);
    assert_eq!(f.framed(A, 11, 7), known);
    let alone = f.framed(C, 30, 8);
    assert_ne!(alone, known);
    assert_eq!((f.index.frames(), f.index.references()), (2, 4));
    // A lone frame ends with its page, the other one with its last.
    assert_eq!(f.release(C, &[alone]), (Pages(1), Ok(())));
    assert_eq!(f.release(A, &[known, known]), (Pages(0), Ok(())));
    assert_eq!(f.index.leave(B), Pages(1));
    f.index.audit();
    assert_eq!(f.index.frames(), 0);
}

#[test]
fn without_room_neither_is_merged() {
    let mut f = hardened();
    f.framed(A, 10, 7);
    let pages = [(Gfn(20), page(7)), (Gfn(21), page(8)), (Gfn(22), page(7))];
    for (room, lent) in [(0, 0), (2, 2)] {
        for (gfn, content) in &pages {
            let key = key_of(content, f.seed);
            assert_eq!(f.index.offer(B, &[(*gfn, key)], T0).wants, [*gfn]);
        }
        let contents = pages.iter().map(|(gfn, content)| (*gfn, content));
        let (answer, _) = f.index.content(B, contents, Pages(room));
        assert_eq!(answer.lent.len(), lent);
        f.index.audit();
    }
}

#[test]
fn a_group_is_hardened_for_all_of_its_vms() {
    let mut f = hardened();
    let other = VmId(9);
    let refused = f.index.join(other, Pages(64), Some("g"), BUDGET);
    let said = refused.unwrap_err().to_string();
    assert_eq!(
        said,
        "share group \"g\" has hardened sharing, and not plain"
    );
    assert_eq!(f.index.sharing(A), Sharing::Hardened);
    // Nothing has changed, and another group is another matter.
    f.index.audit();
    f.index.join(other, Pages(64), Some("h"), BUDGET).unwrap();
    let known = f.index.pool_id(A).unwrap();
    let mut next = ShareIndex::new(Box::new(KernelSource));
    next.expect(A, Pages(64), TERMS, known).unwrap();
    assert!(next.expect(B, Pages(64), Some("g"), known).is_err());
    next.audit();
}

#[test]
fn a_hostile_vm_fills_what_is_its_own() {
    let mut f = hardened();
    for n in 0..10_000_u32 {
        f.index.offer(A, &[(Gfn(n), Key(u64::from(n)))], T0);
    }
    let wants = |f: &Fixture| f.index.group(A).unwrap().member(A).unwrap().wants.len();
    assert_eq!(wants(&f), WANTS_MAX);
    // Contents under other keys, and contents that nobody asked for.
    for n in 0..20_000_u32 {
        let answer = f.content(A, n, n.to_le_bytes()[0]);
        assert_eq!((answer.made, answer.lent.len()), (0, 0));
    }
    assert_eq!((wants(&f), f.index.frames()), (0, 0));
    // As many references as its memory has pages, and one message; then it is asked for nothing.
    let most = 64 + LIST_MAX as u64;
    for n in 0..2 * most {
        let gfn = u32::try_from(n % 64).unwrap();
        if f.offer(A, gfn, 7).wants.is_empty() {
            break;
        }
        f.content(A, gfn, 7);
    }
    assert_eq!(f.index.references_of(A), most);
    // Others are none the worse.
    f.framed(B, 20, 9);
    f.index.leave(A);
    assert_eq!(f.index.frames(), 1);
    f.index.audit();
}

proptest! {
    /// Random offers, contents, releases, deaths, as of plain groups.
    #[test]
    fn a_hardened_index_balances(steps in prop::collection::vec((0..6_u8, 1..4_u32, 0..12_u32, 0..5_u8), 0..300)) {
        let mut f = hardened();
        let mut held: Vec<(VmId, FrameId, u8)> = Vec::new();
        for (kind, vm, gfn, fill) in steps {
            let vm = VmId(vm);
            match kind {
                0..=3 => {
                    let wants = f.offer(vm, gfn, fill).wants;
                    prop_assert!(wants.len() <= 1);
                    let fill = if kind == 0 { fill.wrapping_add(1) } else { fill };
                    let lent = f.content(vm, gfn, fill).lent;
                    held.extend(lent.iter().map(|lent| (lent.vm, lent.frame, fill)));
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
                    f.seed = f.index.join(vm, Pages(64), TERMS, BUDGET).unwrap();
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
