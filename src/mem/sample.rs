//! Working-set sampling, the mechanism: pages are taken out of the guest and given back on touch.
//!
//! Which pages, and what the count means, is the caller's (ESX's estimate: 100 random pages in each
//! period). While memory is plenty a page in a large one samples all of it: it goes out whole and comes
//! back whole at the first touch, so that the estimate is of the memory that is touched in units as
//! large as they are. Where pages are not moved a large page cannot go out whole: it is taken for touched,
//! until memory is not plenty and its pages are sampled one by one.
//! A sampled page that backs the guest waits in a stage slot of its own; the first touch
//! costs the guest one fault and is counted. A page that does not back the guest (never touched,
//! ballooned, swapped) is left as it is: a touch changes its state, and until the sample ends nothing
//! else brings it back. The zero page is dropped, which makes it one of those. Pages that map a frame
//! cannot be sampled: dropping their page table entry could drop a copy that the guest has just made.

use std::sync::MutexGuard;

use super::observe::Cause;
use super::pager::{Error, Pager};
use super::stage::{Occupant, Taken};
use crate::page::state::PageState;
use crate::sys::large::SampleSlot;
use crate::sys::pagemap::Backing;
use crate::units::{Gfn, GfnRange};

/// Pages that can be sampled at a time.
pub const SAMPLE_MAX: u16 = 128;

/// The running sample of one VM. Its lock is taken before the memory's.
#[derive(Debug, Default)]
pub(super) struct Sample {
    /// Pages taken out.
    taken: Vec<Taken>,
    /// Pages drawn in large ones, which were taken out whole: where.
    large: Vec<(SampleSlot, Gfn)>,
    /// Pages that did not back the guest when the sample began.
    absent: Vec<Gfn>,
    /// Pages drawn in large ones that cannot be taken out whole: they count as touched.
    assumed: usize,
}

impl Pager {
    /// Whether a page can be sampled as it is now.
    pub fn can_sample(&self, gfn: Gfn) -> bool {
        if !self.ram().layout().contains_gfn(gfn) {
            return false;
        }
        let memory = self.memory(Cause::Sample);
        // A large page that is out is back before the next sample begins.
        memory.sample_of(gfn).is_some()
            || !matches!(
                memory.state(gfn),
                PageState::Shared(_)
                    | PageState::Broken(_)
                    | PageState::Busy
                    | PageState::Staged(_)
            )
    }

    fn sample(&self) -> MutexGuard<'_, Sample> {
        self.sample.lock().expect("nothing panics under this lock")
    }

    /// Ends the running sample and begins one of `gfns`, of which at most [`SAMPLE_MAX`] are taken.
    /// Returns how many pages are in it.
    ///
    /// # Errors
    /// The VM cannot go on.
    pub fn begin_sample(&self, gfns: &[Gfn]) -> Result<u32, Error> {
        self.end_sample()?;
        let mut sample = self.sample();
        for &gfn in gfns {
            self.sample_page(gfn, &mut sample)?;
        }
        let count = sample.taken.len() + sample.large.len() + sample.absent.len() + sample.assumed;
        Ok(u32::try_from(count).expect("as many as there are pages"))
    }

    fn sample_page(&self, gfn: Gfn, sample: &mut Sample) -> Result<(), Error> {
        let mut memory = self.memory(Cause::Sample);
        // Drawn in a large page that is out already: it stands for both.
        if let Some(slot) = memory.sample_of(gfn) {
            sample.large.push((slot, gfn));
            return Ok(());
        }
        match memory.state(gfn) {
            PageState::Unbacked | PageState::Swapped(_) | PageState::Compressed(_) => {
                memory.watch(gfn);
                sample.absent.push(gfn);
            }
            PageState::Private if memory.is_large(gfn) && memory.is_plenty() => {
                if !memory.samples_large() {
                    sample.assumed += 1;
                    return Ok(());
                }
                let slot = memory.sample_large(gfn)?;
                sample.large.extend(slot.map(|slot| (slot, gfn)));
            }
            PageState::Private if sample.taken.len() < usize::from(SAMPLE_MAX) => {
                match memory.backing(GfnRange::one(gfn))?[0] {
                    Backing::Anonymous => sample.taken.extend(memory.take(GfnRange::one(gfn))?),
                    Backing::Common => {
                        if memory.discard_zero(gfn)? {
                            sample.absent.push(gfn);
                        }
                    }
                    Backing::Nothing | Backing::Unsettled | Backing::File => {}
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Goes on with the pages that were drawn in large ones alone: memory is scarce, and none of what
    /// is sampled can be swapped.
    ///
    /// # Errors
    /// The VM cannot go on.
    pub(super) fn sample_small(&self) -> Result<(), Error> {
        let mut sample = self.sample();
        for (slot, gfn) in std::mem::take(&mut sample.large) {
            let mut memory = self.memory(Cause::Sample);
            if memory.was_touched(slot) {
                sample.large.push((slot, gfn));
                continue;
            }
            memory.end_large(slot)?;
            if memory.state(gfn) == PageState::Private {
                let taken = memory.take(GfnRange::one(gfn))?;
                sample.taken.extend(taken);
            }
        }
        Ok(())
    }

    /// Pages of the running sample that the guest has touched so far. Of those that did not back
    /// the guest only written ones count: a neighbour's first touch maps the zero page over all.
    ///
    /// # Errors
    /// The VM cannot go on.
    pub fn touched_in_sample(&self) -> Result<u32, Error> {
        let sample = self.sample();
        let memory = self.memory(Cause::Sample);
        let touched = |taken: &&Taken| memory.occupant(taken) == Occupant::Touched;
        let mut count = sample.assumed + sample.taken.iter().filter(touched).count();
        let large = sample.large.iter();
        count += large.filter(|(slot, _)| memory.was_touched(*slot)).count();
        drop(memory);
        for &gfn in &sample.absent {
            let mut memory = self.memory(Cause::Sample);
            if memory.state(gfn) == PageState::Private
                && memory.backing(GfnRange::one(gfn))?[0] == Backing::Anonymous
            {
                count += 1;
            }
        }
        Ok(u32::try_from(count).expect("as many as there are pages"))
    }

    /// Gives the untouched pages back.
    ///
    /// # Errors
    /// The VM cannot go on.
    pub fn end_sample(&self) -> Result<(), Error> {
        let ended = std::mem::take(&mut *self.sample());
        for (slot, _) in ended.large {
            self.memory(Cause::Sample).end_large(slot)?;
        }
        drop(ended.taken);
        let mut memory = self.memory(Cause::Sample);
        memory.unwatch_all();
        memory.settle_stage().map(drop)
    }
}
