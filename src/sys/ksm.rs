//! Keeping the host's kernel from merging this process's pages.
#![expect(unsafe_code)]
// UNSAFETY: prctl(2) with a plain number.

use rustix::io::Errno;

const PR_SET_MEMORY_MERGE: i32 = 67;

/// Switches KSM off for this process, which may have inherited it (systemd's `MemoryKSM=yes` does
/// that): pages are shared by the host manager alone, which knows who may share with whom, and a
/// page that KSM has merged cannot be taken out of the guest. Pages merged so far are copied.
///
/// # Errors
/// The kernel's, save that it has no such switch (before Linux 6.4).
pub fn switch_off() -> Result<(), Errno> {
    // SAFETY: this request takes numbers only and touches no memory of ours.
    let answer = unsafe { libc::prctl(PR_SET_MEMORY_MERGE, 0, 0, 0, 0) };
    if answer == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    match Errno::from_io_error(&error).unwrap_or(Errno::IO) {
        Errno::INVAL => Ok(()),
        errno => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn merging_can_be_switched_off_everywhere() {
        super::switch_off().unwrap();
    }
}
