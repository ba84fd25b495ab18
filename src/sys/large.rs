//! Large pages: memory for a stock of zeroed ones, and a place for those that are sampled.
//!
//! A zeroed large page becomes a chunk of the guest's by one move. The kernel moves it whole when the
//! destination has no page table (see [`super::space`]); else it moves 512 small pages, which is no
//! harm. Whether a chunk *is* large is read from the page tables ([`PageTables::is_large`]).
//!
//! [`PageTables::is_large`]: super::pagemap::PageTables::is_large
#![expect(unsafe_code)]
// UNSAFETY: maps memory and advises the kernel on it.

use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::ram::Reserved;
use super::space::Error;
use super::staging::AREA_SLOTS;
use super::uffd::Uffd;
use crate::units::{CHUNK_BYTES, CHUNK_PAGES};

/// Large pages that the stock holds at most. Chosen: one to be had while the other is zeroed.
pub const STOCK_MAX: u8 = 2;

/// Large pages that can be sampled at a time. Chosen: one for each page of a sample.
pub const SAMPLES_MAX: u8 = 128;

/// A place for a sampled large page, below [`SAMPLES_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleSlot(pub u8);

/// Stage slots of small pages: those of large ones are numbered behind them.
const SMALL_SLOTS: u32 = 2 * AREA_SLOTS as u32;

impl SampleSlot {
    /// The stage slot of one of its pages.
    pub fn page(self, place: u32) -> u32 {
        SMALL_SLOTS + u32::from(self.0) * CHUNK_PAGES + place
    }

    /// The place in which a staged page lies; `None` for a page that was staged alone.
    pub fn of(slot: u32) -> Option<SampleSlot> {
        let number = slot.checked_sub(SMALL_SLOTS)? / CHUNK_PAGES;
        u8::try_from(number).ok().map(SampleSlot)
    }
}

/// A place of the stock, below [`STOCK_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StockSlot(pub u8);

const STOCK_BYTES: usize = STOCK_MAX as usize * CHUNK_BYTES;
const SAMPLES_BYTES: usize = SAMPLES_MAX as usize * CHUNK_BYTES;
const WHAT: &str = "large pages";

/// Memory from a large page's bound on.
#[derive(Debug)]
struct Area(Reserved);

impl Area {
    fn new(bytes: usize, advice: Advice) -> Result<Area, Error> {
        let reserved = Reserved::new(bytes).map_err(|source| Error::Map {
            what: WHAT,
            bytes,
            source,
        })?;
        map_fixed(reserved.aligned(), bytes, advice)?;
        Ok(Area(reserved))
    }

    fn hva(&self, chunk: u8) -> usize {
        self.0.aligned() + usize::from(chunk) * CHUNK_BYTES
    }
}

/// Both areas.
#[derive(Debug)]
pub(super) struct LargeAreas {
    stock: Area,
    /// Registered with the userfaultfd, empty but for pages moved there.
    samples: Area,
}

impl LargeAreas {
    /// Address space for both; nothing is backed yet.
    ///
    /// # Errors
    /// When a mapping is refused.
    pub fn new(uffd: &Uffd) -> Result<LargeAreas, Error> {
        let stock = Area::new(STOCK_BYTES, Advice::LinuxHugepage)?;
        let samples = Area::new(SAMPLES_BYTES, Advice::LinuxNoHugepage)?;
        arm(uffd, samples.hva(0), SAMPLES_BYTES)?;
        Ok(LargeAreas { stock, samples })
    }

    /// Where the page of a slot of the stock lies.
    ///
    /// # Panics
    /// When there is no such slot.
    pub fn stock_hva(&self, slot: StockSlot) -> usize {
        assert!(slot.0 < STOCK_MAX, "{slot:?}");
        self.stock.hva(slot.0)
    }

    /// Frees what is left in a slot for samples, its page table included.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn empty_sample(&self, slot: SampleSlot, uffd: &Uffd) -> Result<(), Error> {
        let hva = self.sample_hva(slot);
        map_fixed(hva, CHUNK_BYTES, Advice::LinuxNoHugepage)?;
        arm(uffd, hva, CHUNK_BYTES)
    }

    /// Where a sampled page lies.
    ///
    /// # Panics
    /// When there is no such slot.
    pub fn sample_hva(&self, slot: SampleSlot) -> usize {
        assert!(slot.0 < SAMPLES_MAX, "{slot:?}");
        self.samples.hva(slot.0)
    }

    /// Backs a slot of the stock with zeroed memory; false when there is none to be had.
    pub fn zero(&self, slot: StockSlot) -> bool {
        let hva = self.stock_hva(slot) as *mut _;
        // SAFETY: the range is a slot of this value's; the advice writes nothing that is not zero.
        let advised = unsafe { rustix::mm::madvise(hva, CHUNK_BYTES, Advice::LinuxPopulateWrite) };
        if let Err(errno) = advised {
            log::debug!("no memory for {WHAT}: {errno}");
        }
        advised.is_ok()
    }

    /// Frees the memory of a slot of the stock. It is mapped afresh: with the page table that a large page
    /// leaves when it is split, there would never be one in it again.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn empty(&self, slot: StockSlot) -> Result<(), Error> {
        map_fixed(self.stock_hva(slot), CHUNK_BYTES, Advice::LinuxHugepage)
    }
}

fn arm(uffd: &Uffd, start: usize, bytes: usize) -> Result<(), Error> {
    uffd.register(start, bytes).map_err(|source| Error::Map {
        what: WHAT,
        bytes,
        source,
    })
}

/// Maps empty memory over a part of an area.
fn map_fixed(start: usize, bytes: usize, advice: Advice) -> Result<(), Error> {
    let error = |source| Error::Map {
        what: WHAT,
        bytes,
        source,
    };
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
    let start = start as *mut _;
    // SAFETY: the range lies inside a reservation of the caller's, who gave up what it holds.
    unsafe { rustix::mm::mmap_anonymous(start, bytes, prot, flags) }.map_err(error)?;
    // SAFETY: the range was mapped just above; the advice changes no content.
    match unsafe { rustix::mm::madvise(start, bytes, advice) } {
        Ok(()) => {}
        // A kernel without large pages: none will be had.
        Err(errno) => log::info!("no large pages: {errno}"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stage_slots_of_large_pages_are_apart_from_others() {
        assert_eq!(SampleSlot::of(SMALL_SLOTS - 1), None);
        for slot in [SampleSlot(0), SampleSlot(1), SampleSlot(SAMPLES_MAX - 1)] {
            for place in [0, 1, CHUNK_PAGES - 1] {
                assert_eq!(SampleSlot::of(slot.page(place)), Some(slot));
            }
        }
    }
}
