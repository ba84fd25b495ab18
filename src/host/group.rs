//! One share group: its frame pool, its index of page contents, and who refers to which frame.
//!
//! Owned by [`super::share::ShareIndex`], which has one for each named group and one for each VM that
//! named none. A group's keys have a secret seed of their own, its frames are numbered in its own
//! pool, and nothing in it refers to another group: sharing across groups cannot be expressed.
//!
//! | a group knows of a key | an offer of that key by another page |
//! |---|---|
//! | nothing | makes it a hint |
//! | hint (a page of some VM) | asks the offerer for the content; the key is awaited |
//! | awaited | joins those who wait |
//! | frame | lends the offerer a reference |
//!
//! Content is copied, hashed with the group's seed from the host's own copy, and only then made a
//! frame; a key is never believed. Content that does not have the key it was offered under (the
//! guest wrote the page in between, or the VM process lies) makes no frame.
//!
//! A frame lives as long as it has references. A reference is lent with every candidate and ends
//! with `Release` or the VM's death; that its link ends means nothing. A VM that has lost its link, or
//! its host manager, says anew which frames it maps: see `group/claims.rs`.

mod claims;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

pub use claims::ClaimError;

use super::accounts::FramePart;
use super::member::{Member, Reach};
use super::pool::{self, FramePool, PoolId};
use super::share::{ContentAnswer, Lent, NotHeld, OfferAnswer, WAITING_MAX, WANT_EXPIRY};
use super::split::FrameSplit;
use crate::page::key::key_of;
use crate::policy::types::VmId;
use crate::units::{FrameId, Gfn, PAGE_SIZE, Pages};
use crate::words::Key;

/// Frames given back to the host in one go. Chosen: a millisecond where each is a hole of its own.
pub const GIVE_BACK_FRAMES: usize = 64;

#[derive(Debug)]
enum Entry {
    Hint(VmId, Gfn),
    Awaited(Box<Awaited>),
    Frame(FrameId),
}

/// A content that was asked for; who was asked stands in [`Member::wants`].
#[derive(Debug)]
struct Awaited {
    waiting: Vec<(VmId, Gfn)>,
}

#[derive(Debug)]
struct Frame {
    /// Under which it is in the index; `None` until an adopted frame was read, and where another
    /// one with its content came first.
    key: Option<Key>,
    /// Who holds how many references; never zero ones.
    holders: Vec<(VmId, u32)>,
    /// Of an earlier host manager: somebody may map it who has not said so yet.
    adopted: bool,
}

/// The memory of a group's frames.
#[derive(Debug)]
enum Memory {
    Held(FramePool),
    /// An earlier host manager's, until a VM hands it back.
    Awaited(PoolId),
}

/// A share group.
#[derive(Debug)]
pub(super) struct Group {
    name: Option<String>,
    seed: u64,
    memory: Memory,
    members: HashMap<VmId, Member>,
    index: HashMap<Key, Entry>,
    frames: HashMap<FrameId, Frame>,
    references: u64,
    /// Members that may map adopted frames and have not said which.
    unsettled: HashSet<VmId>,
    /// Adopted frames whose content has not been looked at.
    unread: Vec<FrameId>,
    /// `frames` divided among their holders.
    split: FrameSplit,
    /// Whether `split` has changed since it was last asked for.
    split_changed: bool,
}

impl Group {
    /// A group without members.
    pub fn new(name: Option<&str>, seed: u64, pool: FramePool) -> Group {
        Group::over(name, seed, Memory::Held(pool))
    }

    fn over(name: Option<&str>, seed: u64, memory: Memory) -> Group {
        Group {
            name: name.map(str::to_owned),
            seed,
            memory,
            members: HashMap::new(),
            index: HashMap::new(),
            frames: HashMap::new(),
            references: 0,
            unsettled: HashSet::new(),
            unread: Vec::new(),
            split: FrameSplit::default(),
            split_changed: false,
        }
    }

    /// Its name, if the user gave one.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Seed of its keys.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Its frames' memory, unless that is still to be handed back.
    pub fn pool(&self) -> Option<&FramePool> {
        match &self.memory {
            Memory::Held(pool) => Some(pool),
            Memory::Awaited(_) => None,
        }
    }

    /// Which file its frames are in.
    pub fn pool_id(&self) -> PoolId {
        match &self.memory {
            Memory::Held(pool) => pool.id(),
            Memory::Awaited(id) => *id,
        }
    }

    fn pool_mut(&mut self) -> &mut FramePool {
        match &mut self.memory {
            Memory::Held(pool) => pool,
            Memory::Awaited(_) => {
                unreachable!("nobody has a link or a frame before the pool is there")
            }
        }
    }

    /// Whether nobody is in it.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// What it knows of a VM.
    pub fn member(&self, vm: VmId) -> Option<&Member> {
        self.members.get(&vm)
    }

    /// Frames whose memory is in use: those that somebody holds, and those that are retired.
    pub fn frames(&self) -> u64 {
        (self.frames.len() + self.retired()) as u64
    }

    /// Frames that nobody holds, and whose memory is still to be given back.
    pub fn retired(&self) -> usize {
        self.pool().map_or(0, FramePool::retired)
    }

    /// Gives the memory of at most `most` of them back to the host, and returns of how many.
    pub fn give_back(&mut self, most: usize) -> Pages {
        match self.retired() {
            0 => Pages::ZERO,
            _ => self.pool_mut().give_back(most),
        }
    }

    /// References of all members.
    pub fn references(&self) -> u64 {
        self.references
    }

    /// Each member's part of the frames, if any reference has changed since it was last asked.
    pub fn changed_parts(&mut self) -> Option<Vec<(VmId, FramePart)>> {
        if !std::mem::take(&mut self.split_changed) {
            return None;
        }
        let parts = self.split.parts();
        let part = |&vm: &VmId| (vm, parts.get(&vm).copied().unwrap_or_default());
        Some(self.members.keys().map(part).collect())
    }

    /// Takes a VM of `size` pages in.
    pub fn join(&mut self, vm: VmId, size: Pages) {
        let before = self.members.insert(vm, Member::new(size));
        assert!(before.is_none(), "{vm:?} joined twice");
    }

    /// Forgets a VM: its hints, its wants and all its references. Frames without another reference
    /// go back to the host. Returns how many.
    pub fn leave(&mut self, vm: VmId) -> Pages {
        let Some(mut member) = self.members.remove(&vm) else {
            return Pages::ZERO;
        };
        self.forget_pages(&mut member);
        self.unsettled.remove(&vm);
        self.split_changed = true;
        for frame in self.frames.values_mut() {
            if frame.holders.iter().any(|&(holder, _)| holder == vm) {
                self.split.remove(&frame.holders);
                frame.holders.retain(|&(holder, _)| holder != vm);
                self.split.add(&frame.holders);
            }
        }
        self.references -= member.references;
        self.sweep() + self.give_back(usize::MAX)
    }

    /// Forgets a member's hints and wants.
    fn forget_pages(&mut self, member: &mut Member) {
        for (_, key) in member.hints.drain() {
            self.index.remove(&key);
        }
        for (_, (key, _)) in member.wants.drain() {
            self.give_up(key);
        }
    }

    /// Gives the frames that nobody holds, and nobody may still claim, back to the host. Returns how
    /// many.
    fn sweep(&mut self) -> Pages {
        let settled = self.unsettled.is_empty();
        let mut freed = Vec::new();
        self.frames.retain(|&id, frame| {
            let keep = !frame.holders.is_empty() || (frame.adopted && !settled);
            if !keep {
                if let Some(key) = frame.key {
                    self.index.remove(&key);
                }
                freed.push(id);
            }
            keep
        });
        let count = Pages(freed.len() as u64);
        if !freed.is_empty() {
            self.pool_mut().free(freed);
        }
        count
    }

    /// Looks up the keys of a member's pages.
    pub fn offer(&mut self, vm: VmId, pages: &[(Gfn, Key)], now: Duration) -> OfferAnswer {
        let mut answer = OfferAnswer::default();
        for &(gfn, key) in pages {
            match self.index.get_mut(&key) {
                None => self.hint(vm, gfn, key),
                Some(&mut Entry::Hint(owner, page)) => {
                    if (owner, page) != (vm, gfn) && self.want(vm, gfn, key, now) {
                        answer.wants.push(gfn);
                    }
                }
                Some(Entry::Awaited(awaited)) => {
                    let asked = self.members[&vm].wants.get(&gfn).map(|&(key, _)| key) == Some(key);
                    let known = asked || awaited.waiting.contains(&(vm, gfn));
                    if !known && awaited.waiting.len() < WAITING_MAX {
                        awaited.waiting.push((vm, gfn));
                    }
                }
                Some(&mut Entry::Frame(frame)) => {
                    if self.lend(vm, frame) {
                        answer.candidates.push((gfn, frame));
                    }
                }
            }
        }
        answer
    }

    /// Takes contents that a member sends. At most `room` frames are made.
    ///
    /// # Errors
    /// Never for what the VM sent; the pool's when the host has no memory for a frame. What was
    /// done until then stands in the answer.
    pub fn content<'a>(
        &mut self,
        vm: VmId,
        pages: impl IntoIterator<Item = (Gfn, &'a [u8; PAGE_SIZE])>,
        room: Pages,
    ) -> (ContentAnswer, Option<pool::Error>) {
        let mut answer = ContentAnswer::default();
        let mut failed = None;
        for (gfn, content) in pages {
            let Some(member) = self.members.get_mut(&vm) else {
                break;
            };
            let Some((key, _)) = member.wants.remove(&gfn) else {
                answer.unsolicited += 1;
                continue;
            };
            if key_of(content, self.seed) != key || u64::from(answer.made) >= room.0 {
                self.give_up(key);
                continue;
            }
            match self.pool_mut().store(vm, gfn, content) {
                Ok(Some(frame)) => {
                    self.publish(key, frame, (vm, gfn), &mut answer.lent);
                    if self.frames[&frame].holders.is_empty() {
                        // Nobody may hold further references: as if there had been no room.
                        self.forget(frame);
                        self.pool_mut().free(vec![frame]);
                    } else {
                        answer.made += 1;
                    }
                }
                Ok(None) => self.give_up(key),
                Err(error) => {
                    self.give_up(key);
                    failed = Some(error);
                }
            }
        }
        (answer, failed)
    }

    /// Ends references of a member. Frames without another reference retire; returns how many of
    /// those went back to the host at once.
    ///
    /// # Errors
    /// At the first frame of which the VM holds no reference; those before it are released.
    pub fn release(&mut self, vm: VmId, frames: &[FrameId]) -> (Pages, Result<(), NotHeld>) {
        let mut freed = Vec::new();
        let mut result = Ok(());
        for &frame in frames {
            match self.unreference(vm, frame) {
                Ok(Some(frame)) => freed.push(frame),
                Ok(None) => {}
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        if !freed.is_empty() {
            self.pool_mut().retire(freed);
        }
        (self.give_back(GIVE_BACK_FRAMES), result)
    }

    /// Forgets wants that were not answered in time.
    pub fn expire(&mut self, now: Duration) {
        let mut late = Vec::new();
        for member in self.members.values_mut() {
            member.wants.retain(|_, &mut (key, since)| {
                let keep = now.saturating_sub(since) < WANT_EXPIRY;
                if !keep {
                    late.push(key);
                }
                keep
            });
        }
        for key in late {
            self.give_up(key);
        }
    }

    /// Makes (vm, gfn) the page that stands for `key`.
    fn hint(&mut self, vm: VmId, gfn: Gfn, key: Key) {
        let member = self.members.get_mut(&vm).expect("callers know the VM");
        if let Some(stale) = member.hints.remove(&gfn) {
            self.index.remove(&stale);
        }
        if member.may_hint() {
            member.hints.insert(gfn, key);
            self.index.insert(key, Entry::Hint(vm, gfn));
        }
    }

    /// Turns a hint into an awaited content that (vm, gfn) is asked for, unless it is asked for
    /// too much already.
    fn want(&mut self, vm: VmId, gfn: Gfn, key: Key, now: Duration) -> bool {
        let member = self.members.get_mut(&vm).expect("callers know the VM");
        if !member.may_want(gfn) {
            return false;
        }
        member.wants.insert(gfn, (key, now));
        let entry = self.index.get_mut(&key).expect("callers found a hint");
        let Entry::Hint(owner, page) = *entry else {
            unreachable!("callers found a hint");
        };
        *entry = Entry::Awaited(Box::new(Awaited {
            waiting: vec![(owner, page)],
        }));
        let owner = self.members.get_mut(&owner);
        let owner = owner.expect("hints leave with their VM");
        owner.hints.remove(&page);
        true
    }

    /// Nobody will send the content of an awaited key: one of those who wait becomes its hint.
    fn give_up(&mut self, key: Key) {
        if let Some(Entry::Awaited(awaited)) = self.index.remove(&key) {
            let alive = |(vm, _): &&(VmId, Gfn)| self.members.contains_key(vm);
            if let Some(&(vm, gfn)) = awaited.waiting.iter().find(alive) {
                self.hint(vm, gfn, key);
            }
        }
    }

    /// A new frame replaces the awaited content; all who wait for it are lent a reference.
    fn publish(&mut self, key: Key, frame: FrameId, first: (VmId, Gfn), lent: &mut Vec<Lent>) {
        let awaited = self.index.insert(key, Entry::Frame(frame));
        let Some(Entry::Awaited(awaited)) = awaited else {
            unreachable!("a want and its awaited entry come and go together");
        };
        let new = Frame {
            key: Some(key),
            holders: Vec::new(),
            adopted: false,
        };
        self.frames.insert(frame, new);
        for (vm, gfn) in std::iter::once(first).chain(awaited.waiting) {
            if self.lend(vm, frame) {
                lent.push(Lent { vm, gfn, frame });
            }
        }
    }

    fn lend(&mut self, vm: VmId, frame: FrameId) -> bool {
        let Some(member) = self.members.get_mut(&vm) else {
            return false;
        };
        if !member.may_hold() {
            return false;
        }
        let frame = self.frames.get_mut(&frame).expect("indexed frames exist");
        self.split.remove(&frame.holders);
        let held = frame.holders.iter_mut().find(|(holder, _)| *holder == vm);
        match held {
            Some((_, count)) => *count += 1,
            None => frame.holders.push((vm, 1)),
        }
        self.split.add(&frame.holders);
        self.split_changed = true;
        member.references += 1;
        self.references += 1;
        true
    }

    fn unreference(&mut self, vm: VmId, id: FrameId) -> Result<Option<FrameId>, NotHeld> {
        let missing = NotHeld { frame: id };
        let member = self.members.get_mut(&vm).ok_or(missing)?;
        if let Some(claims) = &mut member.claims {
            // What it has lost since it claimed it.
            return claims.release(id).map(|()| None);
        }
        let frame = self.frames.get_mut(&id).ok_or(missing)?;
        let place = frame.holders.iter().position(|(holder, _)| *holder == vm);
        let place = place.ok_or(missing)?;
        self.split.remove(&frame.holders);
        frame.holders[place].1 -= 1;
        if frame.holders[place].1 == 0 {
            frame.holders.swap_remove(place);
        }
        self.split.add(&frame.holders);
        self.split_changed = true;
        member.references -= 1;
        self.references -= 1;
        if !frame.holders.is_empty() || (frame.adopted && !self.unsettled.is_empty()) {
            return Ok(None);
        }
        self.forget(id);
        Ok(Some(id))
    }

    /// Takes a frame without references out of the tables.
    fn forget(&mut self, id: FrameId) {
        let frame = self.frames.remove(&id).expect("callers know the frame");
        assert!(frame.holders.is_empty(), "{id:?} has references");
        if let Some(key) = frame.key {
            self.index.remove(&key);
        }
    }

    /// Checks every count against the tables.
    ///
    /// # Panics
    /// When they differ: a bug.
    pub fn audit(&self) {
        let stored = self.pool().map_or(0, FramePool::in_use) as usize;
        assert_eq!(
            self.frames.len() + self.retired(),
            stored,
            "frames and pool"
        );
        let mut references: HashMap<VmId, u64> = HashMap::new();
        let mut split = FrameSplit::default();
        for (id, frame) in &self.frames {
            split.add(&frame.holders);
            let awaited = frame.adopted && !self.unsettled.is_empty();
            assert!(
                awaited || !frame.holders.is_empty(),
                "{id:?} has no reference"
            );
            assert!(frame.adopted || frame.key.is_some(), "{id:?} has no key");
            if let Some(key) = frame.key {
                let indexed = &self.index[&key];
                assert!(
                    matches!(indexed, Entry::Frame(found) if found == id),
                    "{id:?} is indexed"
                );
            }
            for &(vm, count) in &frame.holders {
                assert!(count > 0);
                assert!(self.members.contains_key(&vm), "{id:?} left its group");
                *references.entry(vm).or_default() += u64::from(count);
            }
        }
        assert_eq!(self.references, references.values().sum::<u64>());
        assert_eq!(self.split, split, "the running split and the frames");
        for vm in &self.unsettled {
            assert!(self.members.contains_key(vm), "{vm:?} left its group");
        }
        for (vm, member) in &self.members {
            let held = references.get(vm).copied().unwrap_or(0);
            assert_eq!(member.references, held, "{vm:?}");
            if let Some(claims) = &member.claims {
                self.audit_claims(*vm, claims);
            }
            let idle = member.reach == Reach::Detached || member.claims.is_some();
            assert!(!idle || member.wants.is_empty(), "{vm:?} is asked");
            for (gfn, key) in &member.hints {
                assert!(matches!(self.index[key], Entry::Hint(v, g) if (v, g) == (*vm, *gfn)));
            }
            for (key, _) in member.wants.values() {
                assert!(matches!(self.index[key], Entry::Awaited(_)));
            }
        }
    }
}
