//! Reading swapped pages back: tickets, and the fault threads that have one.
//!
//! A ticket is made under the lock, and its page is busy until it was read. So any number of them can
//! be under way, in any order; there are as many as threads that wait for a page, at most.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use super::observe::Cause;
use super::pager::{Error, Pager};
use crate::sys::space::PageBuf;
use crate::units::{Gfn, SwapSlot};

/// A busy page to be read.
#[derive(Debug)]
pub(super) struct SwapRead {
    pub gfn: Gfn,
    pub slot: SwapSlot,
    /// Of what was written there.
    pub checksum: u64,
}

/// The tickets, and how many threads may have one at a time.
#[derive(Debug)]
pub(super) struct SwapReads {
    readers_max: usize,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<SwapRead>,
    readers: usize,
}

impl SwapReads {
    /// None yet.
    pub fn new(readers_max: usize) -> SwapReads {
        SwapReads {
            readers_max: readers_max.max(1),
            queue: Mutex::default(),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("nothing panics under this lock")
    }

    /// Adds a ticket. Whoever does calls a thread that reads.
    pub fn push(&self, read: SwapRead) {
        self.queue().waiting.push_back(read);
    }

    /// The next ticket, unless as many threads as may have one already. Whoever has it calls
    /// [`SwapReads::done`].
    fn next(&self) -> Option<SwapRead> {
        let mut queue = self.queue();
        if queue.readers == self.readers_max {
            return None;
        }
        let read = queue.waiting.pop_front()?;
        queue.readers += 1;
        Some(read)
    }

    fn done(&self) {
        self.queue().readers -= 1;
    }

    /// Whether another thread could have a ticket now.
    fn wants_reader(&self) -> bool {
        let queue = self.queue();
        !queue.waiting.is_empty() && queue.readers < self.readers_max
    }
}

impl Pager {
    /// Reads pages as long as there are tickets. Each is read by one thread, and no thread that ends
    /// leaves one behind that nobody knows of: who finds all readers busy is followed by them.
    ///
    /// # Errors
    /// The VM cannot go on: a page is lost or the kernel refuses.
    pub(super) fn read_swapped(&self) -> Result<(), Error> {
        while let Some(read) = self.reads.next() {
            let called = self.call_reader();
            let done = self.swap_in(&read);
            self.reads.done();
            called.and(done)?;
        }
        Ok(())
    }

    /// Wakes a fault thread if there is a ticket for one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn call_reader(&self) -> Result<(), Error> {
        match self.reads.wants_reader() {
            true => self.space().uffd().call_one().map_err(Error::Events),
            false => Ok(()),
        }
    }

    fn swap_in(&self, read: &SwapRead) -> Result<(), Error> {
        let &SwapRead {
            gfn,
            slot,
            checksum,
        } = read;
        let mut page = PageBuf::ZERO;
        self.swap
            .read(slot, &mut page)
            .map_err(|source| Error::SwapRead { gfn, slot, source })?;
        if self.checksum(&page) != checksum {
            return Err(Error::SwapChecksum { gfn, slot });
        }
        self.memory_first(Cause::Fault)
            .end_swap_in(gfn, slot, &page)
    }
}
