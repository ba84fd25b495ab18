//! What is done with large pages of the guest's memory, and with the stock.
#![expect(unsafe_code)]
// UNSAFETY: advises the kernel on mappings that the space owns.

use rustix::mm::Advice;

use super::{Error, GuestSpace, PageBuf, dont_need, guest_error, read_page};
use crate::sys::large::{LargeAreas, SampleSlot, StockSlot};
use crate::sys::transfer::transferred;
use crate::sys::uffd::Stop;
use crate::units::{CHUNK_PAGES, GfnRange, PAGE_SIZE};

impl GuestSpace {
    /// Whether there is a stock of large pages.
    pub fn has_stock(&self) -> bool {
        self.large.is_some()
    }

    fn large(&self) -> &LargeAreas {
        let large = self.large.as_ref();
        large.expect("there are large pages where pages are moved")
    }

    /// Zeroes a large page for the stock, in an empty slot. False when there is none to be had.
    ///
    /// # Errors
    /// When the kernel refuses.
    ///
    /// # Panics
    /// Here and below: where there is no stock.
    pub fn zero_large(&self, slot: StockSlot) -> Result<bool, Error> {
        let large = self.large();
        let is_large = || self.tables.is_large(large.stock_hva(slot));
        if large.zero(slot) && is_large().map_err(Error::PageTables)? {
            return Ok(true);
        }
        large.empty(slot)?;
        Ok(false)
    }

    /// Makes a zeroed page of the stock the memory of `chunk`, a whole one and all of it missing, and
    /// wakes. Returns how many pages were put there before one that is there already, or that the kernel
    /// does not let go of now; the slot is empty afterwards.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn give_large(&self, slot: StockSlot, chunk: GfnRange) -> Result<u32, Error> {
        let (to, from) = (self.hva(chunk), self.large().stock_hva(slot));
        if !self.clear_table(chunk)? {
            self.large().empty(slot)?;
            return Ok(0);
        }
        let (moved, _) = transferred("give a large page to", chunk, |at, len| {
            self.relocate(to + at, from + at, len)
        })?;
        if moved < chunk.count {
            self.large().empty(slot)?;
        }
        Ok(moved)
    }

    /// Frees the empty page table that a fault left of a chunk, beside which no large page can be
    /// mapped. False when the chunk is not empty.
    fn clear_table(&self, chunk: GfnRange) -> Result<bool, Error> {
        let hva = self.hva(chunk);
        if !self.tables.is_empty(hva).map_err(Error::PageTables)? {
            return Ok(false);
        }
        dont_need(hva, chunk.bytes()).map_err(|source| guest_error("empty", chunk, source))?;
        Ok(true)
    }

    /// Frees a large page of the stock.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn drop_large(&self, slot: StockSlot) -> Result<(), Error> {
        self.large().empty(slot)
    }

    /// Takes a large page into an empty slot. False when the kernel does not let go of all of it
    /// now: it is where it was.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn take_large(&self, chunk: GfnRange, slot: SampleSlot) -> Result<bool, Error> {
        let (from, to) = (self.hva(chunk), self.large().sample_hva(slot));
        let (moved, stop) = transferred("take", chunk, |at, len| {
            self.relocate(to + at, from + at, len)
        })?;
        // It would stand in the way for ever.
        if stop == Some(Stop::Exists) {
            let slot = slot.page(moved);
            return Err(Error::SlotInUse { slot });
        }
        if moved == chunk.count {
            return Ok(true);
        }
        if moved > 0 {
            self.give_back_from(GfnRange::new(chunk.start, moved), to, true)?;
        }
        Ok(false)
    }

    /// Copies a page of a large one that was taken out.
    pub fn read_sampled(&self, slot: SampleSlot, place: u32, page: &mut PageBuf) {
        assert!(place < CHUNK_PAGES, "page {place} of a large one");
        let hva = self.large().sample_hva(slot) + place as usize * PAGE_SIZE;
        read_page(hva, page);
    }

    /// Gives a large page that was taken back unchanged, and wakes; the slot is empty afterwards.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn return_large(&self, chunk: GfnRange, slot: SampleSlot) -> Result<(), Error> {
        let hva = self.large().sample_hva(slot);
        // What is there already is said when it is met.
        let _ = self.clear_table(chunk)?;
        self.give_back_from(chunk, hva, true)?;
        dont_need(hva, chunk.bytes())
            .map_err(|source| guest_error("empty the slot of", chunk, source))
    }

    /// Whether a chunk is one large page.
    ///
    /// # Errors
    /// When /proc does not answer.
    pub fn is_large(&self, chunk: GfnRange) -> Result<bool, Error> {
        let large = self.tables.is_large(self.hva(chunk));
        large.map_err(Error::PageTables)
    }

    /// Splits a large page, so that a part of it can be dropped and is free then. Its content stays.
    /// False when the kernel does not do it now.
    ///
    /// # Errors
    /// When /proc does not answer.
    pub fn split(&self, chunk: GfnRange) -> Result<bool, Error> {
        let hva = self.hva(chunk) as *mut _;
        // SAFETY: the range lies in guest RAM that this value owns; the advice says that the page is
        // not in use and changes no content.
        let advised = unsafe { rustix::mm::madvise(hva, PAGE_SIZE, Advice::LinuxCold) };
        advised.map_err(|source| guest_error("split", chunk, source))?;
        Ok(!self.is_large(chunk)?)
    }
}
