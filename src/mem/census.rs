//! Counting what really backs the guest.
//!
//! The exact answer is in the page tables (pagemap), at some tens of nanoseconds a page; the cheap
//! one is the kernel's count of this process's anonymous memory, less what the process holds for
//! itself. A *census* reads all page tables and corrects the cheap answer; it also finds the pages
//! that the guest wrote in shared memory, which the kernel copied without telling anybody.

use std::time::{Duration, Instant};

use super::pager::{Books, Error, Pager};
use crate::link::message::Report;
use crate::page::state::{PageEvent, PageState};
use crate::sys::pagemap::Backing;
use crate::sys::space::GuestSpace;
use crate::units::{FrameId, GfnRange, Pages};

/// What a census found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Census {
    /// Anonymous pages that back the guest.
    pub anonymous: Pages,
    /// Shared pages found written.
    pub broken: u64,
    /// How long it took: the caller takes censuses so seldom that they cost little.
    pub took: Duration,
}

impl Pager {
    /// Measures what the guest uses, the cheap way, and enters it into the credit account.
    ///
    /// # Errors
    /// When /proc does not answer.
    pub fn measure(&self) -> Result<(), Error> {
        let mut books = self.books();
        let anonymous = self.space.anonymous()?;
        let guest = anonymous.saturating_sub(books.own_memory);
        books.credit.measured(guest);
        Ok(())
    }

    /// Counts exactly, page by page.
    ///
    /// # Errors
    /// When /proc does not answer.
    pub fn census(&self) -> Result<Census, Error> {
        let start = Instant::now();
        let before = self.space.anonymous()?;
        let mut census = Census {
            anonymous: Pages(0),
            broken: 0,
            took: Duration::ZERO,
        };
        for range in self.ram().layout().ranges() {
            let mut gfn = range.start;
            while gfn < range.end() {
                let chunk = self.chunk_of(gfn);
                self.count_chunk(chunk, &mut census)?;
                gfn = chunk.end();
            }
        }
        let mut books = self.books();
        let after = self.space.anonymous()?;
        // The guest ran meanwhile: the middle is the better guess.
        let total = Pages(u64::midpoint(before.0, after.0));
        let guest = census.anonymous + Pages(books.pmap.counts().staged) + books.store.used();
        books.own_memory = total.saturating_sub(guest);
        let used = after.saturating_sub(books.own_memory);
        books.credit.measured(used);
        census.took = start.elapsed();
        Ok(census)
    }

    fn count_chunk(&self, chunk: GfnRange, census: &mut Census) -> Result<(), Error> {
        let mut books = self.books();
        let backed = |state| {
            matches!(
                state,
                PageState::Private | PageState::Shared(_) | PageState::Broken(_)
            )
        };
        if !chunk.iter().any(|gfn| backed(books.pmap.state(gfn))) {
            return Ok(());
        }
        for (gfn, backing) in chunk.iter().zip(self.space.backing(chunk)?) {
            if backing != Backing::Anonymous {
                continue;
            }
            census.anonymous += Pages(1);
            if matches!(books.pmap.state(gfn), PageState::Shared(_)) {
                books.leave_frame(gfn);
                books.pmap.apply(gfn, PageEvent::Break);
                books.counters.cow_breaks += 1;
                census.broken += 1;
            }
            books.pmap.set_zero(gfn, false);
        }
        Ok(())
    }

    /// Frames that this VM no longer maps, to be released; the list is empty afterwards.
    pub fn take_released(&self) -> Vec<FrameId> {
        std::mem::take(&mut self.books().released)
    }

    /// A new host manager knows nothing of the frames mapped so far: they are this VM's own now,
    /// charged in full, until the guest writes or drops them.
    pub fn orphan_frames(&self) {
        let mut books = self.books();
        let shared: Vec<_> = self
            .ram()
            .layout()
            .ranges()
            .iter()
            .flat_map(|range| range.iter())
            .filter(|gfn| matches!(books.pmap.state(*gfn), PageState::Shared(_)))
            .collect();
        books.orphans.extend(shared);
        books.released.clear();
    }

    /// The memory figures of a report; devices and guest add theirs.
    ///
    /// # Errors
    /// When /proc does not answer.
    pub fn report(&self) -> Result<Report, Error> {
        let tables = self
            .space
            .tables()
            .tables()
            .map_err(crate::sys::space::Error::PageTables)?;
        let books = self.books();
        let anonymous = self.space.anonymous()?;
        let counts = books.pmap.counts();
        let store = books.store.used();
        let private = anonymous.saturating_sub(books.own_memory + store);
        let orphaned = books.orphans.len() as u64;
        let counters = books.counters;
        Ok(Report {
            private,
            shared: Pages(counts.shared - orphaned),
            orphaned: Pages(orphaned),
            zero: Pages(counts.zero),
            ballooned: Pages(counts.ballooned),
            compressed: Pages(counts.compressed),
            compressed_store: store,
            swapped: Pages(counts.swapped),
            overhead: books.own_memory + tables,
            swap_in_pages: counters.swap_in_pages,
            swap_out_pages: counters.swap_out_pages,
            cow_breaks: counters.cow_breaks,
            swap_errors: counters.swap_errors,
            ..Report::default()
        })
    }
}

/// Compares the books with the page tables.
pub(super) fn audit(books: &Books, space: &GuestSpace) -> Result<(), Error> {
    for range in space.ram().layout().ranges() {
        for gfn in range.iter() {
            let state = books.pmap.state(gfn);
            let backing = space.backing(GfnRange::one(gfn))?[0];
            let agrees = match state {
                PageState::Unbacked
                | PageState::Staged(_)
                | PageState::Compressed(_)
                | PageState::Swapped(_) => backing == Backing::Nothing,
                PageState::Private | PageState::Busy => backing != Backing::File,
                PageState::Broken(_) => backing == Backing::Anonymous,
                PageState::Shared(_) => backing != Backing::ZeroPage,
            };
            assert!(
                agrees,
                "{gfn} is {state:?} in the books and {backing:?} in the page tables"
            );
        }
    }
    Ok(())
}
