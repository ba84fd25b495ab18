//! Addresses and quantities, and the only shifts and masks of the crate.
//!
//! A *page* is 4 KiB everywhere in tidemark. Lengths are [`Pages`] or bytes named `_bytes`; a bare
//! integer never crosses a module boundary as an address.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Sub, SubAssign};

use serde::{Deserialize, Serialize};

/// Bits of an address inside one page.
pub const PAGE_SHIFT: u32 = 12;
/// Bytes of one page, frame, swap slot.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;
/// Pages of one chunk: the unit in which first touches are resolved (2 MiB, a large page on x86).
pub const CHUNK_PAGES: u32 = 512;
/// Bytes of one chunk.
pub const CHUNK_BYTES: usize = CHUNK_PAGES as usize * PAGE_SIZE;

/// Largest guest, frame pool and swap file in pages: 512 GiB, what an entry of the page map names.
pub const PAGES_MAX: u64 = 1 << 27;

/// A guest frame number: guest-physical address >> 12.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
pub struct Gfn(pub u32);

impl Gfn {
    /// The frame that holds a guest-physical address; `None` above 16 TiB, where no RAM of ours is.
    pub fn containing(gpa: u64) -> Option<Gfn> {
        u32::try_from(gpa >> PAGE_SHIFT).ok().map(Gfn)
    }

    /// Guest-physical address of the first byte.
    pub fn gpa(self) -> u64 {
        u64::from(self.0) << PAGE_SHIFT
    }

    /// This number as a table index.
    pub fn index(self) -> usize {
        self.0 as usize
    }

    /// First frame of the 2 MiB chunk that holds this frame.
    pub fn chunk_start(self) -> Gfn {
        Gfn(self.0 & !(CHUNK_PAGES - 1))
    }
}

impl fmt::Display for Gfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gfn {:#x}", self.0)
    }
}

/// A non-wrapping run of guest frames: `start .. start + count`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GfnRange {
    /// First frame.
    pub start: Gfn,
    /// Number of frames.
    pub count: u32,
}

impl GfnRange {
    /// `start .. start + count`.
    ///
    /// # Panics
    /// When the end does not fit a frame number: callers check guest input first.
    pub fn new(start: Gfn, count: u32) -> GfnRange {
        assert!(
            start.0.checked_add(count).is_some(),
            "{start} + {count} wraps"
        );
        GfnRange { start, count }
    }

    /// One frame.
    pub fn one(gfn: Gfn) -> GfnRange {
        GfnRange {
            start: gfn,
            count: 1,
        }
    }

    /// First frame after the range.
    pub fn end(self) -> Gfn {
        Gfn(self.start.0 + self.count)
    }

    /// Whether `gfn` lies inside.
    pub fn contains(self, gfn: Gfn) -> bool {
        gfn >= self.start && gfn < self.end()
    }

    /// The frames in ascending order.
    pub fn iter(self) -> impl DoubleEndedIterator<Item = Gfn> + ExactSizeIterator {
        (self.start.0..self.start.0 + self.count).map(Gfn)
    }

    /// Length in bytes.
    pub fn bytes(self) -> usize {
        self.count as usize * PAGE_SIZE
    }
}

/// One 4 KiB frame of the host manager's pool: its index in the pool file.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
pub struct FrameId(pub u32);

impl FrameId {
    /// Byte offset in the pool file.
    pub fn offset(self) -> u64 {
        u64::from(self.0) << PAGE_SHIFT
    }

    /// This number as a table index.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// One 4 KiB slot of a VM's swap file: its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SwapSlot(pub u32);

impl SwapSlot {
    /// Byte offset in the swap file.
    pub fn offset(self) -> u64 {
        u64::from(self.0) << PAGE_SHIFT
    }

    /// This number as a table index.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A number of 4 KiB pages.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct Pages(pub u64);

impl Pages {
    /// No page.
    pub const ZERO: Pages = Pages(0);

    /// The whole pages inside `bytes` (rounds down).
    pub fn in_bytes(bytes: u64) -> Pages {
        Pages(bytes >> PAGE_SHIFT)
    }

    /// The pages needed to hold `bytes` (rounds up).
    pub fn holding_bytes(bytes: u64) -> Pages {
        Pages(bytes.div_ceil(PAGE_SIZE as u64))
    }

    /// `mib` mebibytes.
    pub const fn mib(mib: u64) -> Pages {
        Pages(mib << (20 - PAGE_SHIFT))
    }

    /// Length in bytes; `u64::MAX` where that is less.
    pub fn bytes(self) -> u64 {
        self.0.saturating_mul(PAGE_SIZE as u64)
    }

    /// `self - other`, at least zero.
    pub fn saturating_sub(self, other: Pages) -> Pages {
        Pages(self.0.saturating_sub(other.0))
    }
}

impl Add for Pages {
    type Output = Pages;
    fn add(self, other: Pages) -> Pages {
        Pages(self.0 + other.0)
    }
}

impl AddAssign for Pages {
    fn add_assign(&mut self, other: Pages) {
        self.0 += other.0;
    }
}

impl Sub for Pages {
    type Output = Pages;
    /// # Panics
    /// When `other` is larger (debug builds): an account would go negative.
    fn sub(self, other: Pages) -> Pages {
        Pages(self.0 - other.0)
    }
}

impl SubAssign for Pages {
    fn sub_assign(&mut self, other: Pages) {
        self.0 -= other.0;
    }
}

impl Sum for Pages {
    fn sum<I: Iterator<Item = Pages>>(iter: I) -> Pages {
        Pages(iter.map(|pages| pages.0).sum())
    }
}

impl fmt::Display for Pages {
    /// Mebibytes with one decimal place, as the tables print it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Of a number of pages that a peer made up, too: so wide that nothing overflows.
        let tenths = (u128::from(self.0) * 10) >> (20 - PAGE_SHIFT);
        f.pad(&format!("{}.{} MiB", tenths / 10, tenths % 10))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_goes_the_way_the_name_says() {
        assert_eq!(Pages::in_bytes(4097), Pages(1));
        assert_eq!(Pages::holding_bytes(4097), Pages(2));
        assert_eq!(Pages::holding_bytes(0), Pages(0));
        assert_eq!(Pages::mib(1).bytes(), 1 << 20);
        assert_eq!(Pages(384).to_string(), "1.5 MiB");
        assert_eq!(Pages(1 << 52).bytes(), u64::MAX);
        assert_eq!(Pages(u64::MAX).to_string(), "72057594037927935.9 MiB");
    }

    #[test]
    fn frame_numbers_above_the_table_are_refused() {
        assert_eq!(Gfn::containing(0x1fff), Some(Gfn(1)));
        assert_eq!(Gfn::containing(1 << 44), None);
        assert_eq!(Gfn(0x3ff).chunk_start(), Gfn(0x200));
    }

    #[test]
    #[should_panic(expected = "wraps")]
    fn a_wrapping_range_is_a_bug() {
        GfnRange::new(Gfn(u32::MAX), 2);
    }
}
