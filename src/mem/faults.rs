//! Serving page faults.
//!
//! A few threads ([`threads`]) are in [`Pager::serve_faults`] as long as the VM lives. A fault wakes
//! one of them, which takes the lock for what the fault needs and nothing that waits for a fault.
//! What it cannot serve yet is served later: by the thread that made the page busy, or when credit
//! arrives ([`Pager::retry_starving`]).
//!
//! A page that must come from disk is a *ticket* in a queue (`swap_in`): the thread that met
//! the fault reads it itself, without a hand-over, while the others serve the faults that follow. One
//! thread never reads from disk, because the worker may be in the middle of moving a mapping, which
//! the kernel does not let go on before somebody has read of it.
//!
//! **After a failure** nothing is served any more, since a page is lost and the process is about to
//! end; but events are still read, for the same reason.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::memory::Memory;
use super::observe::Cause;
use super::pager::{Error, Pager};
use crate::page::state::PageState;
use crate::sys::uffd::Event;
use crate::units::{Gfn, GfnRange, Pages};

/// Fault threads of a VM at most. Chosen: one for each vCPU that may wait for the disk, of the few
/// that a disk serves at once, and one that never reads.
const THREADS_MAX: usize = 4;

/// Threads that serve the faults of a VM with so many vCPUs: at least two.
pub fn threads(cpus: u8) -> usize {
    (usize::from(cpus) + 1).clamp(2, THREADS_MAX)
}

/// What a thread met at a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Touch {
    /// Nothing is mapped.
    Missing,
    /// The page is write-protected.
    Protected,
}

impl Pager {
    /// Serves page faults until `ended`, which is asked after every event and every `tick`. The
    /// first failure is handed to `failed`; see the module documentation for what follows. At least
    /// two threads must be in here, and at most one more than [`Settings::readers`] does any work.
    ///
    /// [`Settings::readers`]: super::pager::Settings::readers
    pub fn serve_faults(
        &self,
        tick: Option<Duration>,
        ended: impl Fn() -> bool,
        failed: impl FnOnce(&Error),
    ) {
        let mut failed = Some(failed);
        while !ended() {
            let waited = self.space().uffd().wait(tick).map_err(Error::Events);
            let served = waited.and_then(|()| match self.failed.load(Ordering::Relaxed) {
                false => self.serve(),
                true => self.read_events().map(drop),
            });
            if let Err(error) = served {
                self.failed.store(true, Ordering::Relaxed);
                match failed.take() {
                    Some(failed) => failed(&error),
                    // Not even events can be read any more.
                    None => return,
                }
            }
        }
    }

    fn read_events(&self) -> Result<Vec<Event>, Error> {
        let mut events = Vec::new();
        let uffd = self.space().uffd();
        uffd.read_events(&mut events).map_err(Error::Events)?;
        Ok(events)
    }

    /// Reads and serves all waiting events, those that need the disk last.
    ///
    /// # Errors
    /// The VM cannot go on: a page is lost or the kernel refuses.
    fn serve(&self) -> Result<(), Error> {
        self.read_events()?
            .into_iter()
            .try_for_each(|event| self.fault(event))?;
        self.read_swapped()
    }

    fn fault(&self, event: Event) -> Result<(), Error> {
        let touch = match event {
            Event::Protected { .. } => Touch::Protected,
            Event::Missing { .. } | Event::Remapped => Touch::Missing,
        };
        match self.space().fault_gfn(event)? {
            Some(gfn) => self.serve_page(gfn, touch),
            None => Ok(()),
        }
    }

    /// Serves a page by what it is now. A touch that cannot be served yet is served later.
    fn serve_page(&self, gfn: Gfn, touch: Touch) -> Result<(), Error> {
        let mut memory = self.memory_first(Cause::Fault);
        match (memory.state(gfn), touch) {
            // Whoever made the page busy wakes the waiting threads when it is done.
            (PageState::Busy, _) => Ok(()),
            (PageState::Unbacked, _) => self.fill(&mut memory, gfn),
            (PageState::Staged(slot), _) => memory.give_back_touched(gfn, slot),
            (PageState::Compressed(_), _) => {
                if self.starves(&mut memory, gfn) {
                    return Ok(());
                }
                self.decompress(&mut memory, gfn)
            }
            (PageState::Swapped(slot), _) => {
                if !self.starves(&mut memory, gfn) {
                    self.begin_swap_in(&mut memory, gfn, slot);
                }
                Ok(())
            }
            (
                PageState::Private | PageState::Shared(_) | PageState::Broken(_),
                Touch::Protected,
            ) => memory.unprotect(gfn),
            // Served already, on behalf of another vCPU.
            (PageState::Private | PageState::Shared(_) | PageState::Broken(_), Touch::Missing) => {
                memory.wake(gfn)
            }
        }
    }

    /// Whether there is no credit for a page; its fault waits then.
    fn starves(&self, memory: &mut Memory<'_>, gfn: Gfn) -> bool {
        let starves = memory.credit().headroom() == Pages::ZERO;
        if starves {
            memory.starve(gfn);
            self.tell_worker();
        }
        starves
    }

    /// Serves a first touch: maps the zero page over as much of the 2 MiB chunk as is unbacked and
    /// the credit covers. A ballooned page comes back alone.
    fn fill(&self, memory: &mut Memory<'_>, gfn: Gfn) -> Result<(), Error> {
        if self.starves(memory, gfn) {
            return Ok(());
        }
        if memory.is_ballooned(gfn) {
            memory.set_ballooned(gfn, false);
            return memory.fill(GfnRange::one(gfn));
        }
        let stride = u32::try_from(memory.credit().stride().0).unwrap_or(u32::MAX);
        let run = memory.unbacked_run(gfn, self.ram().layout().chunk_of(gfn));
        memory.fill(shrink_around(run, gfn, stride))
    }

    /// Serves the faults that wait for credit, as far as it reaches.
    ///
    /// # Errors
    /// The VM cannot go on: a page is lost or the kernel refuses.
    pub fn retry_starving(&self) -> Result<(), Error> {
        // A page may have changed since. A touch that still finds no credit waits again.
        for _ in 0..self.starving_faults() {
            let next = self.memory(Cause::Fault).next_starving();
            let Some(gfn) = next else { break };
            self.serve_page(gfn, Touch::Missing)?;
        }
        self.call_reader()
    }
}

/// The part of `run` around `gfn` that is at most `pages_max` long, forward first.
fn shrink_around(run: GfnRange, gfn: Gfn, pages_max: u32) -> GfnRange {
    let count = run.count.min(pages_max);
    let start = gfn.0.min(run.end().0 - count);
    GfnRange::new(Gfn(start), count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_credit_fills_around_the_fault() {
        let run = GfnRange::new(Gfn(100), 50);
        assert_eq!(shrink_around(run, Gfn(120), 512), run);
        assert_eq!(
            shrink_around(run, Gfn(120), 10),
            GfnRange::new(Gfn(120), 10)
        );
        assert_eq!(
            shrink_around(run, Gfn(148), 10),
            GfnRange::new(Gfn(140), 10)
        );
        assert_eq!(shrink_around(run, Gfn(149), 1), GfnRange::new(Gfn(149), 1));
    }
}
