//! References that outlive a link or a host manager.
//!
//! A VM that has lost its link knows better than anybody which frames it maps. When it joins again it
//! says so: its *claims* are all its references, and replace the ones that were counted once they are
//! complete. Until then the old ones stay, so that nothing is freed that it might still claim.
//!
//! | the group's pool | what may be claimed | what is kept for it meanwhile |
//! |---|---|---|
//! | was there all the time | frames that the VM is counted to hold | those references |
//! | was handed back to a new host manager | any frame the file has | all of them, until each VM of the record has claimed or died |
//!
//! A frame that was adopted has no key, since the old seed is gone with its host manager: it is read
//! and hashed anew, a few at a time, and shared like any other from then on.

use std::os::fd::OwnedFd;

use super::frames::Frame;
use super::{Group, Memory, Secrets};
use crate::host::member::{Claims, Member, Reach};
use crate::host::pool::{Error, FramePool, PoolId};
use crate::host::share::{GroupTerms, NotHeld};
use crate::page::key::key_of;
use crate::policy::types::VmId;
use crate::units::{FrameId, PAGE_SIZE, Pages};

/// A VM claimed what it cannot have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// It was not asked to claim anything.
    #[error("claims frames out of turn")]
    Unasked,
    /// The frame is not in use, or not by this VM.
    #[error("claims frame {}, which it cannot map", .0.0)]
    Frame(FrameId),
    /// More than its memory can map.
    #[error("claims more than {0} frames")]
    TooMany(u64),
}

impl Claims {
    fn add(&mut self, frame: FrameId) {
        *self.frames.entry(frame).or_default() += 1;
        self.count += 1;
    }

    /// Takes one claim back.
    pub(super) fn release(&mut self, frame: FrameId) -> Result<(), NotHeld> {
        let count = self.frames.get_mut(&frame).ok_or(NotHeld { frame })?;
        *count -= 1;
        if *count == 0 {
            self.frames.remove(&frame);
        }
        self.count -= 1;
        Ok(())
    }
}

impl Group {
    /// A group whose pool is with VMs of an earlier host manager.
    pub fn awaiting(terms: GroupTerms<'_>, secrets: Secrets, pool: PoolId) -> Group {
        Group::over(terms, secrets, Memory::Awaited(pool))
    }

    /// Whether its pool is still to be handed back.
    pub fn is_awaiting(&self, pool: PoolId) -> bool {
        matches!(self.memory, Memory::Awaited(id) if id == pool)
    }

    /// Takes in a VM of an earlier host manager, which may map any frame of the pool.
    pub fn expect(&mut self, vm: VmId, size: Pages) {
        self.join(vm, size);
        let member = self.members.get_mut(&vm).expect("it has joined");
        member.reach = Reach::Detached;
        self.unsettled.insert(vm);
    }

    /// Takes over the pool that is awaited. Returns how many frames it has.
    ///
    /// # Errors
    /// When it is another pool or cannot be opened; nothing is changed.
    pub fn adopt(&mut self, handed: &OwnedFd) -> Result<Pages, Error> {
        let Memory::Awaited(id) = self.memory else {
            return Ok(Pages::ZERO);
        };
        let (pool, used) = FramePool::adopt(handed, id)?;
        self.memory = Memory::Held(pool);
        self.harden();
        for &id in &used {
            self.frames.add(id, true);
        }
        let count = Pages(used.len() as u64);
        self.unread = used;
        Ok(count)
    }

    /// Says whether a member takes messages. Who has no link is forgotten but for its references.
    pub fn set_reach(&mut self, vm: VmId, reach: Reach) {
        let Some(mut member) = self.members.remove(&vm) else {
            return;
        };
        member.reach = reach;
        if reach == Reach::Detached {
            // Claims that were cut off are made again from the start.
            member.claims = None;
            self.forget_pages(vm, &mut member);
        }
        self.members.insert(vm, member);
    }

    /// The member has a new link: it says what it maps before it is lent anything.
    pub fn begin_claims(&mut self, vm: VmId) {
        self.set_reach(vm, Reach::Detached);
        let member = self.members.get_mut(&vm).expect("callers know the VM");
        member.reach = Reach::Open;
        member.claims = Some(Claims::default());
    }

    /// Takes claims.
    ///
    /// # Errors
    /// At the first one that cannot be true.
    pub fn claim(&mut self, vm: VmId, frames: &[FrameId]) -> Result<(), ClaimError> {
        let any = self.unsettled.contains(&vm);
        let member = self.members.get_mut(&vm).ok_or(ClaimError::Unasked)?;
        let most = member.references_max();
        let claims = member.claims.as_mut().ok_or(ClaimError::Unasked)?;
        for &id in frames {
            let held = |frame: &&Frame| frame.holders.held(vm) > 0 || (any && frame.adopted);
            if self.frames.get(id).filter(held).is_none() {
                return Err(ClaimError::Frame(id));
            }
            if claims.count >= most {
                return Err(ClaimError::TooMany(most));
            }
            claims.add(id);
        }
        Ok(())
    }

    /// The claims are complete: they replace the member's references. Returns how many frames went
    /// back to the host.
    ///
    /// # Errors
    /// When the VM was not asked for any.
    pub fn end_claims(&mut self, vm: VmId) -> Result<Pages, ClaimError> {
        let member = self.members.get_mut(&vm).ok_or(ClaimError::Unasked)?;
        let Claims { frames, count } = member.claims.take().ok_or(ClaimError::Unasked)?;
        self.references = self.references - member.references + count;
        member.references = count;
        self.split_changed = true;
        for frame in self.frames.iter_mut() {
            let claimed = frames.get(&frame.id()).copied().unwrap_or(0);
            if frame.holders.held(vm) != claimed {
                self.split.remove(&frame.holders);
                frame.holders.set(vm, claimed);
                self.split.add(&frame.holders);
            }
        }
        self.unsettled.remove(&vm);
        Ok(self.sweep())
    }

    /// Hashes up to `most` adopted frames, so that they can be shared again. Returns how many were
    /// looked at.
    pub fn read_adopted(&mut self, most: usize) -> usize {
        let mut page = [0; PAGE_SIZE];
        let part = self.unread.len() - most.min(self.unread.len());
        let batch = self.unread.split_off(part);
        for &id in &batch {
            let pool = self.pool().expect("adopted frames are of a pool");
            // It may have been freed since, and its number used again.
            let unread = |frame: &Frame| frame.adopted && frame.key().is_none();
            if !self.frames.get(id).is_some_and(unread) {
                continue;
            }
            if let Err(error) = pool.read(id, &mut page) {
                log::warn!("{error}: {}", error.source);
                continue;
            }
            let key = key_of(&page, self.seed());
            // Those who wait for a content get a frame of their own; this one stays as it is.
            if self.awaited.contains_key(&key) || self.frames.with_key(key).is_some() {
                continue;
            }
            self.hints.take(key);
            self.frames.set_key(id, key);
        }
        batch.len()
    }

    pub(super) fn audit_claims(&self, vm: VmId, claims: &Claims) {
        let sum: u64 = claims.frames.values().map(|&count| u64::from(count)).sum();
        assert_eq!(claims.count, sum, "claims of {vm:?}");
        let member: &Member = &self.members[&vm];
        assert!(sum <= member.references_max(), "{vm:?} claims too much");
        for frame in claims.frames.keys() {
            assert!(self.frames.get(*frame).is_some(), "{vm:?} claims {frame:?}");
        }
    }
}
