//! The table gfn -> page state of one VM, four bytes a page, with its counts.

use crate::units::{FrameId, Gfn, GfnRange, PAGES_MAX, Pages, SwapSlot};

use super::state::{PageEvent, PageState};

/// An entry's payload: a frame, slot or nothing.
const PAYLOAD_MASK: u32 = (1 << 27) - 1;
const _: () = assert!(PAYLOAD_MASK as u64 == PAGES_MAX - 1);
const BALLOONED: u32 = 1 << 27;
const ZERO: u32 = 1 << 28;
const KIND_SHIFT: u32 = 29;

/// How many pages are in each state, and under each flag.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Served by the kernel from armed memory, written or not.
    pub private: u64,
    /// Mapping a frame.
    pub shared: u64,
    /// Private inside a pool mapping.
    pub broken: u64,
    /// In the staging area.
    pub staged: u64,
    /// Being worked on.
    pub busy: u64,
    /// In the compressed store.
    pub compressed: u64,
    /// In the swap file.
    pub swapped: u64,
    /// Held by the balloon, whatever their state.
    pub ballooned: u64,
    /// Found all zero, discarded, and not written since as far as is known.
    pub zero: u64,
}

/// The table. Entry = kind (3 bits), zero and ballooned flags, payload (27 bits); a fresh table is
/// all zero bits, so that the memory for what a guest never touches is never backed.
#[derive(Debug)]
pub struct Pmap {
    entries: Vec<u32>,
    counts: Counts,
    /// Pairs of neighbours that cannot lie in one kernel mapping.
    boundaries: u64,
}

fn encode(state: PageState) -> u32 {
    let (kind, payload) = match state {
        PageState::Unbacked => (0, 0),
        PageState::Private => (1, 0),
        PageState::Shared(frame) => (2, frame.0),
        PageState::Broken(frame) => (3, frame.0),
        PageState::Staged(slot) => (4, slot),
        PageState::Busy => (5, 0),
        PageState::Compressed(slot) => (6, slot),
        PageState::Swapped(slot) => (7, slot.0),
    };
    assert!(
        payload <= PAYLOAD_MASK,
        "{state:?} does not fit the page map"
    );
    (kind << KIND_SHIFT) | payload
}

fn decode(entry: u32) -> PageState {
    let payload = entry & PAYLOAD_MASK;
    match entry >> KIND_SHIFT {
        0 => PageState::Unbacked,
        1 => PageState::Private,
        2 => PageState::Shared(FrameId(payload)),
        3 => PageState::Broken(FrameId(payload)),
        4 => PageState::Staged(payload),
        5 => PageState::Busy,
        6 => PageState::Compressed(payload),
        _ => PageState::Swapped(SwapSlot(payload)),
    }
}

/// The frame whose mapping covers a page in this state.
fn mapped_frame(state: PageState) -> Option<u32> {
    match state {
        PageState::Shared(frame) | PageState::Broken(frame) => Some(frame.0),
        _ => None,
    }
}

/// Whether the kernel must keep two neighbours in two mappings.
fn apart(left: PageState, right: PageState) -> bool {
    match (mapped_frame(left), mapped_frame(right)) {
        (None, None) => false,
        (Some(left), Some(right)) => left + 1 != right,
        _ => true,
    }
}

impl Pmap {
    /// A table for gfns below `end`, all unbacked.
    pub fn new(end: Gfn) -> Pmap {
        Pmap {
            entries: vec![0; end.index()],
            counts: Counts::default(),
            boundaries: 0,
        }
    }

    /// The state of a page.
    ///
    /// # Panics
    /// When the gfn is outside the table, here and below: callers check against the RAM layout.
    pub fn state(&self, gfn: Gfn) -> PageState {
        decode(self.entries[gfn.index()])
    }

    /// Whether the balloon holds the page.
    pub fn is_ballooned(&self, gfn: Gfn) -> bool {
        self.entries[gfn.index()] & BALLOONED != 0
    }

    /// Whether the page was discarded as zero and not found written since.
    pub fn is_zero(&self, gfn: Gfn) -> bool {
        self.entries[gfn.index()] & ZERO != 0
    }

    /// Carries out one transition.
    ///
    /// # Panics
    /// When the transition is illegal: the tables and the page tables would disagree, and stopping
    /// is better than handing a guest another's page.
    pub fn apply(&mut self, gfn: Gfn, event: PageEvent) -> PageState {
        let old = self.state(gfn);
        let Some(new) = old.after(event) else {
            panic!("page map: {event:?} on {gfn}, which is {old:?}");
        };
        self.boundaries -= self.boundaries_around(gfn);
        let entry = &mut self.entries[gfn.index()];
        *entry = (*entry & (BALLOONED | ZERO)) | encode(new);
        self.boundaries += self.boundaries_around(gfn);
        if let Some(count) = self.counts.of(old) {
            *count -= 1;
        }
        if let Some(count) = self.counts.of(new) {
            *count += 1;
        }
        old
    }

    /// Marks whether the balloon holds the page.
    pub fn set_ballooned(&mut self, gfn: Gfn, held: bool) {
        Self::set_flag(
            &mut self.entries[gfn.index()],
            BALLOONED,
            held,
            &mut self.counts.ballooned,
        );
    }

    /// Marks whether the page was discarded as zero.
    pub fn set_zero(&mut self, gfn: Gfn, zero: bool) {
        Self::set_flag(
            &mut self.entries[gfn.index()],
            ZERO,
            zero,
            &mut self.counts.zero,
        );
    }

    fn set_flag(entry: &mut u32, flag: u32, set: bool, count: &mut u64) {
        match (*entry & flag != 0, set) {
            (false, true) => {
                *entry |= flag;
                *count += 1;
            }
            (true, false) => {
                *entry &= !flag;
                *count -= 1;
            }
            _ => {}
        }
    }

    /// The counts, kept up to date by every transition.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Kernel mappings that the guest's RAM needs as it stands. The kernel may use more for a
    /// while, where it has not merged neighbours.
    pub fn mappings(&self) -> u64 {
        self.boundaries + 1
    }

    /// How many mappings more (or fewer) there would be with `frame` mapped at `gfn`, or with armed
    /// memory there.
    pub fn mappings_added(&self, gfn: Gfn, frame: Option<FrameId>) -> i64 {
        let shared = frame.map_or(PageState::Unbacked, PageState::Shared);
        let before = self.boundaries_around(gfn);
        let left = gfn.0.checked_sub(1).map(|left| self.state(Gfn(left)));
        let right = self
            .entries
            .get(gfn.index() + 1)
            .map(|entry| decode(*entry));
        let after = u64::from(left.is_some_and(|left| apart(left, shared)))
            + u64::from(right.is_some_and(|right| apart(shared, right)));
        after.cast_signed() - before.cast_signed()
    }

    fn boundaries_around(&self, gfn: Gfn) -> u64 {
        let at = self.state(gfn);
        let left = gfn
            .0
            .checked_sub(1)
            .is_some_and(|left| apart(self.state(Gfn(left)), at));
        let right = self.entries.get(gfn.index() + 1);
        let right = right.is_some_and(|right| apart(at, decode(*right)));
        u64::from(left) + u64::from(right)
    }

    /// The longest run around `gfn` inside `within` whose pages all satisfy `like`; `gfn` itself
    /// must.
    pub fn run_around(
        &self,
        gfn: Gfn,
        within: GfnRange,
        like: impl Fn(&Pmap, Gfn) -> bool,
    ) -> GfnRange {
        debug_assert!(within.contains(gfn) && like(self, gfn));
        let mut start = gfn.0;
        while start > within.start.0 && like(self, Gfn(start - 1)) {
            start -= 1;
        }
        let mut end = gfn.0 + 1;
        while end < within.end().0 && like(self, Gfn(end)) {
            end += 1;
        }
        GfnRange::new(Gfn(start), end - start)
    }

    /// Recounts everything and compares with the running counts.
    ///
    /// # Panics
    /// When they disagree, or two pages name one swap or compressed slot.
    pub fn audit(&self) {
        let mut counts = Counts::default();
        let mut slots = std::collections::HashSet::new();
        let mut boundaries = 0;
        for (index, entry) in self.entries.iter().enumerate() {
            let state = decode(*entry);
            if let Some(count) = counts.of(state) {
                *count += 1;
            }
            counts.ballooned += u64::from(entry & BALLOONED != 0);
            counts.zero += u64::from(entry & ZERO != 0);
            let stored = matches!(
                state,
                PageState::Swapped(_) | PageState::Compressed(_) | PageState::Staged(_)
            );
            assert!(!stored || slots.insert(state), "two pages are {state:?}");
            let next = self.entries.get(index + 1);
            boundaries += u64::from(next.is_some_and(|next| apart(state, decode(*next))));
        }
        assert_eq!(counts, self.counts, "page counts");
        assert_eq!(boundaries, self.boundaries, "mapping boundaries");
    }
}

impl Counts {
    fn of(&mut self, state: PageState) -> Option<&mut u64> {
        Some(match state {
            PageState::Unbacked => return None,
            PageState::Private => &mut self.private,
            PageState::Shared(_) => &mut self.shared,
            PageState::Broken(_) => &mut self.broken,
            PageState::Staged(_) => &mut self.staged,
            PageState::Busy => &mut self.busy,
            PageState::Compressed(_) => &mut self.compressed,
            PageState::Swapped(_) => &mut self.swapped,
        })
    }

    /// Pages that map a frame or lie over one.
    pub fn in_pool_mappings(&self) -> Pages {
        Pages(self.shared + self.broken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use PageEvent as E;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn runs_of_frames_are_one_mapping() {
        let mut pmap = Pmap::new(Gfn(64));
        for (index, gfn) in GfnRange::new(Gfn(10), 8).iter().enumerate() {
            let frame = FrameId(100 + u32::try_from(index).unwrap());
            let added = pmap.mappings_added(gfn, Some(frame));
            let before = pmap.mappings();
            pmap.apply(gfn, E::Fill);
            pmap.apply(gfn, E::Take(0));
            pmap.apply(gfn, E::Share(frame));
            assert_eq!(pmap.mappings().cast_signed(), before.cast_signed() + added);
        }
        assert_eq!(pmap.mappings(), 3);
        pmap.apply(Gfn(12), E::Begin);
        pmap.apply(Gfn(12), E::Discard);
        assert_eq!(pmap.mappings(), 5);
        pmap.audit();
    }

    #[test]
    fn flags_survive_transitions() {
        let mut pmap = Pmap::new(Gfn(4));
        pmap.set_ballooned(Gfn(1), true);
        pmap.set_zero(Gfn(1), true);
        pmap.apply(Gfn(1), E::Fill);
        assert!(pmap.is_ballooned(Gfn(1)) && pmap.is_zero(Gfn(1)));
        pmap.set_ballooned(Gfn(1), false);
        assert_eq!(pmap.counts().ballooned, 0);
        pmap.audit();
    }

    #[test]
    #[should_panic(expected = "Share")]
    fn an_illegal_transition_stops() {
        let mut pmap = Pmap::new(Gfn(4));
        pmap.apply(Gfn(0), E::Share(FrameId(0)));
    }

    #[test]
    fn the_largest_payloads_survive() {
        let largest = FrameId(PAYLOAD_MASK);
        assert_eq!(
            decode(encode(PageState::Shared(largest))),
            PageState::Shared(largest)
        );
        let slot = SwapSlot(PAYLOAD_MASK);
        assert_eq!(
            decode(encode(PageState::Swapped(slot))),
            PageState::Swapped(slot)
        );
    }

    /// One step of the model test: an event on a page, or a flag set or cleared.
    #[derive(Debug, Clone)]
    enum Step {
        Event(PageEvent),
        Ballooned(bool),
        Zero(bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(Step::Event(E::Fill)),
            Just(Step::Event(E::Discard)),
            Just(Step::Event(E::Take(0))),
            Just(Step::Event(E::GiveBack)),
            (0u32..8).prop_map(|frame| Step::Event(E::Share(FrameId(frame)))),
            Just(Step::Event(E::Break)),
            Just(Step::Event(E::SwapOut(SwapSlot(0)))),
            Just(Step::Event(E::Compress(0))),
            Just(Step::Event(E::Begin)),
            Just(Step::Event(E::Install)),
            Just(Step::Event(E::KeepSwapped(SwapSlot(0)))),
            any::<bool>().prop_map(Step::Ballooned),
            any::<bool>().prop_map(Step::Zero),
        ]
    }

    /// Slots are the caller's to choose; the model gives each page its own.
    fn with_own_slot(event: PageEvent, gfn: u32) -> PageEvent {
        match event {
            E::Take(_) => E::Take(gfn),
            E::SwapOut(_) => E::SwapOut(SwapSlot(gfn)),
            E::KeepSwapped(_) => E::KeepSwapped(SwapSlot(gfn)),
            E::Compress(_) => E::Compress(gfn),
            other => other,
        }
    }

    proptest! {
        /// Against a plain map: every page is in the state that its events lead to, whatever
        /// happens to its neighbours, and the running counts are those of a recount.
        #[test]
        fn the_table_follows_the_model(steps in prop::collection::vec((0u32..24, step()), 1..400)) {
            let mut pmap = Pmap::new(Gfn(24));
            let mut model: HashMap<u32, (PageState, bool, bool)> = HashMap::new();
            for (gfn, step) in steps {
                let page = model.entry(gfn).or_insert((PageState::Unbacked, false, false));
                match step {
                    Step::Event(event) => {
                        let event = with_own_slot(event, gfn);
                        // An illegal event stops the VM; that has its own test.
                        let Some(next) = page.0.after(event) else { continue };
                        prop_assert_eq!(pmap.apply(Gfn(gfn), event), page.0);
                        page.0 = next;
                    }
                    Step::Ballooned(held) => {
                        pmap.set_ballooned(Gfn(gfn), held);
                        page.1 = held;
                    }
                    Step::Zero(zero) => {
                        pmap.set_zero(Gfn(gfn), zero);
                        page.2 = zero;
                    }
                }
                pmap.audit();
            }
            for (gfn, (state, ballooned, zero)) in model {
                prop_assert_eq!(pmap.state(Gfn(gfn)), state);
                prop_assert_eq!(pmap.is_ballooned(Gfn(gfn)), ballooned);
                prop_assert_eq!(pmap.is_zero(Gfn(gfn)), zero);
            }
        }
    }
}
