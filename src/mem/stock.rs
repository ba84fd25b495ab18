//! The stock of zeroed large pages: what is in it, and who fills it.
//!
//! A guest that fills its memory in order touches a new chunk every few hundred microseconds, and
//! zeroing one takes as long. So a fault thread that has served its faults zeroes the next one while
//! the guest writes the last. The stock is memory that the VM uses: it is charged when it is zeroed,
//! and it is empty until the guest wants it ([`Stock::want`]) and again when the guest has not for
//! [`KEPT`].

use std::time::{Duration, Instant};

use super::memory::Memory;
use super::observe::Cause;
use super::pager::{Error, Pager};
use crate::sys::large::{STOCK_MAX, StockSlot};
use crate::units::{CHUNK_PAGES, Pages};

/// What a slot takes.
const LARGE: Pages = Pages(CHUNK_PAGES as u64);

/// How long a stock is kept that nobody takes from.
const KEPT: Duration = Duration::from_secs(1);

/// The kernel made small pages of so many in a row, as it does where it is short of large ones.
const SPLIT_MAX: u8 = 4;
/// How long none is asked for then. Chosen: each costs the guest a third of a millisecond.
const SPLIT_PAUSE: Duration = Duration::from_secs(10);

/// What is in a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Empty,
    /// A thread zeroes a page for it.
    Filling,
    Full,
}

/// The books of the stock.
#[derive(Debug)]
pub(super) struct Stock {
    slots: [Slot; STOCK_MAX as usize],
    /// When a large page was wanted last; `None`: nobody wants one.
    wanted: Option<Instant>,
    /// The kernel had no large page, or made small ones of it: none is asked for before.
    barren_until: Option<Instant>,
    /// Pages in a row that did not stay large.
    split: u8,
}

impl Stock {
    /// Empty, and wanted by nobody.
    pub fn new() -> Stock {
        Stock {
            slots: [Slot::Empty; STOCK_MAX as usize],
            wanted: None,
            barren_until: None,
            split: 0,
        }
    }

    /// A large page is wanted now, and more of them soon.
    pub fn want(&mut self, now: Instant) {
        self.wanted = Some(now);
    }

    /// Takes a full slot; its page is the caller's.
    pub fn take(&mut self) -> Option<StockSlot> {
        let index = self.find(Slot::Full)?;
        self.slots[usize::from(index.0)] = Slot::Empty;
        Some(index)
    }

    /// Whether the page that was taken stayed large where it was put. It does not by chance where two
    /// vCPUs touch one chunk.
    pub fn stayed_large(&mut self, stayed: bool, now: Instant) {
        self.split = if stayed { 0 } else { self.split + 1 };
        if self.split == SPLIT_MAX {
            self.split = 0;
            self.barren_until = Some(now + SPLIT_PAUSE);
        }
    }

    /// Whether the kernel had no large page just now, or made small ones of it.
    pub fn is_barren(&self, now: Instant) -> bool {
        self.barren_until.is_some_and(|until| now < until)
    }

    /// A slot to be filled, if there is one and somebody wants it.
    fn begin(&mut self, now: Instant) -> Option<StockSlot> {
        self.wanted.filter(|_| !self.is_barren(now))?;
        let slot = self.find(Slot::Empty)?;
        self.slots[usize::from(slot.0)] = Slot::Filling;
        Some(slot)
    }

    /// Ends [`Stock::begin`].
    fn end(&mut self, slot: StockSlot, filled: bool, now: Instant) {
        self.slots[usize::from(slot.0)] = if filled { Slot::Full } else { Slot::Empty };
        self.barren_until = (!filled).then(|| now + KEPT);
    }

    fn find(&self, what: Slot) -> Option<StockSlot> {
        (0..STOCK_MAX)
            .map(StockSlot)
            .find(|slot| self.slots[usize::from(slot.0)] == what)
    }

    /// Pages in the stock, those that are being zeroed included.
    pub fn pages(&self) -> Pages {
        let held = self.slots.iter().filter(|slot| **slot != Slot::Empty);
        Pages(held.count() as u64 * LARGE.0)
    }

    /// When the stock is to be dropped, unless somebody takes from it; `None` while it is empty.
    fn expires(&self) -> Option<Instant> {
        self.find(Slot::Full)?;
        Some(
            self.wanted
                .map_or_else(Instant::now, |wanted| wanted + KEPT),
        )
    }
}

impl Pager {
    /// Fills the stock, for a thread that has nothing better to do: zeroing a page takes some
    /// hundred microseconds.
    ///
    /// # Errors
    /// The VM cannot go on: the kernel refuses.
    pub(super) fn restock(&self) -> Result<(), Error> {
        loop {
            let mut memory = self.memory_first(Cause::Fault);
            let Some(slot) = memory.begin_restock() else {
                return Ok(());
            };
            drop(memory);
            let filled = self.space().zero_large(slot)?;
            let mut memory = self.memory_first(Cause::Fault);
            memory.end_restock(slot, filled);
        }
    }

    /// What the stock takes, pages that are being zeroed included.
    pub fn stock(&self) -> Pages {
        self.memory(Cause::Account).stock().pages()
    }

    /// When [`Pager::drop_stock`] is due; `None` while there is nothing to drop.
    pub fn stock_expires(&self) -> Option<Instant> {
        self.memory(Cause::Account).stock().expires()
    }

    /// Frees what is in the stock; nobody wants it any more.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn drop_stock(&self) -> Result<(), Error> {
        self.memory(Cause::Account).drop_stock()
    }
}

impl Memory<'_> {
    /// The books of the stock.
    pub fn stock(&mut self) -> &mut Stock {
        &mut self.books.stock
    }

    /// Begins to fill a slot, if a page is wanted, memory is plenty and the credit covers it.
    fn begin_restock(&mut self) -> Option<StockSlot> {
        let may = self.is_plenty() && self.space.has_stock();
        if !may || self.credit().headroom() < LARGE {
            return None;
        }
        let slot = self.stock().begin(Instant::now())?;
        self.credit().mapped(LARGE);
        Some(slot)
    }

    fn end_restock(&mut self, slot: StockSlot, filled: bool) {
        self.stock().end(slot, filled, Instant::now());
        if !filled {
            self.credit().unmapped(LARGE);
        }
    }

    /// Frees what is in the stock.
    fn drop_stock(&mut self) -> Result<(), Error> {
        self.stock().wanted = None;
        while let Some(slot) = self.stock().take() {
            self.space.drop_large(slot)?;
            self.credit().unmapped(LARGE);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stock_fills_when_it_is_wanted_and_expires() {
        let mut stock = Stock::new();
        let now = Instant::now();
        assert_eq!(stock.begin(now), None, "nobody wants it");
        stock.want(now);
        let slots: Vec<StockSlot> = std::iter::from_fn(|| stock.begin(now)).collect();
        assert_eq!(slots.len(), usize::from(STOCK_MAX));
        assert_eq!(stock.take(), None, "they are being filled");
        let held = u64::from(STOCK_MAX) * u64::from(CHUNK_PAGES);
        assert_eq!((stock.pages(), stock.expires()), (Pages(held), None));
        stock.end(slots[0], true, now);
        assert_eq!(stock.expires(), Some(now + KEPT));
        assert_eq!(stock.take(), Some(slots[0]));
        assert_eq!((stock.take(), stock.expires()), (None, None));
    }

    #[test]
    fn where_they_do_not_stay_large_they_are_seldom_asked_for() {
        let mut stock = Stock::new();
        let now = Instant::now();
        stock.want(now);
        for stayed in [false, false, false, true, false, false, false] {
            stock.stayed_large(stayed, now);
        }
        let slot = stock.begin(now).expect("never four in a row");
        stock.end(slot, true, now);
        stock.stayed_large(false, now);
        assert_eq!(stock.begin(now + KEPT), None);
        assert!(stock.begin(now + SPLIT_PAUSE).is_some());
    }

    #[test]
    fn where_there_are_no_large_pages_none_are_asked_for_at_once() {
        let mut stock = Stock::new();
        let now = Instant::now();
        stock.want(now);
        let slot = stock.begin(now).expect("it is wanted");
        stock.end(slot, false, now);
        assert_eq!(stock.begin(now), None);
        assert!(stock.begin(now + KEPT).is_some());
    }
}
