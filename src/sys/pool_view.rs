//! The host manager's frame pool as a VM process sees it: read-only.
#![expect(unsafe_code)]
// UNSAFETY: maps a file that another process writes, and compares its bytes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::mm::{MapFlags, ProtFlags};

use super::space::{Error, PageBuf, unmap};
use crate::units::{FrameId, PAGE_SIZE};

/// A read-only mapping of the whole pool, to compare with, and its descriptor, to map frames of.
#[derive(Debug)]
pub struct PoolView {
    fd: OwnedFd,
    frames: u32,
    base: usize,
}

impl PoolView {
    /// Maps the pool of `frames` frames behind `fd`.
    ///
    /// # Errors
    /// When the view cannot be mapped.
    pub fn new(fd: OwnedFd, frames: u32) -> Result<PoolView, Error> {
        let bytes = frames as usize * PAGE_SIZE;
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), bytes, ProtFlags::READ, flags, &fd, 0)
        }
        .map_err(|source| Error::Map {
            what: "the frame pool",
            bytes,
            source,
        })?;
        Ok(PoolView {
            fd,
            frames,
            base: base as usize,
        })
    }

    /// Whether `count` frames from `frame` lie in the pool.
    pub fn contains(&self, frame: FrameId, count: u32) -> bool {
        frame
            .0
            .checked_add(count)
            .is_some_and(|end| end <= self.frames)
    }

    /// Whether every byte of the frame equals `page`; false for a frame outside the pool.
    pub fn equals(&self, frame: FrameId, page: &PageBuf) -> bool {
        if !self.contains(frame, 1) {
            return false;
        }
        let hva = self.base + frame.index() * PAGE_SIZE;
        // SAFETY: the frame lies inside the view. memcmp reads it without a reference: a host
        // manager that breaks its word and writes it meanwhile makes the answer wrong at worst,
        // and it could write the frame after the comparison just as well.
        let order = unsafe {
            libc::memcmp(
                hva as *const libc::c_void,
                page.0.as_ptr().cast(),
                PAGE_SIZE,
            )
        };
        order == 0
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for PoolView {
    fn drop(&mut self) {
        // Frames that are mapped into the guest stay: those mappings hold the file themselves.
        unmap(self.base, self.frames as usize * PAGE_SIZE);
    }
}
