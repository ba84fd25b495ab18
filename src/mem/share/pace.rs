//! How often a chunk of 2 MiB is looked at: a state machine without clock or memory.
//!
//! A page is offered when it was the same at two looks, so that the time between two looks, the *gap*,
//! is how long a page must have stayed to be worth sharing. Merging a page that is rewritten soon
//! costs the guest a copy on write and us a merge, for nothing. Hence a chunk in which as much changes
//! at each look, or in which pages are written that were shared, is looked at less and less: that is
//! cheaper, and asks more of its pages. A chunk in which nothing changes is looked at less too: all
//! that could be found in it was.
//!
//! | state | gap | a look finds | then |
//! |---|---|---|---|
//! | settling n | 2^n s | some changed, and at least half as many as were unsettled at the look before | settling n + 1, up to [`CHANGES_MAX`] |
//! | settling n > 0 | | less | settling n - 1 |
//! | settling 0 | | some unsettled | settling 0 |
//! | settling 0 | | less | calm 0 |
//! | calm n | 2^n s | some unsettled | settling 0 |
//! | calm n | | less | calm n + 1, up to [`CALM_MAX`] |
//! | any | | nothing of its own | calm [`CALM_MAX`] |
//! | any, n (calm: 0) | | some shared pages were written since, once a look | settling n + 2, up to [`BREAKS_MAX`] |
//!
//! From calm 3 on a look is at an eighth of the chunk's pages, in turn, runs of eight in each 64; the
//! look after one that found any unsettled is at all of them. *Some* is then [`SOME_PAGES`] of the whole
//! chunk, if the rest is as what was seen. (Before that all that was offered is offered three times more,
//! in case the host manager was busy.) So what nobody writes costs an eighth. What changes alone in a
//! calm chunk is seen at the eighth look at the latest; of 32 pages that changed anywhere in it, the
//! first look sees none once in 70 times.
//!
//! The kernel could say which pages were written (PAGEMAP_SCAN over asynchronous write protection): asked
//! for a chunk it takes 3 us, where an eighth of its pages take 18. But under shadow paging protected
//! memory costs the guest 3 us a page at its next read and 4 at its next write (Linux 6.18), 1.5 ms a
//! chunk: what 80 such looks take.
//!
//! *Unsettled* are the pages that have changed and those that are *new*, of which no key is
//! remembered. *Some* are [`SOME_PAGES`], of shared pages that were written [`BREAK_PAGES`]. A new chunk
//! is settling 0 and looked at at once.
//!
//! Where it comes from: KSM offers a page whose checksum was the same at two passes (`mm/ksm.c`,
//! `cmp_and_merge_page`) and with `smart_scan` skips pages that it did not merge, for up to eight
//! passes; ESX lowers a VM's scan rate when it yields little.

use std::time::Duration;

/// The shortest gap. Chosen: a guest that writes its memory at full speed rewrites most of it in
/// this time, and a fresh fleet has converged two looks after it was filled.
pub const GAP: Duration = Duration::from_secs(1);
/// Doublings where as much changes at each look: 16 s. Chosen: then looking costs next to nothing,
/// and what settles among the rest is found while it is young.
pub const CHANGES_MAX: u8 = 4;
/// Doublings where shared pages are written: 64 s. Chosen: a page that stays so long has paid for its
/// merge even if it is written then.
pub const BREAKS_MAX: u8 = 6;
/// Doublings where nothing changes: 32 s, after which new content is found at the latest.
pub const CALM_MAX: u8 = 5;
/// Looks after which all of a calm chunk was looked at. Chosen: a look's fixed costs, the lock and the
/// page tables, are then about half of it.
pub const TURNS: u8 = 8;
/// Pages that are worth a second look soon.
const SOME_PAGES: u32 = 32;
/// Shared pages written, as found at a time, that make a chunk settle.
const BREAK_PAGES: u32 = 8;
/// Doublings for that.
const BREAK_STEPS: u8 = 2;
/// Shared pages were written since the last look, or a part was found changed: whatever the next look
/// finds changed has changed this once, as far as is known.
const STORM: u32 = u32::MAX;

/// What a look at a chunk found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Pages with memory of their own.
    pub own: u32,
    /// Of these, pages of which no key was remembered.
    pub new: u32,
    /// And those that had another key at the look before.
    pub changed: u32,
}

/// How a chunk is looked at. See the module documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// It changes, or may: looked at again for what stays.
    Settling {
        /// Of the gap.
        doublings: u8,
        /// New and changed pages at the last look.
        unsettled: u32,
    },
    /// Nothing changed in it lately.
    Calm {
        /// Of the gap.
        doublings: u8,
    },
}

use Pace::{Calm, Settling};

impl Pace {
    /// Of a chunk that was never looked at.
    pub const NEW: Pace = Settling {
        doublings: 0,
        unsettled: 0,
    };

    /// Whether nothing changed lately.
    pub fn is_calm(self) -> bool {
        matches!(self, Calm { .. })
    }

    /// From one look to the next.
    pub fn gap(self) -> Duration {
        match self {
            Settling { doublings, .. } | Calm { doublings } => GAP * (1 << doublings),
        }
    }

    /// After a look.
    #[must_use]
    pub fn looked(self, found: Tally) -> Pace {
        let Tally { own, new, changed } = found;
        let now = new + changed;
        let settling = |doublings| Settling {
            doublings,
            unsettled: now,
        };
        match self {
            _ if own == 0 => Calm {
                doublings: CALM_MAX,
            },
            Settling {
                doublings,
                unsettled,
            } if changed >= SOME_PAGES && changed >= unsettled.div_ceil(2) => {
                settling((doublings + 1).min(CHANGES_MAX).max(doublings))
            }
            Settling {
                doublings: n @ 1.., ..
            } => settling(n - 1),
            _ if now >= SOME_PAGES => settling(0),
            Settling { .. } => Calm { doublings: 0 },
            Calm { doublings } => Calm {
                doublings: (doublings + 1).min(CALM_MAX),
            },
        }
    }

    /// Whether a look is at a part of the chunk, in turn.
    pub fn takes_turns(self) -> bool {
        matches!(self, Calm { doublings: 3.. })
    }

    /// After a look at a part of the chunk, one in [`TURNS`].
    #[must_use]
    pub fn glanced(self, found: Tally) -> Pace {
        if (found.new + found.changed) * u32::from(TURNS) < SOME_PAGES {
            return self.looked(Tally {
                own: found.own.max(1),
                ..Tally::default()
            });
        }
        Settling {
            doublings: 0,
            unsettled: STORM,
        }
    }

    /// After the guest was found to have written so many of the chunk's shared pages.
    #[must_use]
    pub fn broke(self, pages: u32) -> Pace {
        if pages < BREAK_PAGES {
            return self;
        }
        let doublings = match self {
            Calm { .. } => BREAK_STEPS,
            // One storm of writes is found in several parts.
            Settling {
                unsettled: STORM, ..
            } => return self,
            Settling { doublings, .. } => (doublings + BREAK_STEPS).min(BREAKS_MAX),
        };
        Settling {
            doublings,
            unsettled: STORM,
        }
    }
}

#[cfg(test)]
mod tests;
