//! Steps on pages that lie in mappings of the pool: shared ones, and those that the guest wrote.
//!
//! The kernel does not move such a page, so that it is made stable where it is: armed for write
//! protection and protected (*frozen*). Then it is compared and mapped over; or copied, and an armed
//! empty mapping is moved over it (*rearmed*). That last step waits for a fault thread, hence
//! without the lock; the page is *busy* meanwhile.
//!
//! Each isolated page of this kind costs the process kernel mappings, of which there is a bounded
//! number (`vm.max_map_count`). So every step here asks [`Memory::may_map`] first, and says
//! [`Mapping::Full`] where the answer is no or the kernel refuses all the same; the page is as it
//! was then.

use super::memory::{HOLD_PAGES, Memory};
use super::observe::Cause;
use super::pager::{Error, Pager};
use super::runs::runs;
use super::stage::{Occupant, Taken};
use crate::page::state::{PageEvent, PageState};
use crate::sys::pool_view::PoolView;
use crate::sys::space::{GuestSpace, Mapping, PageBuf};
use crate::units::{FrameId, Gfn, GfnRange};

/// A page that is frozen and busy, and copied into a stage slot.
#[derive(Debug)]
#[must_use = "a page that is frozen stays busy until it is rearmed"]
pub(super) struct Frozen {
    token: Taken,
    was: Mapped,
}

/// A page whose mapping is to be replaced by armed empty memory; its content is dead.
#[derive(Debug, Clone, Copy)]
#[must_use = "a page that is being dropped stays busy until it is rearmed"]
pub(super) struct Dropping {
    gfn: Gfn,
    was: Mapped,
}

/// How a page lies in a pool mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mapped {
    Shared(FrameId),
    Broken(FrameId),
}

impl Mapped {
    fn of(state: PageState) -> Option<Mapped> {
        match state {
            PageState::Shared(frame) => Some(Mapped::Shared(frame)),
            PageState::Broken(frame) => Some(Mapped::Broken(frame)),
            _ => None,
        }
    }

    fn keep(self) -> PageEvent {
        match self {
            Mapped::Shared(frame) => PageEvent::KeepShared(frame),
            Mapped::Broken(frame) => PageEvent::KeepBroken(frame),
        }
    }
}

impl Memory<'_> {
    /// Shared to broken: the kernel was found to have copied the page on a write.
    pub fn note_break(&mut self, gfn: Gfn, frame: FrameId) {
        self.leave_frame(gfn, frame);
        self.apply(gfn, PageEvent::Break);
        self.counters().cow_breaks += 1;
    }

    /// Staged to shared: maps the frames from `frame` over the hole that a run of pages left. The
    /// pages are all staged, were compared with their frames, and are neighbours.
    ///
    /// # Errors
    /// When the kernel refuses for another reason than the number of mappings.
    pub fn share(
        &mut self,
        run: &[Taken],
        pool: &PoolView,
        frame: FrameId,
    ) -> Result<Mapping, Error> {
        let count = u32::try_from(run.len()).expect("at most a hold");
        let range = GfnRange::new(run[0].gfn(), count);
        // A run adds at most the mapping of its first page and one behind it.
        let added = self
            .books
            .pmap
            .mappings_added(range.start, Some(frame))
            .max(0)
            + 1;
        if !self.may_map(added) || self.space.map_frames(range, pool, frame)? == Mapping::Full {
            return Ok(Mapping::Full);
        }
        for (taken, frame) in run.iter().zip(frame.0..) {
            self.apply(taken.gfn(), PageEvent::Share(FrameId(frame)));
            self.books.stage.becomes(taken.slot(), Occupant::Gone);
        }
        self.counters().merged_pages += u64::from(count);
        Ok(Mapping::Done)
    }

    /// Maps `frame` over a page in a pool mapping that equals it: one that the guest wrote, or one
    /// that maps a frame whose owner is gone. Compared where it lies. `None` when it differs.
    ///
    /// # Errors
    /// When the kernel refuses for another reason than the number of mappings.
    pub fn remap(
        &mut self,
        gfn: Gfn,
        pool: &PoolView,
        frame: FrameId,
    ) -> Result<Option<Mapping>, Error> {
        let added = self.books.pmap.mappings_added(gfn, Some(frame));
        if !self.may_map(added) || self.space.freeze(gfn)? == Mapping::Full {
            return Ok(Some(Mapping::Full));
        }
        let mut page = PageBuf::ZERO;
        self.space.peek(gfn, &mut page);
        let equal = pool.equals(frame, &page);
        if equal && self.space.map_frames(GfnRange::one(gfn), pool, frame)? == Mapping::Done {
            self.apply(gfn, PageEvent::Share(frame));
            self.adopt(gfn);
            self.counters().merged_pages += 1;
            return Ok(Some(Mapping::Done));
        }
        self.space.thaw(gfn)?;
        Ok(equal.then_some(Mapping::Full))
    }

    /// The pages to rearm so that `gfn`, which lies in a pool mapping, comes out of it: itself; or,
    /// where an isolated page would need mappings that there are not, the pages from the nearest end
    /// of its mapping on, at most `most`. Working from the end of a mapping takes none.
    pub fn way_out(&self, gfn: Gfn, most: u32) -> Option<GfnRange> {
        if self.may_map(self.books.pmap.mappings_added(gfn, None)) {
            return Some(GfnRange::one(gfn));
        }
        let frame_at = |books: &super::memory::Books, gfn: u32| {
            let known = self.space.ram().layout().contains_gfn(Gfn(gfn));
            let mapped = known.then(|| Mapped::of(books.pmap.state(Gfn(gfn))));
            mapped.flatten().map(|mapped| match mapped {
                Mapped::Shared(frame) | Mapped::Broken(frame) => {
                    i64::from(frame.0) - i64::from(gfn)
                }
            })
        };
        // Neighbours lie in one mapping exactly when their frames run as their numbers do.
        let own = frame_at(&self.books, gfn.0)?;
        let reach = (HOLD_PAGES / 4).min(gfn.0);
        let left = (1..=reach).find(|step| frame_at(&self.books, gfn.0 - step) != Some(own));
        let right =
            (1..=HOLD_PAGES / 4).find(|step| frame_at(&self.books, gfn.0 + step) != Some(own));
        match (left, right) {
            (Some(left), right) if right.is_none_or(|right| left <= right) => {
                Some(GfnRange::new(Gfn(gfn.0 + 1 - left), left.min(most)))
            }
            (_, Some(right)) => {
                let count = right.min(most);
                Some(GfnRange::new(Gfn(gfn.0 + right - count), count))
            }
            _ => None,
        }
    }

    /// Shared or broken to busy, with the content in a stage slot. `None` where there is no mapping
    /// or no slot left for it: the page is as it was.
    ///
    /// # Errors
    /// When the kernel refuses.
    ///
    /// # Panics
    /// When the page does not lie in a pool mapping.
    pub fn freeze(&mut self, gfn: Gfn) -> Result<Option<Frozen>, Error> {
        let was = Mapped::of(self.state(gfn)).expect("callers looked");
        let slots = GuestSpace::slots_for_copies();
        let Some((slot, _)) = self.books.stage.find(slots, 1) else {
            return Ok(None);
        };
        if self.space.freeze(gfn)? == Mapping::Full {
            return Ok(None);
        }
        self.space.copy_frozen(gfn, slot);
        self.begin_in_pool(gfn);
        let (stage, cause) = (&mut self.books.stage, self.cause);
        let token = stage.hand_out(gfn, slot, Occupant::Gone, cause);
        Ok(Some(Frozen { token, was }))
    }

    /// Shared or broken to busy, for a page whose content is dead. `None` where its mapping cannot
    /// be replaced without taking mappings that there are not: it stays as it is.
    ///
    /// # Panics
    /// When the page does not lie in a pool mapping.
    pub fn begin_drop(&mut self, gfn: Gfn) -> Option<Dropping> {
        let was = Mapped::of(self.state(gfn)).expect("callers looked");
        if !self.may_map(self.books.pmap.mappings_added(gfn, None)) {
            return None;
        }
        self.begin_in_pool(gfn);
        Some(Dropping { gfn, was })
    }

    /// Shared or broken to busy.
    fn begin_in_pool(&mut self, gfn: Gfn) {
        if let PageState::Shared(frame) = self.state(gfn) {
            self.books.frames.begin(gfn, frame);
        }
        self.apply(gfn, PageEvent::Begin);
    }

    /// A busy page does not map its frame any more, if it did.
    fn end_in_pool(&mut self, gfn: Gfn) {
        if let Some(frame) = self.books.frames.end(gfn) {
            self.leave_frame(gfn, frame);
        }
    }

    /// Busy to what it was.
    fn keep_in_pool(&mut self, gfn: Gfn, was: PageEvent) {
        self.books.frames.end(gfn);
        self.apply(gfn, was);
    }

    /// Busy to staged, now that armed memory is mapped there.
    fn staged(&mut self, frozen: Frozen) -> Result<Taken, Error> {
        let Frozen { token, .. } = frozen;
        let (gfn, slot) = (token.gfn(), token.slot());
        self.end_in_pool(gfn);
        self.apply(gfn, PageEvent::Take(u32::from(slot.0)));
        self.books.stage.becomes(slot, Occupant::Waiting);
        self.wake(gfn)?;
        Ok(token)
    }

    /// Busy to what it was: no mapping was to be had.
    fn thaw(&mut self, frozen: &Frozen) -> Result<(), Error> {
        self.keep_in_pool(frozen.token.gfn(), frozen.was.keep());
        Ok(self.space.thaw(frozen.token.gfn())?)
    }
}

impl Pager {
    /// Replaces the mappings of frozen pages by armed memory and hands their tokens out, in
    /// ascending order. A page for which there is no mapping stays where it was.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn rearm(&self, mut frozen: Vec<Frozen>) -> Result<Vec<Taken>, Error> {
        let gfns: Vec<Gfn> = frozen.iter().map(|frozen| frozen.token.gfn()).collect();
        let mut tokens = Vec::with_capacity(frozen.len());
        for run in runs(&gfns) {
            let part = frozen.drain(..run.count as usize);
            let mapping = self.space().rearm(run)?;
            let mut memory = self.memory(Cause::Swap);
            for frozen in part {
                match mapping {
                    Mapping::Done => tokens.push(memory.staged(frozen)?),
                    Mapping::Full => memory.thaw(&frozen)?,
                }
            }
        }
        Ok(tokens)
    }

    /// Replaces the mappings of pages whose content is dead by armed empty memory. They are in
    /// ascending order. Returns those for which there was no mapping: they are as they were.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn drop_from_pool(&self, dropping: &[Dropping]) -> Result<Vec<Gfn>, Error> {
        let gfns: Vec<Gfn> = dropping.iter().map(|dropping| dropping.gfn).collect();
        let mut kept = Vec::new();
        let mut rest = dropping;
        for run in runs(&gfns) {
            let (part, others) = rest.split_at(run.count as usize);
            rest = others;
            let mapping = self.space().rearm(run)?;
            let mut memory = self.memory_first(Cause::Guest);
            for &Dropping { gfn, was } in part {
                if mapping == Mapping::Full {
                    memory.keep_in_pool(gfn, was.keep());
                    kept.push(gfn);
                } else {
                    // The frame is released now and not before: until now the guest could read it.
                    memory.end_in_pool(gfn);
                    memory.apply(gfn, PageEvent::Discard);
                    memory.clear_zero(gfn);
                }
                memory.wake(gfn)?;
            }
        }
        Ok(kept)
    }
}

#[cfg(test)]
mod tests;
