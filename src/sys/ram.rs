//! Guest RAM: the host mapping behind every guest-physical byte.
#![expect(unsafe_code)]
// UNSAFETY: reserves address space, lays anonymous memory into it and hands the raw mapping to
// vm-memory and KVM.

use std::sync::Arc;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::units::{CHUNK_BYTES, CHUNK_PAGES, Gfn, GfnRange, PAGE_SIZE, PAGES_MAX, Pages};
use crate::words::Advice as Wanted;

/// First guest-physical byte that is never RAM: devices live from here to 4 GiB.
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// First guest-physical byte of the RAM that does not fit below [`LOW_RAM_END`].
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;

/// What went wrong while guest RAM was set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel does not do with the memory what was asked for.
    #[error("cannot advise {advice} for guest memory")]
    Advise {
        /// What was asked for.
        advice: Wanted,
        /// The kernel's answer.
        source: Errno,
    },
    /// The address space or a mapping in it was refused.
    #[error("cannot map {bytes} bytes of guest memory")]
    Map {
        /// Length of the mapping.
        bytes: usize,
        /// The kernel's answer.
        source: Errno,
    },
    /// vm-memory refused the ranges.
    #[error("cannot describe guest memory: {0}")]
    Describe(String),
}

/// Where a guest's RAM lies in its physical address space: one range below 3 GiB and, for larger
/// guests, one from 4 GiB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    ranges: Vec<GfnRange>,
}

impl Layout {
    /// The layout of a guest with `size` of memory (one page to [`PAGES_MAX`]).
    ///
    /// # Panics
    /// When `size` is outside those bounds; the configuration checks it.
    pub fn new(size: Pages) -> Layout {
        assert!(
            (1..=PAGES_MAX).contains(&size.0),
            "guest of {} pages",
            size.0
        );
        let low = Pages::in_bytes(LOW_RAM_END);
        let count = |pages: Pages| u32::try_from(pages.0).expect("at most 2^28 pages");
        let mut ranges = vec![GfnRange::new(Gfn(0), count(size.min(low)))];
        if size > low {
            let start = Gfn::containing(HIGH_RAM_START).expect("4 GiB has a frame number");
            ranges.push(GfnRange::new(start, count(size - low)));
        }
        Layout { ranges }
    }

    /// The layout of so many bytes, in whole pages.
    ///
    /// # Panics
    /// As [`Layout::new`].
    pub fn of_bytes(bytes: u64) -> Layout {
        Layout::new(Pages::in_bytes(bytes))
    }

    /// The RAM ranges in ascending order.
    pub fn ranges(&self) -> &[GfnRange] {
        &self.ranges
    }

    /// First frame number after the last range: the length of a table indexed by gfn.
    pub fn end(&self) -> Gfn {
        self.ranges.last().expect("a guest has memory").end()
    }

    /// Whether every frame of `range` is RAM. Ranges do not touch, so no run spans two of them.
    pub fn contains(&self, range: GfnRange) -> bool {
        self.ranges
            .iter()
            .any(|ram| range.start >= ram.start && range.end() <= ram.end())
    }

    /// Whether the frame is RAM. Any number may be asked for, the last one included, whose range
    /// would wrap: guests do.
    pub fn contains_gfn(&self, gfn: Gfn) -> bool {
        self.ranges.iter().any(|ram| ram.contains(gfn))
    }

    /// The frame number of the page with this index, counted over all ranges.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn nth(&self, index: u64) -> Gfn {
        let mut left = u32::try_from(index).expect("a guest has fewer than 2^32 pages");
        for range in &self.ranges {
            if left < range.count {
                return Gfn(range.start.0 + left);
            }
            left -= range.count;
        }
        panic!("the guest has {} pages, not {index}", self.size().0);
    }

    /// The 2 MiB chunk around `gfn`, which is RAM, cut to its range.
    ///
    /// # Panics
    /// When the frame is not RAM.
    pub fn chunk_of(&self, gfn: Gfn) -> GfnRange {
        let start = gfn.chunk_start();
        let ram = self.ranges.iter().find(|ram| ram.contains(gfn));
        let end = ram.expect("callers pass a frame of RAM").end();
        GfnRange::new(start, CHUNK_PAGES.min(end.0 - start.0))
    }

    /// Total RAM.
    pub fn size(&self) -> Pages {
        self.ranges
            .iter()
            .map(|range| Pages(u64::from(range.count)))
            .sum()
    }
}

/// Address space without memory, for a mapping that begins at a large page's bound.
#[derive(Debug)]
pub(super) struct Reserved {
    start: usize,
    bytes: usize,
}

impl Reserved {
    /// Room for `bytes` from [`Reserved::aligned`] on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(bytes: usize) -> Result<Reserved, Errno> {
        let bytes = bytes + CHUNK_BYTES;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        let start = std::ptr::null_mut();
        // SAFETY: a new reservation at an address of the kernel's choice; nothing is mapped there.
        let mapped = unsafe { rustix::mm::mmap_anonymous(start, bytes, ProtFlags::empty(), flags) };
        let start = mapped? as usize;
        Ok(Reserved { start, bytes })
    }

    /// The first large page's bound in it.
    pub fn aligned(&self) -> usize {
        self.start.next_multiple_of(CHUNK_BYTES)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        // SAFETY: the reservation was made in `new`, and whoever owns this value keeps addresses into
        // it no longer than it lives.
        if let Err(error) = unsafe { rustix::mm::munmap(self.start as *mut _, self.bytes) } {
            log::error!("cannot unmap {} bytes: {error}", self.bytes);
        }
    }
}

/// The host mapping of one guest's RAM: private anonymous memory, small pages, nothing reserved.
///
/// The whole guest-physical span, hole included, is one reservation, so that
/// `host address = base + guest-physical address`; and the base is that of a large page, so that a
/// chunk of the guest's can be one. The mapping lives as long as this value; page
/// operations on it are the pager's alone.
#[derive(Debug)]
pub struct GuestRam {
    base: usize,
    layout: Layout,
    memory: GuestMemoryMmap,
    /// Dropped last: the others point into it.
    _reserved: Reserved,
}

impl GuestRam {
    /// Maps RAM for `layout`, without large pages. Nothing is backed yet.
    ///
    /// # Errors
    /// When the address space is refused.
    pub fn new(layout: Layout) -> Result<Arc<GuestRam>, Error> {
        GuestRam::advised(layout, Some(Wanted::NoHugePage))
    }

    /// Maps RAM for `layout` and tells the kernel what it is like. Nothing is backed yet.
    ///
    /// # Errors
    /// When the address space is refused, or the advice.
    pub fn advised(layout: Layout, advice: Option<Wanted>) -> Result<Arc<GuestRam>, Error> {
        let map_error = |bytes| move |source| Error::Map { bytes, source };
        let span = GfnRange::new(Gfn(0), layout.end().0).bytes();
        let reserved = Reserved::new(span).map_err(map_error(span))?;
        let base = reserved.aligned();
        let mut regions = Vec::new();
        for range in layout.ranges() {
            let start = base + range.start.index() * PAGE_SIZE;
            let prot = ProtFlags::READ | ProtFlags::WRITE;
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
            // SAFETY: the range lies inside the reservation made above, which nobody else knows.
            unsafe { rustix::mm::mmap_anonymous(start as *mut _, range.bytes(), prot, flags) }
                .map_err(map_error(range.bytes()))?;
            if let Some(advice) = advice {
                let known = match advice {
                    Wanted::HugePage => Advice::LinuxHugepage,
                    Wanted::NoHugePage => Advice::LinuxNoHugepage,
                    Wanted::Mergeable => Advice::LinuxMergeable,
                };
                // SAFETY: the range was mapped just above; none of these changes its content.
                unsafe { rustix::mm::madvise(start as *mut _, range.bytes(), known) }
                    .map_err(|source| Error::Advise { advice, source })?;
            }
            let builder = MmapRegionBuilder::new(range.bytes())
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
            // SAFETY: the mapping outlives the region: `GuestRam` owns both and unmaps last.
            let builder = unsafe { builder.with_raw_mmap_pointer(start as *mut u8) };
            let region = builder
                .build()
                .map_err(|error| Error::Describe(error.to_string()))?;
            let gpa = GuestAddress(range.start.gpa());
            let region = GuestRegionMmap::new(region, gpa)
                .ok_or_else(|| Error::Describe("a range wraps".into()))?;
            regions.push(region);
        }
        let memory = GuestMemoryMmap::from_regions(regions)
            .map_err(|error| Error::Describe(error.to_string()))?;
        Ok(Arc::new(GuestRam {
            base,
            layout,
            memory,
            _reserved: reserved,
        }))
    }

    /// Where the RAM lies.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Access by guest-physical address for devices and loaders. Any access may fault and then
    /// waits for the pager, so it is forbidden to whoever holds the pager's lock.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Host address of a frame's first byte.
    ///
    /// # Panics
    /// When the frame is not RAM.
    pub fn hva(&self, gfn: Gfn) -> usize {
        assert!(self.layout.contains_gfn(gfn), "{gfn} is not RAM");
        self.base + gfn.index() * PAGE_SIZE
    }

    /// The frame at a host address, `None` outside the RAM.
    pub fn gfn_at(&self, hva: usize) -> Option<Gfn> {
        let gfn = Gfn::containing(hva.checked_sub(self.base)? as u64)?;
        self.layout.contains_gfn(gfn).then_some(gfn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn large_guests_have_a_hole_below_four_gibibytes() {
        let layout = Layout::new(Pages::mib(4096));
        assert_eq!(layout.ranges().len(), 2);
        assert_eq!(layout.size(), Pages::mib(4096));
        let last_low = Gfn::containing(LOW_RAM_END - 1).unwrap();
        assert!(layout.contains_gfn(last_low));
        assert!(!layout.contains(GfnRange::new(last_low, 2)));
        assert!(!layout.contains_gfn(Gfn(u32::MAX)));
    }

    #[test]
    fn bytes_written_by_address_are_read_back() {
        let ram = GuestRam::new(Layout::new(Pages::mib(2))).unwrap();
        ram.memory()
            .write_slice(b"tide", GuestAddress(0x1234))
            .unwrap();
        let mut back = [0; 4];
        ram.memory()
            .read_slice(&mut back, GuestAddress(0x1234))
            .unwrap();
        assert_eq!(&back, b"tide");
        assert_eq!(ram.gfn_at(ram.hva(Gfn(1)) + 5), Some(Gfn(1)));
        assert_eq!(ram.gfn_at(ram.hva(Gfn(1)) + (2 << 20)), None);
    }
}
