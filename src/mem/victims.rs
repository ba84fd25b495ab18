//! The search for pages to take out of the guest.
//!
//! Victims are drawn at random, as ESX does, so that the choice never works together with the
//! guest's own replacement to its harm (a page that both consider oldest is read only to be swapped
//! again by the guest). What is drawn is a *cluster* of neighbours: they leave in one transfer, and
//! their swap slots run as they do.
//!
//! *Share before swap.* Clusters are drawn some batches ahead, and their pages are offered for sharing
//! then: what the group has a frame for is merged meanwhile, and is no victim any more when its turn
//! comes. Nothing waits for the host manager's answer; one that comes too late finds the page gone and
//! is rejected.
//!
//! Where the draw meets a large page, the coldest of them goes as a whole, cluster by cluster: what is split
//! for a part is of no more use to the guest.
//!
//! Where draws find nothing, memory is walked from a random place on, a chunk under each hold of
//! the lock and so many chunks a step that a step stays short; the next step goes on there. A walk
//! that met all of memory and found nothing ends the search until something changes
//! ([`Memory::changes`]).

use std::collections::VecDeque;

use super::memory::{HOLD_PAGES, Memory};
use super::observe::Cause;
use super::pager::{Error, Pager};
use super::pool_pages::Frozen;
use super::runs::{Walk, runs};
use super::stage::Taken;
use crate::page::key::{is_zero, key_of};
use crate::page::state::PageState;
use crate::sys::pagemap::Backing;
use crate::sys::ram::Layout;
use crate::sys::space::PageBuf;
use crate::units::{Gfn, GfnRange};
use crate::words::Key;

/// Pages of a cluster, aligned: as many as a batch has, 128 KiB.
const CLUSTER_PAGES: u32 = 32;
/// Clusters drawn ahead of those that are taken: 16 MiB. Chosen: of six guests that fill memory, three
/// quarters of it common to all, in half of what that takes unshared, 46 % fewer pages are swapped than
/// without; 29 % with half of it and 4 % with 2 MiB, since most answers come too late then.
const AHEAD: usize = 128;
/// A page is offered once in so many times that all of memory was drawn: whoever swaps without end
/// offers little, and what changes in between is the scan's to find.
const OFFER_ROUNDS: u64 = 8;
/// Clusters drawn in one step before memory is walked.
const DRAWS: u32 = 64;
/// Chunks walked in one step: 128 MiB of guest memory.
pub(super) const CHUNKS_A_STEP: u32 = 64;

/// Which pages are victims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    /// Those with memory of their own.
    Own,
    /// Those that map a frame, besides. In a hardened share group a frame may be one page's alone, and
    /// a page must not be seen to stay because its frame is not.
    Mapped,
}

impl Which {
    /// By its state.
    fn is_one(self, memory: &Memory<'_>, gfn: Gfn) -> bool {
        let shared = || matches!(memory.state(gfn), PageState::Shared(_));
        memory.is_own(gfn) || self == Which::Mapped && shared()
    }

    /// As far as the page tables tell. A frame has its memory, mapped or not.
    fn has_memory(self, memory: &Memory<'_>, gfn: Gfn, backing: Backing) -> bool {
        match (self, memory.state(gfn)) {
            (Which::Mapped, PageState::Shared(_)) => backing != Backing::Unsettled,
            _ => memory.is_own_backing(gfn, backing),
        }
    }
}

/// Where the search is.
#[derive(Debug)]
pub(super) struct Search {
    rng: fastrand::Rng,
    which: Which,
    /// The share group's seed, while somebody hears of offers.
    key_seed: Option<u64>,
    /// Drawn and offered, not taken yet.
    ahead: VecDeque<GfnRange>,
    offers: Vec<(Gfn, Key)>,
    offered: Offered,
    /// What is left of a large page of which a cluster was drawn.
    rest: Option<GfnRange>,
    walk: Option<Walking>,
    /// What [`Memory::changes`] was when a walk began that found nothing.
    barren: Option<u64>,
}

#[derive(Debug)]
struct Walking {
    walk: Walk,
    /// Pages not met yet.
    left: u64,
    /// What [`Memory::changes`] was at its begin.
    changes: u64,
}

/// Which pages were offered lately: a bit each.
#[derive(Debug, Default)]
struct Offered {
    /// With keys of this seed.
    key_seed: Option<u64>,
    bits: Vec<u64>,
    /// Pages drawn since all were forgotten.
    drawn: u64,
}

impl Offered {
    /// These pages of a guest with this RAM were drawn.
    fn drawn(&mut self, cluster: GfnRange, layout: &Layout) {
        self.drawn += u64::from(cluster.count);
        if self.bits.is_empty() || self.drawn > OFFER_ROUNDS * layout.size().0 {
            let words = layout.end().index().div_ceil(64);
            (self.bits, self.drawn) = (vec![0; words], 0);
        }
    }

    /// Whether the page is to be offered; it has been from now on.
    fn begin(&mut self, gfn: Gfn) -> bool {
        let (word, bit) = (&mut self.bits[gfn.index() / 64], 1 << (gfn.0 % 64));
        let new = *word & bit == 0;
        *word |= bit;
        new
    }
}

/// What a step of the search got hold of.
#[derive(Debug, Default)]
pub(super) struct Victims {
    /// Pages that are out of the guest.
    pub taken: Vec<Taken>,
    /// Pages in pool mappings, to be rearmed.
    pub frozen: Vec<Frozen>,
}

impl Victims {
    fn count(&self) -> usize {
        self.taken.len() + self.frozen.len()
    }
}

impl Search {
    /// A search whose draws follow from `seed`.
    pub fn new(seed: u64) -> Search {
        Search {
            rng: fastrand::Rng::with_seed(seed),
            which: Which::Own,
            key_seed: None,
            ahead: VecDeque::new(),
            offers: Vec::new(),
            offered: Offered::default(),
            rest: None,
            walk: None,
            barren: None,
        }
    }

    /// Pages that map a frame are victims too.
    pub fn take_mapped(&mut self) {
        self.which = Which::Mapped;
    }

    /// Victims are offered from now on, with keys of this seed; `None`: nobody hears of offers.
    pub fn offer_with(&mut self, key_seed: Option<u64>) {
        if key_seed.is_some() && key_seed != self.offered.key_seed {
            self.offered = Offered {
                key_seed,
                ..Offered::default()
            };
        }
        self.key_seed = key_seed;
    }

    /// Keys of victims drawn since this was asked last.
    pub fn take_offers(&mut self) -> Vec<(Gfn, Key)> {
        std::mem::take(&mut self.offers)
    }

    /// Whether there is nothing to find, and nothing has changed since that was found.
    pub fn is_barren(&self, pager: &Pager) -> bool {
        self.barren
            .is_some_and(|changes| changes == pager.memory(Cause::Swap).changes())
    }

    /// Gets hold of up to `wanted` pages that take memory.
    ///
    /// # Errors
    /// The VM cannot go on.
    pub fn step(&mut self, pager: &Pager, wanted: usize) -> Result<Victims, Error> {
        let mut victims = Victims::default();
        if self.is_barren(pager) {
            return Ok(victims);
        }
        self.barren = None;
        for _ in 0..DRAWS {
            if victims.count() >= wanted {
                return Ok(victims);
            }
            let cluster = self.next_cluster(pager)?;
            take_from(pager, self.which, cluster, wanted, &mut victims)?;
        }
        self.walk_on(pager, wanted, &mut victims)?;
        Ok(victims)
    }

    /// The cluster whose turn it is.
    fn next_cluster(&mut self, pager: &Pager) -> Result<GfnRange, Error> {
        if let Some(seed) = self.key_seed {
            while self.ahead.len() < AHEAD {
                let cluster = self.draw(pager);
                self.offered.drawn(cluster, pager.ram().layout());
                self.offer(pager, cluster, seed)?;
                self.ahead.push_back(cluster);
            }
        }
        let drawn = self.ahead.pop_front();
        Ok(drawn.unwrap_or_else(|| self.draw(pager)))
    }

    /// Offers the pages of a cluster that take memory, while the guest may be writing them; not those
    /// that were offered lately, nor zero ones, which are dropped when they are taken.
    fn offer(&mut self, pager: &Pager, cluster: GfnRange, seed: u64) -> Result<(), Error> {
        let mut memory = pager.memory(Cause::Swap);
        if !memory.any(cluster, Memory::is_own) {
            return Ok(());
        }
        let backing = memory.backing(cluster)?;
        let mut page = PageBuf::ZERO;
        for (gfn, backing) in cluster.iter().zip(backing) {
            let own = memory.is_own(gfn) && memory.is_own_backing(gfn, backing);
            if !own || !self.offered.begin(gfn) {
                continue;
            }
            memory.peek(gfn, &mut page);
            if !is_zero(&page.0) {
                self.offers.push((gfn, key_of(&page.0, seed)));
            }
        }
        Ok(())
    }

    fn draw(&mut self, pager: &Pager) -> GfnRange {
        if let Some(rest) = self.rest.take() {
            return self.first_of(rest);
        }
        let layout = pager.ram().layout();
        let page = layout.nth(self.rng.u64(0..layout.size().0));
        let is_drawn = |chunk| {
            let mut ahead = self.ahead.iter();
            ahead.any(|cluster| cluster.start.chunk_start() == chunk)
        };
        let large = pager.memory(Cause::Swap).coldest_large(page, is_drawn);
        if let Some(large) = large {
            return self.first_of(large);
        }
        let chunk = layout.chunk_of(page);
        let start = page.0 - (page.0 - chunk.start.0) % CLUSTER_PAGES;
        GfnRange::new(Gfn(start), CLUSTER_PAGES.min(chunk.end().0 - start))
    }

    /// The first cluster of what is left of a large page; the others come next.
    fn first_of(&mut self, rest: GfnRange) -> GfnRange {
        let left = rest.count - CLUSTER_PAGES;
        let next = Gfn(rest.start.0 + CLUSTER_PAGES);
        self.rest = (left > 0).then(|| GfnRange::new(next, left));
        GfnRange::new(rest.start, CLUSTER_PAGES)
    }

    fn walk_on(
        &mut self,
        pager: &Pager,
        wanted: usize,
        victims: &mut Victims,
    ) -> Result<(), Error> {
        let layout = pager.ram().layout();
        for _ in 0..CHUNKS_A_STEP {
            if victims.count() >= wanted {
                return Ok(());
            }
            let rng = &mut self.rng;
            let walking = self.walk.get_or_insert_with(|| Walking {
                walk: Walk::from(layout.nth(rng.u64(0..layout.size().0))),
                left: layout.size().0,
                changes: pager.memory(Cause::Swap).changes(),
            });
            let (part, _) = walking.walk.advance(layout, HOLD_PAGES);
            walking.left = walking.left.saturating_sub(u64::from(part.count));
            let before = victims.count();
            take_from(pager, self.which, part, wanted, victims)?;
            if victims.count() > before {
                walking.left = layout.size().0;
                walking.changes = pager.memory(Cause::Swap).changes();
            } else if walking.left == 0 {
                self.barren = (victims.count() == 0).then_some(walking.changes);
                self.walk = None;
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Gets hold of pages of a range of at most [`HOLD_PAGES`], under one hold of the lock.
fn take_from(
    pager: &Pager,
    which: Which,
    range: GfnRange,
    wanted: usize,
    victims: &mut Victims,
) -> Result<(), Error> {
    let mut memory = pager.memory(Cause::Swap);
    if !memory.any(range, |memory, gfn| which.is_one(memory, gfn)) {
        return Ok(());
    }
    let backing = memory.backing(range)?;
    let room = |victims: &Victims| wanted.saturating_sub(victims.count());
    let mut private = Vec::new();
    let mut in_pool = Vec::new();
    for (gfn, backing) in range.iter().zip(backing) {
        if private.len() + in_pool.len() >= room(victims) {
            break;
        }
        if which.is_one(&memory, gfn) && which.has_memory(&memory, gfn, backing) {
            match memory.state(gfn) {
                PageState::Private => private.push(gfn),
                _ => in_pool.push(gfn),
            }
        }
    }
    for run in runs(&private) {
        victims.taken.extend(memory.take(run)?);
    }
    for gfn in in_pool {
        let most = u32::try_from(room(victims)).unwrap_or(u32::MAX);
        // One of the pages on the way out of another is frozen already.
        if most == 0 || !which.is_one(&memory, gfn) {
            continue;
        }
        for gfn in memory
            .way_out(gfn, most)
            .into_iter()
            .flat_map(|way| way.iter())
        {
            victims.frozen.extend(memory.freeze(gfn)?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
