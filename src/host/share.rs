//! The share index: which page contents were seen, and who refers to which frame.
//!
//! Owned by the host manager. Every VM is in one share group (its own when the user named none);
//! nothing is ever shared across groups, and each group's keys have a secret seed of their own.
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
//! with `Release` or the VM's death.
//!
//! Bounds, so that a VM can only exhaust what is its own: hints at most one a page of its memory,
//! references at most its pages plus one message of candidates, [`WANTS_MAX`] contents asked at a
//! time, [`WAITING_MAX`] pages waiting for one content. A want that is not answered in
//! [`WANT_EXPIRY`] is forgotten, and an answer after that is ignored.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::time::Duration;

use super::pool::{self, FramePool};
use crate::link::message::{Key, LIST_MAX};
use crate::page::key::key_of;
use crate::policy::types::VmId;
use crate::units::{FrameId, Gfn, PAGE_SIZE, Pages};

/// Contents that a VM can be asked for at a time.
pub const WANTS_MAX: usize = LIST_MAX;
/// Pages that can wait for one content besides the page that was asked for it.
pub const WAITING_MAX: usize = 16;
/// How long an answer to `Want` may take.
pub const WANT_EXPIRY: Duration = Duration::from_secs(5);

/// A VM released a frame of which it holds no reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("released frame {} and holds no reference to it", frame.0)]
pub struct NotHeld {
    /// The frame.
    pub frame: FrameId,
}

/// A reference lent to `vm` for its page `gfn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lent {
    /// To whom.
    pub vm: VmId,
    /// For which page.
    pub gfn: Gfn,
    /// To which frame.
    pub frame: FrameId,
}

/// The answer to an offer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OfferAnswer {
    /// References lent, in the order of the offer.
    pub candidates: Vec<(Gfn, FrameId)>,
    /// Pages whose content is wanted.
    pub wants: Vec<Gfn>,
}

/// What came of some contents.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ContentAnswer {
    /// References lent, to whomever.
    pub lent: Vec<Lent>,
    /// Frames made.
    pub made: u32,
    /// Pages that nobody asked for, or too late.
    pub unsolicited: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct GroupId(u32);

#[derive(Debug)]
struct Group {
    name: Option<String>,
    seed: u64,
    members: u32,
    index: HashMap<Key, Entry>,
}

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
struct Member {
    group: GroupId,
    size: Pages,
    /// Its pages that are hints: at most one key a page.
    hints: HashMap<Gfn, Key>,
    /// Contents it was asked for, and when.
    wants: HashMap<Gfn, (Key, Duration)>,
    references: u64,
}

#[derive(Debug)]
struct Frame {
    group: GroupId,
    key: Key,
    /// Who holds how many references; never zero ones.
    holders: Vec<(VmId, u32)>,
}

/// The index.
#[derive(Debug, Default)]
pub struct ShareIndex {
    groups: HashMap<GroupId, Group>,
    next_group: u32,
    members: HashMap<VmId, Member>,
    frames: HashMap<FrameId, Frame>,
    references: u64,
    /// Changes with every reference, so that readers know when to count again.
    generation: u64,
}

impl ShareIndex {
    /// Takes a VM of `size` pages into the group of that name, or into one of its own. Returns the
    /// seed of the group's keys.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn join(&mut self, vm: VmId, size: Pages, name: Option<&str>) -> io::Result<u64> {
        let known = self
            .groups
            .iter()
            .find(|(_, group)| name.is_some() && group.name.as_deref() == name)
            .map(|(&id, _)| id);
        let id = match known {
            Some(id) => id,
            None => {
                let id = GroupId(self.next_group);
                self.next_group += 1;
                let group = Group {
                    name: name.map(str::to_owned),
                    seed: secret()?,
                    members: 0,
                    index: HashMap::new(),
                };
                self.groups.insert(id, group);
                id
            }
        };
        let group = self.groups.get_mut(&id).expect("found or made above");
        group.members += 1;
        let member = Member {
            group: id,
            size,
            hints: HashMap::new(),
            wants: HashMap::new(),
            references: 0,
        };
        let before = self.members.insert(vm, member);
        assert!(before.is_none(), "{vm:?} joined twice");
        Ok(group.seed)
    }

    /// Forgets a VM: its hints, its wants and all its references. Frames without another reference
    /// go back to the pool. Returns how many.
    pub fn leave(&mut self, vm: VmId, pool: &mut FramePool) -> Pages {
        let Some(mut member) = self.members.remove(&vm) else {
            return Pages::ZERO;
        };
        let group = self
            .groups
            .get_mut(&member.group)
            .expect("a member's group exists");
        for key in member.hints.values() {
            group.index.remove(key);
        }
        for (_, (key, _)) in member.wants.drain() {
            self.give_up(member.group, key);
        }
        let mut freed = Vec::new();
        self.frames.retain(|&id, frame| {
            frame.holders.retain(|&(holder, count)| {
                if holder == vm {
                    self.references -= u64::from(count);
                }
                holder != vm
            });
            if frame.holders.is_empty() {
                let group = self
                    .groups
                    .get_mut(&frame.group)
                    .expect("a frame's group exists");
                group.index.remove(&frame.key);
                freed.push(id);
            }
            !frame.holders.is_empty()
        });
        self.generation += 1;
        let group = self
            .groups
            .get_mut(&member.group)
            .expect("a member's group exists");
        group.members -= 1;
        if group.members == 0 {
            self.groups.remove(&member.group);
        }
        let count = Pages(freed.len() as u64);
        pool.free(freed);
        count
    }

    /// Looks up the keys of a VM's pages.
    pub fn offer(&mut self, vm: VmId, pages: &[(Gfn, Key)], now: Duration) -> OfferAnswer {
        let mut answer = OfferAnswer::default();
        let Some(group) = self.members.get(&vm).map(|member| member.group) else {
            return answer;
        };
        for &(gfn, key) in pages {
            let index = &mut self
                .groups
                .get_mut(&group)
                .expect("a member's group exists")
                .index;
            match index.get_mut(&key) {
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

    /// Takes contents that a VM sends. At most `room` frames are made.
    ///
    /// # Errors
    /// Never for what the VM sent; the pool's when the host has no memory for a frame. What was
    /// done until then stands in the answer.
    pub fn content<'a>(
        &mut self,
        vm: VmId,
        pages: impl IntoIterator<Item = (Gfn, &'a [u8; PAGE_SIZE])>,
        room: Pages,
        pool: &mut FramePool,
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
            let id = member.group;
            let seed = self.groups[&id].seed;
            if key_of(content, seed) != key || u64::from(answer.made) >= room.0 {
                self.give_up(id, key);
                continue;
            }
            match pool.store(vm, gfn, content) {
                Ok(Some(frame)) => {
                    self.publish(id, key, frame, (vm, gfn), &mut answer.lent);
                    if self.frames[&frame].holders.is_empty() {
                        // Nobody may hold further references: as if there had been no room.
                        self.forget(frame);
                        pool.free(vec![frame]);
                    } else {
                        answer.made += 1;
                    }
                }
                Ok(None) => self.give_up(id, key),
                Err(error) => {
                    self.give_up(id, key);
                    failed = Some(error);
                }
            }
        }
        (answer, failed)
    }

    /// Ends references. Returns how many frames went back to the pool.
    ///
    /// # Errors
    /// At the first frame of which the VM holds no reference; those before it are released.
    pub fn release(
        &mut self,
        vm: VmId,
        frames: &[FrameId],
        pool: &mut FramePool,
    ) -> (Pages, Result<(), NotHeld>) {
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
        let count = Pages(freed.len() as u64);
        pool.free(freed);
        (count, result)
    }

    /// Forgets wants that were not answered in time.
    pub fn expire(&mut self, now: Duration) {
        let mut late = Vec::new();
        for member in self.members.values_mut() {
            member.wants.retain(|_, &mut (key, since)| {
                let keep = now.saturating_sub(since) < WANT_EXPIRY;
                if !keep {
                    late.push((member.group, key));
                }
                keep
            });
        }
        for (group, key) in late {
            self.give_up(group, key);
        }
    }

    /// Frames in use.
    pub fn frames(&self) -> u64 {
        self.frames.len() as u64
    }

    /// References of all VMs.
    pub fn references(&self) -> u64 {
        self.references
    }

    /// References of one VM.
    pub fn references_of(&self, vm: VmId) -> u64 {
        self.members.get(&vm).map_or(0, |member| member.references)
    }

    /// Changes whenever [`ShareIndex::holders`] would.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// For each frame, who holds how many references.
    pub fn holders(&self) -> impl Iterator<Item = (FrameId, &[(VmId, u32)])> {
        self.frames
            .iter()
            .map(|(&id, frame)| (id, frame.holders.as_slice()))
    }

    /// Makes (vm, gfn) the page that stands for `key`.
    fn hint(&mut self, vm: VmId, gfn: Gfn, key: Key) {
        let member = self.members.get_mut(&vm).expect("callers know the VM");
        let index = &mut self.groups.get_mut(&member.group).expect("exists").index;
        if let Some(stale) = member.hints.remove(&gfn) {
            index.remove(&stale);
        }
        if (member.hints.len() as u64) < member.size.0 {
            member.hints.insert(gfn, key);
            index.insert(key, Entry::Hint(vm, gfn));
        }
    }

    /// Turns a hint into an awaited content that (vm, gfn) is asked for, unless it is asked for
    /// too much already.
    fn want(&mut self, vm: VmId, gfn: Gfn, key: Key, now: Duration) -> bool {
        let member = self.members.get_mut(&vm).expect("callers know the VM");
        if member.wants.contains_key(&gfn) || member.wants.len() >= WANTS_MAX {
            return false;
        }
        member.wants.insert(gfn, (key, now));
        let group = self.groups.get_mut(&member.group).expect("exists");
        let entry = group.index.get_mut(&key).expect("callers found a hint");
        let Entry::Hint(owner, page) = *entry else {
            unreachable!("callers found a hint");
        };
        *entry = Entry::Awaited(Box::new(Awaited {
            waiting: vec![(owner, page)],
        }));
        let owner = self
            .members
            .get_mut(&owner)
            .expect("hints leave with their VM");
        owner.hints.remove(&page);
        true
    }

    /// Nobody will send the content of an awaited key: one of those who wait becomes its hint.
    fn give_up(&mut self, group: GroupId, key: Key) {
        let index = &mut self
            .groups
            .get_mut(&group)
            .expect("callers know the group")
            .index;
        if let Some(Entry::Awaited(awaited)) = index.remove(&key) {
            let alive = |(vm, _): &&(VmId, Gfn)| self.members.contains_key(vm);
            if let Some(&(vm, gfn)) = awaited.waiting.iter().find(alive) {
                self.hint(vm, gfn, key);
            }
        }
    }

    /// A new frame replaces the awaited content; all who wait for it are lent a reference.
    fn publish(
        &mut self,
        group: GroupId,
        key: Key,
        frame: FrameId,
        first: (VmId, Gfn),
        lent: &mut Vec<Lent>,
    ) {
        let index = &mut self
            .groups
            .get_mut(&group)
            .expect("callers know the group")
            .index;
        let Some(Entry::Awaited(awaited)) = index.insert(key, Entry::Frame(frame)) else {
            unreachable!("a want and its awaited entry come and go together");
        };
        self.frames.insert(
            frame,
            Frame {
                group,
                key,
                holders: Vec::new(),
            },
        );
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
        if member.references >= member.size.0 + LIST_MAX as u64 {
            return false;
        }
        let holders = &mut self
            .frames
            .get_mut(&frame)
            .expect("indexed frames exist")
            .holders;
        match holders.iter_mut().find(|(holder, _)| *holder == vm) {
            Some((_, count)) => *count += 1,
            None => holders.push((vm, 1)),
        }
        member.references += 1;
        self.references += 1;
        self.generation += 1;
        true
    }

    fn unreference(&mut self, vm: VmId, id: FrameId) -> Result<Option<FrameId>, NotHeld> {
        let missing = NotHeld { frame: id };
        let frame = self.frames.get_mut(&id).ok_or(missing)?;
        let place = frame.holders.iter().position(|(holder, _)| *holder == vm);
        let place = place.ok_or(missing)?;
        frame.holders[place].1 -= 1;
        if frame.holders[place].1 == 0 {
            frame.holders.swap_remove(place);
        }
        let member = self.members.get_mut(&vm).expect("holders are members");
        member.references -= 1;
        self.references -= 1;
        self.generation += 1;
        if !frame.holders.is_empty() {
            return Ok(None);
        }
        self.forget(id);
        Ok(Some(id))
    }

    /// Takes a frame without references out of the tables.
    fn forget(&mut self, id: FrameId) {
        let frame = self.frames.remove(&id).expect("callers know the frame");
        assert!(frame.holders.is_empty(), "{id:?} has references");
        let group = self.groups.get_mut(&frame.group);
        group
            .expect("a frame's group exists")
            .index
            .remove(&frame.key);
    }

    /// Checks every count against the tables.
    ///
    /// # Panics
    /// When they differ: a bug.
    pub fn audit(&self, pool: &FramePool) {
        assert_eq!(self.frames.len(), pool.in_use() as usize, "frames and pool");
        let mut references = HashMap::new();
        for (id, frame) in &self.frames {
            assert!(!frame.holders.is_empty(), "{id:?} has no reference");
            let indexed = &self.groups[&frame.group].index[&frame.key];
            assert!(
                matches!(indexed, Entry::Frame(found) if found == id),
                "{id:?} is indexed"
            );
            for &(vm, count) in &frame.holders {
                assert!(count > 0);
                assert_eq!(
                    self.members[&vm].group, frame.group,
                    "{id:?} left its group"
                );
                *references.entry(vm).or_default() += u64::from(count);
            }
        }
        assert_eq!(self.references, references.values().sum::<u64>());
        for (vm, member) in &self.members {
            assert_eq!(
                member.references,
                references.get(vm).copied().unwrap_or(0),
                "{vm:?}"
            );
            let index = &self.groups[&member.group].index;
            for (gfn, key) in &member.hints {
                assert!(matches!(index[key], Entry::Hint(v, g) if (v, g) == (*vm, *gfn)));
            }
            for (key, _) in member.wants.values() {
                assert!(matches!(index[key], Entry::Awaited(_)));
            }
        }
    }
}

/// A secret number, never printed.
fn secret() -> io::Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests;
