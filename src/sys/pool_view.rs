//! The host manager's frame pool as a VM process sees it: read-only.
//!
//! Frames to compare with are read, not mapped: the pool is as large as the host's budget and its
//! frames lie scattered in it, so that the page tables of a view cost about as much as the guest's
//! own (measured: 0.5 MiB in a VM of 256 MiB), and each page of it faults once.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::space::PageBuf;
use crate::units::{FrameId, PAGE_SIZE};

/// The pool's descriptor, to compare frames with and to map them.
#[derive(Debug)]
pub struct PoolView {
    fd: OwnedFd,
    frames: u32,
}

impl PoolView {
    /// The pool of `frames` frames behind `fd`.
    pub fn new(fd: OwnedFd, frames: u32) -> PoolView {
        PoolView { fd, frames }
    }

    /// Whether `count` frames from `frame` lie in the pool.
    pub fn contains(&self, frame: FrameId, count: u32) -> bool {
        frame
            .0
            .checked_add(count)
            .is_some_and(|end| end <= self.frames)
    }

    /// Whether every byte of the frame equals `page`; false for a frame outside the pool or one that
    /// cannot be read.
    pub fn equals(&self, frame: FrameId, page: &PageBuf) -> bool {
        if !self.contains(frame, 1) {
            return false;
        }
        let mut content = PageBuf::ZERO;
        match rustix::io::pread(&self.fd, &mut content.0, frame.offset()) {
            Ok(PAGE_SIZE) => content.0 == page.0,
            Ok(_) => false,
            Err(errno) => {
                log::warn!("cannot read frame {}: {errno}", frame.0);
                false
            }
        }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsFd for PoolView {
    /// For handing the pool back to a host manager.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
