//! What a share group knows of one VM, and the bounds that keep a VM from exhausting what is not its
//! own: see [`super::share`].

use std::collections::HashMap;
use std::time::Duration;

use super::share::WANTS_MAX;
use crate::link::message::{Key, LIST_MAX};
use crate::units::{Gfn, Pages};

/// A VM in its group.
#[derive(Debug)]
pub(super) struct Member {
    size: Pages,
    /// Its pages that are hints: at most one key a page.
    pub hints: HashMap<Gfn, Key>,
    /// Contents it was asked for, and when.
    pub wants: HashMap<Gfn, (Key, Duration)>,
    /// References lent to it and not ended.
    pub references: u64,
}

impl Member {
    pub fn new(size: Pages) -> Member {
        Member {
            size,
            hints: HashMap::new(),
            wants: HashMap::new(),
            references: 0,
        }
    }

    /// Whether a further page may be a hint: one a page of its memory.
    pub fn may_hint(&self) -> bool {
        (self.hints.len() as u64) < self.size.0
    }

    /// Whether it may be asked for the content of `gfn`.
    pub fn may_want(&self, gfn: Gfn) -> bool {
        !self.wants.contains_key(&gfn) && self.wants.len() < WANTS_MAX
    }

    /// Whether it may be lent a further reference: its pages and one message of candidates.
    pub fn may_hold(&self) -> bool {
        self.references < self.size.0 + LIST_MAX as u64
    }
}
