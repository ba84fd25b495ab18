//! Looking for pages worth sharing: those that stay.
//!
//! Memory is looked at chunk by chunk, each as often as its [`pace`](super::pace) says. A page whose
//! key was the same at two looks is offered, and goes on to be offered at every look at it while it
//! stays: whoever was told may have forgotten. A page that was all zero at two looks is taken, looked
//! at once more, and dropped. Of a large page that stays whole for now (`mem/large/worth.rs`) nothing is
//! dropped, and what is known to have a frame is not offered again.

use std::time::Duration;

use super::chunks::{Chunks, Part, Seen, Which, slice};
use super::pace::Tally;
use crate::mem::memory::Memory;
use crate::mem::observe::Cause;
use crate::mem::pager::{Error, Pager};
use crate::mem::runs::runs;
use crate::page::key::{is_zero, key_of};
use crate::page::state::PageState;
use crate::sys::ram::Layout;
use crate::sys::space::PageBuf;
use crate::units::{Gfn, GfnRange};
use crate::words::Key;

/// Pages that were passed over cost about so much less than those whose content was looked at.
const PASSED_PART: u32 = 16;

/// Looks at the guest's pages.
#[derive(Debug)]
pub struct Scanner {
    chunks: Chunks,
    seed: u64,
    look: Option<Look>,
}

/// A look at a chunk that is not at its end.
#[derive(Debug)]
struct Look {
    chunk: GfnRange,
    which: Which,
    next: Gfn,
    tally: Tally,
}

/// What a part of a scan found.
#[derive(Debug, Default)]
pub struct Scanned {
    /// Pages looked at. Sixteen that have no memory of their own count as one.
    pub pages: u32,
    /// Keys of pages that are not zero and have not changed since the last look.
    pub offers: Vec<(Gfn, Key)>,
    /// Pages that were all zero at two looks and are discarded now.
    pub zeros: u32,
}

impl Scanner {
    /// Has looked at nothing yet; `seed` is the share group's.
    pub fn new(layout: &Layout, seed: u64) -> Scanner {
        Scanner {
            chunks: Chunks::new(layout),
            seed,
            look: None,
        }
    }

    /// The share group's seed, for the keys.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Whether there is nothing that must be looked at again soon.
    pub fn is_calm(&self) -> bool {
        self.look.is_none() && self.chunks.are_calm()
    }

    /// When there is something to look at, as time since the scan began, unless something stirs
    /// before that.
    pub fn next_look(&mut self) -> Duration {
        match self.look {
            Some(_) => Duration::ZERO,
            None => self.chunks.next_due().unwrap_or_default(),
        }
    }

    /// Looks at up to `pages_max` pages of what is due at `now`, the time since the scan began.
    ///
    /// # Errors
    /// The VM cannot go on.
    pub fn step(&mut self, pager: &Pager, pages_max: u32, now: Duration) -> Result<Scanned, Error> {
        for stir in pager.memory(Cause::Scan).take_stirred() {
            self.chunks.stir(stir, now);
        }
        let mut found = Scanned::default();
        while found.pages < pages_max {
            let begin = || {
                let (first, which) = self.chunks.begin(now)?;
                let chunk = pager.ram().layout().chunk_of(first);
                Some(Look {
                    chunk,
                    which,
                    next: chunk.start,
                    tally: Tally::default(),
                })
            };
            let Some(mut look) = self.look.take().or_else(begin) else {
                break;
            };
            let slice = slice(look.chunk, look.next);
            if let Some(part) = look.which.of(slice) {
                let own = self.scan_slice(pager, part, &mut look.tally, &mut found)?;
                found.pages += own + (part.count - own).div_ceil(PASSED_PART);
            }
            look.next = slice.end();
            match look.next == look.chunk.end() {
                true => self
                    .chunks
                    .end(look.chunk.start, look.which, look.tally, now),
                false => self.look = Some(look),
            }
        }
        Ok(found)
    }

    /// Looks at some pages of a chunk; returns how many have memory of their own.
    fn scan_slice(
        &mut self,
        pager: &Pager,
        slice: GfnRange,
        tally: &mut Tally,
        found: &mut Scanned,
    ) -> Result<u32, Error> {
        let mut memory = pager.memory(Cause::Scan);
        let sampled = memory.sample_of(slice.start).is_some();
        if !sampled && !memory.any(slice, Memory::is_own) {
            return Ok(0);
        }
        let backing = memory.backing(slice)?;
        let before = tally.own;
        let mut zeros = Vec::new();
        let mut page = PageBuf::ZERO;
        for (gfn, backing) in slice.iter().zip(backing) {
            // A large page that is sampled is looked at where it is.
            if !memory.read_sampled(gfn, &mut page) {
                if !memory.is_own(gfn) || !memory.is_own_backing(gfn, backing) {
                    continue;
                }
                memory.peek(gfn, &mut page);
            }
            tally.own += 1;
            let key = (!is_zero(&page.0)).then(|| key_of(&page.0, self.seed));
            match self.chunks.note(gfn, key.map_or(Part::ZERO, Part::of)) {
                Seen::New => tally.new += 1,
                Seen::Changed => {
                    tally.changed += 1;
                    memory.note_worth(gfn, false);
                }
                Seen::Same => match key {
                    Some(_) if memory.is_spared(gfn) => {}
                    Some(key) => found.offers.push((gfn, key)),
                    None if memory.keeps_large(gfn) => memory.note_worth(gfn, true),
                    None if sampled || memory.state(gfn) == PageState::Private => zeros.push(gfn),
                    None => {}
                },
            }
        }
        if !zeros.is_empty() {
            memory.unsample(slice.start)?;
        }
        found.zeros += discard_zeros(&mut memory, &zeros)?;
        Ok(tally.own - before)
    }
}

/// Takes pages that looked all zero; those that are, with nobody writing any more, are dropped.
fn discard_zeros(memory: &mut Memory<'_>, gfns: &[Gfn]) -> Result<u32, Error> {
    let mut dropped = 0;
    let mut page = PageBuf::ZERO;
    for run in runs(gfns) {
        for taken in memory.take(run)? {
            memory.read_staged(&taken, &mut page);
            if is_zero(&page.0) && memory.drop_staged_zero(&taken)? {
                dropped += 1;
            }
        }
    }
    memory.settle_stage()?;
    Ok(dropped)
}

#[cfg(test)]
mod tests;
