//! The guest's address space in this process: every page-table operation that the pager performs.
//!
//! A [`GuestSpace`] owns the guest's RAM mapping, the userfaultfd that arms it, the staging area
//! for pages taken out of the guest, and nothing else. All its methods
//! take frame numbers, stage slots and frame ids, and check them against the mappings that it owns:
//! a caller cannot pass a stray address. It keeps no books and decides nothing; the pager does.
//!
//! Two ways of taking a page out, see [`TakePath`]: both leave the guest's page missing, so that
//! the next touch waits for the pager, and both leave the content in a stage slot.
//!
//! | operation | system call | cost on the development machine, us a page |
//! |---|---|---|
//! | zero fill | UFFDIO_ZEROPAGE, 2 MiB at a time | 0.08 |
//! | populate | UFFDIO_COPY of zeros, 16 to 128 pages at a time | |
//! | take, give back (move) | UFFDIO_MOVE | 0.07-0.15 in bulk, 2.6 alone |
//! | discard | MADV_DONTNEED | 0.3 in bulk, 3.2 alone |
//! | map frames | mmap MAP_FIXED | 0.27 in a run, 8.1 alone |
//! | rearm | mremap of an armed empty mapping | part of 63 for a whole repair |
#![expect(unsafe_code)]
// UNSAFETY: page-table system calls on mappings that this value owns, and raw copies out of memory
// that a guest writes at the same time.

mod large;
mod pool;
mod renew;

pub use large::{Given, Renewed};

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::large::LargeAreas;
use super::pagemap::{Backing, PageTables};
use super::ram::GuestRam;
use super::staging::{StageSlot, Staging};
use super::transfer::{complete, moved, stopped, transferred};
use super::uffd::{self, Event, Stop, Transferred, Uffd};
use super::zeros::Zeros;
use crate::units::{CHUNK_PAGES, Gfn, GfnRange, PAGE_SIZE, Pages};
use crate::words::TakePath;

/// One page of content, aligned for direct I/O.
#[derive(Clone)]
#[repr(C, align(4096))]
pub struct PageBuf(pub [u8; PAGE_SIZE]);

impl PageBuf {
    /// A page of zeros.
    pub const ZERO: PageBuf = PageBuf([0; PAGE_SIZE]);
}

impl std::fmt::Debug for PageBuf {
    /// Guest content does not belong into logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PageBuf")
    }
}

/// What failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// userfaultfd is not to be had.
    #[error(transparent)]
    Uffd(#[from] uffd::OpenError),
    /// /proc did not answer.
    #[error("cannot read this process's page tables")]
    PageTables(#[source] std::io::Error),
    /// A page-table operation on guest memory failed.
    #[error("cannot {what} {count} pages from {start}: {source}")]
    Guest {
        /// The operation, as a verb.
        what: &'static str,
        /// First frame.
        start: Gfn,
        /// How many.
        count: u32,
        /// The kernel's answer.
        source: Errno,
    },
    /// A mapping beside the guest's RAM was refused.
    #[error("cannot map {bytes} bytes for {what}")]
    Map {
        /// What for.
        what: &'static str,
        /// Length.
        bytes: usize,
        /// The kernel's answer.
        source: Errno,
    },
    /// A stage slot that ought to be empty is not: no page could ever be taken into it again.
    #[error("stage slot {slot} is in use")]
    SlotInUse {
        /// Its number.
        slot: u32,
    },
    /// A fault at an address that is not the guest's.
    #[error("page fault outside guest memory at {hva:#x}")]
    StrayFault {
        /// Where.
        hva: usize,
    },
}

/// Pages that [`GuestSpace::populate`] takes at a time, at most.
pub const POPULATE_MAX: u32 = 128;

/// See the module documentation.
#[derive(Debug)]
pub struct GuestSpace {
    ram: Arc<GuestRam>,
    uffd: Uffd,
    path: TakePath,
    tables: PageTables,
    staging: Staging,
    zeros: Zeros,
    /// Whether the guest may have large pages.
    allows_large: bool,
    /// Where pages can be moved, and large ones are allowed.
    large: Option<LargeAreas>,
    /// Whether the kernel keeps the page table of memory that was dropped; learned.
    tables_stay: AtomicBool,
}

/// Result of an operation that may need a kernel mapping more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Mapping {
    /// It is done.
    Done,
    /// The process has as many mappings as it may (`vm.max_map_count`); nothing changed.
    Full,
}

/// What [`GuestSpace::take`] achieved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Took {
    /// Pages taken, from the front.
    pub pages: u32,
    /// Why the next one was not, if there is one.
    pub obstacle: Option<Obstacle>,
}

/// Why the kernel does not let go of a page now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// Nothing is mapped there.
    Missing,
    /// The page is pinned, or others map it too.
    Busy,
}

impl GuestSpace {
    /// Arms `ram` and makes the staging area. Pages will be taken out as `path` says;
    /// `allows_large` says whether there may be large ones.
    ///
    /// # Errors
    /// When userfaultfd is not to be had or a mapping is refused.
    pub fn new(
        ram: Arc<GuestRam>,
        path: TakePath,
        allows_large: bool,
    ) -> Result<GuestSpace, Error> {
        let mut features =
            uffd::FEATURE_PAGEFAULT_FLAG_WP | uffd::FEATURE_EVENT_REMAP | uffd::FEATURE_WP_SHMEM;
        if path == TakePath::Move {
            features |= uffd::FEATURE_MOVE;
        }
        let uffd = Uffd::open(features)?;
        for range in ram.layout().ranges() {
            uffd.register(ram.hva(range.start), range.bytes())
                .map_err(|source| guest_error("arm", *range, source))?;
        }
        let tables = PageTables::open().map_err(Error::PageTables)?;
        let staging = Staging::new(&uffd, path)?;
        let large = match path {
            TakePath::Move if allows_large => Some(LargeAreas::new(&uffd)?),
            _ => None,
        };
        Ok(GuestSpace {
            ram,
            uffd,
            path,
            tables,
            staging,
            zeros: Zeros::new(POPULATE_MAX)?,
            allows_large,
            large,
            tables_stay: AtomicBool::new(false),
        })
    }

    /// The guest's RAM.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// How pages are taken out.
    pub fn path(&self) -> TakePath {
        self.path
    }

    /// This process's page tables and memory counters.
    pub fn tables(&self) -> &PageTables {
        &self.tables
    }

    /// The userfaultfd, to wait for and read events.
    pub fn uffd(&self) -> &Uffd {
        &self.uffd
    }

    /// The guest frame of a fault.
    ///
    /// # Errors
    /// A fault elsewhere: our own code touched an empty stage slot.
    pub fn fault_gfn(&self, event: Event) -> Result<Option<Gfn>, Error> {
        match event {
            Event::Remapped => Ok(None),
            Event::Missing { hva, .. } | Event::Protected { hva } => self
                .ram
                .gfn_at(hva)
                .map(Some)
                .ok_or(Error::StrayFault { hva }),
        }
    }

    fn hva(&self, range: GfnRange) -> usize {
        assert!(self.ram.layout().contains(range), "{range:?} is not RAM");
        self.ram.hva(range.start)
    }

    /// The stage slots that [`GuestSpace::take`] fills.
    pub fn slots_for_taking(&self) -> Range<u16> {
        self.staging.slots_for_taking()
    }

    /// The stage slots that [`GuestSpace::copy_frozen`] fills.
    pub fn slots_for_copies() -> Range<u16> {
        Staging::slots_for_copies()
    }

    /// Maps the zero page over `range`, all of it missing, and wakes. Returns how many pages were
    /// mapped before one that is there already.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn zero_fill(&self, range: GfnRange) -> Result<u32, Error> {
        let hva = self.hva(range);
        let done = transferred("zero-fill", range, |at, len| {
            self.uffd.zeropage(hva + at, len)
        })?;
        Ok(done.0)
    }

    /// Puts zeroed pages of their own over `range`, at most [`POPULATE_MAX`] pages and all of them
    /// missing, and wakes. Returns how many were put there before one that is there already.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn populate(&self, range: GfnRange) -> Result<u32, Error> {
        let hva = self.hva(range);
        let done = transferred("populate", range, |at, len| {
            self.uffd.copy(hva + at, self.zeros.hva(len), len)
        })?;
        Ok(done.0)
    }

    /// Puts `page` at `gfn`, which is missing, and wakes.
    ///
    /// # Errors
    /// When the kernel refuses; a page that is there already is an error too.
    pub fn install(&self, gfn: Gfn, page: &PageBuf) -> Result<(), Error> {
        self.install_run(gfn, std::slice::from_ref(page))
    }

    /// Puts `pages` at `first` and behind it, which are all missing, and wakes.
    ///
    /// # Errors
    /// When the kernel refuses; a page that is there already is an error too.
    pub fn install_run(&self, first: Gfn, pages: &[PageBuf]) -> Result<(), Error> {
        let count = u32::try_from(pages.len()).expect("a run is short");
        let range = GfnRange::new(first, count);
        let hva = self.hva(range);
        let content = pages.as_ptr() as usize;
        complete("install", range, |at, len| {
            self.uffd.copy(hva + at, content + at, len)
        })
    }

    /// Takes the pages of `range`, all of them anonymous pages in armed memory, into the empty
    /// stage slots from `slot`, which is one of [`GuestSpace::slots_for_taking`].
    ///
    /// # Errors
    /// When the kernel refuses, or a slot is not empty.
    pub fn take(&self, range: GfnRange, slot: StageSlot) -> Result<Took, Error> {
        let hva = self.hva(range);
        if self.path == TakePath::Move {
            let stage = self.staging.hva(slot, range.count);
            let (pages, stop) = transferred("take", range, |at, len| {
                self.relocate(stage + at, hva + at, len)
            })?;
            let obstacle = match stop {
                None => None,
                Some(Stop::Missing) => Some(Obstacle::Missing),
                Some(Stop::Busy) => Some(Obstacle::Busy),
                // It would stand in the way for ever.
                Some(Stop::Exists) => {
                    let slot = u32::from(slot.0) + pages;
                    return Err(Error::SlotInUse { slot });
                }
                Some(Stop::Refused(source)) => return Err(guest_error("take", range, source)),
            };
            return Ok(Took { pages, obstacle });
        }
        complete("write-protect", range, |at, len| {
            self.uffd.protect_part(hva + at, len)
        })?;
        self.staging.copy_in(hva, slot, range.count);
        dont_need(hva, range.bytes()).map_err(|source| guest_error("drop", range, source))?;
        // A writer that met the protection must try again and find the page missing.
        self.wake(range)?;
        Ok(Took {
            pages: range.count,
            obstacle: None,
        })
    }

    /// Gives staged pages back unchanged and wakes. What the slots hold afterwards is undefined.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn give_back(&self, range: GfnRange, slot: StageSlot) -> Result<(), Error> {
        let stage = self.staging.hva(slot, range.count);
        self.give_back_from(range, stage, Staging::is_moved(slot))
    }

    /// Gives pages back that lie at `stage`, by moving or copying them.
    fn give_back_from(&self, range: GfnRange, stage: usize, moved: bool) -> Result<(), Error> {
        let hva = self.hva(range);
        let copy = |at: usize, len: usize| self.uffd.copy(hva + at, stage + at, len);
        if !moved {
            return complete("give back", range, copy);
        }
        let (mut done, mut stop) = transferred("give back", range, |at, len| {
            self.relocate(hva + at, stage + at, len)
        })?;
        // KSM may have merged a page while it was staged, and such a page does not move.
        while matches!(stop, Some(Stop::Busy)) {
            let one = GfnRange::one(Gfn(range.start.0 + done));
            let at = done as usize * PAGE_SIZE;
            complete("give back", one, |_, len| copy(at, len))?;
            done += 1;
            if done == range.count {
                return Ok(());
            }
            let rest = GfnRange::new(Gfn(range.start.0 + done), range.count - done);
            let from = done as usize * PAGE_SIZE;
            let (more, again) = transferred("give back", rest, |at, len| {
                self.relocate(hva + from + at, stage + from + at, len)
            })?;
            done += more;
            stop = again;
        }
        stop.map_or(Ok(()), |stop| Err(stopped("give back", range, stop)))
    }

    /// Moves pages into missing ones of memory that this value owns, and wakes who waits there. The
    /// caller alone moves or drops either of them, so that a page which is at the destination, and no
    /// longer at its source, was moved here.
    fn relocate(&self, to: usize, from: usize, len: usize) -> Transferred {
        let unsaid = |at: usize, len: usize| {
            let there = self.tables.count_moved(to + at, from + at, len / PAGE_SIZE);
            let pages = there.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            if pages > 0 {
                self.uffd.wake(to + at, pages * PAGE_SIZE)?;
            }
            Ok(pages * PAGE_SIZE)
        };
        let step = |at: usize, len: usize| self.uffd.relocate(to + at, from + at, len);
        moved(len, step, unsaid)
    }

    /// Frees the memory of `count` stage slots.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn drop_staged(&self, slot: StageSlot, count: u32) -> Result<(), Error> {
        self.staging.empty(slot, count)
    }

    /// Puts a page into a stage slot, one of [`GuestSpace::slots_for_copies`].
    pub fn stage(&self, page: &PageBuf, slot: StageSlot) {
        self.staging.put(page, slot);
    }

    /// Copies a staged page out.
    pub fn read_staged(&self, slot: StageSlot, page: &mut PageBuf) {
        self.staging.read(slot, page);
    }

    /// Copies a guest page out while the guest may write it: a torn copy is possible, so that the
    /// result is good for a key but proves nothing. The page must be present.
    pub fn peek(&self, gfn: Gfn, page: &mut PageBuf) {
        read_page(self.hva(GfnRange::one(gfn)), page);
    }

    /// Drops the content of armed pages: the next touch is a missing fault.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn discard(&self, range: GfnRange) -> Result<(), Error> {
        dont_need(self.hva(range), range.bytes())
            .map_err(|source| guest_error("discard", range, source))
    }

    /// Drops an armed page that is all zero and that others may map too, so that the next touch is
    /// a missing fault. False when it is not: the guest has written it meanwhile, or KSM has merged
    /// it. The kernel serves a write to such a page unseen, so the page is write-protected before it
    /// is looked at; and the page tables do not tell the zero page from a merged one, so its content
    /// is.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn discard_zero(&self, gfn: Gfn) -> Result<bool, Error> {
        let range = GfnRange::one(gfn);
        let hva = self.hva(range);
        complete("write-protect", range, |at, len| {
            self.uffd.protect_part(hva + at, len)
        })?;
        let mut page = PageBuf::ZERO;
        let common = self.backing(range)?[0] == Backing::Common;
        if common {
            read_page(hva, &mut page);
        }
        if !common || page.0 != PageBuf::ZERO.0 {
            self.unprotect(gfn)?;
            return Ok(false);
        }
        self.discard(range)?;
        // A writer that met the protection must try again and find the page missing.
        self.wake(range)?;
        Ok(true)
    }

    /// Lets whoever waits in the range try again.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn wake(&self, range: GfnRange) -> Result<(), Error> {
        self.uffd
            .wake(self.hva(range), range.bytes())
            .map_err(|source| guest_error("wake", range, source))
    }

    /// Lifts a stale write protection and wakes.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn unprotect(&self, gfn: Gfn) -> Result<(), Error> {
        let range = GfnRange::one(gfn);
        match self.uffd.unprotect(self.hva(range), PAGE_SIZE) {
            // The page is a frame by now, or gone: nothing is protected any more.
            Ok(()) | Err(Errno::NOENT | Errno::INVAL) => self.wake(range),
            Err(source) => Err(guest_error("unprotect", range, source)),
        }
    }

    /// What backs the pages of a range of at most one chunk.
    ///
    /// # Errors
    /// When /proc does not answer.
    pub fn backing(&self, range: GfnRange) -> Result<Vec<Backing>, Error> {
        assert!(range.count <= CHUNK_PAGES, "{range:?} is more than a chunk");
        let mut backing = vec![Backing::Nothing; range.count as usize];
        self.tables
            .read(self.hva(range), &mut backing)
            .map_err(Error::PageTables)?;
        Ok(backing)
    }

    /// Anonymous memory of the whole process, see [`PageTables::anonymous`].
    ///
    /// # Errors
    /// When /proc does not answer.
    pub fn anonymous(&self) -> Result<Pages, Error> {
        self.tables.anonymous().map_err(Error::PageTables)
    }
}

/// Drops the content of a range.
pub(super) fn dont_need(hva: usize, bytes: usize) -> Result<(), Errno> {
    // SAFETY: every caller passes a range of a mapping that a space or its staging area owns, and
    // whose content its owner gave up.
    unsafe { rustix::mm::madvise(hva as *mut _, bytes, Advice::LinuxDontNeed) }
}

pub(super) fn guest_error(what: &'static str, range: GfnRange, source: Errno) -> Error {
    Error::Guest {
        what,
        start: range.start,
        count: range.count,
        source,
    }
}

pub(super) fn map_anonymous(bytes: usize, what: &'static str) -> Result<usize, Error> {
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), bytes, prot, flags) }
        .map_err(|source| Error::Map {
            what,
            bytes,
            source,
        })? as usize;
    // SAFETY: the range was mapped just above; the advice only forbids large pages.
    unsafe { rustix::mm::madvise(start as *mut _, bytes, Advice::LinuxNoHugepage) }.map_err(
        |source| Error::Map {
            what,
            bytes,
            source,
        },
    )?;
    Ok(start)
}

pub(super) fn unmap(start: usize, bytes: usize) {
    // SAFETY: callers pass mappings of their own that nothing refers to any more.
    if let Err(error) = unsafe { rustix::mm::munmap(start as *mut _, bytes) } {
        log::error!("cannot unmap {bytes} bytes: {error}");
    }
}

/// Copies one page without a reference to it: a guest may write it at the same time.
pub(super) fn read_page(hva: usize, page: &mut PageBuf) {
    // SAFETY: callers pass a present page of a mapping that lives as long as the space. Both sides
    // are aligned. A racing write makes the copy stale or torn, never unsound: the bytes are plain
    // data and are read once, through raw pointers.
    unsafe { std::ptr::copy_nonoverlapping(hva as *const u8, page.0.as_mut_ptr(), PAGE_SIZE) };
}
