//! Descriptors that a parent process left open for us.
#![expect(unsafe_code)]
// UNSAFETY: turns a number from the command line into an owned descriptor.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

/// Takes over descriptor `number`, which the parent process left open, and closes it on exec from
/// now on. Call it once for a number, before anything else opens descriptors.
///
/// # Errors
/// When there is no such descriptor, or it is one of the standard three.
pub fn take(number: RawFd) -> Result<OwnedFd, Errno> {
    if number <= 2 || !std::path::Path::new(&format!("/proc/self/fd/{number}")).exists() {
        return Err(Errno::BADF);
    }
    // SAFETY: the descriptor is open (checked above), and by the contract of `--link-fd` it was
    // opened for this process to own; nothing of ours has opened one yet.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
    Ok(fd)
}
