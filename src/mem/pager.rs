//! The pager: a VM's memory with its lock, and who may wait for whom.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use rustix::rand::{GetRandomFlags, getrandom};
use vmm_sys_util::eventfd::EventFd;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::credit::CreditBook;
use super::memory::{Books, Memory};
use super::observe::{Cause, Observer};
use super::sample::Sample;
use super::store::Corrupt;
use super::swap_in::SwapReads;
use super::swapfile::SwapStore;
use crate::sys::event::borrow;
use crate::sys::ram::GuestRam;
use crate::sys::space::{self, GuestSpace, PageBuf};
use crate::units::{Gfn, PAGE_SIZE, Pages, SwapSlot};
use crate::words::TakePath;

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
    /// The kernel has no random number.
    #[error("cannot draw a secret")]
    Secret(#[source] rustix::io::Errno),
    /// The descriptor of the page faults failed.
    #[error("cannot read page faults")]
    Events(#[source] rustix::io::Errno),
}

/// What the pager needs from outside.
#[derive(Debug)]
pub struct Settings {
    /// How pages are taken out of the guest.
    pub path: TakePath,
    /// Where swapped pages go.
    pub swap: Box<dyn SwapStore>,
    /// Threads that may read from swap at a time, at least one: all fault threads but one.
    pub readers: usize,
    /// The account to start with.
    pub credit: CreditBook,
    /// Whether the guest may have large pages.
    pub large_pages: bool,
    /// Kernel mappings that the guest's RAM may take: see [`mappings_max`].
    pub mappings_max: u64,
    /// Hears of every step of every page.
    pub observer: Option<Arc<dyn Observer>>,
}

/// Mappings that the process needs beside its guest's RAM, those of pages being rearmed included.
const MAPPINGS_OWN: u64 = 2000;
/// The kernel's default limit of mappings, where it cannot be read.
const MAPPINGS_DEFAULT: u64 = 65530;

/// Kernel mappings that a guest's RAM may take on this host: `vm.max_map_count`, less what the
/// process needs for itself.
pub fn mappings_max() -> u64 {
    let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok();
    let limit = limit.and_then(|text| text.trim().parse().ok());
    limit
        .unwrap_or(MAPPINGS_DEFAULT)
        .saturating_sub(MAPPINGS_OWN)
}

/// A number that nobody else knows.
fn secret() -> Result<u64, rustix::io::Errno> {
    let mut bytes = [0; 8];
    // So few bytes come whole, or not at all.
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(u64::from_ne_bytes(bytes))
}

/// See [`crate::mem`].
#[derive(Debug)]
pub struct Pager {
    space: GuestSpace,
    books: Mutex<Books>,
    /// Fault threads that want the memory: the worker lets them go first.
    waiting: AtomicU32,
    /// Readable when a fault has begun to wait for credit, when there is something to prefetch, or at
    /// the first fault while the worker rests.
    starved: EventFd,
    observer: Option<Arc<dyn Observer>>,
    pub(super) swap: Box<dyn SwapStore>,
    pub(super) reads: SwapReads,
    /// The stock of large pages may want to be filled.
    pub(super) wants_stock: AtomicBool,
    /// Faults were served since the worker asked last.
    touched: AtomicBool,
    /// The worker sleeps for long and wants to hear of the next fault.
    resting: AtomicBool,
    /// A fault could not be served, and none is any more.
    pub(super) failed: AtomicBool,
    pub(super) sample: Mutex<Sample>,
    /// Seed of the swap checksums.
    secret: u64,
}

impl Pager {
    /// Arms `ram`; from here on every touch of it needs threads in [`Pager::serve_faults`].
    ///
    /// # Errors
    /// When userfaultfd is not to be had.
    pub fn new(ram: Arc<GuestRam>, settings: Settings) -> Result<Pager, Error> {
        let size = ram.layout().size();
        let end = ram.layout().end();
        let space = GuestSpace::new(ram, settings.path, settings.large_pages)?;
        let own = space.anonymous()?;
        let books = Books::new(end, size, settings.credit, own, settings.mappings_max);
        Ok(Pager {
            space,
            books: Mutex::new(books),
            waiting: AtomicU32::new(0),
            starved: EventFd::new(libc::EFD_NONBLOCK).map_err(Error::Starved)?,
            observer: settings.observer,
            swap: settings.swap,
            reads: SwapReads::new(settings.readers),
            wants_stock: AtomicBool::new(false),
            touched: AtomicBool::new(false),
            resting: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            sample: Mutex::default(),
            secret: secret().map_err(Error::Secret)?,
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

    /// The memory, for the worker: it lets waiting faults go first, since a mutex does not queue.
    pub(super) fn memory(&self, cause: Cause) -> Memory<'_> {
        for _ in 0..YIELDS_MAX {
            if self.waiting.load(Ordering::Relaxed) == 0 {
                break;
            }
            std::thread::yield_now();
        }
        self.hold(cause)
    }

    /// The memory, for faults and for what a vCPU waits for.
    pub(super) fn memory_first(&self, cause: Cause) -> Memory<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let memory = self.hold(cause);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        memory
    }

    fn hold(&self, cause: Cause) -> Memory<'_> {
        let books = self.books.lock();
        let books = books.expect("a thread that panics ends the process");
        Memory::new(&self.space, books, cause, self.observer.as_deref())
    }

    /// The checksum recorded for a swapped page: XXH3-64, seeded by this VM process's secret so that a
    /// guest cannot make two pages with one checksum.
    pub(super) fn checksum(&self, page: &PageBuf) -> u64 {
        xxh3_64_with_seed(&page.0[..PAGE_SIZE], self.secret)
    }

    /// A fault has begun to wait for credit, or the guest comes back to memory that was swapped:
    /// whoever sees to that is told.
    pub(super) fn tell_worker(&self) {
        if let Err(error) = self.starved.write(1) {
            // The worker looks at the account anyway, only later.
            log::debug!("cannot wake the worker: {error}");
        }
    }

    /// A fault was served: the worker hears of the first one that ends its rest.
    pub(super) fn note_touch(&self) {
        self.touched.store(true, Ordering::SeqCst);
        if self.resting.load(Ordering::SeqCst) && self.resting.swap(false, Ordering::SeqCst) {
            self.tell_worker();
        }
    }

    /// Whether faults were served since this was asked last.
    pub fn take_touched(&self) -> bool {
        self.touched.swap(false, Ordering::SeqCst)
    }

    /// The worker is about to sleep until something happens, or is not: while it does,
    /// [`Pager::starved`] is readable at the next fault too. False when it cannot, because one has come
    /// since [`Pager::take_touched`].
    pub fn set_resting(&self, resting: bool) -> bool {
        self.resting.store(resting, Ordering::SeqCst);
        // In this order: a fault notes itself before it looks whether anybody rests.
        !resting || !self.touched.load(Ordering::SeqCst)
    }

    /// Readable when a fault has begun to wait for credit, when there is something to prefetch, or at
    /// the first fault of a rest.
    pub fn starved(&self) -> BorrowedFd<'_> {
        borrow(&self.starved)
    }

    /// Makes [`Pager::starved`] unreadable; whether a fault waits.
    pub fn drain_starved(&self) -> bool {
        let _ = self.starved.read();
        self.starving_faults() > 0
    }

    /// Faults that wait for credit.
    pub fn starving_faults(&self) -> usize {
        self.memory(Cause::Account).starving()
    }

    /// Whether the scan for sharing has to hear of something. Waits for whoever holds the memory, but
    /// not until the faults have had their turn.
    pub(super) fn is_stirred(&self) -> bool {
        self.hold(Cause::Scan).is_stirred()
    }

    /// The VM may use at most `most` now: its compressed store gets a part of that.
    pub fn bound_store(&self, most: Option<Pages>) {
        self.memory(Cause::Account).bound_store(most);
    }

    /// Whether memory is plenty, so that a guest gets pages ahead of its first writes. It is not
    /// until this is said. When it is not any more, what is in stock is freed, and large pages that are
    /// sampled come back.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_plenty(&self, plenty: bool) -> Result<(), Error> {
        let before = self.with_credit(|credit| credit.set_plenty(plenty));
        if plenty {
            return Ok(());
        }
        if before {
            self.memory(Cause::Scan).ripen();
        }
        self.drop_stock()?;
        self.sample_small()
    }

    /// No more than so many swapped pages come back at a time from now on; 1: none but those that
    /// are touched.
    pub fn bound_read_ahead(&self, pages_max: u32) {
        self.memory(Cause::Account).bound_read_ahead(pages_max);
    }

    /// Works on the credit account under the lock.
    pub fn with_credit<T>(&self, work: impl FnOnce(&mut CreditBook) -> T) -> T {
        work(self.memory(Cause::Account).credit())
    }
}

/// Bound of the worker's politeness: some milliseconds.
const YIELDS_MAX: u32 = 1000;

#[cfg(test)]
mod tests {
    use super::super::test_guest::with_guest;
    use super::*;

    #[test]
    fn no_two_vms_have_the_checksum_of_a_page_in_common() {
        let checksum = || {
            let mut checksum = None;
            with_guest(Pages(512), |pager| {
                checksum = Some(pager.checksum(&PageBuf::ZERO));
                assert_eq!(checksum, Some(pager.checksum(&PageBuf::ZERO)));
            });
            checksum
        };
        if let (Some(one), Some(other)) = (checksum(), checksum()) {
            assert_ne!(one, other);
        }
    }
}
