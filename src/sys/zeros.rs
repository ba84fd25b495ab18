//! A source of zeros for page transfers, which takes no memory.
#![expect(unsafe_code)]
// UNSAFETY: maps memory and asks the kernel to fill in its page tables.

use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::space::{Error, unmap};
use crate::units::PAGE_SIZE;

/// Readable pages that are all the kernel's one zero page.
#[derive(Debug)]
pub(super) struct Zeros {
    hva: usize,
    bytes: usize,
}

impl Zeros {
    /// So many pages of zeros.
    ///
    /// # Errors
    /// When the mapping is refused.
    pub fn new(pages: u32) -> Result<Zeros, Error> {
        let bytes = pages as usize * PAGE_SIZE;
        let error = |source| Error::Map {
            what: "zeros",
            bytes,
            source,
        };
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice, which nobody can write.
        let hva = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), bytes, ProtFlags::READ, flags)
        }
        .map_err(error)? as usize;
        let zeros = Zeros { hva, bytes };
        // Not one large page of zeros, which every read of a guest's would have to fetch from memory.
        for advice in [Advice::LinuxNoHugepage, Advice::LinuxPopulateRead] {
            // SAFETY: the range was mapped just above; neither advice changes its content.
            unsafe { rustix::mm::madvise(hva as *mut _, bytes, advice) }.map_err(error)?;
        }
        Ok(zeros)
    }

    /// Where `len` bytes of zeros can be read.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn hva(&self, len: usize) -> usize {
        assert!(len <= self.bytes, "{len} bytes of zeros");
        self.hva
    }
}

impl Drop for Zeros {
    fn drop(&mut self) {
        unmap(self.hva, self.bytes);
    }
}
