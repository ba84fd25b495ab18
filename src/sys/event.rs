//! Borrowing the descriptor of an eventfd.
#![expect(unsafe_code)]
// UNSAFETY: vmm-sys-util's EventFd gives its descriptor as a number only.

use std::os::fd::{AsRawFd, BorrowedFd};

use vmm_sys_util::eventfd::EventFd;

/// The descriptor, for as long as the eventfd is borrowed.
pub fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the eventfd owns the open descriptor and outlives the borrow.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
