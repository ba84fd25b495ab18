//! Large pages: chunks of 2 MiB that the kernel maps whole.
//!
//! A large page is 512 private pages of the books, and nothing that is done to a page needs to know
//! of it but for this:
//!
//! - a chunk that nobody has touched becomes one by moving a zeroed page there ([`super::stock`]), or, where
//!   pages are not moved, by letting the kernel fill it ([`GuestSpace::populate_large`]);
//! - a part of it is never dropped or taken out: it is *split* first, because the kernel would keep
//!   what was dropped ([`Memory::split`]);
//! - sampling takes it out whole, and a touch of any of its pages brings it back whole. Where the kernel
//!   keeps page tables (before Linux 6.14) it comes back as small pages, and the kernel makes it large again
//!   when the sample ends;
//! - when a part of any must go, it is a part of the coldest ([`heat`]);
//! - while memory is plenty it is not split for a few pages that could be shared ([`worth`]).
//!
//! [`GuestSpace::populate_large`]: crate::sys::space::GuestSpace::populate_large
//!
//! A chunk is in the set only after the page tables said that it is large. The kernel may split it
//! since, so that the set says which chunks *may* be; that costs a figure its exactness, and no more.

mod heat;
mod worth;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use self::heat::Heat;
pub use self::worth::WORTH_PAGES;
use self::worth::Worth;
use super::memory::{Fill, Memory};
use super::pager::Error;
use crate::page::state::{PageEvent, PageState};
use crate::sys::large::{SAMPLES_MAX, SampleSlot};
use crate::sys::pagemap::Backing;
use crate::sys::space::{PageBuf, Renewed};
use crate::units::{CHUNK_PAGES, Gfn, GfnRange, Pages};

/// Kernel mappings that a chunk takes while it becomes a large page.
const MAPPINGS_MEANWHILE: i64 = 2;

/// Chunks that may lie in mappings of their own. Chosen: an eighth of the kernel's default limit, so that
/// sharing has the rest.
const APART_MAX: usize = 4096;

/// Why a large page comes back from its sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whether {
    /// The guest touched it.
    Touched,
    /// The sample is over.
    Untouched,
}

/// A large page that is sampled, by its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sampled {
    chunk: Gfn,
    /// It is back already.
    touched: bool,
    /// It came back as small pages.
    torn: bool,
}

/// The books of the large pages.
#[derive(Debug)]
pub(super) struct Large {
    /// By their first frames: the chunks that are large pages.
    chunks: BTreeMap<Gfn, Worth>,
    heat: Heat,
    /// Chunks that lie in mappings of their own since two vCPUs touched them at once.
    apart: BTreeSet<Gfn>,
    sampled: Vec<Option<Sampled>>,
}

impl Default for Large {
    fn default() -> Large {
        Large {
            chunks: BTreeMap::new(),
            heat: Heat::default(),
            apart: BTreeSet::new(),
            sampled: vec![None; usize::from(SAMPLES_MAX)],
        }
    }
}

impl Large {
    fn get(&self, slot: SampleSlot) -> Option<Sampled> {
        self.sampled[usize::from(slot.0)]
    }

    fn free_slot(&self) -> Option<SampleSlot> {
        let free = |slot: &SampleSlot| self.get(*slot).is_none();
        (0..SAMPLES_MAX).map(SampleSlot).find(free)
    }

    fn add(&mut self, chunk: GfnRange) {
        self.chunks.insert(chunk.start, Worth::default());
        self.heat.add(chunk.start);
    }

    fn remove(&mut self, chunk: GfnRange) {
        self.chunks.remove(&chunk.start);
        self.heat.remove(chunk.start);
    }

    /// Kernel mappings that chunks take which lie apart.
    pub fn mappings(&self) -> u64 {
        2 * self.apart.len() as u64
    }

    /// Pages that are out of the guest.
    pub fn sampled_pages(&self) -> u64 {
        let out = self.sampled.iter().flatten();
        out.filter(|sampled| !sampled.touched).count() as u64 * u64::from(CHUNK_PAGES)
    }
}

fn chunk_from(start: Gfn) -> GfnRange {
    GfnRange::new(start, CHUNK_PAGES)
}

impl Memory<'_> {
    /// Memory in large pages.
    pub fn large(&self) -> Pages {
        Pages(self.books.large.chunks.len() as u64 * u64::from(CHUNK_PAGES))
    }

    /// Whether the page lies in a large one.
    pub fn is_large(&self, gfn: Gfn) -> bool {
        self.books.large.chunks.contains_key(&gfn.chunk_start())
    }

    /// Unbacked to private: a large page for a whole chunk, of the stock where there is one, as far as
    /// it has one, the credit covers it and the kernel lets go of it now. What is left unbacked is
    /// filled as if there were no large pages.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn fill_large(&mut self, chunk: GfnRange) -> Result<(), Error> {
        let whole = Pages(u64::from(CHUNK_PAGES));
        let is_torn = self.books.large.apart.len() >= APART_MAX;
        if !self.space.gives_large() || is_torn || !self.may_map(MAPPINGS_MEANWHILE) {
            return Ok(());
        }
        let given = if self.space.has_stock() {
            let Some(slot) = self.books.stock.take() else {
                return Ok(());
            };
            // All of it was charged when it was zeroed.
            self.books.credit.unmapped(whole);
            self.space.give_large(slot, chunk)?
        } else {
            let barren = self.books.stock.is_barren(Instant::now());
            if barren || self.books.credit.headroom() < whole {
                return Ok(());
            }
            self.space.populate_large(chunk)?
        };
        if given.large {
            self.filled(chunk, Fill::Pages);
            self.books.credit.mapped(whole);
            self.books.large.add(chunk);
            self.books.counters.large_fills += 1;
        } else {
            self.filled_with(chunk, &given.backing);
        }
        let books = &mut *self.books;
        match given.renewed {
            Some(Renewed::Apart) => books.large.apart.insert(chunk.start),
            Some(Renewed::Joined) => books.large.apart.remove(&chunk.start),
            None => false,
        };
        books.stock.stayed_large(given.large, Instant::now());
        Ok(())
    }

    /// Unbacked to private, for the pages of a chunk that are there now.
    fn filled_with(&mut self, chunk: GfnRange, backing: &[Backing]) {
        for (gfn, backing) in chunk.iter().zip(backing) {
            let with = match backing {
                Backing::Nothing => continue,
                Backing::Common => Fill::ZeroPage,
                _ => Fill::Pages,
            };
            self.filled(GfnRange::one(gfn), with);
            self.books.credit.mapped(Pages(1));
        }
    }

    /// Makes small pages of the large ones of which the range is a part: it is to be taken out or
    /// dropped.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn split(&mut self, range: GfnRange) -> Result<(), Error> {
        if self.books.large.chunks.is_empty() || range.count == 0 {
            return Ok(());
        }
        let last = Gfn(range.end().0 - 1);
        let within = range.start.chunk_start()..=last.chunk_start();
        let met = self.books.large.chunks.range(within);
        let met: Vec<Gfn> = met.map(|(start, _)| *start).collect();
        for start in met {
            let chunk = chunk_from(start);
            self.books.large.remove(chunk);
            let whole = range.start <= start && chunk.end() <= range.end();
            // Where the kernel does not split now, no byte is lost: a move splits by itself, and what
            // is dropped is free as soon as the rest of the page is.
            if whole {
                continue;
            }
            match self.space.split(chunk)? {
                true => self.note_zeros(chunk)?,
                false => self.books.counters.split_refusals += 1,
            }
        }
        Ok(())
    }

    /// The kernel maps its zero page instead of what is zero in a large page that it splits (Linux 6.12
    /// and later): those pages take no memory any more.
    fn note_zeros(&mut self, chunk: GfnRange) -> Result<(), Error> {
        for (gfn, backing) in chunk.iter().zip(self.space.backing(chunk)?) {
            if self.state(gfn) == PageState::Private && backing == Backing::Common {
                self.books.pmap.set_zero(gfn, true);
            }
        }
        Ok(())
    }

    /// Private to staged: takes a large page out of the guest, whole. `None` when there is no slot,
    /// or the kernel does not let go of it now.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn sample_large(&mut self, gfn: Gfn) -> Result<Option<SampleSlot>, Error> {
        let chunk = chunk_from(gfn.chunk_start());
        let Some(slot) = self.books.large.free_slot() else {
            return Ok(None);
        };
        if !self.space.take_large(chunk, slot)? {
            if self.space.is_large(chunk)? == Some(false) {
                self.books.large.remove(chunk);
            }
            return Ok(None);
        }
        for (place, gfn) in (0..).zip(chunk.iter()) {
            self.apply(gfn, PageEvent::Take(slot.page(place)));
        }
        self.books.large.sampled[usize::from(slot.0)] = Some(Sampled {
            chunk: chunk.start,
            touched: false,
            torn: false,
        });
        Ok(Some(slot))
    }

    /// Staged to private, for all pages of a large one, and wakes.
    ///
    /// # Errors
    /// When the kernel refuses.
    ///
    /// # Panics
    /// When no page is in the slot.
    pub fn return_large(&mut self, slot: SampleSlot, whether: Whether) -> Result<(), Error> {
        let sampled = self.books.large.get(slot);
        let sampled = sampled.expect("a page is staged in a slot that is held");
        let chunk = chunk_from(sampled.chunk);
        self.space.return_large(chunk, slot)?;
        for gfn in chunk.iter() {
            self.apply(gfn, PageEvent::GiveBack);
        }
        let torn = self.space.is_large(chunk)? != Some(true);
        if torn {
            self.books.large.remove(chunk);
        } else {
            let heat = &mut self.books.large.heat;
            heat.saw(chunk.start, whether == Whether::Touched);
        }
        self.books.large.sampled[usize::from(slot.0)] = match whether {
            Whether::Touched => Some(Sampled {
                touched: true,
                torn,
                ..sampled
            }),
            Whether::Untouched => None,
        };
        Ok(())
    }

    /// Makes a large page again of one that came back from its sample as small ones, as it does where
    /// the kernel keeps page tables: unless something was done to a part of it since.
    fn mend(&mut self, chunk: GfnRange) -> Result<(), Error> {
        let is_whole = chunk
            .iter()
            .all(|gfn| self.state(gfn) == PageState::Private && !self.is_ballooned(gfn));
        let may = is_whole && self.is_plenty() && self.may_map(MAPPINGS_MEANWHILE);
        if may && self.space.collapse(chunk)? {
            self.books.large.add(chunk);
            self.books.large.heat.saw(chunk.start, true);
            return Ok(());
        }
        self.note_zeros(chunk)
    }

    /// Whether large pages can be sampled: where pages are moved.
    pub fn samples_large(&self) -> bool {
        self.space.has_stock()
    }

    /// Whether a sampled large page was touched.
    pub fn was_touched(&self, slot: SampleSlot) -> bool {
        let sampled = self.books.large.get(slot);
        sampled.is_some_and(|sampled| sampled.touched)
    }

    /// The slot in which this page's large one is sampled.
    pub fn sample_of(&self, gfn: Gfn) -> Option<SampleSlot> {
        match self.state(gfn) {
            PageState::Staged(slot) => SampleSlot::of(slot),
            _ => None,
        }
    }

    /// Copies a page of a sampled large one out. False when it is in none.
    pub fn read_sampled(&self, gfn: Gfn, page: &mut PageBuf) -> bool {
        let slot = self.sample_of(gfn);
        if let Some(slot) = slot {
            let place = gfn.0 - gfn.chunk_start().0;
            self.space.read_sampled(slot, place, page);
        }
        slot.is_some()
    }

    /// Gives the sampled large page back that this page lies in, if it does: something is to be done
    /// to the page. It counts as untouched.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn unsample(&mut self, gfn: Gfn) -> Result<(), Error> {
        match self.sample_of(gfn) {
            Some(slot) => self.return_large(slot, Whether::Untouched),
            None => Ok(()),
        }
    }

    /// Ends the sample of a large page: what is still out comes back.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn end_large(&mut self, slot: SampleSlot) -> Result<(), Error> {
        match self.books.large.get(slot) {
            Some(sampled) if !sampled.touched => self.return_large(slot, Whether::Untouched),
            sampled => {
                self.books.large.sampled[usize::from(slot.0)] = None;
                match sampled.filter(|sampled| sampled.torn) {
                    Some(torn) => self.mend(chunk_from(torn.chunk)),
                    None => Ok(()),
                }
            }
        }
    }
}
