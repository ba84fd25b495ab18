//! The staging area: memory for pages that were taken out of the guest.
//!
//! Two areas of [`AREA_SLOTS`] pages each, numbered through. Pages that the kernel moves need a
//! destination that is armed and empty; pages that are copied need plain memory. A slot's number
//! says in which of the two it lies. Which slot is in use is not known here: the pager hands them
//! out ([`crate::mem`]).
#![expect(unsafe_code)]
// UNSAFETY: raw copies between pages of mappings that this value and the guest's space own.

use std::ops::Range;

use rustix::io::Errno;

use super::space::{Error, PageBuf, map_anonymous, read_page, unmap};
use super::uffd::Uffd;
use crate::units::PAGE_SIZE;
use crate::words::TakePath;

/// Slots of each area. Chosen: a batch of 512 pages, a sample of 128, and room for runs.
pub const AREA_SLOTS: u16 = 1024;

/// A slot of the staging area, below twice [`AREA_SLOTS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StageSlot(pub u16);

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Staging {
    path: TakePath,
    /// Slots `0 .. AREA_SLOTS`: registered with the userfaultfd, empty but for pages moved there.
    moved: Option<usize>,
    /// Slots `AREA_SLOTS .. 2 * AREA_SLOTS`: plain memory.
    copied: usize,
}

const BYTES: usize = AREA_SLOTS as usize * PAGE_SIZE;
const WHAT: &str = "the staging area";

impl Staging {
    /// Maps both areas; the one for moved pages only where pages are moved.
    pub fn new(uffd: &Uffd, path: TakePath) -> Result<Staging, Error> {
        let copied = map_anonymous(BYTES, WHAT)?;
        let mut staging = Staging {
            path,
            moved: None,
            copied,
        };
        if path == TakePath::Move {
            let moved = map_anonymous(BYTES, WHAT)?;
            staging.moved = Some(moved);
            uffd.register(moved, BYTES).map_err(|source| Error::Map {
                what: WHAT,
                bytes: BYTES,
                source,
            })?;
        }
        Ok(staging)
    }

    /// Whether pages in this slot were moved rather than copied.
    pub fn is_moved(slot: StageSlot) -> bool {
        slot.0 < AREA_SLOTS
    }

    /// The slots that pages of armed memory are taken into.
    pub fn slots_for_taking(&self) -> Range<u16> {
        match self.path {
            TakePath::Move => 0..AREA_SLOTS,
            TakePath::Copy => AREA_SLOTS..2 * AREA_SLOTS,
        }
    }

    /// The slots that a copy can be put into.
    pub fn slots_for_copies() -> Range<u16> {
        AREA_SLOTS..2 * AREA_SLOTS
    }

    /// Where `count` slots from `slot` lie.
    ///
    /// # Panics
    /// When they are not slots of one area, or of one that this take path does not have.
    pub fn hva(&self, slot: StageSlot, count: u32) -> usize {
        let in_area = slot.0 % AREA_SLOTS;
        assert!(
            slot.0 < 2 * AREA_SLOTS && u32::from(in_area) + count <= u32::from(AREA_SLOTS),
            "stage slot {slot:?} + {count}"
        );
        let base = if Staging::is_moved(slot) {
            self.moved.expect("only the move path has moved pages")
        } else {
            self.copied
        };
        base + usize::from(in_area) * PAGE_SIZE
    }

    /// Copies the page in a slot out; the slot must hold one.
    pub fn read(&self, slot: StageSlot, page: &mut PageBuf) {
        read_page(self.hva(slot, 1), page);
    }

    /// Copies `count` pages from `hva`, which nobody writes meanwhile, into slots for copies.
    pub fn copy_in(&self, hva: usize, slot: StageSlot, count: u32) {
        assert!(!Staging::is_moved(slot), "{slot:?} is for moved pages");
        let to = self.hva(slot, count) as *mut u8;
        // SAFETY: the callers pass guest RAM of the space that owns this area, write-protected, or a
        // page that they borrowed; the destination was checked to lie in `copied`, which this value
        // owns. They do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(hva as *const u8, to, count as usize * PAGE_SIZE) };
    }

    /// Puts a page into a slot for copies.
    pub fn put(&self, page: &PageBuf, slot: StageSlot) {
        self.copy_in(page.0.as_ptr() as usize, slot, 1);
    }

    /// Frees the memory of `count` slots.
    pub fn empty(&self, slot: StageSlot, count: u32) -> Result<(), Error> {
        let bytes = count as usize * PAGE_SIZE;
        super::space::dont_need(self.hva(slot, count), bytes).map_err(|source: Errno| Error::Map {
            what: "dropping staged pages",
            bytes,
            source,
        })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Some(moved) = self.moved {
            unmap(moved, BYTES);
        }
        unmap(self.copied, BYTES);
    }
}
