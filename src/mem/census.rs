//! Counting what really backs the guest.
//!
//! The exact answer is in the page tables (pagemap), at some tens of nanoseconds a page; the cheap
//! one is the kernel's count of this process's anonymous memory, less what the process holds for
//! itself. A *census* reads all page tables and corrects the cheap answer; it also finds the pages
//! that the guest wrote in shared memory, which the kernel copied without telling anybody.
//!
//! Only an entry that is present proves a write. One that is not (the host's kernel migrates the
//! page, or has swapped it) is looked at again in the next census.

use super::memory::{HOLD_PAGES, Memory};
use super::observe::Cause;
use super::pager::{Error, Pager};
use super::runs::Walk;
use crate::page::state::PageState;
use crate::sys::pagemap::Backing;
use crate::sys::space;
use crate::units::{GfnRange, Pages};
use crate::words::{Gauges, Holding, Measured, Report};

/// What a census found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Census {
    /// Anonymous pages that back the guest.
    pub anonymous: Pages,
    /// Shared pages found written.
    pub broken: u64,
}

/// A census under way, a chunk at a time. The guest and the worker go on meanwhile: of the cheap
/// answers before and after, the middle is compared with the count.
#[derive(Debug)]
pub struct Counting {
    walk: Walk,
    /// The cheap answer at the begin.
    before: Pages,
    pages: u64,
    census: Census,
}

impl Counting {
    /// Begins one.
    ///
    /// # Errors
    /// When /proc does not answer.
    pub fn begin(pager: &Pager) -> Result<Counting, Error> {
        Ok(Counting {
            walk: Walk::from(pager.ram().layout().ranges()[0].start),
            before: pager.space().anonymous()?,
            pages: 0,
            census: Census {
                anonymous: Pages(0),
                broken: 0,
            },
        })
    }

    /// Pages looked at so far.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Looks at the next chunk; true when it was the last.
    ///
    /// # Errors
    /// When the page tables cannot be read.
    pub fn count_chunk(&mut self, pager: &Pager) -> Result<bool, Error> {
        let (chunk, last) = self.walk.advance(pager.ram().layout(), HOLD_PAGES);
        count_chunk(&mut pager.memory(Cause::Census), chunk, &mut self.census)?;
        self.pages += u64::from(chunk.count);
        Ok(last)
    }

    /// Corrects the books by what was counted, all chunks.
    ///
    /// # Errors
    /// When /proc does not answer.
    pub fn end(self, pager: &Pager) -> Result<Census, Error> {
        let mut memory = pager.memory(Cause::Census);
        let after = pager.space().anonymous()?;
        let total = Pages(u64::midpoint(self.before.0, after.0));
        let staged = Pages(memory.counts().staged);
        let guest = self.census.anonymous + staged + memory.stored();
        memory.counted(total, guest);
        memory.measured(after);
        memory.all_seen();
        Ok(self.census)
    }
}

impl Pager {
    /// Measures what the guest uses, the cheap way, and enters it into the credit account.
    ///
    /// # Errors
    /// When /proc does not answer.
    pub fn measure(&self) -> Result<(), Error> {
        let mut memory = self.memory(Cause::Census);
        let anonymous = self.space().anonymous()?;
        memory.measured(anonymous);
        Ok(())
    }

    /// Pages that map a frame.
    pub fn mapped(&self) -> Pages {
        Pages(self.memory(Cause::Census).counts().shared)
    }

    /// Shared pages that the guest may have written since the last exact count, at most.
    pub(super) fn unseen_writes(&self) -> Pages {
        self.memory(Cause::Census).unseen_writes()
    }

    /// Counts exactly, page by page, in one go.
    ///
    /// # Errors
    /// When /proc does not answer.
    pub fn census(&self) -> Result<Census, Error> {
        let mut counting = Counting::begin(self)?;
        while !counting.count_chunk(self)? {}
        counting.end(self)
    }

    /// The memory figures of a report; devices and guest add theirs.
    ///
    /// # Errors
    /// When /proc does not answer.
    pub fn report(&self) -> Result<Report, Error> {
        let tables = self.space().tables().tables();
        let tables = tables.map_err(space::Error::PageTables)?;
        let mut memory = self.memory(Cause::Census);
        let anonymous = self.space().anonymous()?;
        let counts = memory.counts();
        let store = memory.stored();
        let own_memory = memory.own_memory();
        let orphaned = memory.orphans();
        Ok(Report {
            holding: Holding {
                private: anonymous.saturating_sub(own_memory + store),
                compressed_store: store,
                orphaned: Pages(orphaned),
            },
            overhead: own_memory + tables + memory.mapping_memory(),
            measured: Measured {
                shared: Pages(counts.shared.saturating_sub(orphaned)),
                gauges: Gauges {
                    zero: Pages(counts.zero),
                    ballooned: Pages(counts.ballooned),
                    compressed: Pages(counts.compressed),
                    swapped: Pages(counts.swapped),
                    large: memory.large(),
                },
                counters: *memory.counters(),
                ..Measured::default()
            },
        })
    }
}

fn count_chunk(memory: &mut Memory<'_>, chunk: GfnRange, census: &mut Census) -> Result<(), Error> {
    let backed = |memory: &Memory<'_>, gfn| {
        matches!(
            memory.state(gfn),
            PageState::Private | PageState::Shared(_) | PageState::Broken(_)
        )
    };
    if !memory.any(chunk, backed) {
        return Ok(());
    }
    for (gfn, backing) in chunk.iter().zip(memory.backing(chunk)?) {
        if backing != Backing::Anonymous {
            continue;
        }
        census.anonymous += Pages(1);
        if let PageState::Shared(frame) = memory.state(gfn) {
            memory.note_break(gfn, frame);
            census.broken += 1;
        }
        memory.clear_zero(gfn);
    }
    Ok(())
}
