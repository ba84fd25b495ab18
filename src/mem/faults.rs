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
use crate::units::{Gfn, Pages};

/// Fault threads of a VM at most. Chosen: one for each vCPU that may wait for the disk, of the few
/// that a disk serves at once, and one that never reads.
const THREADS_MAX: usize = 4;

/// Threads that serve the faults of a VM with so many vCPUs: at least two.
pub fn threads(cpus: u8) -> usize {
    (usize::from(cpus) + 1).clamp(2, THREADS_MAX)
}

/// What a thread met at a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Touch {
    /// A read where nothing is mapped.
    Read,
    /// A write where nothing is mapped, or what may be one.
    Write,
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
        self.note_touch();
        self.read_swapped()?;
        match self.wants_stock.swap(false, Ordering::Relaxed) {
            true => self.restock(),
            false => Ok(()),
        }
    }

    fn fault(&self, event: Event) -> Result<(), Error> {
        let touch = match event {
            Event::Protected { .. } => Touch::Protected,
            Event::Missing { write: false, .. } => Touch::Read,
            Event::Missing { write: true, .. } | Event::Remapped => Touch::Write,
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
            (PageState::Unbacked, touch) => self.first_touch(&mut memory, gfn, touch),
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
            (
                PageState::Private | PageState::Shared(_) | PageState::Broken(_),
                Touch::Read | Touch::Write,
            ) => memory.wake(gfn),
        }
    }

    /// Whether there is no credit for a page; its fault waits then.
    pub(super) fn starves(&self, memory: &mut Memory<'_>, gfn: Gfn) -> bool {
        let starves = memory.credit().headroom() == Pages::ZERO;
        if starves {
            memory.starve(gfn);
            self.tell_worker();
        }
        starves
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
            self.serve_page(gfn, Touch::Write)?;
        }
        self.call_reader()
    }
}
