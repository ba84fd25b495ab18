//! The references to frames that a VM holds, page by page, as far as its state does not say it.
//!
//! A shared page holds the reference of the frame that it maps. What is kept here is what a page owes
//! beside that: frames to be released, pages at work that still map one, pages whose frame nobody
//! accounts for, and how far the host manager has been told ([`super::claims`]).

use std::collections::{HashMap, HashSet};

use super::memory::Memory;
use crate::page::state::PageState;
use crate::units::{FrameId, Gfn};

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct FrameRefs {
    /// Frames that this VM maps no longer and has to release.
    released: Vec<FrameId>,
    /// Pages that map a frame of an earlier host manager's pool.
    orphans: HashSet<Gfn>,
    /// Busy pages that still map a frame, and hold its reference.
    busy: HashMap<Gfn, FrameId>,
    /// Pages from here on map frames that the host manager has not been told of.
    untold: Option<Gfn>,
}

impl FrameRefs {
    /// A thread begins to work on a page that maps this frame.
    pub fn begin(&mut self, gfn: Gfn, frame: FrameId) {
        self.busy.insert(gfn, frame);
    }

    /// A thread is done with a page, which mapped this frame until now, if it did.
    pub fn end(&mut self, gfn: Gfn) -> Option<FrameId> {
        self.busy.remove(&gfn)
    }
}

impl Memory<'_> {
    /// The page does not map its frame any more: the frame is to be released, unless it belongs to
    /// a pool whose owner is gone, or the host manager does not know of the reference.
    pub fn leave_frame(&mut self, gfn: Gfn, frame: FrameId) {
        let told = self.books.frames.untold.is_none_or(|untold| gfn < untold);
        if !self.books.frames.orphans.remove(&gfn) && told {
            self.books.frames.released.push(frame);
        }
    }

    /// The frame that the page maps and holds the reference of, if it does.
    pub fn frame_of(&self, gfn: Gfn) -> Option<FrameId> {
        match self.state(gfn) {
            PageState::Shared(frame) => Some(frame),
            PageState::Busy => self.books.frames.busy.get(&gfn).copied(),
            _ => None,
        }
    }

    /// Frames to be released; the list is empty afterwards.
    pub fn take_released(&mut self) -> Vec<FrameId> {
        std::mem::take(&mut self.books.frames.released)
    }

    /// From here on pages map frames that the host manager has not been told of; `None`: of all it
    /// has.
    pub fn set_untold(&mut self, from: Option<Gfn>) {
        self.books.frames.untold = from;
    }

    /// First page whose frame the host manager has not been told of.
    pub fn untold(&self) -> Option<Gfn> {
        self.books.frames.untold
    }

    /// The page's frame belongs to a pool whose owner is gone.
    pub fn orphan(&mut self, gfn: Gfn) {
        self.books.frames.orphans.insert(gfn);
    }

    /// Whether the page maps a frame whose owner is gone.
    pub fn is_orphan(&self, gfn: Gfn) -> bool {
        self.books.frames.orphans.contains(&gfn)
    }

    /// Pages that map frames whose owner is gone.
    pub fn orphans(&self) -> u64 {
        self.books.frames.orphans.len() as u64
    }

    /// The page's frame belongs to a pool whose owner is here.
    pub fn adopt(&mut self, gfn: Gfn) {
        self.books.frames.orphans.remove(&gfn);
    }
}
