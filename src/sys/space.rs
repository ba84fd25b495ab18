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
//! | take, give back (move) | UFFDIO_MOVE | 0.07-0.15 in bulk, 2.6 alone |
//! | discard | MADV_DONTNEED | 0.3 in bulk, 3.2 alone |
//! | map frames | mmap MAP_FIXED | 0.27 in a run, 8.1 alone |
//! | rearm | mremap of an armed empty mapping | part of 63 for a whole repair |
#![expect(unsafe_code)]
// UNSAFETY: page-table system calls on mappings that this value owns, and raw copies out of memory
// that a guest writes at the same time.

use std::sync::Arc;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags};

use super::host_swap::HostFacts;
use super::pagemap::{Backing, PageTables};
use super::pool_view::PoolView;
use super::ram::GuestRam;
use super::transfer::{complete, transferred};
use super::uffd::{self, Event, Uffd};
use crate::units::{CHUNK_PAGES, FrameId, Gfn, GfnRange, PAGE_SIZE, Pages};

/// Stage slots for [`GuestSpace::take`]: `0 .. TAKE_SLOTS`.
pub const TAKE_SLOTS: u16 = 512;
/// Stage slots for [`GuestSpace::copy_frozen`]: `TAKE_SLOTS .. SAMPLE_SLOTS_START`.
pub const SAMPLE_SLOTS_START: u16 = TAKE_SLOTS + 64;
/// Stage slots for pages taken for long: `SAMPLE_SLOTS_START .. STAGE_SLOTS`.
pub const STAGE_SLOTS: u16 = SAMPLE_SLOTS_START + 128;

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

/// How pages are taken out of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakePath {
    /// UFFDIO_MOVE moves the page itself (Linux 6.8 and later).
    Move,
    /// Write-protect, copy, drop.
    Copy,
}

impl TakePath {
    /// Environment variable that forces a path: `move` or `copy`.
    pub const VARIABLE: &'static str = "TIDEMARK_TAKE";

    /// The path for a kernel with these userfaultfd features; `forced` is the value of
    /// [`TakePath::VARIABLE`], if it is set. A kernel on which moved pages may get lost is a line in
    /// the log.
    ///
    /// # Errors
    /// A forced path that does not exist, that the kernel lacks, or that loses pages here, as one
    /// line.
    pub fn choose(features: u64, forced: Option<&str>) -> Result<TakePath, String> {
        let (path, avoided) = TakePath::choose_on(HostFacts::read(), features, forced)?;
        if let Some(hazard) = avoided {
            log::warn!("pages are copied, not moved: {hazard}");
        }
        Ok(path)
    }

    /// [`TakePath::choose`] on a host of these facts, silently; with the path comes why it is not
    /// the one that the kernel offers.
    ///
    /// # Errors
    /// As [`TakePath::choose`].
    pub fn choose_on(
        host: HostFacts,
        features: u64,
        forced: Option<&str>,
    ) -> Result<(TakePath, Option<String>), String> {
        let offered = features & uffd::FEATURE_MOVE != 0;
        let hazard = host.move_hazard().filter(|_| offered);
        let refused = |why: &str| Err(format!("{}=move: {why}", TakePath::VARIABLE));
        match (forced, hazard) {
            (None, None) if offered => Ok((TakePath::Move, None)),
            (None, hazard) => Ok((TakePath::Copy, hazard)),
            (Some("copy"), _) => Ok((TakePath::Copy, None)),
            (Some("move"), _) if !offered => refused("this kernel lacks UFFDIO_MOVE"),
            (Some("move"), Some(hazard)) => refused(&hazard),
            (Some("move"), None) => Ok((TakePath::Move, None)),
            (Some(other), _) => Err(format!(
                "{}={other:?}: allowed are move and copy",
                TakePath::VARIABLE
            )),
        }
    }

    /// `move` or `copy`.
    pub fn name(self) -> &'static str {
        match self {
            TakePath::Move => "move",
            TakePath::Copy => "copy",
        }
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
    /// A fault at an address that is not the guest's.
    #[error("page fault outside guest memory at {hva:#x}")]
    StrayFault {
        /// Where.
        hva: usize,
    },
}

/// A slot of the staging area, below [`STAGE_SLOTS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct StageSlot(pub u16);

/// See the module documentation.
#[derive(Debug)]
pub struct GuestSpace {
    ram: Arc<GuestRam>,
    uffd: Uffd,
    path: TakePath,
    tables: PageTables,
    /// `STAGE_SLOTS` pages registered with the userfaultfd, empty but for pages moved into them.
    moved: usize,
    /// `STAGE_SLOTS` pages of plain memory, for pages that were copied.
    copied: usize,
}

/// Result of a frame mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapFrames {
    /// The frames are mapped.
    Done,
    /// The process has as many mappings as it may (`vm.max_map_count`); nothing changed.
    NoMappings,
}

impl GuestSpace {
    /// Arms `ram` and makes the staging area. Pages will be taken out as `path` says.
    ///
    /// # Errors
    /// When userfaultfd is not to be had or a mapping is refused.
    pub fn new(ram: Arc<GuestRam>, path: TakePath) -> Result<GuestSpace, Error> {
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
        let bytes = usize::from(STAGE_SLOTS) * PAGE_SIZE;
        let moved = map_anonymous(bytes, "the staging area")?;
        uffd.register(moved, bytes).map_err(|source| Error::Map {
            what: "the staging area",
            bytes,
            source,
        })?;
        let copied = map_anonymous(bytes, "the staging area")?;
        Ok(GuestSpace {
            ram,
            uffd,
            path,
            tables,
            moved,
            copied,
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
            Event::Missing { hva } | Event::Protected { hva } => self
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

    /// Whether pages in this slot were moved rather than copied.
    fn is_moved(&self, slot: StageSlot) -> bool {
        self.path == TakePath::Move && !(TAKE_SLOTS..SAMPLE_SLOTS_START).contains(&slot.0)
    }

    fn stage_hva(&self, slot: StageSlot, count: u32) -> usize {
        let end = match slot.0 {
            ..TAKE_SLOTS => TAKE_SLOTS,
            TAKE_SLOTS..SAMPLE_SLOTS_START => SAMPLE_SLOTS_START,
            _ => STAGE_SLOTS,
        };
        assert!(
            u32::from(slot.0) + count <= u32::from(end),
            "stage slot {slot:?} + {count}"
        );
        let base = if self.is_moved(slot) {
            self.moved
        } else {
            self.copied
        };
        base + usize::from(slot.0) * PAGE_SIZE
    }

    /// Maps the zero page over `range`, all of it missing, and wakes. Returns how many pages were
    /// mapped before one that is there already.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn zero_fill(&self, range: GfnRange) -> Result<u32, Error> {
        let hva = self.hva(range);
        transferred("zero-fill", range, |at, len| {
            self.uffd.zeropage(hva + at, len)
        })
    }

    /// Puts `page` at `gfn`, which is missing, and wakes.
    ///
    /// # Errors
    /// When the kernel refuses; a page that is there already is an error too.
    pub fn install(&self, gfn: Gfn, page: &PageBuf) -> Result<(), Error> {
        let range = GfnRange::one(gfn);
        let hva = self.hva(range);
        let content = page.0.as_ptr() as usize;
        complete("install", range, |at, len| {
            self.uffd.copy(hva + at, content + at, len)
        })
    }

    /// Takes the pages of `range`, all of them anonymous pages in armed memory, into the stage
    /// slots from `slot`. Returns how many were taken before one that could not be.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn take(&self, range: GfnRange, slot: StageSlot) -> Result<u32, Error> {
        let hva = self.hva(range);
        let stage = self.stage_hva(slot, range.count);
        if self.path == TakePath::Move {
            return transferred("take", range, |at, len| {
                self.uffd.relocate(stage + at, hva + at, len)
            });
        }
        complete("write-protect", range, |at, len| {
            self.uffd.protect_part(hva + at, len)
        })?;
        // SAFETY: both ranges lie in mappings that this value owns (checked above) and do not
        // overlap; the guest cannot write the source, it is write-protected.
        unsafe {
            std::ptr::copy_nonoverlapping(hva as *const u8, stage as *mut u8, range.bytes());
        }
        self.dont_need(hva, range.bytes())
            .map_err(|source| guest_error("drop", range, source))?;
        // A writer that met the protection must try again and find the page missing.
        self.wake(range)?;
        Ok(range.count)
    }

    /// Gives staged pages back unchanged and wakes. What the slots hold afterwards is undefined.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn give_back(&self, range: GfnRange, slot: StageSlot) -> Result<(), Error> {
        let hva = self.hva(range);
        let stage = self.stage_hva(slot, range.count);
        let moved = self.is_moved(slot);
        complete("give back", range, |at, len| match moved {
            true => self.uffd.relocate(hva + at, stage + at, len),
            false => self.uffd.copy(hva + at, stage + at, len),
        })
    }

    /// Frees the memory of `count` stage slots.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn drop_staged(&self, slot: StageSlot, count: u32) -> Result<(), Error> {
        let bytes = count as usize * PAGE_SIZE;
        self.dont_need(self.stage_hva(slot, count), bytes)
            .map_err(|source| Error::Map {
                what: "dropping staged pages",
                bytes,
                source,
            })
    }

    /// Copies a staged page out.
    pub fn read_staged(&self, slot: StageSlot, page: &mut PageBuf) {
        read_page(self.stage_hva(slot, 1), page);
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
        self.dont_need(self.hva(range), range.bytes())
            .map_err(|source| guest_error("discard", range, source))
    }

    /// Drops an armed page that reads as zero, so that the next touch is a missing fault. False when
    /// the guest has written it meanwhile: the kernel serves such a write unseen, so the page is
    /// write-protected before it is looked at.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn discard_zero(&self, gfn: Gfn) -> Result<bool, Error> {
        let range = GfnRange::one(gfn);
        complete("write-protect", range, |at, len| {
            self.uffd.protect_part(self.hva(range) + at, len)
        })?;
        if self.backing(range)?[0] != Backing::ZeroPage {
            self.unprotect(gfn)?;
            return Ok(false);
        }
        self.discard(range)?;
        // A writer that met the protection must try again and find the page missing.
        self.wake(range)?;
        Ok(true)
    }

    /// Maps the frames from `frame` copy-on-write over `range` and wakes.
    ///
    /// # Errors
    /// When the kernel refuses for another reason than the number of mappings.
    ///
    /// # Panics
    /// When the frames lie outside the pool.
    pub fn map_frames(
        &self,
        range: GfnRange,
        pool: &PoolView,
        frame: FrameId,
    ) -> Result<MapFrames, Error> {
        assert!(
            pool.contains(frame, range.count),
            "frame {frame:?} + {}",
            range.count
        );
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
        let hva = self.hva(range) as *mut _;
        // SAFETY: the target is guest RAM that this value owns; what it held was taken out or is
        // dead, as the pager's books say. A private mapping of a read-only descriptor: writes
        // copy.
        let answer =
            unsafe { rustix::mm::mmap(hva, range.bytes(), prot, flags, pool.fd(), frame.offset()) };
        match answer {
            Ok(_) => {
                self.wake(range)?;
                Ok(MapFrames::Done)
            }
            Err(Errno::NOMEM) => Ok(MapFrames::NoMappings),
            Err(source) => Err(guest_error("map frames over", range, source)),
        }
    }

    /// Write-protects an anonymous page inside a pool mapping, so that its content is stable.
    /// [`GuestSpace::thaw_broken`] lifts it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn freeze_broken(&self, gfn: Gfn) -> Result<(), Error> {
        let range = GfnRange::one(gfn);
        let hva = self.hva(range);
        self.uffd
            .register_protection(hva, PAGE_SIZE)
            .map_err(|source| guest_error("arm for protection", range, source))?;
        self.uffd
            .protect(hva, PAGE_SIZE)
            .map_err(|source| guest_error("write-protect", range, source))
    }

    /// Ends [`GuestSpace::freeze_broken`]: the page is writable again and whoever waits goes on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn thaw_broken(&self, gfn: Gfn) -> Result<(), Error> {
        let range = GfnRange::one(gfn);
        let hva = self.hva(range);
        self.uffd
            .unprotect(hva, PAGE_SIZE)
            .map_err(|source| guest_error("unprotect", range, source))?;
        self.uffd
            .unregister(hva, PAGE_SIZE)
            .map_err(|source| guest_error("disarm", range, source))?;
        self.wake(range)
    }

    /// Copies a page that [`GuestSpace::freeze_broken`] made stable into a stage slot.
    pub fn copy_frozen(&self, gfn: Gfn, slot: StageSlot) {
        let own_kind = (TAKE_SLOTS..SAMPLE_SLOTS_START).contains(&slot.0);
        assert!(own_kind, "stage slot {slot:?} is for taken pages");
        let hva = self.hva(GfnRange::one(gfn));
        let stage = self.stage_hva(slot, 1);
        // SAFETY: both are single pages of mappings that this value owns; the source is frozen.
        unsafe { std::ptr::copy_nonoverlapping(hva as *const u8, stage as *mut u8, PAGE_SIZE) };
    }

    /// Replaces whatever is mapped over `range` by an armed empty mapping, in one step as the guest
    /// sees it. **Waits until the fault thread has read an event**: the caller must hold no lock
    /// that the fault thread may want. Wakes nobody: the caller updates its books first.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn rearm(&self, range: GfnRange) -> Result<(), Error> {
        let target = self.hva(range);
        let bytes = range.bytes();
        let spare = map_anonymous(bytes, "rearming")?;
        let armed = self.uffd.register(spare, bytes).and_then(|()| {
            // SAFETY: `spare` was mapped above and is nobody else's; the target is guest RAM that
            // this value owns and whose content the caller gave up.
            unsafe {
                rustix::mm::mremap_fixed(
                    spare as *mut _,
                    bytes,
                    bytes,
                    MremapFlags::MAYMOVE,
                    target as *mut _,
                )
            }
            .map(|_| ())
        });
        if let Err(source) = armed {
            unmap(spare, bytes);
            return Err(guest_error("rearm", range, source));
        }
        Ok(())
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

    fn dont_need(&self, hva: usize, bytes: usize) -> Result<(), Errno> {
        // SAFETY: every caller passes a range of a mapping that this value owns.
        unsafe { rustix::mm::madvise(hva as *mut _, bytes, Advice::LinuxDontNeed) }
    }
}

impl Drop for GuestSpace {
    fn drop(&mut self) {
        unmap(self.moved, usize::from(STAGE_SLOTS) * PAGE_SIZE);
        unmap(self.copied, usize::from(STAGE_SLOTS) * PAGE_SIZE);
    }
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
fn read_page(hva: usize, page: &mut PageBuf) {
    // SAFETY: callers pass a present page of a mapping that lives as long as the space. Both sides
    // are aligned. A racing write makes the copy stale or torn, never unsound: the bytes are plain
    // data and are read once, through raw pointers.
    unsafe { std::ptr::copy_nonoverlapping(hva as *const u8, page.0.as_mut_ptr(), PAGE_SIZE) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::host_swap::{HostSwap, Release};

    const RIGHT: HostFacts = HostFacts {
        release: Some(Release(6, 18)),
        swap: HostSwap::On,
    };
    const HAZARDOUS: HostFacts = HostFacts {
        release: Some(Release(6, 12)),
        swap: HostSwap::On,
    };
    const SWAPLESS: HostFacts = HostFacts {
        swap: HostSwap::Off,
        ..HAZARDOUS
    };

    #[test]
    fn pages_are_moved_where_that_is_offered_and_right() {
        let path = |host, features| TakePath::choose_on(host, features, None).unwrap();
        for host in [RIGHT, SWAPLESS] {
            assert_eq!(path(host, uffd::FEATURE_MOVE), (TakePath::Move, None));
            assert_eq!(path(host, 0), (TakePath::Copy, None));
        }
        let (chosen, avoided) = path(HAZARDOUS, uffd::FEATURE_MOVE);
        assert_eq!(chosen, TakePath::Copy);
        assert!(avoided.unwrap().contains("6.12"));
        // Nothing is avoided where nothing is offered.
        assert_eq!(path(HAZARDOUS, 0), (TakePath::Copy, None));
    }

    #[test]
    fn a_forced_path_is_taken_or_refused() {
        let path = |host, features, forced| TakePath::choose_on(host, features, Some(forced));
        let offered = uffd::FEATURE_MOVE;
        for host in [RIGHT, HAZARDOUS, SWAPLESS] {
            assert_eq!(path(host, offered, "copy"), Ok((TakePath::Copy, None)));
            assert!(path(host, 0, "move").unwrap_err().contains("lacks"));
            assert!(path(host, offered, "fly").unwrap_err().contains("allowed"));
        }
        assert_eq!(path(RIGHT, offered, "move"), Ok((TakePath::Move, None)));
        assert_eq!(path(SWAPLESS, offered, "move"), Ok((TakePath::Move, None)));
        let refused = path(HAZARDOUS, offered, "move").unwrap_err();
        assert!(refused.starts_with("TIDEMARK_TAKE=move: "), "{refused}");
        assert!(refused.contains("memory.swap.max"), "{refused}");
    }
}
