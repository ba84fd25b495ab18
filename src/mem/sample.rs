//! Working-set sampling, the mechanism: pages are taken out of the guest and given back on touch.
//!
//! Which pages, and what the count means, is the caller's (ESX's estimate: 100 random pages in each
//! period). A sampled page that backs the guest waits in a stage slot of its own; the first touch
//! costs the guest one fault and is counted. A page that does not back the guest (never touched,
//! ballooned, swapped) needs no preparation: a touch changes its state. The zero page is dropped,
//! which makes it one of those. Pages that map a frame cannot be sampled: dropping their page table
//! entry could drop a copy that the guest has just made.

use super::pager::{Error, Pager, stage_slot};
use crate::page::state::{PageEvent, PageState};
use crate::sys::pagemap::Backing;
use crate::sys::space::{SAMPLE_SLOTS_START, STAGE_SLOTS, StageSlot};
use crate::units::{Gfn, GfnRange};

/// Pages that can be sampled at a time.
pub const SAMPLE_MAX: u16 = STAGE_SLOTS - SAMPLE_SLOTS_START;

/// The running sample of one VM.
#[derive(Debug, Default)]
pub(super) struct Sample {
    /// Pages taken out, staged in the order of this list.
    taken: Vec<Gfn>,
    /// Pages that did not back the guest when the sample began.
    absent: Vec<Gfn>,
    /// Pages of `taken` that were touched.
    touched: u32,
}

impl Sample {
    /// A staged page went back to the guest: a touch, if it was sampled.
    pub fn given_back(&mut self, slot: StageSlot) {
        if slot.0 >= SAMPLE_SLOTS_START {
            self.touched += 1;
        }
    }
}

impl Pager {
    /// Whether a page can be sampled as it is now.
    pub fn can_sample(&self, gfn: Gfn) -> bool {
        self.ram().layout().contains_gfn(gfn)
            && !matches!(
                self.books().pmap.state(gfn),
                PageState::Shared(_)
                    | PageState::Broken(_)
                    | PageState::Busy
                    | PageState::Staged(_)
            )
    }

    /// Ends the running sample and begins one of `gfns`, of which at most [`SAMPLE_MAX`] are taken.
    /// Returns how many pages are in it.
    ///
    /// # Errors
    /// The VM cannot go on.
    pub fn begin_sample(&self, gfns: &[Gfn]) -> Result<u32, Error> {
        self.end_sample()?;
        let mut books = self.books();
        for &gfn in gfns {
            let slot = usize::from(SAMPLE_SLOTS_START) + books.sample.taken.len();
            match books.pmap.state(gfn) {
                PageState::Unbacked | PageState::Swapped(_) | PageState::Compressed(_) => {
                    books.sample.absent.push(gfn);
                }
                PageState::Private if slot < usize::from(STAGE_SLOTS) => {
                    let slot = u32::try_from(slot).expect("below STAGE_SLOTS");
                    match self.space.backing(GfnRange::one(gfn))?[0] {
                        Backing::Anonymous => {
                            let taken = self.space.take(GfnRange::one(gfn), stage_slot(slot))?;
                            if taken == 1 {
                                books.pmap.apply(gfn, PageEvent::Take(slot));
                                books.sample.taken.push(gfn);
                            }
                        }
                        Backing::ZeroPage => {
                            if self.space.discard_zero(gfn)? {
                                books.pmap.apply(gfn, PageEvent::Discard);
                                books.sample.absent.push(gfn);
                            }
                        }
                        Backing::Nothing | Backing::File => {}
                    }
                }
                _ => {}
            }
        }
        let count = books.sample.taken.len() + books.sample.absent.len();
        Ok(u32::try_from(count).expect("as many as there are pages"))
    }

    /// Pages of the running sample that the guest has touched so far. Of those that did not back
    /// the guest only written ones count: a neighbour's first touch maps the zero page over all.
    ///
    /// # Errors
    /// The VM cannot go on.
    pub fn touched_in_sample(&self) -> Result<u32, Error> {
        let books = self.books();
        let mut touched = books.sample.touched;
        for &gfn in &books.sample.absent {
            if books.pmap.state(gfn) == PageState::Private
                && self.space.backing(GfnRange::one(gfn))?[0] == Backing::Anonymous
            {
                touched += 1;
            }
        }
        Ok(touched)
    }

    /// Gives the untouched pages back.
    ///
    /// # Errors
    /// The VM cannot go on.
    pub fn end_sample(&self) -> Result<(), Error> {
        let mut books = self.books();
        let sample = std::mem::take(&mut books.sample);
        for (slot, &gfn) in (u32::from(SAMPLE_SLOTS_START)..).zip(&sample.taken) {
            if books.pmap.state(gfn) == PageState::Staged(slot) {
                self.space.give_back(GfnRange::one(gfn), stage_slot(slot))?;
                books.pmap.apply(gfn, PageEvent::GiveBack);
            }
        }
        let count = u32::try_from(sample.taken.len()).expect("at most SAMPLE_MAX");
        if count > 0 {
            self.space
                .drop_staged(StageSlot(SAMPLE_SLOTS_START), count)?;
        }
        Ok(())
    }
}
