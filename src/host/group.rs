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
mod frames;
mod hardened;
mod hints;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

pub use claims::ClaimError;
use frames::{Frame, Frames};
use hints::Hints;

use super::accounts::FramePart;
use super::member::{Member, Reach};
use super::pool::{self, FramePool, PoolId};
use super::share::{
    ContentAnswer, GroupTerms, Lent, NotHeld, OfferAnswer, WAITING_MAX, WANT_EXPIRY,
};
use super::split::FrameSplit;
use crate::page::key::key_of;
use crate::policy::types::VmId;
use crate::units::{FrameId, Gfn, PAGE_SIZE, Pages};
use crate::words::{Key, Sharing};

/// Holes made in one go, where retired frames are given back to the host: a millisecond under shadow
/// paging (Linux 6.18).
pub const GIVE_BACK_HOLES: usize = 64;

/// What a frame takes in the tables where these are emptiest, without its holders, bytes.
const FRAME_BYTES: u64 = 88;

/// A content that was asked for; who was asked stands in [`Member::wants`].
#[derive(Debug, Default)]
struct Awaited {
    waiting: Vec<(VmId, Gfn)>,
}

/// Numbers that nobody can guess.
#[derive(Debug, Clone, Copy)]
pub(super) struct Secrets {
    /// Seed of the group's keys. Its VMs know it.
    pub keys: u64,
    /// Seed of the draws of a hardened group's frames. Nobody knows it.
    pub draws: u64,
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
    sharing: Sharing,
    secrets: Secrets,
    memory: Memory,
    members: HashMap<VmId, Member>,
    hints: Hints,
    awaited: HashMap<Key, Awaited>,
    frames: Frames,
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
    pub fn new(terms: GroupTerms<'_>, secrets: Secrets, pool: FramePool) -> Group {
        let mut group = Group::over(terms, secrets, Memory::Held(pool));
        group.harden();
        group
    }

    fn over(terms: GroupTerms<'_>, secrets: Secrets, memory: Memory) -> Group {
        Group {
            name: terms.name.map(str::to_owned),
            sharing: terms.sharing,
            secrets,
            memory,
            members: HashMap::new(),
            hints: Hints::default(),
            awaited: HashMap::new(),
            frames: Frames::default(),
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

    /// How its pages are shared.
    pub fn sharing(&self) -> Sharing {
        self.sharing
    }

    /// Seed of its keys.
    pub fn seed(&self) -> u64 {
        self.secrets.keys
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

    /// Gives the memory of some of them back to the host, with at most so many `holes`, and returns of
    /// how many.
    pub fn give_back(&mut self, holes: usize) -> Pages {
        match self.retired() {
            0 => Pages::ZERO,
            _ => self.pool_mut().give_back(holes),
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

    /// Bytes that the host manager keeps for a member, at most: its hints, what it is asked for, and
    /// its references, with its `part` of the frames.
    pub fn bytes_of(&self, vm: VmId, part: FramePart) -> u64 {
        let Some(member) = self.members.get(&vm) else {
            return 0;
        };
        self.hints.bytes_of(vm) + member.bytes() + part.bytes / PAGE_SIZE as u64 * FRAME_BYTES
    }

    /// The most that can be.
    fn bytes_max(member: &Member) -> u64 {
        Hints::bytes_max(member.size()) + Member::bytes_max(member.size())
    }

    /// Takes a VM of `size` pages in.
    pub fn join(&mut self, vm: VmId, size: Pages) {
        let before = self.members.insert(vm, Member::new(size));
        assert!(before.is_none(), "{vm:?} joined twice");
        self.hints.join(vm, size);
    }

    /// Forgets a VM: its hints, its wants and all its references. Frames without another reference
    /// go back to the host. Returns how many.
    pub fn leave(&mut self, vm: VmId) -> Pages {
        let Some(mut member) = self.members.remove(&vm) else {
            return Pages::ZERO;
        };
        self.forget_pages(vm, &mut member);
        self.hints.leave(vm);
        self.unsettled.remove(&vm);
        self.split_changed = true;
        for frame in self.frames.iter_mut() {
            if frame.holders.held(vm) > 0 {
                self.split.remove(&frame.holders);
                frame.holders.set(vm, 0);
                self.split.add(&frame.holders);
            }
        }
        self.references -= member.references;
        let mut freed = self.sweep();
        while self.retired() > 0 {
            freed += self.give_back(usize::MAX);
        }
        freed
    }

    /// Forgets a member's hints and wants.
    fn forget_pages(&mut self, vm: VmId, member: &mut Member) {
        self.hints.forget(vm);
        for (_, (key, _)) in member.wants.drain() {
            self.give_up(key);
        }
    }

    /// Gives the frames that nobody holds, and nobody may still claim, back to the host. Returns how
    /// many.
    fn sweep(&mut self) -> Pages {
        let settled = self.unsettled.is_empty();
        let kept = |frame: &&Frame| !frame.holders.is_empty() || (frame.adopted && !settled);
        let over = self.frames.iter().filter(|frame| !kept(frame));
        let freed: Vec<FrameId> = over.map(Frame::id).collect();
        for &id in &freed {
            self.frames.remove(id);
        }
        let count = Pages(freed.len() as u64);
        if !freed.is_empty() {
            self.pool_mut().free(freed);
        }
        count
    }

    /// Looks up the keys of a member's pages.
    pub fn offer(&mut self, vm: VmId, pages: &[(Gfn, Key)], now: Duration) -> OfferAnswer {
        if self.sharing.is_hardened() {
            return self.offer_hardened(vm, pages, now);
        }
        let mut answer = OfferAnswer::default();
        for &(gfn, key) in pages {
            if let Some(frame) = self.frames.with_key(key) {
                if self.lend(vm, frame) {
                    answer.candidates.push((gfn, frame));
                }
            } else if let Some(awaited) = self.awaited.get_mut(&key) {
                let asked = self.members[&vm].wants.get(&gfn).map(|&(key, _)| key) == Some(key);
                let known = asked || awaited.waiting.contains(&(vm, gfn));
                if !known && awaited.waiting.len() < WAITING_MAX {
                    awaited.waiting.push((vm, gfn));
                }
            } else if let Some(page) = self.hints.get(key) {
                if page != (vm, gfn) && self.want(vm, gfn, key, now) {
                    answer.wants.push(gfn);
                }
            } else {
                self.hints.put(vm, gfn, key);
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
            let spent = answer.spent(self.sharing);
            if key_of(content, self.seed()) != key || spent >= room.0 {
                self.give_up(key);
                continue;
            }
            if let Some(lent) = self.lend_known(vm, gfn, key) {
                answer.lent.extend(lent);
                continue;
            }
            match self.pool_mut().store(vm, gfn, content) {
                Ok(Some(frame)) => {
                    let before = answer.lent.len();
                    self.publish(key, frame, (vm, gfn), &mut answer.lent);
                    if answer.lent.len() == before {
                        // Nobody may hold further references: as if there had been no room.
                        self.frames.remove(frame);
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
    /// those went back to the host at once: all, if they are few.
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
        let freed = match self.retired() {
            ..=GIVE_BACK_HOLES => self.give_back(GIVE_BACK_HOLES),
            _ => Pages::ZERO,
        };
        (freed, result)
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

    #[cfg(test)]
    pub fn hints_of(&self, vm: VmId) -> u64 {
        self.hints.of(vm)
    }

    /// Takes some hints of members that were forgotten out of the tables. Whether there are more.
    pub fn sweep_hints(&mut self) -> bool {
        self.hints.sweep()
    }

    /// Whether there are such hints.
    pub fn has_void_hints(&self) -> bool {
        self.hints.has_void()
    }

    /// Turns a hint into an awaited content that (vm, gfn) is asked for, unless it is asked for
    /// too much already.
    fn want(&mut self, vm: VmId, gfn: Gfn, key: Key, now: Duration) -> bool {
        let member = self.members.get_mut(&vm).expect("callers know the VM");
        if !member.may_want(gfn) {
            return false;
        }
        member.wants.insert(gfn, (key, now));
        let hint = self.hints.take(key).expect("callers found a hint");
        let waiting = vec![hint];
        self.awaited.insert(key, Awaited { waiting });
        true
    }

    /// Nobody will send the content of an awaited key: one of those who wait becomes its hint.
    fn give_up(&mut self, key: Key) {
        if let Some(awaited) = self.awaited.remove(&key) {
            let alive = |(vm, _): &&(VmId, Gfn)| self.members.contains_key(vm);
            if let Some(&(vm, gfn)) = awaited.waiting.iter().find(alive) {
                self.hints.put(vm, gfn, key);
            }
        }
    }

    /// A new frame replaces the awaited content; all who wait for it are lent a reference.
    fn publish(&mut self, key: Key, frame: FrameId, first: (VmId, Gfn), lent: &mut Vec<Lent>) {
        let awaited = self.awaited.remove(&key);
        let awaited = match self.sharing {
            Sharing::Plain => awaited.expect("a want and its awaited content come and go together"),
            Sharing::Hardened => Awaited::default(),
        };
        self.frames.add(frame, false);
        self.frames.set_key(frame, key);
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
        let frame = self.frames.get_mut(frame).expect("indexed frames exist");
        self.split.remove(&frame.holders);
        frame.holders.set(vm, frame.holders.held(vm) + 1);
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
        let frame = self.frames.get_mut(id).ok_or(missing)?;
        let rest = frame.holders.held(vm).checked_sub(1).ok_or(missing)?;
        self.split.remove(&frame.holders);
        frame.holders.set(vm, rest);
        self.split.add(&frame.holders);
        self.split_changed = true;
        member.references -= 1;
        self.references -= 1;
        if !frame.holders.is_empty() || (frame.adopted && !self.unsettled.is_empty()) {
            return Ok(None);
        }
        self.frames.remove(id);
        Ok(Some(id))
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
        for frame in self.frames.iter() {
            let id = frame.id();
            split.add(&frame.holders);
            let awaited = frame.adopted && !self.unsettled.is_empty();
            assert!(
                awaited || !frame.holders.is_empty(),
                "{id:?} has no reference"
            );
            assert!(frame.adopted || frame.key().is_some(), "{id:?} has no key");
            if let Some(key) = frame.key() {
                assert_eq!(self.frames.with_key(key), Some(id), "{id:?} is indexed");
                assert!(!self.awaited.contains_key(&key), "{id:?} is awaited");
                assert_eq!(self.hints.get(key), None, "{id:?} is a hint");
            }
            for &(vm, count) in frame.holders.iter() {
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
            let kept = self.hints.bytes_of(*vm) + member.bytes();
            assert!(
                kept <= Group::bytes_max(member),
                "{vm:?} makes us keep {kept} bytes"
            );
            if let Some(claims) = &member.claims {
                self.audit_claims(*vm, claims);
            }
            let idle = member.reach == Reach::Detached || member.claims.is_some();
            assert!(!idle || member.wants.is_empty(), "{vm:?} is asked");
            for (key, _) in member.wants.values() {
                let awaited = self.awaited.contains_key(key) || self.sharing.is_hardened();
                assert!(awaited, "{vm:?} is asked for it");
                assert_eq!(self.hints.get(*key), None, "what {vm:?} is asked for");
            }
        }
        self.hints.audit();
        self.audit_hardened();
    }
}
