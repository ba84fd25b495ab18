//! Counting what really backs the guest.
//!
//! The exact answer is in the page tables (pagemap), at some tens of nanoseconds a page; the cheap
//! one is the kernel's count of this process's anonymous memory, less what the process holds for
//! itself. A *census* reads all page tables and corrects the cheap answer; it also finds the pages
//! that the guest wrote in shared memory, which the kernel copied without telling anybody.
//!
//! Only an entry that is present proves a write. One that is not (the host's kernel migrates the
//! page, or has swapped it) is looked at again in the next census.

use std::time::{Duration, Instant};

use super::memory::{HOLD_PAGES, Memory};
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
    /// How long it took: the caller takes censuses so seldom that they cost little.
    pub took: Duration,
}

impl Pager {
    /// Measures what the guest uses, the cheap way, and enters it into the credit account.
    ///
    /// # Errors
    /// When /proc does not answer.
    pub fn measure(&self) -> Result<(), Error> {
        let mut memory = self.memory();
        let anonymous = self.space().anonymous()?;
        memory.measured(anonymous);
        Ok(())
    }

    /// Counts exactly, page by page.
    ///
    /// # Errors
    /// When /proc does not answer.
    pub fn census(&self) -> Result<Census, Error> {
        let start = Instant::now();
        let before = self.space().anonymous()?;
        let mut census = Census {
            anonymous: Pages(0),
            broken: 0,
            took: Duration::ZERO,
        };
        let layout = self.ram().layout();
        let mut walk = Walk::from(layout.ranges()[0].start);
        loop {
            let (chunk, last) = walk.advance(layout, HOLD_PAGES);
            count_chunk(&mut self.memory(), chunk, &mut census)?;
            if last {
                break;
            }
        }
        let mut memory = self.memory();
        let after = self.space().anonymous()?;
        // The guest ran meanwhile: the middle is the better guess.
        let total = Pages(u64::midpoint(before.0, after.0));
        let staged = Pages(memory.counts().staged);
        let guest = census.anonymous + staged + memory.stored();
        memory.counted(total, guest);
        memory.measured(after);
        census.took = start.elapsed();
        Ok(census)
    }

    /// The memory figures of a report; devices and guest add theirs.
    ///
    /// # Errors
    /// When /proc does not answer.
    pub fn report(&self) -> Result<Report, Error> {
        let tables = self.space().tables().tables();
        let tables = tables.map_err(space::Error::PageTables)?;
        let mut memory = self.memory();
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
            overhead: own_memory + tables,
            measured: Measured {
                shared: Pages(counts.shared.saturating_sub(orphaned)),
                gauges: Gauges {
                    zero: Pages(counts.zero),
                    ballooned: Pages(counts.ballooned),
                    compressed: Pages(counts.compressed),
                    swapped: Pages(counts.swapped),
                },
                counters: *memory.counters(),
                ..Measured::default()
            },
        })
    }

    /// Compares the books with themselves and with the page tables.
    ///
    /// # Errors
    /// When the page tables cannot be read.
    ///
    /// # Panics
    /// When they disagree.
    pub fn audit(&self) -> Result<(), Error> {
        let memory = self.memory();
        memory.books.pmap.audit();
        assert_eq!(
            memory.books.stage.waiting() as u64,
            memory.counts().staged,
            "pages in the staging area"
        );
        for range in self.ram().layout().ranges() {
            for gfn in range.iter() {
                let state = memory.state(gfn);
                let backing = self.space().backing(GfnRange::one(gfn))?[0];
                assert!(
                    agree(state, backing),
                    "{gfn} is {state:?} in the books and {backing:?} in the page tables"
                );
            }
        }
        Ok(())
    }
}

fn agree(state: PageState, backing: Backing) -> bool {
    match state {
        PageState::Unbacked
        | PageState::Staged(_)
        | PageState::Compressed(_)
        | PageState::Swapped(_) => backing == Backing::Nothing,
        PageState::Private | PageState::Busy => backing != Backing::File,
        // KSM may have merged it, the kernel may migrate it or have swapped it.
        PageState::Broken(_) => !matches!(backing, Backing::File | Backing::Nothing),
        PageState::Shared(_) => true,
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
