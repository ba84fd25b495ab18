//! A VM's memory under the lock: the one place where a page changes its state.
//!
//! [`Memory`] is the address space ([`GuestSpace`]) and the books about it, held together. Each of
//! its steps does the kernel's half and the books' half of one transition of
//! [`crate::page::state`]; neither can be had without the other, since both are private to this
//! module, to [`super::pool_pages`], which has the steps on pages that lie in pool mappings, and to
//! [`super::stored_pages`], which has those on pages that are compressed or swapped.
//!
//! A hold is short: nobody who has one does disk I/O, waits, or touches guest memory that may fault,
//! and each looks at no more than [`HOLD_PAGES`] pages and reads the page tables once.

mod account;

use std::collections::{HashSet, VecDeque};
use std::sync::MutexGuard;

use super::credit::CreditBook;
use super::frame_refs::FrameRefs;
use super::large::{Large, Whether};
use super::observe::{Cause, Observer, Watch};
use super::pager::Error;
use super::read_ahead::ReadAhead;
use super::returns::Returns;
use super::stage::{Occupant, Stage, Taken};
use super::stirred::{Stir, Stirred};
use super::stock::Stock;
use super::store::CompressedStore;
use super::swap_in::UnderWay;
use crate::page::pmap::{Counts, Pmap};
use crate::page::state::{PageEvent, PageState};
use crate::page::swapmap::SwapMap;
use crate::sys::large::SampleSlot;
use crate::sys::pagemap::Backing;
use crate::sys::space::{GuestSpace, PageBuf};
use crate::sys::staging::StageSlot;
use crate::units::{CHUNK_PAGES, Gfn, GfnRange, Pages};
use crate::words::Counters;

/// Pages that one hold of the lock may look at: a chunk.
pub(super) const HOLD_PAGES: u32 = CHUNK_PAGES;

/// What the lock protects.
#[derive(Debug)]
pub(super) struct Books {
    pub(in crate::mem) pmap: Pmap,
    pub(in crate::mem) swapmap: SwapMap,
    pub(in crate::mem) store: CompressedStore,
    pub(in crate::mem) read_ahead: ReadAhead,
    pub(in crate::mem) returns: Returns,
    pub(in crate::mem) under_way: UnderWay,
    /// Pages of the running sample that were out when it began.
    pub(in crate::mem) watched: HashSet<Gfn>,
    pub(in crate::mem) credit: CreditBook,
    pub(in crate::mem) stock: Stock,
    pub(in crate::mem) large: Large,
    pub(in crate::mem) stage: Stage,
    /// Faults that wait for credit.
    starving: VecDeque<Gfn>,
    pub(in crate::mem) frames: FrameRefs,
    pub(in crate::mem) counters: Counters,
    /// Anonymous memory of this process that does not back the guest.
    own_memory: Pages,
    /// Kernel mappings that the guest's RAM may take.
    mappings_max: u64,
    /// Counts what may have made a page worth looking at for whoever found none.
    changes: u64,
    /// Pages that measurements found and nobody had mapped, since the last exact count.
    unseen: Pages,
    /// What the scan for sharing is to hear of.
    stirred: Stirred,
    #[cfg(test)]
    pub(in crate::mem) hold: Hold,
}

/// What one hold of the lock did, for the test of its bounds.
#[cfg(test)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Hold {
    pub pages: u32,
    pub reads: u32,
    pub pages_most: u32,
    pub reads_most: u32,
}

impl Books {
    pub fn new(end: Gfn, size: Pages, credit: CreditBook, own: Pages, mappings_max: u64) -> Books {
        Books {
            pmap: Pmap::new(end),
            swapmap: SwapMap::of_vm(size),
            store: CompressedStore::new(size),
            read_ahead: ReadAhead::default(),
            returns: Returns::default(),
            under_way: UnderWay::default(),
            watched: HashSet::new(),
            credit,
            stock: Stock::new(),
            large: Large::default(),
            stage: Stage::new(),
            starving: VecDeque::new(),
            frames: FrameRefs::default(),
            counters: Counters::default(),
            own_memory: own,
            mappings_max,
            changes: 0,
            unseen: Pages::ZERO,
            stirred: Stirred::new(end),
            #[cfg(test)]
            hold: Hold::default(),
        }
    }
}

/// A VM's memory, held. See the module documentation.
pub(super) struct Memory<'a> {
    pub(in crate::mem) space: &'a GuestSpace,
    /// On whose account.
    pub(in crate::mem) cause: Cause,
    /// Tells the observer, while the books are held.
    watch: Option<Watch<'a>>,
    pub(in crate::mem) books: MutexGuard<'a, Books>,
}

/// What a page gets at its first touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fill {
    /// The kernel's zero page, which takes no memory: the guest's first write does, and costs a fault
    /// of its own.
    ZeroPage,
    /// A page of its own.
    Pages,
}

impl<'a> Memory<'a> {
    pub fn new(
        space: &'a GuestSpace,
        books: MutexGuard<'a, Books>,
        cause: Cause,
        observer: Option<&'a dyn Observer>,
    ) -> Memory<'a> {
        #[cfg(test)]
        let books = {
            let mut books = books;
            (books.hold.pages, books.hold.reads) = (0, 0);
            books
        };
        Memory {
            space,
            cause,
            watch: observer.map(|observer| Watch::begin(observer, cause)),
            books,
        }
    }
}

/// Looking.
impl Memory<'_> {
    /// The state of a page.
    ///
    /// # Panics
    /// When the frame is outside the table: callers check against the RAM layout.
    pub fn state(&self, gfn: Gfn) -> PageState {
        self.books.pmap.state(gfn)
    }

    /// Whether the balloon holds the page.
    pub fn is_ballooned(&self, gfn: Gfn) -> bool {
        self.books.pmap.is_ballooned(gfn)
    }

    /// How many pages are in each state.
    pub fn counts(&self) -> Counts {
        self.books.pmap.counts()
    }

    /// Changes when a page may have begun to take memory of its own.
    pub fn changes(&self) -> u64 {
        self.books.changes
    }

    /// What stirred since this was asked last.
    pub fn take_stirred(&mut self) -> Vec<Stir> {
        self.books.stirred.take()
    }

    /// The scan is to look at this page's chunk at once.
    pub(in crate::mem) fn stir_ripe(&mut self, gfn: Gfn) {
        self.books.stirred.ripen(gfn);
    }

    /// Whether anything has.
    pub fn is_stirred(&self) -> bool {
        !self.books.stirred.is_empty()
    }

    /// Counters from the VM's start.
    pub fn counters(&mut self) -> &mut Counters {
        &mut self.books.counters
    }

    /// The credit account.
    pub fn credit(&mut self) -> &mut CreditBook {
        &mut self.books.credit
    }

    /// Whether memory is plenty.
    pub fn is_plenty(&self) -> bool {
        self.books.credit.is_plenty()
    }

    /// Whether the page takes memory of its own, as far as the books tell: a private page, one that
    /// was broken off its frame, or one that maps a frame whose owner is gone, for which nobody else
    /// accounts. Only such a page is worth sharing or taking out.
    pub fn is_own(&self, gfn: Gfn) -> bool {
        match self.state(gfn) {
            PageState::Private | PageState::Broken(_) => true,
            PageState::Shared(_) => self.is_orphan(gfn),
            _ => false,
        }
    }

    /// The same as far as the page tables tell: it is there, and is no frame that others account
    /// for.
    pub fn is_own_backing(&self, gfn: Gfn, backing: Backing) -> bool {
        match backing {
            Backing::Anonymous => true,
            Backing::File => self.is_orphan(gfn),
            Backing::Nothing | Backing::Unsettled | Backing::Common => false,
        }
    }

    /// The longest run around `gfn` inside `within` of unbacked pages that no balloon holds.
    pub fn unbacked_run(&self, gfn: Gfn, within: GfnRange) -> GfnRange {
        self.books.pmap.run_around(gfn, within, |pmap, gfn| {
            pmap.state(gfn) == PageState::Unbacked && !pmap.is_ballooned(gfn)
        })
    }

    /// Whether `which` holds for any page of the range; the page tables are not asked.
    pub fn any(&mut self, range: GfnRange, which: impl Fn(&Self, Gfn) -> bool) -> bool {
        self.looked(range.count, 0);
        range.iter().any(|gfn| which(self, gfn))
    }

    /// What backs the pages of a range of at most [`HOLD_PAGES`].
    ///
    /// # Errors
    /// When the page tables cannot be read.
    pub fn backing(&mut self, range: GfnRange) -> Result<Vec<Backing>, Error> {
        self.looked(0, 1);
        Ok(self.space.backing(range)?)
    }

    /// Copies a page out, whose backing says that it is there, while the guest may write it: a torn
    /// copy is possible, so that the result is good for a key but proves nothing.
    pub fn peek(&self, gfn: Gfn, page: &mut PageBuf) {
        self.space.peek(gfn, page);
    }

    #[cfg(test)]
    fn looked(&mut self, pages: u32, reads: u32) {
        let hold = &mut self.books.hold;
        hold.pages += pages;
        hold.reads += reads;
        hold.pages_most = hold.pages_most.max(hold.pages);
        hold.reads_most = hold.reads_most.max(hold.reads);
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "the tests count")]
    fn looked(&mut self, _pages: u32, _reads: u32) {}

    /// Whether the guest's RAM may take so many kernel mappings more.
    pub fn may_map(&self, added: i64) -> bool {
        let most = i64::try_from(self.books.mappings_max).unwrap_or(i64::MAX);
        let taken = self.books.pmap.mappings() + self.books.large.mappings();
        added <= 0 || taken.cast_signed() + added <= most
    }

    /// Whether the page is in the staging area, in this token's slot.
    pub fn is_staged(&self, taken: &Taken) -> bool {
        self.state(taken.gfn()) == PageState::Staged(u32::from(taken.slot().0))
    }

    /// What became of a page that was taken out.
    pub fn occupant(&self, taken: &Taken) -> Occupant {
        let held = self.books.stage.occupant(taken.slot());
        held.expect("a token holds its slot").1
    }

    /// Copies a staged page out. False when it is not staged any more.
    pub fn read_staged(&self, taken: &Taken, page: &mut PageBuf) -> bool {
        let staged = self.is_staged(taken);
        if staged {
            self.space.read_staged(taken.slot(), page);
        }
        staged
    }
}

/// Steps on pages of armed memory.
impl Memory<'_> {
    pub(in crate::mem) fn apply(&mut self, gfn: Gfn, event: PageEvent) {
        self.books.pmap.apply(gfn, event);
        if let Some(watch) = &mut self.watch {
            watch.saw(gfn, event);
        }
        match event {
            PageEvent::Fill => self.books.stirred.fill(gfn),
            PageEvent::Break => self.books.stirred.break_page(gfn),
            _ => {}
        }
        if matches!(
            event,
            PageEvent::Fill | PageEvent::GiveBack | PageEvent::Install | PageEvent::Break
        ) {
            self.books.changes += 1;
        }
    }

    /// Unbacked to private: zeros for a range.
    ///
    /// # Errors
    /// When the kernel refuses.
    ///
    /// # Panics
    /// When a page is there already: the books are wrong.
    pub fn fill(&mut self, range: GfnRange, with: Fill) -> Result<(), Error> {
        let filled = match with {
            Fill::ZeroPage => self.space.zero_fill(range)?,
            Fill::Pages => self.space.populate(range)?,
        };
        self.books.credit.mapped(Pages(u64::from(filled)));
        self.filled(GfnRange::new(range.start, filled), with);
        if filled < range.count {
            let obstacle = Gfn(range.start.0 + filled);
            let backing = self.space.backing(GfnRange::one(obstacle))?[0];
            panic!("the books say that {obstacle} is unbacked, the page tables say {backing:?}");
        }
        Ok(())
    }

    /// A range, all of which the books say is unbacked, was filled.
    pub(in crate::mem) fn filled(&mut self, range: GfnRange, with: Fill) {
        for gfn in range.iter() {
            self.apply(gfn, PageEvent::Fill);
            if with == Fill::Pages {
                // Whatever was said of what it held before: it takes memory.
                self.books.pmap.set_zero(gfn, false);
            }
        }
        self.books.counters.zero_fills += u64::from(range.count > 0);
    }

    /// Private to unbacked: the content of these pages is dead.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn discard(&mut self, range: GfnRange) -> Result<(), Error> {
        self.split(range)?;
        self.space.discard(range)?;
        for gfn in range.iter() {
            self.apply(gfn, PageEvent::Discard);
            self.books.pmap.set_zero(gfn, false);
        }
        Ok(())
    }

    /// Private to unbacked, for a page that reads as zero and that the kernel has not made our own:
    /// false when it is not so any more.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn discard_zero(&mut self, gfn: Gfn) -> Result<bool, Error> {
        let dropped = self.space.discard_zero(gfn)?;
        if dropped {
            self.apply(gfn, PageEvent::Discard);
        }
        Ok(dropped)
    }

    /// Staged, compressed or swapped to unbacked: the content is dead. Wakes whoever waits.
    ///
    /// # Errors
    /// When the kernel refuses.
    ///
    /// # Panics
    /// When the page is in another state.
    pub fn forget(&mut self, gfn: Gfn) -> Result<(), Error> {
        match self.state(gfn) {
            PageState::Staged(slot) => {
                self.books.stage.becomes(stage_slot(slot), Occupant::Gone);
                self.apply(gfn, PageEvent::Discard);
                self.space.wake(GfnRange::one(gfn))?;
            }
            PageState::Compressed(slot) => {
                self.books.store.remove(slot);
                self.apply(gfn, PageEvent::Discard);
            }
            PageState::Swapped(slot) => {
                self.books.swapmap.free(slot);
                self.apply(gfn, PageEvent::Discard);
            }
            other => panic!("{gfn} is {other:?}: nothing of it is stored"),
        }
        self.books.pmap.set_zero(gfn, false);
        Ok(())
    }

    /// Marks whether the balloon holds the page.
    pub fn set_ballooned(&mut self, gfn: Gfn, held: bool) {
        self.books.pmap.set_ballooned(gfn, held);
    }

    /// The page was found written.
    pub fn clear_zero(&mut self, gfn: Gfn) {
        self.books.pmap.set_zero(gfn, false);
    }

    /// Private to staged: takes pages out of the guest that are anonymous in the page tables, as
    /// many as the kernel lets go of and the staging area has room for.
    ///
    /// # Errors
    /// When the kernel refuses, or a slot that ought to be empty is not.
    pub fn take(&mut self, range: GfnRange) -> Result<Vec<Taken>, Error> {
        self.settle_stage()?;
        self.split(range)?;
        let mut taken = Vec::with_capacity(range.count as usize);
        let mut rest = range;
        while rest.count > 0 {
            let slots = self.space.slots_for_taking();
            let Some((first, count)) = self.books.stage.find(slots, rest.count) else {
                break;
            };
            let part = GfnRange::new(rest.start, count);
            let took = self.space.take(part, first)?;
            for (slot, gfn) in (first.0..).zip(GfnRange::new(part.start, took.pages).iter()) {
                self.apply(gfn, PageEvent::Take(u32::from(slot)));
                let slot = StageSlot(slot);
                let (stage, cause) = (&mut self.books.stage, self.cause);
                let token = stage.hand_out(gfn, slot, Occupant::Waiting, cause);
                taken.push(token);
            }
            // A page that the kernel holds on to now is left where it is.
            let skipped = u32::from(took.obstacle.is_some());
            self.books.counters.take_refusals += u64::from(skipped);
            let done = took.pages + skipped;
            rest = GfnRange::new(Gfn(rest.start.0 + done), rest.count - done);
        }
        Ok(taken)
    }

    /// Staged to private, for a page that the guest touches.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn give_back_touched(&mut self, gfn: Gfn, slot: u32) -> Result<(), Error> {
        if let Some(sampled) = SampleSlot::of(slot) {
            return self.return_large(sampled, Whether::Touched);
        }
        let slot = stage_slot(slot);
        self.space.give_back(GfnRange::one(gfn), slot)?;
        self.apply(gfn, PageEvent::GiveBack);
        self.books.stage.becomes(slot, Occupant::Touched);
        Ok(())
    }

    /// Empties and frees the slots of dropped tokens. A page that still waits in one goes back to
    /// the guest. Returns how many did.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn settle_stage(&mut self) -> Result<u32, Error> {
        let returned = self.books.stage.take_returned();
        let waits = |books: &Books, slot: StageSlot| match books.stage.occupant(slot) {
            Some((gfn, Occupant::Waiting)) => Some(gfn),
            _ => None,
        };
        let mut given_back = 0;
        let mut index = 0;
        while index < returned.len() {
            let first = returned[index];
            let page = waits(&self.books, first);
            // The run of neighbouring slots whose pages are neighbours, or are all gone.
            let mut count: u32 = 1;
            while let Some(next) = returned.get(index + count as usize) {
                let follows = u32::from(next.0) == u32::from(first.0) + count
                    && next.0 != crate::sys::staging::AREA_SLOTS
                    && waits(&self.books, *next) == page.map(|page| Gfn(page.0 + count));
                if !follows {
                    break;
                }
                count += 1;
            }
            let slots = &returned[index..index + count as usize];
            if let Some(page) = page {
                let range = GfnRange::new(page, count);
                self.space.give_back(range, first)?;
                for gfn in range.iter() {
                    self.apply(gfn, PageEvent::GiveBack);
                }
                given_back += count;
            }
            self.space.drop_staged(first, count)?;
            for slot in slots {
                self.books.stage.free(*slot);
            }
            index += slots.len();
        }
        Ok(given_back)
    }

    /// Staged to unbacked, for a page whose staged content is all zero. False when the guest has it
    /// back already.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn drop_staged_zero(&mut self, taken: &Taken) -> Result<bool, Error> {
        if !self.is_staged(taken) {
            return Ok(false);
        }
        self.forget(taken.gfn())?;
        self.books.pmap.set_zero(taken.gfn(), true);
        Ok(true)
    }

    /// Lifts a stale write protection and wakes.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn unprotect(&self, gfn: Gfn) -> Result<(), Error> {
        Ok(self.space.unprotect(gfn)?)
    }

    /// Lets whoever waits for the page try again.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn wake(&self, gfn: Gfn) -> Result<(), Error> {
        Ok(self.space.wake(GfnRange::one(gfn))?)
    }
}

pub(super) fn stage_slot(slot: u32) -> StageSlot {
    StageSlot(u16::try_from(slot).expect("stage slots are numbered from a u16"))
}
