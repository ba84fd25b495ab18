//! Reading swapped pages back: tickets, and the fault threads that have one.
//!
//! A ticket is made under the lock: the page that was touched, and those around it that are read
//! with it (`read_ahead`). All of them are busy until they were read. So any number of tickets can
//! be under way, in any order; there are as many as threads that wait for a page, at most.
//!
//! **A page that was only read ahead is never lost by it.** Where the read of a run fails, or gives
//! another content than was written, the page that was touched is read once more by itself, and only
//! that read decides; the others stay in the swap file until they are touched. What the guest gives
//! up meanwhile is dropped when the read is done ([`UnderWay`]).

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard};

use super::memory::Memory;
use super::observe::Cause;
use super::pager::{Error, Pager};
use super::read_ahead::WINDOW_MAX;
use super::returns::Prefetch;
use crate::sys::space::PageBuf;
use crate::units::{Gfn, GfnRange, Pages, SwapSlot};

/// Compressed pages that come back at a time. Chosen: some 30 us under the lock.
pub(super) const DECOMPRESSED_MAX: u32 = 8;

/// Busy pages to be read at once, out of slots that lie as near to each other as the pages do.
#[derive(Debug)]
pub(super) struct SwapRead {
    /// In the order of their slots, and of their frame numbers.
    pub pages: Vec<ReadPage>,
    /// Which of them was touched, if one was; the others are read ahead.
    pub touched: Option<usize>,
}

/// A page to be read.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReadPage {
    pub gfn: Gfn,
    pub slot: SwapSlot,
    /// Of what was written to its slot.
    pub checksum: u64,
}

impl SwapRead {
    fn last(&self) -> &ReadPage {
        self.pages.last().expect("a read is of a page at least")
    }

    /// The pages, and what lies between them.
    pub fn span(&self) -> GfnRange {
        let first = self.pages[0].gfn;
        GfnRange::new(first, self.last().gfn.0 + 1 - first.0)
    }

    /// Slots from the first page's to the last one's; what lies between pages is read and left.
    fn slots(&self) -> usize {
        self.place(self.last()) + 1
    }

    /// Where the content of a page is, by slots from the first.
    pub fn place(&self, page: &ReadPage) -> usize {
        (page.slot.0 - self.pages[0].slot.0) as usize
    }
}

/// Pages that are being read. Those of them that nobody has touched may die meanwhile.
#[derive(Debug, Default)]
pub(super) struct UnderWay {
    pages: Pages,
    ahead: HashMap<Gfn, Content>,
}

/// The content of a page that is being read ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    Wanted,
    Dead,
}

impl UnderWay {
    /// Pages that are being read: each takes memory when it was.
    pub fn pages(&self) -> Pages {
        self.pages
    }

    /// A page begins to be read, without having been touched.
    pub fn begin_ahead(&mut self, gfn: Gfn) {
        self.ahead.insert(gfn, Content::Wanted);
        self.pages += Pages(1);
    }

    /// A page begins to be read since it was touched.
    pub fn begin_touched(&mut self) {
        self.pages += Pages(1);
    }

    /// The content of a page is dead. False where the page is not being read ahead.
    pub fn dies(&mut self, gfn: Gfn) -> bool {
        let ahead = self.ahead.get_mut(&gfn);
        ahead.map(|content| *content = Content::Dead).is_some()
    }

    /// A page was read; whether its content is still wanted.
    pub fn end(&mut self, gfn: Gfn) -> bool {
        self.pages -= Pages(1);
        self.ahead.remove(&gfn) != Some(Content::Dead)
    }
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
    /// Of the readers before; none is larger than a window.
    buffers: Vec<Vec<PageBuf>>,
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

    /// The next ticket and a buffer for it, unless as many threads as may have one already. Whoever
    /// has them calls [`SwapReads::done`].
    fn next(&self) -> Option<(SwapRead, Vec<PageBuf>)> {
        let mut queue = self.queue();
        if queue.readers == self.readers_max {
            return None;
        }
        let read = queue.waiting.pop_front()?;
        queue.readers += 1;
        Some((read, queue.buffers.pop().unwrap_or_default()))
    }

    fn done(&self, buffer: Vec<PageBuf>) {
        let mut queue = self.queue();
        queue.readers -= 1;
        queue.buffers.push(buffer);
    }

    /// Whether another thread could have a ticket now.
    fn wants_reader(&self) -> bool {
        let queue = self.queue();
        !queue.waiting.is_empty() && queue.readers < self.readers_max
    }
}

impl Pager {
    /// Makes a swapped page busy, which was touched, and those that are read with it; leaves a
    /// ticket for them.
    pub(super) fn begin_swap_in(&self, memory: &mut Memory<'_>, gfn: Gfn, slot: SwapSlot) {
        let chunk = self.ram().layout().chunk_of(gfn);
        self.note_return(memory, chunk);
        let window = memory.window(gfn, chunk, WINDOW_MAX);
        self.reads.push(memory.begin_swap_in(gfn, slot, window));
    }

    /// Gives a compressed page back, which was touched, and some around it.
    ///
    /// # Errors
    /// The VM cannot go on.
    pub(super) fn decompress(&self, memory: &mut Memory<'_>, gfn: Gfn) -> Result<(), Error> {
        let chunk = self.ram().layout().chunk_of(gfn);
        self.note_return(memory, chunk);
        let window = memory.window(gfn, chunk, DECOMPRESSED_MAX);
        memory.decompress(Some(gfn), window)
    }

    fn note_return(&self, memory: &mut Memory<'_>, chunk: GfnRange) {
        if memory.note_return(chunk) {
            self.tell_worker();
        }
    }

    /// Whether the guest comes back to memory that it may have before it touches it.
    pub fn wants_prefetch(&self) -> bool {
        self.memory(Cause::Swap).wants_prefetch()
    }

    /// Whether the guest may have what it comes back to before it touches it.
    pub fn allow_prefetch(&self, allowed: Prefetch) {
        self.memory(Cause::Swap).allow_prefetch(allowed);
    }

    /// Brings some of what the guest comes back to, for the worker; returns how many pages were
    /// read. `buffer` is for their content.
    ///
    /// # Errors
    /// The VM cannot go on.
    pub fn prefetch(&self, buffer: &mut Vec<PageBuf>) -> Result<u32, Error> {
        let read = self.memory(Cause::Swap).begin_prefetch()?;
        let Some(read) = read else { return Ok(0) };
        self.swap_in(&read, buffer)?;
        Ok(u32::try_from(read.pages.len()).expect("a run is short"))
    }

    /// Reads pages as long as there are tickets. Each is read by one thread, and no thread that ends
    /// leaves one behind that nobody knows of: who finds all readers busy is followed by them.
    ///
    /// # Errors
    /// The VM cannot go on: a page is lost or the kernel refuses.
    pub(super) fn read_swapped(&self) -> Result<(), Error> {
        while let Some((read, mut buffer)) = self.reads.next() {
            let called = self.call_reader();
            let done = self.swap_in(&read, &mut buffer);
            self.reads.done(buffer);
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

    fn swap_in(&self, read: &SwapRead, buffer: &mut Vec<PageBuf>) -> Result<(), Error> {
        let slots = read.slots();
        buffer.resize(buffer.len().max(slots), PageBuf::ZERO);
        let content = &mut buffer[..slots];
        let mut right = vec![false; read.pages.len()];
        let alone = slots == 1 && read.touched.is_some();
        if !alone {
            self.read_run(read, content, &mut right);
        }
        let failed = !alone && right.contains(&false);
        if let Some(touched) = read.touched.filter(|touched| !right[*touched]) {
            let page = &read.pages[touched];
            self.read_touched(page, &mut content[read.place(page)])?;
            right[touched] = true;
        }
        let mut memory = match read.touched {
            Some(_) => self.memory_first(Cause::Fault),
            None => self.memory(Cause::Swap),
        };
        if failed {
            memory.fail_read_ahead();
        }
        memory.end_swap_in(read, content, &right)
    }

    /// Reads all pages of a ticket at once, and says of each whether it is as it was written.
    fn read_run(&self, read: &SwapRead, content: &mut [PageBuf], right: &mut [bool]) {
        if let Err(error) = self.swap.read_run(read.pages[0].slot, content) {
            log::warn!("cannot read ahead from swap: {error}");
            return;
        }
        for (page, right) in read.pages.iter().zip(right) {
            *right = self.checksum(&content[read.place(page)]) == page.checksum;
        }
    }

    /// Reads the page that was touched by itself.
    fn read_touched(&self, page: &ReadPage, content: &mut PageBuf) -> Result<(), Error> {
        let &ReadPage {
            gfn,
            slot,
            checksum,
        } = page;
        self.swap
            .read(slot, content)
            .map_err(|source| Error::SwapRead { gfn, slot, source })?;
        match self.checksum(content) == checksum {
            true => Ok(()),
            false => Err(Error::SwapChecksum { gfn, slot }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_touched_can_die() {
        let mut under_way = UnderWay::default();
        under_way.begin_touched();
        under_way.begin_ahead(Gfn(2));
        under_way.begin_ahead(Gfn(3));
        assert_eq!(under_way.pages(), Pages(3));
        assert!(!under_way.dies(Gfn(1)) && under_way.dies(Gfn(2)) && under_way.dies(Gfn(2)));
        assert!(under_way.end(Gfn(1)) && !under_way.end(Gfn(2)) && under_way.end(Gfn(3)));
        assert_eq!(under_way.pages(), Pages::ZERO);
        assert!(!under_way.dies(Gfn(3)), "it was read");
    }
}
