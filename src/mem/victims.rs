//! The search for pages to take out of the guest.
//!
//! Victims are drawn at random, as ESX does, so that the choice never works together with the
//! guest's own replacement to its harm (a page that both consider oldest is read only to be swapped
//! again by the guest). What is drawn is a *cluster* of neighbours: they leave in one transfer, and
//! their swap slots run as they do.
//!
//! Where draws find nothing, memory is walked from a random place on, a chunk under each hold of
//! the lock and so many chunks a step that a step stays short; the next step goes on there. A walk
//! that met all of memory and found nothing ends the search until something changes
//! ([`Memory::changes`]).

use super::memory::{HOLD_PAGES, Memory};
use super::observe::Cause;
use super::pager::{Error, Pager};
use super::pool_pages::Frozen;
use super::runs::{Walk, runs};
use super::stage::Taken;
use crate::page::state::PageState;
use crate::units::{Gfn, GfnRange};

/// Pages of a cluster, aligned: as many as a batch has, 128 KiB.
const CLUSTER_PAGES: u32 = 32;
/// Clusters drawn in one step before memory is walked.
const DRAWS: u32 = 64;
/// Chunks walked in one step: 128 MiB of guest memory.
pub(super) const CHUNKS_A_STEP: u32 = 64;

/// Where the search is.
#[derive(Debug)]
pub(super) struct Search {
    rng: fastrand::Rng,
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
            walk: None,
            barren: None,
        }
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
            let cluster = self.draw(pager);
            take_from(pager, cluster, wanted, &mut victims)?;
        }
        self.walk_on(pager, wanted, &mut victims)?;
        Ok(victims)
    }

    fn draw(&mut self, pager: &Pager) -> GfnRange {
        let layout = pager.ram().layout();
        let page = layout.nth(self.rng.u64(0..layout.size().0));
        let chunk = layout.chunk_of(page);
        let start = page.0 - (page.0 - chunk.start.0) % CLUSTER_PAGES;
        GfnRange::new(Gfn(start), CLUSTER_PAGES.min(chunk.end().0 - start))
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
            take_from(pager, part, wanted, victims)?;
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
    range: GfnRange,
    wanted: usize,
    victims: &mut Victims,
) -> Result<(), Error> {
    let mut memory = pager.memory(Cause::Swap);
    if !memory.any(range, Memory::is_own) {
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
        if memory.is_own(gfn) && memory.is_own_backing(gfn, backing) {
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
        if most == 0 || !memory.is_own(gfn) {
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
