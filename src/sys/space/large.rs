//! What is done with large pages of the guest's memory, and with the stock.
#![expect(unsafe_code)]
// UNSAFETY: advises the kernel on mappings that the space owns.

use std::sync::atomic::Ordering;

use rustix::mm::Advice;

use super::{Error, GuestSpace, PageBuf, dont_need, guest_error, read_page};
use crate::sys::large::{LargeAreas, SampleSlot, StockSlot};
use crate::sys::pagemap::Backing;
use crate::sys::transfer::transferred;
use crate::sys::uffd::Stop;
use crate::units::{CHUNK_PAGES, GfnRange, PAGE_SIZE};

/// How often a split is asked for.
const SPLIT_TRIES: usize = 2;

/// What became of a chunk that was to be a large page.
#[derive(Debug)]
pub struct Given {
    /// Whether it is one.
    pub large: bool,
    /// If not, what backs its pages: those that are backed are the guest's from now on.
    pub backing: Vec<Backing>,
    /// Whether it was mapped afresh, and how that mapping lies.
    pub renewed: Option<Renewed>,
}

/// How the mapping of a chunk lies that was mapped afresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewed {
    /// The kernel has joined it to its neighbours.
    Joined,
    /// It stays one of its own, which takes two more.
    Apart,
}

impl GuestSpace {
    /// Whether chunks can become large pages, from a stock or without one.
    pub fn gives_large(&self) -> bool {
        self.allows_large
    }

    /// Whether large pages come from a stock, and can be taken out whole: where pages are moved.
    pub fn has_stock(&self) -> bool {
        self.large.is_some()
    }

    /// From now on it is taken for known whether the kernel keeps the page table of memory that was
    /// dropped, as it does before Linux 6.14. Otherwise that is learned when it shows.
    pub fn assume_tables_stay(&self, stay: bool) {
        self.tables_stay.store(stay, Ordering::Relaxed);
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
        if large.zero(slot) && is_large().map_err(Error::PageTables)? == Some(true) {
            return Ok(true);
        }
        large.empty(slot)?;
        Ok(false)
    }

    /// Makes a zeroed page of the stock the memory of `chunk`, a whole one and all of it missing, and
    /// wakes. The slot is empty afterwards. Takes two kernel mappings, which it gives back.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn give_large(&self, slot: StockSlot, chunk: GfnRange) -> Result<Given, Error> {
        let (to, from) = (self.hva(chunk), self.large().stock_hva(slot));
        let renewed = self.lay_bare(chunk)?;
        // What was touched meanwhile stops the transfer; what was not moved is freed.
        let (moved, _) = transferred("give a large page to", chunk, |at, len| {
            self.relocate(to + at, from + at, len)
        })?;
        let given = self.given(chunk, renewed)?;
        if !given.large {
            self.large().empty(slot)?;
        }
        if moved == chunk.count && !given.large {
            // Two vCPUs that touch one chunk have the same effect; the way without is right too.
            self.assume_tables_stay(true);
        }
        Ok(given)
    }

    /// What a chunk is now, after a step that may have filled it. Wakes.
    ///
    /// Linux before 6.7 does not say whether a page is large. But nobody puts more than a page or two there
    /// in small ones, so that all of it is there only where it is large; for no chunk that pages were
    /// moved to, which later kernels do.
    pub(super) fn given(&self, chunk: GfnRange, renewed: Option<Renewed>) -> Result<Given, Error> {
        self.wake(chunk)?;
        let is_large = self.is_large(chunk)?;
        let backing = match is_large {
            Some(true) => Vec::new(),
            _ => self.backing(chunk)?,
        };
        let all = || backing.iter().all(|page| *page == Backing::Anonymous);
        Ok(Given {
            large: is_large.unwrap_or_else(all),
            backing,
            renewed,
        })
    }

    /// Frees the empty page table that a fault left of a chunk, beside which no large page can be
    /// mapped.
    fn lay_bare(&self, chunk: GfnRange) -> Result<Option<Renewed>, Error> {
        let is_empty = self.tables.is_empty(self.hva(chunk));
        // The transfer will meet what is there.
        if !is_empty.map_err(Error::PageTables)? {
            return Ok(None);
        }
        if self.tables_stay.load(Ordering::Relaxed) {
            return self.renew(chunk);
        }
        self.discard(chunk)?;
        Ok(None)
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
            self.large().empty_sample(slot, &self.uffd)?;
        }
        Ok(false)
    }

    /// Copies a page of a large one that was taken out.
    pub fn read_sampled(&self, slot: SampleSlot, place: u32, page: &mut PageBuf) {
        assert!(place < CHUNK_PAGES, "page {place} of a large one");
        let hva = self.large().sample_hva(slot) + place as usize * PAGE_SIZE;
        read_page(hva, page);
    }

    /// Gives a large page that was taken back unchanged, and wakes; the slot is empty afterwards. Where
    /// the kernel keeps page tables and the guest has touched it, it comes back as small pages: the
    /// chunk cannot be mapped afresh, since another touch would find zeros meanwhile.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn return_large(&self, chunk: GfnRange, slot: SampleSlot) -> Result<(), Error> {
        let hva = self.large().sample_hva(slot);
        if self.tables_stay.load(Ordering::Relaxed) {
            self.give_back_from(chunk, hva, true)?;
            return self.large().empty_sample(slot, &self.uffd);
        }
        self.discard(chunk)?;
        self.give_back_from(chunk, hva, true)?;
        dont_need(hva, chunk.bytes())
            .map_err(|source| guest_error("empty the slot of", chunk, source))
    }

    /// Whether a chunk is one large page; `None` before Linux 6.7, which does not say.
    ///
    /// # Errors
    /// When /proc does not answer.
    pub fn is_large(&self, chunk: GfnRange) -> Result<Option<bool>, Error> {
        let large = self.tables.is_large(self.hva(chunk));
        large.map_err(Error::PageTables)
    }

    /// Splits a large page, so that a part of it can be dropped and is free then. Its content stays.
    /// False when the kernel does not do it now. Linux before 6.7 does not say: it is asked twice, since
    /// what stands in the way is held for a moment, and taken to have done it.
    ///
    /// # Errors
    /// When /proc does not answer.
    pub fn split(&self, chunk: GfnRange) -> Result<bool, Error> {
        for _ in 0..SPLIT_TRIES {
            let hva = self.hva(chunk) as *mut _;
            // SAFETY: the range lies in guest RAM that this value owns; the advice says that the page
            // is not in use and changes no content.
            let advised = unsafe { rustix::mm::madvise(hva, PAGE_SIZE, Advice::LinuxCold) };
            advised.map_err(|source| guest_error("split", chunk, source))?;
            if self.is_large(chunk)? == Some(false) {
                return Ok(true);
            }
        }
        Ok(self.is_large(chunk)?.is_none())
    }
}
