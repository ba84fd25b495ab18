//! What a share group knows of one VM, and the bounds that keep a VM from exhausting what is not its
//! own: see [`super::share`].

use std::collections::HashMap;
use std::time::Duration;

use super::share::WANTS_MAX;
use crate::link::message::LIST_MAX;
use crate::units::{FrameId, Gfn, Pages};
use crate::words::Key;

/// What a reference takes among the holders of its frame, or among the frames that a VM claims, bytes.
const REFERENCE_BYTES: u64 = 24;
/// What a content that was asked for takes with those that wait for it, bytes.
const WANT_BYTES: u64 = 256;

/// Whether a VM takes messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// It reads what it is sent.
    Open,
    /// It has a link and has not read what it was sent.
    Behind,
    /// It has no link.
    Detached,
}

/// What a VM has said so far of the frames that it maps.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// How often each is mapped.
    pub frames: HashMap<FrameId, u32>,
    /// The sum over them.
    pub count: u64,
}

/// A VM in its group.
#[derive(Debug)]
pub(super) struct Member {
    size: Pages,
    /// Contents it was asked for, and when.
    pub wants: HashMap<Gfn, (Key, Duration)>,
    /// References lent to it and not ended.
    pub references: u64,
    /// Nothing is lent to it and nothing asked of it unless it is open.
    pub reach: Reach,
    /// While it says what it maps; its references stay until it has.
    pub claims: Option<Claims>,
}

impl Member {
    pub fn new(size: Pages) -> Member {
        Member {
            size,
            wants: HashMap::new(),
            references: 0,
            reach: Reach::Open,
            claims: None,
        }
    }

    /// Pages of its memory.
    pub fn size(&self) -> Pages {
        self.size
    }

    fn is_open(&self) -> bool {
        self.reach == Reach::Open && self.claims.is_none()
    }

    /// Whether it may be asked for the content of `gfn`.
    pub fn may_want(&self, gfn: Gfn) -> bool {
        self.is_open() && !self.wants.contains_key(&gfn) && self.wants.len() < WANTS_MAX
    }

    /// Whether it may be lent a further reference.
    pub fn may_hold(&self) -> bool {
        self.is_open() && self.references < self.references_max()
    }

    /// Bytes that the host manager keeps for it beside its hints and its part of the frames.
    pub fn bytes(&self) -> u64 {
        let claimed = self.claims.as_ref();
        let claimed = claimed.map_or(0, |claims| claims.frames.len() as u64);
        let wants = self.wants.len() as u64;
        (self.references + claimed) * REFERENCE_BYTES + wants * WANT_BYTES
    }

    /// The most that can be of a VM of `size` pages.
    pub fn bytes_max(size: Pages) -> u64 {
        let references = size.0 + LIST_MAX as u64;
        2 * references * REFERENCE_BYTES + WANTS_MAX as u64 * WANT_BYTES
    }

    /// References that it may have: its pages and one message of candidates.
    pub fn references_max(&self) -> u64 {
        self.size.0 + LIST_MAX as u64
    }
}
