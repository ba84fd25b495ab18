//! Who holds which slot of the staging area.
//!
//! A slot is had as a token, [`Taken`], and comes back with it: a token that is dropped, on whatever
//! path, returns its slot. What is done with the page is said before; a page that still waits in a
//! returned slot is given back to the guest, so that forgetting a token loses time and no content.
//! No slot number leaves this module but inside a token.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use super::observe::Cause;
use crate::sys::staging::{AREA_SLOTS, StageSlot};
use crate::units::Gfn;

/// What has become of the page that a slot was handed out for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Occupant {
    /// The slot is filled, and the page waits in it.
    Waiting,
    /// The guest touched the page and has it back.
    Touched,
    /// The content is stored or mapped elsewhere, is dead, or is not there yet.
    Gone,
}

/// A slot, held for a page that was taken out of the guest.
#[derive(Debug)]
#[must_use = "a dropped token gives its page back to the guest"]
pub(super) struct Taken {
    gfn: Gfn,
    slot: StageSlot,
    returned: Arc<Mutex<Vec<StageSlot>>>,
}

impl Taken {
    /// The page.
    pub fn gfn(&self) -> Gfn {
        self.gfn
    }

    /// Where it is.
    pub(super) fn slot(&self) -> StageSlot {
        self.slot
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        lock(&self.returned).push(self.slot);
    }
}

fn lock(returned: &Mutex<Vec<StageSlot>>) -> MutexGuard<'_, Vec<StageSlot>> {
    returned.lock().expect("nothing panics under this lock")
}

/// A slot that is not free.
#[derive(Debug, Clone, Copy)]
struct Held {
    gfn: Gfn,
    occupant: Occupant,
    /// On whose account it was handed out.
    cause: Cause,
}

/// The staging area's slots.
#[derive(Debug)]
pub(super) struct Stage {
    slots: Vec<Option<Held>>,
    returned: Arc<Mutex<Vec<StageSlot>>>,
}

impl Stage {
    /// Both areas, all free.
    pub fn new() -> Stage {
        Stage {
            slots: vec![None; 2 * usize::from(AREA_SLOTS)],
            returned: Arc::default(),
        }
    }

    /// Up to `wanted` neighbouring free slots of `within`; none when all are held.
    pub fn find(&self, within: Range<u16>, wanted: u32) -> Option<(StageSlot, u32)> {
        let mut best: Option<(u16, u32)> = None;
        let mut run = 0;
        for slot in within {
            run = match self.slots[usize::from(slot)] {
                None => run + 1,
                Some(_) => 0,
            };
            if run > best.map_or(0, |(_, length)| length) {
                best = Some((slot, run));
                if run >= wanted {
                    break;
                }
            }
        }
        best.map(|(last, length)| {
            let first = u32::from(last) + 1 - length;
            let first = u16::try_from(first).expect("slots are numbered in a u16");
            (StageSlot(first), length)
        })
    }

    /// Hands out a free slot.
    ///
    /// # Panics
    /// When somebody holds it.
    pub fn hand_out(
        &mut self,
        gfn: Gfn,
        slot: StageSlot,
        occupant: Occupant,
        cause: Cause,
    ) -> Taken {
        let place = &mut self.slots[usize::from(slot.0)];
        assert!(place.is_none(), "{slot:?} is handed out twice");
        *place = Some(Held {
            gfn,
            occupant,
            cause,
        });
        Taken {
            gfn,
            slot,
            returned: Arc::clone(&self.returned),
        }
    }

    /// What is known of the page in a slot.
    pub fn occupant(&self, slot: StageSlot) -> Option<(Gfn, Occupant)> {
        self.slots[usize::from(slot.0)].map(|held| (held.gfn, held.occupant))
    }

    /// Notes what became of the page in a slot.
    ///
    /// # Panics
    /// When the slot is free.
    pub fn becomes(&mut self, slot: StageSlot, occupant: Occupant) {
        let place = self.slots[usize::from(slot.0)].as_mut();
        let held = place.expect("a page is staged in a slot that is held");
        held.occupant = occupant;
    }

    /// The slots whose tokens are gone, in ascending order, each once.
    pub fn take_returned(&mut self) -> Vec<StageSlot> {
        let mut returned = std::mem::take(&mut *lock(&self.returned));
        returned.sort_unstable();
        returned
    }

    /// Makes a returned slot free for others; its memory was emptied.
    pub fn free(&mut self, slot: StageSlot) {
        self.slots[usize::from(slot.0)] = None;
    }

    /// Slots in which a page waits.
    pub fn waiting(&self) -> usize {
        let waiting = |held: &&Held| held.occupant == Occupant::Waiting;
        self.slots.iter().flatten().filter(waiting).count()
    }

    /// Slots whose tokens somebody has, of those handed out for `cause`.
    pub fn tokens_of(&self, cause: Cause) -> usize {
        let returned = lock(&self.returned);
        let held = (0..).zip(&self.slots).filter(|(slot, held)| {
            held.is_some_and(|held| held.cause == cause) && !returned.contains(&StageSlot(*slot))
        });
        held.count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(stage: &mut Stage, wanted: u32) -> Vec<Taken> {
        let (slot, count) = stage.find(0..AREA_SLOTS, wanted).unwrap();
        (0..count)
            .map(|index| {
                let slot = StageSlot(slot.0 + u16::try_from(index).unwrap());
                stage.hand_out(Gfn(index), slot, Occupant::Waiting, Cause::Swap)
            })
            .collect()
    }

    #[test]
    fn a_dropped_token_returns_its_slot() {
        let mut stage = Stage::new();
        let mut tokens = take(&mut stage, 8);
        assert_eq!((stage.waiting(), stage.tokens_of(Cause::Swap)), (8, 8));
        drop(tokens.remove(3));
        assert_eq!(stage.tokens_of(Cause::Swap), 7);
        assert_eq!(stage.tokens_of(Cause::Sample), 0);
        assert_eq!(
            stage.waiting(),
            8,
            "a slot is not free before it is emptied"
        );
        assert_eq!(stage.take_returned(), [StageSlot(3)]);
        stage.free(StageSlot(3));
        assert_eq!(stage.find(0..AREA_SLOTS, 1), Some((StageSlot(3), 1)));
        drop(tokens);
        stage
            .take_returned()
            .into_iter()
            .for_each(|slot| stage.free(slot));
        assert_eq!(stage.waiting(), 0);
    }

    #[test]
    fn runs_are_neighbours_and_areas_end() {
        let mut stage = Stage::new();
        let tokens = take(&mut stage, 16);
        assert_eq!(stage.find(0..AREA_SLOTS, 100), Some((StageSlot(16), 100)));
        let all = u32::from(AREA_SLOTS);
        assert_eq!(
            stage.find(0..AREA_SLOTS, all),
            Some((StageSlot(16), all - 16))
        );
        assert_eq!(stage.find(0..16, 1), None);
        drop(tokens);
    }

    #[test]
    #[should_panic(expected = "handed out twice")]
    fn no_slot_has_two_holders() {
        let mut stage = Stage::new();
        let _first = stage.hand_out(Gfn(1), StageSlot(5), Occupant::Waiting, Cause::Swap);
        let _second = stage.hand_out(Gfn(2), StageSlot(5), Occupant::Waiting, Cause::Swap);
    }
}
