//! Telling a host manager which frames this VM maps: after it was restarted, or the link replaced.
//!
//! Until a page has been told of, the host manager knows of no reference for it: a frame that it
//! leaves before is not released. A *claim* tells a host manager that has the pool; pages that map
//! a pool which the host manager does not have become *orphans*: nobody else accounts for their
//! frames, and they are shared or swapped like the VM's own.

use super::memory::{HOLD_PAGES, Memory};
use super::observe::Cause;
use super::pager::Pager;
use super::runs::Walk;
use crate::units::{FrameId, Gfn};

impl Pager {
    /// Frames that this VM no longer maps, to be released; the list is empty afterwards.
    pub fn take_released(&self) -> Vec<FrameId> {
        self.memory(Cause::Account).take_released()
    }

    /// From here on the host manager is told anew of all frames that this VM maps.
    pub fn begin_claims(&self) {
        let first = self.ram().layout().ranges()[0].start;
        let mut memory = self.memory(Cause::Account);
        memory.set_untold(Some(first));
        // Whatever was to be released is not claimed any more.
        memory.take_released();
    }

    /// The frames that the next pages map, one entry a page and at least `wanted` of them while
    /// there are any; `None` when all have been told.
    pub fn next_claims(&self, wanted: usize) -> Option<Vec<FrameId>> {
        let mut claims = Vec::new();
        let mut any = false;
        while claims.len() < wanted && self.tell_next(|_, _, frame| claims.push(frame)) {
            any = true;
        }
        any.then_some(claims)
    }

    /// A new host manager knows nothing of the frames mapped so far, and does not have their pool.
    pub fn orphan_frames(&self) {
        self.begin_claims();
        while self.tell_next(|memory, gfn, _| memory.orphan(gfn)) {}
    }

    /// Tells of the frames of the next pages, a hold's worth. False when there are none left.
    fn tell_next(&self, mut tell: impl FnMut(&mut Memory<'_>, Gfn, FrameId)) -> bool {
        let mut memory = self.memory(Cause::Account);
        let Some(from) = memory.untold() else {
            return false;
        };
        let mut walk = Walk::from(from);
        let (part, last) = walk.advance(self.ram().layout(), HOLD_PAGES);
        for gfn in part.iter() {
            if let Some(frame) = memory.frame_of(gfn) {
                tell(&mut memory, gfn, frame);
            }
        }
        let next = walk.advance(self.ram().layout(), 1).0.start;
        memory.set_untold((!last).then_some(next));
        true
    }
}
