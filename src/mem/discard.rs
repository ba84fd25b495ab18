//! Dropping content that the guest declared dead: ballooned pages and reported free pages.

use super::pager::{Books, Error, Pager};
use crate::page::state::{PageEvent, PageState};
use crate::units::{Gfn, GfnRange};

/// Why content is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dead {
    /// The balloon holds the page.
    Ballooned,
    /// The guest has the page on its free list.
    Free,
}

/// Pages handled under one hold of the lock.
const PAGES_AT_ONCE: usize = 512;

impl Pager {
    /// The balloon took these pages.
    ///
    /// # Errors
    /// The VM cannot go on.
    pub fn inflate(&self, gfns: &[Gfn]) -> Result<(), Error> {
        gfns.chunks(PAGES_AT_ONCE)
            .try_for_each(|part| self.drop_dead(part, Dead::Ballooned))
    }

    /// The balloon gave these pages back. They are unbacked; the next touch fills them.
    pub fn deflate(&self, gfns: &[Gfn]) {
        let mut books = self.books_first();
        for gfn in gfns {
            books.pmap.set_ballooned(*gfn, false);
        }
    }

    /// The guest does not need the content of these pages any more.
    ///
    /// # Errors
    /// The VM cannot go on.
    pub fn report_free(&self, range: GfnRange) -> Result<(), Error> {
        let gfns: Vec<Gfn> = range.iter().collect();
        gfns.chunks(PAGES_AT_ONCE)
            .try_for_each(|part| self.drop_dead(part, Dead::Free))
    }

    fn drop_dead(&self, gfns: &[Gfn], why: Dead) -> Result<(), Error> {
        let mut books = self.books_first();
        let mut mapped = Vec::new();
        let mut in_pool = Vec::new();
        for &gfn in gfns {
            if why == Dead::Ballooned {
                books.pmap.set_ballooned(gfn, true);
            }
            match books.pmap.state(gfn) {
                PageState::Unbacked => {}
                PageState::Private => mapped.push(gfn),
                PageState::Staged(_) => {
                    books.pmap.apply(gfn, PageEvent::Discard);
                    self.space.wake(GfnRange::one(gfn))?;
                }
                PageState::Compressed(slot) => {
                    books.store.remove(slot);
                    books.pmap.apply(gfn, PageEvent::Discard);
                }
                PageState::Swapped(slot) => {
                    books.swapmap.free(slot);
                    books.pmap.apply(gfn, PageEvent::Discard);
                }
                PageState::Shared(_) | PageState::Broken(_) => {
                    books.leave_frame(gfn);
                    books.pmap.apply(gfn, PageEvent::Begin);
                    in_pool.push(gfn);
                }
                // Another thread brings it back at this moment: the guest touched what it calls
                // dead. Keeping content is always right.
                PageState::Busy => continue,
            }
            books.pmap.set_zero(gfn, false);
        }
        for run in runs(&mapped) {
            self.space.discard(run)?;
            for gfn in run.iter() {
                books.pmap.apply(gfn, PageEvent::Discard);
            }
        }
        drop(books);
        if in_pool.is_empty() {
            return Ok(());
        }
        let in_pool = runs(&in_pool);
        for run in &in_pool {
            self.space.rearm(*run)?;
        }
        let mut books = self.books_first();
        for run in in_pool {
            for gfn in run.iter() {
                books.pmap.apply(gfn, PageEvent::Discard);
            }
            self.space.wake(run)?;
        }
        Ok(())
    }
}

impl Books {
    /// The page is about to lose its frame, if it has one: the frame is to be released, unless it
    /// belongs to a pool whose owner is gone.
    pub(super) fn leave_frame(&mut self, gfn: Gfn) {
        if let PageState::Shared(frame) = self.pmap.state(gfn)
            && !self.orphans.remove(&gfn)
        {
            self.released.push(frame);
        }
    }
}

/// The maximal runs of consecutive frames in `gfns`, which are in ascending order.
pub(super) fn runs(gfns: &[Gfn]) -> Vec<GfnRange> {
    let mut runs: Vec<GfnRange> = Vec::new();
    for &gfn in gfns {
        match runs.last_mut() {
            Some(run) if run.end() == gfn => run.count += 1,
            _ => runs.push(GfnRange::one(gfn)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_runs() {
        let gfns: Vec<Gfn> = [1, 2, 3, 7, 9, 10].into_iter().map(Gfn).collect();
        let expected = [
            GfnRange::new(Gfn(1), 3),
            GfnRange::one(Gfn(7)),
            GfnRange::new(Gfn(9), 2),
        ];
        assert_eq!(runs(&gfns), expected);
        assert!(runs(&[]).is_empty());
    }
}
