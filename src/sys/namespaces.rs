//! Leaving the host's namespaces.
#![expect(unsafe_code)]
// UNSAFETY: unshare(2) can take shared descriptors away from threads; here it does not.

use rustix::io::Errno;
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Moves the calling thread, and those that it starts from now on, into new namespaces of these kinds.
///
/// # Errors
/// When the kernel refuses, or has no such namespaces.
///
/// # Panics
/// When the flags name anything but namespaces.
pub fn leave(kinds: UnshareFlags) -> Result<(), Errno> {
    let namespaces =
        UnshareFlags::NEWUSER | UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWNET;
    assert!(namespaces.contains(kinds), "{kinds:?}");
    // SAFETY: the table of descriptors is not among the flags (asserted above): all threads keep it.
    unsafe { unshare_unsafe(kinds) }
}
