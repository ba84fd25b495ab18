//! The frames of one share group: the key of each, and who holds how many references to it.
//!
//! | part of a frame | bytes |
//! |---|---|
//! | its record, found by its number | 33, at a load of 7/16 to 7/8 |
//! | its number, found by its key | 5, at the same load |
//! | its holders | 8 each, and what the allocator adds to one piece of memory |

use std::ops::Deref;

use crate::host::tables::Tables;
use crate::policy::types::VmId;
use crate::units::FrameId;
use crate::words::Key;

/// Who holds how many references to a frame, in no order; never zero ones.
#[derive(Debug, Default)]
pub(super) struct Holders(Box<[(VmId, u32)]>);

impl Holders {
    /// References of a VM.
    pub fn held(&self, vm: VmId) -> u32 {
        let held = self.0.iter().find(|&&(holder, _)| holder == vm);
        held.map_or(0, |&(_, count)| count)
    }

    /// Makes that `count`.
    pub fn set(&mut self, vm: VmId, count: u32) {
        let held = self.0.iter().position(|&(holder, _)| holder == vm);
        match (held, count) {
            (None, 0) => {}
            (None, _) => {
                let held = self.0.iter().copied();
                self.0 = held.chain([(vm, count)]).collect();
            }
            (Some(_), 0) => {
                let held = self.0.iter().copied();
                self.0 = held.filter(|&(holder, _)| holder != vm).collect();
            }
            (Some(place), _) => self.0[place].1 = count,
        }
    }
}

impl Deref for Holders {
    type Target = [(VmId, u32)];

    fn deref(&self) -> &[(VmId, u32)] {
        &self.0
    }
}

#[derive(Debug)]
pub(super) struct Frame {
    id: FrameId,
    /// Of an earlier host manager: somebody may map it who has not said so yet.
    pub adopted: bool,
    key: Key,
    pub holders: Holders,
}

impl Frame {
    /// Its number.
    pub fn id(&self) -> FrameId {
        self.id
    }

    /// Under which it is found; `None` until an adopted frame was read, and where another one with its
    /// content came first.
    pub fn key(&self) -> Option<Key> {
        (self.key != Key::NONE).then_some(self.key)
    }
}

/// The frames of one share group.
#[derive(Debug, Default)]
pub(super) struct Frames {
    by_id: Tables<Frame>,
    by_key: Tables<FrameId>,
}

impl Frames {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Frame> {
        self.by_id.iter()
    }

    /// All of them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Frame> {
        self.by_id.iter_mut()
    }

    /// The frame of that number.
    pub fn get(&self, id: FrameId) -> Option<&Frame> {
        self.by_id.find(id, |frame| frame.id == id)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, id: FrameId) -> Option<&mut Frame> {
        self.by_id.find_mut(id, |frame| frame.id == id)
    }

    /// The frame with that key.
    pub fn with_key(&self, key: Key) -> Option<FrameId> {
        let is = |&id: &FrameId| key_of(&self.by_id, id) == key;
        self.by_key.find(key, is).copied()
    }

    /// Adds a frame without key and holders.
    ///
    /// # Panics
    /// When there is a frame of that number: a bug.
    pub fn add(&mut self, id: FrameId, adopted: bool) {
        let frame = Frame {
            id,
            adopted,
            key: Key::NONE,
            holders: Holders::default(),
        };
        let is = |frame: &Frame| frame.id == id;
        let before = self.by_id.replace(id, frame, is, Frame::id);
        assert!(before.is_none(), "{id:?} was in use");
    }

    /// Gives a frame its key, which no other frame has; [`Key::NONE`] is none.
    ///
    /// # Panics
    /// When the frame has one, or another frame has this one: a bug.
    pub fn set_key(&mut self, id: FrameId, key: Key) {
        let frame = self.get_mut(id).expect("callers know the frame");
        assert!(frame.key().is_none(), "{id:?} has a key");
        frame.key = key;
        if key == Key::NONE {
            return;
        }
        let by_id = &self.by_id;
        let is = |&other: &FrameId| key_of(by_id, other) == key;
        let other = self
            .by_key
            .replace(key, id, is, |&other| key_of(by_id, other));
        assert!(other.is_none(), "{id:?} and {other:?} have one key");
    }

    /// Takes a frame out.
    pub fn remove(&mut self, id: FrameId) -> Option<Frame> {
        if let Some(key) = self.get(id)?.key() {
            let by_id = &self.by_id;
            let is = |&other: &FrameId| other == id;
            let keyed = self.by_key.remove(key, is, |&other| key_of(by_id, other));
            assert!(keyed.is_some(), "{id:?} has a key and is not found by it");
        }
        self.by_id.remove(id, |frame| frame.id == id, Frame::id)
    }
}

fn key_of(by_id: &Tables<Frame>, id: FrameId) -> Key {
    let frame = by_id.find(id, |frame| frame.id == id);
    frame.expect("frames that have a key exist").key
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn holders_hold_what_was_set_last() {
        // (VM, references), and how many VMs hold the frame then.
        let steps = [
            ((1, 1), 1),
            ((2, 0), 1),
            ((2, 3), 2),
            ((1, 2), 2),
            ((3, 1), 3),
            ((2, 0), 2),
            ((1, 0), 1),
            ((3, 0), 0),
        ];
        let (mut holders, mut model) = (Holders::default(), HashMap::new());
        for ((vm, count), number) in steps {
            holders.set(VmId(vm), count);
            model.insert(vm, count);
            assert_eq!(holders.len(), number, "{vm} holds {count}");
            for (&vm, &count) in &model {
                assert_eq!(holders.held(VmId(vm)), count);
            }
        }
    }

    #[test]
    fn frames_are_found_by_number_and_by_key() {
        let mut frames = Frames::default();
        for id in 0..3000 {
            frames.add(FrameId(id), id % 2 == 0);
        }
        for id in (0..3000).step_by(3) {
            frames.set_key(FrameId(id), Key(u64::from(id) + 1));
        }
        for id in (0..3000).step_by(2) {
            let frame = frames.remove(FrameId(id)).unwrap();
            let key = (id % 3 == 0).then_some(Key(u64::from(id) + 1));
            assert_eq!(
                (frame.id(), frame.adopted, frame.key()),
                (FrameId(id), true, key)
            );
            assert!(frames.remove(FrameId(id)).is_none());
        }
        assert_eq!((frames.len(), frames.iter().count()), (1500, 1500));
        for id in 0..3000 {
            let frame = frames.get(FrameId(id)).map(|frame| frame.adopted);
            assert_eq!(frame, (id % 2 == 1).then_some(false));
            let keyed = (id % 2 == 1 && id % 3 == 0).then_some(FrameId(id));
            assert_eq!(frames.with_key(Key(u64::from(id) + 1)), keyed);
        }
        assert_eq!(frames.with_key(Key::NONE), None);
    }

    #[test]
    #[should_panic(expected = "have one key")]
    fn two_frames_with_one_key_are_a_bug() {
        let mut frames = Frames::default();
        for id in [1, 2] {
            frames.add(FrameId(id), false);
            frames.set_key(FrameId(id), Key(7));
        }
    }
}
