//! Sharing: which VM is in which share group, and what all groups together hold.
//!
//! Owned by the host manager. Every VM is in one `Group` (its own when the user named
//! none) and is routed to it by its number alone: nothing that a VM says names a group. A group has
//! its own frame pool, its own index and its own seed; it is made for its first VM and dropped with
//! its last. So a VM process has a descriptor of its own group's frames only, and a frame number means
//! a frame of the VM's own group or nothing.
//!
//! Bounds, so that a VM can only exhaust what is its own (`Member`, `Hints`): hints at most one
//! a page of its memory, references at most its pages plus one message of candidates, [`WANTS_MAX`]
//! contents asked at a time, [`WAITING_MAX`] pages waiting for one content. A want that is not answered
//! in [`WANT_EXPIRY`] is forgotten, and an answer after that is ignored. A group's pool is as long as
//! the budget; how many frames all groups make is bounded by the ledger's free memory.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::accounts::FramePart;
pub use super::group::ClaimError;
use super::group::{GIVE_BACK_HOLES, Group, Secrets};
use super::member::Member;
pub use super::member::Reach;
use super::pool::{self, FramePool, PoolId};
use crate::link::message::LIST_MAX;
use crate::policy::types::VmId;
use crate::units::{FrameId, Gfn, PAGE_SIZE, Pages};
use crate::words::{Key, Sharing, Token};

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

/// A VM's share group cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The system has no random numbers.
    #[error("no random numbers: {source}")]
    Seed {
        /// Why.
        #[from]
        source: io::Error,
    },
    /// The pool cannot be made.
    #[error("{source}: {}", source.source)]
    Pool {
        /// Why.
        #[from]
        source: pool::Error,
    },
    /// Another VM of that group is there, and pages of the group are shared in another way.
    #[error("share group {group:?} has {has} sharing, and not {wants}")]
    Sharing {
        /// The group.
        group: String,
        /// What its VMs have.
        has: Sharing,
        /// What this one wants.
        wants: Sharing,
    },
    /// A VM that joins again hands back another pool than its group's, or none.
    #[error("hands back another frame pool than its own")]
    OtherPool,
}

/// What a launcher says of a VM's share group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupTerms<'a> {
    /// Its name; `None`: a group of the VM's own.
    pub name: Option<&'a str>,
    /// How its pages are shared.
    pub sharing: Sharing,
}

impl<'a> From<Option<&'a str>> for GroupTerms<'a> {
    fn from(name: Option<&'a str>) -> GroupTerms<'a> {
        let sharing = Sharing::default();
        GroupTerms { name, sharing }
    }
}

/// How a VM has joined again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rejoined {
    /// Seed of the group's keys.
    pub seed: u64,
    /// Whether it goes on with the pool that it has, and claims its frames.
    pub adopted: bool,
    /// Frames that came with a pool which was taken over just now.
    pub frames: Pages,
}

/// A reference lent to `vm` for its page `gfn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lent {
    /// To whom.
    pub vm: VmId,
    /// For which page.
    pub gfn: Gfn,
    /// To which frame of its group.
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
    /// References lent, to whomever in the group.
    pub lent: Vec<Lent>,
    /// Frames made.
    pub made: u32,
    /// Pages that nobody asked for, or too late.
    pub unsolicited: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct GroupId(u32);

/// What a new share group is made of that this program cannot make by itself.
pub trait GroupSource: fmt::Debug + Send {
    /// A number that nobody can guess: the seed of the group's keys.
    ///
    /// # Errors
    /// When there are no random numbers.
    fn secret(&self) -> io::Result<u64>;

    /// A pool without frames, as long as the budget.
    ///
    /// # Errors
    /// When there is no memory for it.
    fn pool(&self, budget: Pages) -> Result<FramePool, pool::Error>;
}

/// The kernel's random numbers and memory files: what a live host uses.
#[derive(Debug, Clone, Copy)]
pub struct KernelSource;

impl GroupSource for KernelSource {
    fn secret(&self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(u64::from_ne_bytes(bytes))
    }

    fn pool(&self, budget: Pages) -> Result<FramePool, pool::Error> {
        FramePool::new(budget)
    }
}

/// All share groups.
#[derive(Debug)]
pub struct ShareIndex {
    source: Box<dyn GroupSource>,
    groups: HashMap<GroupId, Group>,
    next_group: u32,
    group_of: HashMap<VmId, GroupId>,
    /// Each VM's part of the frames, as of the last [`ShareIndex::split_frames`].
    parts: HashMap<VmId, FramePart>,
}

impl ShareIndex {
    /// No groups; new ones are made out of `source`.
    pub fn new(source: Box<dyn GroupSource>) -> ShareIndex {
        ShareIndex {
            source,
            groups: HashMap::new(),
            next_group: 0,
            group_of: HashMap::new(),
            parts: HashMap::new(),
        }
    }

    /// Takes a VM of `size` pages into the group of that name, or into one of its own. A new group's
    /// pool is as long as the budget. Returns the seed of the group's keys.
    ///
    /// # Errors
    /// When a new group cannot be made, or the group is shared in another way; nothing is changed.
    pub fn join<'a>(
        &mut self,
        vm: VmId,
        size: Pages,
        terms: impl Into<GroupTerms<'a>>,
        budget: Pages,
    ) -> Result<u64, JoinError> {
        let id = self.open(terms.into(), budget)?;
        Ok(self.enter(vm, size, id))
    }

    /// The group of that name, or a new one. Who is new does not wait for a pool that is still to be
    /// handed back.
    fn open(&mut self, terms: GroupTerms<'_>, budget: Pages) -> Result<GroupId, JoinError> {
        self.agrees(terms)?;
        let name = terms.name;
        let open = |group: &Group| name.is_some() && group.name() == name && group.pool().is_some();
        Ok(match self.find(open) {
            Some(id) => id,
            None => {
                let secrets = self.secrets()?;
                let pool = self.source.pool(budget)?;
                self.add(Group::new(terms, secrets, pool))
            }
        })
    }

    /// All VMs of a group have the same of it.
    fn agrees(&self, terms: GroupTerms<'_>) -> Result<(), JoinError> {
        let GroupTerms { name, sharing } = terms;
        let other =
            |group: &&Group| name.is_some() && group.name() == name && group.sharing() != sharing;
        match self.groups.values().find(other) {
            None => Ok(()),
            Some(group) => Err(JoinError::Sharing {
                group: name.unwrap_or_default().to_owned(),
                has: group.sharing(),
                wants: sharing,
            }),
        }
    }

    fn secrets(&self) -> Result<Secrets, JoinError> {
        Ok(Secrets {
            keys: self.source.secret()?,
            draws: self.source.secret()?,
        })
    }

    /// A secret that nobody had before, from where the groups' seeds are.
    ///
    /// # Errors
    /// When there are no random numbers.
    pub fn token(&self) -> Result<Token, JoinError> {
        Ok(Token::of([self.source.secret()?, self.source.secret()?]))
    }

    fn enter(&mut self, vm: VmId, size: Pages, id: GroupId) -> u64 {
        let group = self.groups.get_mut(&id).expect("callers found or made it");
        group.join(vm, size);
        self.group_of.insert(vm, id);
        group.seed()
    }

    /// Takes in a VM of an earlier host manager, whose group had that name and that pool. It has no
    /// link yet.
    ///
    /// # Errors
    /// When there are no random numbers, or the group is shared in another way.
    pub fn expect<'a>(
        &mut self,
        vm: VmId,
        size: Pages,
        terms: impl Into<GroupTerms<'a>>,
        pool: PoolId,
    ) -> Result<(), JoinError> {
        let terms = terms.into();
        self.agrees(terms)?;
        let same = |group: &Group| group.name() == terms.name && group.is_awaiting(pool);
        let id = match self.find(same) {
            Some(id) => id,
            None => {
                let secrets = self.secrets()?;
                self.add(Group::awaiting(terms, secrets, pool))
            }
        };
        let group = self.groups.get_mut(&id).expect("found or made above");
        group.expect(vm, size);
        self.group_of.insert(vm, id);
        Ok(())
    }

    /// A VM has a new link; `handed` is the pool that it maps. Where that is its group's, it goes on
    /// with it and claims its frames. Where the group's pool is still awaited and this is another one,
    /// the VM starts over in a group with a pool of the budget's length.
    ///
    /// # Errors
    /// When it hands back another pool than the one its group has, or the pool cannot be opened or
    /// made; nothing is changed.
    pub fn rejoin(
        &mut self,
        vm: VmId,
        handed: Option<&OwnedFd>,
        budget: Pages,
    ) -> Result<Rejoined, JoinError> {
        let group = self.group_mut(vm).ok_or(JoinError::OtherPool)?;
        let own = group.pool_id();
        let seed = group.seed();
        let known = handed.filter(|fd| own.is(fd));
        if let Some(fd) = known {
            let frames = group.adopt(fd)?;
            group.begin_claims(vm);
            let adopted = true;
            return Ok(Rejoined {
                seed,
                adopted,
                frames,
            });
        }
        let size = group.member(vm).map(Member::size);
        // One that hands nothing back may map what is awaited all the same: its descriptor was lost
        // on the way. One that maps another pool was never given this one.
        let starts_over = handed.is_some() && group.is_awaiting(own);
        let (Some(size), true) = (size, starts_over) else {
            return Err(JoinError::OtherPool);
        };
        let (name, sharing) = (group.name().map(str::to_owned), group.sharing());
        let name = name.as_deref();
        // Found or made before the old place is given up, so that a failure changes nothing.
        let id = self.open(GroupTerms { name, sharing }, budget)?;
        self.leave(vm);
        Ok(Rejoined {
            seed: self.enter(vm, size, id),
            adopted: false,
            frames: Pages::ZERO,
        })
    }

    fn find(&self, wanted: impl Fn(&Group) -> bool) -> Option<GroupId> {
        let mut groups = self.groups.iter();
        groups.find(|(_, group)| wanted(group)).map(|(&id, _)| id)
    }

    fn add(&mut self, group: Group) -> GroupId {
        let id = GroupId(self.next_group);
        self.next_group += 1;
        self.groups.insert(id, group);
        id
    }

    /// Says whether a VM takes messages.
    pub fn set_reach(&mut self, vm: VmId, reach: Reach) {
        if let Some(group) = self.group_mut(vm) {
            group.set_reach(vm, reach);
        }
    }

    /// Whether a VM takes messages.
    pub fn reach(&self, vm: VmId) -> Option<Reach> {
        let member = self.group(vm).and_then(|group| group.member(vm));
        member.map(|member| member.reach)
    }

    /// Takes claims of a VM that has joined again.
    ///
    /// # Errors
    /// At the first one that cannot be true.
    pub fn claim(&mut self, vm: VmId, frames: &[FrameId]) -> Result<(), ClaimError> {
        let group = self.group_mut(vm).ok_or(ClaimError::Unasked)?;
        group.claim(vm, frames)
    }

    /// A VM's claims are complete. Returns how many frames went back to the host.
    ///
    /// # Errors
    /// When it was not asked for any.
    pub fn end_claims(&mut self, vm: VmId) -> Result<Pages, ClaimError> {
        let group = self.group_mut(vm).ok_or(ClaimError::Unasked)?;
        group.end_claims(vm)
    }

    /// Hashes up to `most` adopted frames of all groups.
    /// Whether there were any.
    pub fn read_adopted(&mut self, most: usize) -> bool {
        let mut left = most;
        for group in self.groups.values_mut() {
            left -= group.read_adopted(left);
        }
        left < most
    }

    /// Which file a VM's frames are in.
    pub fn pool_id(&self, vm: VmId) -> Option<PoolId> {
        self.group(vm).map(Group::pool_id)
    }

    /// Name of a VM's group.
    pub fn group_name(&self, vm: VmId) -> Option<&str> {
        self.group(vm).and_then(Group::name)
    }

    /// How the pages of a VM's group are shared.
    pub fn sharing(&self, vm: VmId) -> Sharing {
        self.group(vm).map(Group::sharing).unwrap_or_default()
    }

    /// Forgets a VM: its hints, its wants and all its references; with the last VM of a group the
    /// group. Returns how many frames went back to the host.
    pub fn leave(&mut self, vm: VmId) -> Pages {
        let Some(id) = self.group_of.remove(&vm) else {
            return Pages::ZERO;
        };
        let group = self.groups.get_mut(&id).expect("a member's group exists");
        let freed = group.leave(vm);
        if group.is_empty() {
            self.groups.remove(&id);
        }
        self.parts.remove(&vm);
        freed
    }

    /// Looks up the keys of a VM's pages.
    pub fn offer(&mut self, vm: VmId, pages: &[(Gfn, Key)], now: Duration) -> OfferAnswer {
        let Some(group) = self.group_mut(vm) else {
            return OfferAnswer::default();
        };
        group.offer(vm, pages, now)
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
    ) -> (ContentAnswer, Option<pool::Error>) {
        let Some(group) = self.group_mut(vm) else {
            return (ContentAnswer::default(), None);
        };
        group.content(vm, pages, room)
    }

    /// Ends references. Returns how many frames went back to the host at once; others retire, see
    /// [`ShareIndex::give_back`].
    ///
    /// # Errors
    /// At the first frame of which the VM holds no reference; those before it are released.
    pub fn release(&mut self, vm: VmId, frames: &[FrameId]) -> (Pages, Result<(), NotHeld>) {
        let Some(group) = self.group_mut(vm) else {
            let unheld = frames.first().map(|&frame| NotHeld { frame });
            return (Pages::ZERO, unheld.map_or(Ok(()), Err));
        };
        group.release(vm, frames)
    }

    /// Gives the memory of some of the frames that nobody holds any more back to the host, and returns
    /// of how many: none when there are none.
    pub fn give_back(&mut self) -> Pages {
        let mut groups = self.groups.values_mut();
        let retired = groups.find(|group| group.retired() > 0);
        retired.map_or(Pages::ZERO, |group| group.give_back(GIVE_BACK_HOLES))
    }

    /// Takes some hints of VMs that were forgotten out of the tables of their group.
    pub fn sweep_hints(&mut self) {
        let mut groups = self.groups.values_mut();
        if let Some(group) = groups.find(|group| group.has_void_hints()) {
            group.sweep_hints();
        }
    }

    /// Whether there are retired frames or forgotten hints left.
    pub fn has_leftovers(&self) -> bool {
        let mut groups = self.groups.values();
        groups.any(|group| group.retired() > 0 || group.has_void_hints())
    }

    /// Forgets wants that were not answered in time.
    pub fn expire(&mut self, now: Duration) {
        for group in self.groups.values_mut() {
            group.expire(now);
        }
    }

    /// The pool of a VM's group: the only one it may have a descriptor of.
    pub fn pool(&self, vm: VmId) -> Option<&FramePool> {
        self.group(vm).and_then(Group::pool)
    }

    /// Memory that the pools take beside their frames.
    pub fn slack(&self) -> Pages {
        let pools = self.groups.values().filter_map(Group::pool);
        pools.map(FramePool::slack).sum()
    }

    /// Bytes that the host manager keeps for a VM, at most, as of the last
    /// [`ShareIndex::split_frames`].
    pub fn bytes_of(&self, vm: VmId) -> u64 {
        let part = self.frame_part(vm);
        self.group(vm).map_or(0, |group| group.bytes_of(vm, part))
    }

    /// Frames whose memory is in use.
    pub fn frames(&self) -> u64 {
        self.groups.values().map(Group::frames).sum()
    }

    /// References of all VMs.
    pub fn references(&self) -> u64 {
        self.groups.values().map(Group::references).sum()
    }

    /// References of one VM.
    pub fn references_of(&self, vm: VmId) -> u64 {
        let member = self.group(vm).and_then(|group| group.member(vm));
        member.map_or(0, |member| member.references)
    }

    /// Divides the frames among their holders again, in the groups where a reference has changed.
    pub fn split_frames(&mut self) {
        for group in self.groups.values_mut() {
            self.parts
                .extend(group.changed_parts().into_iter().flatten());
        }
    }

    /// A VM's part of its group's frames, as of the last [`ShareIndex::split_frames`].
    pub fn frame_part(&self, vm: VmId) -> FramePart {
        self.parts.get(&vm).copied().unwrap_or_default()
    }

    fn group(&self, vm: VmId) -> Option<&Group> {
        self.groups.get(self.group_of.get(&vm)?)
    }

    fn group_mut(&mut self, vm: VmId) -> Option<&mut Group> {
        self.groups.get_mut(self.group_of.get(&vm)?)
    }

    /// Checks every group, and that each VM is in the group it is routed to.
    ///
    /// # Panics
    /// When the tables contradict each other: a bug.
    pub fn audit(&self) {
        for (id, group) in &self.groups {
            assert!(!group.is_empty(), "{id:?} has no member");
            group.audit();
        }
        for vm in self.group_of.keys() {
            let member = self.group(*vm).and_then(|group| group.member(*vm));
            assert!(member.is_some(), "{vm:?} is not in its group");
        }
    }
}

#[cfg(test)]
mod tests;
