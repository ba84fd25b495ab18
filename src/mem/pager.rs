//! The pager itself, and how it serves page faults.

use std::collections::HashSet;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use vmm_sys_util::eventfd::EventFd;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::credit::CreditBook;
use super::sample::Sample;
use super::store::{CompressedStore, Corrupt};
use super::swapfile::SwapStore;
use crate::page::pmap::Pmap;
use crate::page::state::{PageEvent, PageState};
use crate::page::swapmap::SwapMap;
use crate::sys::event::borrow;
use crate::sys::ram::GuestRam;
use crate::sys::space::{self, GuestSpace, PageBuf, StageSlot, TakePath};
use crate::sys::uffd::Event;
use crate::units::{CHUNK_PAGES, FrameId, Gfn, GfnRange, PAGE_SIZE, Pages, SwapSlot};

/// Why the VM cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A page-table operation failed.
    #[error(transparent)]
    Space(#[from] space::Error),
    /// A swapped page cannot be read.
    #[error("cannot read {gfn} back from swap slot {}", slot.0)]
    SwapRead {
        /// The guest's page.
        gfn: Gfn,
        /// Where it was written.
        slot: SwapSlot,
        /// The answer.
        source: io::Error,
    },
    /// A swapped page came back with other content than was written.
    #[error("wrong checksum of {gfn} in swap slot {}: the page is lost", slot.0)]
    SwapChecksum {
        /// The guest's page.
        gfn: Gfn,
        /// Where it was written.
        slot: SwapSlot,
    },
    /// A compressed page cannot be had back.
    #[error(transparent)]
    Compressed(#[from] Corrupt),
    /// No eventfd is to be had.
    #[error("cannot create an eventfd")]
    Starved(#[source] io::Error),
    /// The descriptor of the page faults failed.
    #[error("cannot read page faults")]
    Events(#[source] rustix::io::Errno),
}

/// Counters from the VM's start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Faults that zero-filled a run.
    pub fills: u64,
    /// Faults that waited for credit.
    pub held: u64,
    /// Pages read or decompressed.
    pub swap_in_pages: u64,
    /// Pages written or compressed.
    pub swap_out_pages: u64,
    /// Swap writes that failed.
    pub swap_errors: u64,
    /// Shared pages that the guest wrote.
    pub cow_breaks: u64,
    /// Pages found equal to a frame and mapped.
    pub shares: u64,
}

/// What the lock protects.
#[derive(Debug)]
pub(super) struct Books {
    pub pmap: Pmap,
    pub swapmap: SwapMap,
    pub store: CompressedStore,
    pub credit: CreditBook,
    /// Faults that wait for credit.
    pub held: Vec<Gfn>,
    /// Frames that this VM maps no longer and has to release.
    pub released: Vec<FrameId>,
    /// Pages that map a frame of an earlier host manager's pool.
    pub orphans: HashSet<Gfn>,
    /// Pages taken out to see whether the guest touches them.
    pub sample: Sample,
    pub counters: Counters,
    /// Anonymous memory of this process that does not back the guest.
    pub own_memory: Pages,
}

/// What the pager needs from outside.
#[derive(Debug)]
pub struct Settings {
    /// How pages are taken out of the guest.
    pub path: TakePath,
    /// Where swapped pages go.
    pub swap: Box<dyn SwapStore>,
    /// Seed of the choice of victims and of the swap checksums.
    pub seed: u64,
    /// The account to start with.
    pub credit: CreditBook,
}

/// See [`crate::mem`].
#[derive(Debug)]
pub struct Pager {
    pub(super) space: GuestSpace,
    books: Mutex<Books>,
    /// Fault threads that want the books: the worker lets them go first.
    waiting: AtomicU32,
    /// Readable when a fault has begun to wait for credit.
    starved: EventFd,
    pub(super) swap: Box<dyn SwapStore>,
    pub(super) seed: u64,
}

impl Pager {
    /// Arms `ram`; from here on every touch of it needs a thread that calls [`Pager::fault`].
    ///
    /// # Errors
    /// When userfaultfd is not to be had.
    pub fn new(ram: Arc<GuestRam>, settings: Settings) -> Result<Pager, Error> {
        let size = ram.layout().size();
        let end = ram.layout().end();
        let space = GuestSpace::new(ram, settings.path)?;
        let own_memory = space.anonymous()?;
        let slots = u32::try_from(size.0).expect("the page map's bound is smaller");
        let books = Books {
            pmap: Pmap::new(end),
            swapmap: SwapMap::new(slots),
            store: CompressedStore::new(size),
            credit: settings.credit,
            held: Vec::new(),
            released: Vec::new(),
            orphans: HashSet::new(),
            sample: Sample::default(),
            counters: Counters::default(),
            own_memory,
        };
        Ok(Pager {
            space,
            books: Mutex::new(books),
            waiting: AtomicU32::new(0),
            starved: EventFd::new(libc::EFD_NONBLOCK).map_err(Error::Starved)?,
            swap: settings.swap,
            seed: settings.seed,
        })
    }

    /// The guest's RAM.
    pub fn ram(&self) -> &Arc<GuestRam> {
        self.space.ram()
    }

    /// How pages are taken out.
    pub fn path(&self) -> TakePath {
        self.space.path()
    }

    /// The address space, for whoever waits for faults.
    pub fn space(&self) -> &GuestSpace {
        &self.space
    }

    /// The books, for the worker: it lets waiting faults go first, since a mutex does not queue.
    pub(super) fn books(&self) -> MutexGuard<'_, Books> {
        for _ in 0..YIELDS_MAX {
            if self.waiting.load(Ordering::Relaxed) == 0 {
                break;
            }
            std::thread::yield_now();
        }
        self.lock()
    }

    /// The books, for faults and for what a vCPU waits for.
    pub(super) fn books_first(&self) -> MutexGuard<'_, Books> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let books = self.lock();
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        books
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        self.books
            .lock()
            .expect("a thread that panics ends the process")
    }

    /// Reads and serves all waiting events.
    ///
    /// # Errors
    /// The VM cannot go on: a page is lost or the kernel refuses.
    pub fn serve(&self) -> Result<(), Error> {
        let mut events = Vec::new();
        self.space
            .uffd()
            .read_events(&mut events)
            .map_err(Error::Events)?;
        events.into_iter().try_for_each(|event| self.fault(event))
    }

    /// Serves one event. A touch that cannot be served yet is served later: when the page's worker
    /// is done, or when credit arrives.
    ///
    /// # Errors
    /// As [`Pager::serve`].
    pub fn fault(&self, event: Event) -> Result<(), Error> {
        let Some(gfn) = self.space.fault_gfn(event)? else {
            return Ok(());
        };
        let mut books = self.books_first();
        match (books.pmap.state(gfn), event) {
            // Whoever made the page busy wakes the waiting threads when it is done.
            (PageState::Busy, _) => Ok(()),
            (PageState::Unbacked, _) => self.fill(&mut books, gfn),
            (PageState::Staged(slot), _) => {
                let slot = stage_slot(slot);
                self.space.give_back(GfnRange::one(gfn), slot)?;
                books.pmap.apply(gfn, PageEvent::GiveBack);
                books.sample.given_back(slot);
                Ok(())
            }
            (PageState::Compressed(slot), _) => self.decompress(&mut books, gfn, slot),
            (PageState::Swapped(slot), _) => self.swap_in(books, gfn, slot),
            (
                PageState::Private | PageState::Shared(_) | PageState::Broken(_),
                Event::Protected { .. },
            ) => Ok(self.space.unprotect(gfn)?),
            // Served already, on behalf of another vCPU.
            (PageState::Private | PageState::Shared(_) | PageState::Broken(_), _) => {
                Ok(self.space.wake(GfnRange::one(gfn))?)
            }
        }
    }

    /// Serves a first touch: maps the zero page over as much of the 2 MiB chunk as is unbacked and
    /// the credit covers. A ballooned page comes back alone.
    fn fill(&self, books: &mut Books, gfn: Gfn) -> Result<(), Error> {
        let stride = u32::try_from(books.credit.stride().0).unwrap_or(u32::MAX);
        if stride == 0 {
            self.hold(books, gfn);
            return Ok(());
        }
        let ballooned = books.pmap.is_ballooned(gfn);
        let range = if ballooned {
            books.pmap.set_ballooned(gfn, false);
            GfnRange::one(gfn)
        } else {
            let chunk = self.chunk_of(gfn);
            let run = books.pmap.run_around(gfn, chunk, |pmap, gfn| {
                pmap.state(gfn) == PageState::Unbacked && !pmap.is_ballooned(gfn)
            });
            shrink_around(run, gfn, stride)
        };
        let filled = self.space.zero_fill(range)?;
        for gfn in GfnRange::new(range.start, filled).iter() {
            books.pmap.apply(gfn, PageEvent::Fill);
        }
        books.credit.mapped(Pages(u64::from(filled)));
        books.counters.fills += 1;
        let obstacle = Gfn(range.start.0 + filled);
        if filled < range.count {
            let backing = self.space.backing(GfnRange::one(obstacle))?[0];
            panic!("the books say that {obstacle} is unbacked, the page tables say {backing:?}");
        }
        Ok(())
    }

    /// The 2 MiB chunk around `gfn`, cut to the RAM range that holds it.
    pub(super) fn chunk_of(&self, gfn: Gfn) -> GfnRange {
        let start = gfn.chunk_start();
        let ram = self
            .ram()
            .layout()
            .ranges()
            .iter()
            .find(|ram| ram.contains(gfn));
        let end = ram.map_or(gfn, |ram| ram.end());
        GfnRange::new(start, CHUNK_PAGES.min(end.0 - start.0))
    }

    fn decompress(&self, books: &mut Books, gfn: Gfn, slot: u32) -> Result<(), Error> {
        if books.credit.headroom() == Pages::ZERO {
            self.hold(books, gfn);
            return Ok(());
        }
        let mut page = PageBuf::ZERO;
        books.store.read(slot, &mut page)?;
        books.pmap.apply(gfn, PageEvent::Begin);
        self.space.install(gfn, &page)?;
        books.pmap.apply(gfn, PageEvent::Install);
        books.store.remove(slot);
        books.credit.mapped(Pages(1));
        books.counters.swap_in_pages += 1;
        Ok(())
    }

    /// Reads a page back. The books are free during the read: the page is busy meanwhile.
    fn swap_in(
        &self,
        mut books: MutexGuard<'_, Books>,
        gfn: Gfn,
        slot: SwapSlot,
    ) -> Result<(), Error> {
        if books.credit.headroom() == Pages::ZERO {
            self.hold(&mut books, gfn);
            return Ok(());
        }
        let checksum = books.swapmap.checksum(slot);
        books.credit.mapped(Pages(1));
        books.pmap.apply(gfn, PageEvent::Begin);
        drop(books);
        let mut page = PageBuf::ZERO;
        self.swap
            .read(slot, &mut page)
            .map_err(|source| Error::SwapRead { gfn, slot, source })?;
        if self.checksum(&page) != checksum {
            return Err(Error::SwapChecksum { gfn, slot });
        }
        let mut books = self.books_first();
        self.space.install(gfn, &page)?;
        books.pmap.apply(gfn, PageEvent::Install);
        books.swapmap.free(slot);
        books.counters.swap_in_pages += 1;
        Ok(())
    }

    /// The checksum recorded for a swapped page: XXH3-64, seeded by this VM's secret so that a
    /// guest cannot make two pages with one checksum.
    pub(super) fn checksum(&self, page: &PageBuf) -> u64 {
        xxh3_64_with_seed(&page.0[..PAGE_SIZE], self.seed)
    }

    /// Serves the faults that wait for credit, as far as it reaches.
    ///
    /// # Errors
    /// As [`Pager::serve`].
    pub fn retry_held(&self) -> Result<(), Error> {
        let held = std::mem::take(&mut self.books().held);
        for gfn in held {
            // The page may have changed since: it is served by what it is now. A touch that still
            // finds no credit is held again.
            let hva = self.ram().hva(gfn);
            self.fault(Event::Missing { hva })?;
        }
        Ok(())
    }

    /// A fault waits for credit; the worker asks for it.
    fn hold(&self, books: &mut Books, gfn: Gfn) {
        if !books.held.contains(&gfn) {
            books.held.push(gfn);
        }
        books.counters.held += 1;
        if let Err(error) = self.starved.write(1) {
            // The worker looks at the account anyway, only later.
            log::debug!("cannot tell of a fault that waits: {error}");
        }
    }

    /// Readable when a fault has begun to wait for credit.
    pub fn starved(&self) -> BorrowedFd<'_> {
        borrow(&self.starved)
    }

    /// Makes [`Pager::starved`] unreadable; whether a fault waits.
    pub fn is_starved(&self) -> bool {
        let _ = self.starved.read();
        self.held_faults() > 0
    }

    /// Faults that wait for credit.
    pub fn held_faults(&self) -> usize {
        self.books().held.len()
    }

    /// Works on the credit account under the books' lock.
    pub fn with_credit<T>(&self, work: impl FnOnce(&mut CreditBook) -> T) -> T {
        work(&mut self.books().credit)
    }

    /// Compares the books with themselves and with the page tables.
    ///
    /// # Errors
    /// When the page tables cannot be read.
    ///
    /// # Panics
    /// When they disagree.
    pub fn audit(&self) -> Result<(), Error> {
        let books = self.books();
        books.pmap.audit();
        super::census::audit(&books, &self.space)
    }
}

/// Bound of the worker's politeness: some milliseconds.
const YIELDS_MAX: u32 = 1000;

pub(super) fn stage_slot(slot: u32) -> StageSlot {
    StageSlot(u16::try_from(slot).expect("stage slots are numbered from a u16"))
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
