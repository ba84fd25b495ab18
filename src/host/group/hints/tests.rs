use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

type Page = (VmId, Gfn);

/// The same by maps that hold everything twice.
#[derive(Debug, Default)]
struct Model {
    sizes: BTreeMap<VmId, Pages>,
    keys: BTreeMap<Page, Key>,
    pages: BTreeMap<u64, Page>,
}

impl Model {
    fn remove(&mut self, page: Page) {
        if let Some(key) = self.keys.remove(&page) {
            self.pages.remove(&key.0);
        }
    }

    fn take(&mut self, key: Key) -> Option<Page> {
        let page = self.pages.get(&key.0).copied();
        page.inspect(|&page| self.remove(page))
    }

    fn forget(&mut self, vm: VmId) {
        self.keys.retain(|&(owner, _), _| owner != vm);
        self.pages.retain(|_, &mut (owner, _)| owner != vm);
    }

    fn put(&mut self, vm: VmId, gfn: Gfn, key: Key) {
        self.remove((vm, gfn));
        let Some(size) = self.sizes.get(&vm) else {
            return;
        };
        let own = || self.keys.keys().filter(|&&(owner, _)| owner == vm);
        let mut chunks: Vec<Gfn> = own().map(|(_, gfn)| gfn.chunk_start()).collect();
        chunks.dedup();
        let known = chunks.contains(&gfn.chunk_start());
        let chunk_fits = known || (chunks.len() as u64) < size.0 / 512 + 2;
        if key != Key::NONE && (own().count() as u64) < size.0 && chunk_fits {
            self.take(key);
            self.keys.insert((vm, gfn), key);
            self.pages.insert(key.0, (vm, gfn));
        }
    }
}

/// What may happen, to one of three VMs, one of some pages in four chunks, one of some keys.
fn steps() -> impl Strategy<Value = Vec<(u8, u32, u32, u32, u64)>> {
    prop::collection::vec((0..16_u8, 1..4_u32, 0..4_u32, 0..5_u32, 0..12_u64), 0..400)
}

proptest! {
    #[test]
    fn hints_are_those_of_the_model(steps in steps()) {
        let (mut hints, mut model) = (Hints::default(), Model::default());
        for vm in 1..4 {
            // The last one may have two chunks and eight hints only.
            let size = if vm == 3 { Pages(8) } else { Pages(2048) };
            hints.join(VmId(vm), size);
            model.sizes.insert(VmId(vm), size);
        }
        for (kind, vm, chunk, place, key) in steps {
            let (vm, gfn, key) = (VmId(vm), Gfn(chunk * CHUNK_PAGES + place * 127), Key(key));
            match kind {
                0..=9 => {
                    hints.put(vm, gfn, key);
                    model.put(vm, gfn, key);
                }
                10..=12 => prop_assert_eq!(hints.take(key), model.take(key)),
                13 => {
                    hints.forget(vm);
                    model.forget(vm);
                }
                14 => {
                    hints.leave(vm);
                    model.forget(vm);
                    // Who has gone says nothing that counts.
                    hints.put(vm, gfn, key);
                    hints.join(vm, model.sizes[&vm]);
                }
                _ => prop_assert_eq!(hints.sweep(), hints.has_void()),
            }
            hints.audit();
            for key in (0..12).map(Key) {
                prop_assert_eq!(hints.get(key), model.pages.get(&key.0).copied());
            }
            for vm in (1..4).map(VmId) {
                let own = model.keys.keys().filter(|&&(owner, _)| owner == vm);
                prop_assert_eq!(hints.of(vm), own.count() as u64);
            }
        }
        while hints.sweep() {}
        hints.audit();
        prop_assert_eq!(hints.slots.len(), model.pages.len());
    }
}

fn bytes(hints: &Hints) -> usize {
    let blocks = hints.blocks.all.iter().flatten().count() * size_of::<Block>();
    let lists = hints.blocks.all.capacity() * size_of::<Option<Box<Block>>>();
    blocks + lists + hints.slots.bytes()
}

const A: VmId = VmId(1);
const B: VmId = VmId(2);

fn full(pages: u32) -> Hints {
    let mut hints = Hints::default();
    for vm in [A, B] {
        hints.join(vm, Pages(u64::from(pages)));
        for gfn in 0..pages {
            hints.put(vm, Gfn(gfn), Key(u64::from(gfn) * 2 + u64::from(vm.0)));
        }
    }
    hints
}

#[test]
fn a_hint_takes_less_than_twenty_bytes_at_any_number_of_them() {
    let mut hints = Hints::default();
    hints.join(A, Pages(1 << 18));
    for gfn in 0..1 << 18 {
        hints.put(A, Gfn(gfn), Key(u64::from(gfn) + 1));
        let number = gfn as usize + 1;
        if number.is_multiple_of(CHUNK_PAGES as usize) && number >= 1 << 14 {
            let each = bytes(&hints) as f64 / number as f64;
            assert!(each < 20.0, "{each} bytes with {number} hints");
            let (taken, charged) = (bytes(&hints) as u64, hints.bytes_of(A));
            assert!(taken <= charged && charged < taken + taken / 2);
        }
    }
}

#[test]
fn who_goes_costs_a_little_now_and_the_rest_by_and_by() {
    const PAGES: u32 = 40 * CHUNK_PAGES;
    let mut hints = full(PAGES);
    let before = bytes(&hints);
    hints.leave(A);
    assert_eq!(hints.get(Key(1)), None);
    // Its key can be another page's hint before the old one has left the tables.
    hints.put(B, Gfn(0), Key(1));
    let mut sweeps = 0;
    loop {
        let slots = hints.slots.len();
        let more = hints.sweep();
        sweeps += 1;
        let swept = slots - hints.slots.len();
        assert!(
            swept <= SWEPT_BLOCKS * CHUNK_PAGES as usize,
            "{swept} slots at once"
        );
        hints.audit();
        if !more {
            break;
        }
    }
    assert_eq!(sweeps, 40 / SWEPT_BLOCKS);
    assert_eq!(hints.get(Key(1)), Some((B, Gfn(0))));
    assert_eq!(hints.slots.len(), PAGES as usize);
    assert!(
        bytes(&hints) < before * 3 / 4,
        "{} of {before} bytes",
        bytes(&hints)
    );
    // The blocks are others' now.
    hints.join(A, Pages(u64::from(PAGES)));
    (0..PAGES).for_each(|gfn| hints.put(A, Gfn(gfn), Key(u64::from(gfn) * 2 + 1)));
    hints.audit();
    assert_eq!(hints.blocks.all.len(), 80);
}

#[test]
fn gfns_without_end_make_no_blocks_without_end() {
    let mut hints = Hints::default();
    hints.join(A, Pages(4 * u64::from(CHUNK_PAGES)));
    let gfns = (0..=u32::MAX)
        .rev()
        .step_by(9973 * CHUNK_PAGES as usize / 64);
    for (gfn, key) in gfns.zip(1..) {
        hints.put(A, Gfn(gfn), Key(key));
    }
    assert_eq!(
        (hints.owners[&A].blocks.len(), hints.blocks.all.len()),
        (6, 6)
    );
    hints.audit();
    hints.leave(A);
    while hints.sweep() {}
    hints.audit();
    assert_eq!((hints.slots.len(), hints.blocks.free.len()), (0, 6));
}
