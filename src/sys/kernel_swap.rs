//! The kernel's own swapping, to be measured beside ours: a swap file that is on for a while, and
//! asking the kernel to page another process out. Both take privileges.
#![expect(unsafe_code)]
// UNSAFETY: swapon(2), swapoff(2) and process_madvise(2) have no safe wrapper.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::units::PAGE_SIZE;

/// Where the first page of a swap area has its signature, and its header (mkswap(8)).
const SIGNATURE: &[u8; 10] = b"SWAPSPACE2";
const HEADER: usize = 1024;
const VERSION: u32 = 1;
/// Bytes written at once.
const BLOCK: usize = 1 << 20;

/// A swap file that is on. Dropping it switches it off and removes it.
#[derive(Debug)]
pub struct SwapArea {
    path: PathBuf,
    name: CString,
}

impl SwapArea {
    /// Makes a file of `bytes` at `path`, where nothing is yet, and switches it on.
    ///
    /// # Errors
    /// When the file cannot be made, or the kernel does not swap to it; nothing is left then.
    pub fn switch_on(path: &Path, bytes: u64) -> io::Result<SwapArea> {
        let name = CString::new(path.as_os_str().as_bytes())?;
        let made = fill(path, bytes).and_then(|()| {
            // SAFETY: a string that ends with a zero byte, and a number.
            match unsafe { libc::swapon(name.as_ptr(), 0) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        });
        if let Err(error) = made {
            // It may not exist.
            let _ = std::fs::remove_file(path);
            return Err(error);
        }
        let path = path.to_owned();
        Ok(SwapArea { path, name })
    }
}

impl Drop for SwapArea {
    fn drop(&mut self) {
        // SAFETY: a string that ends with a zero byte.
        if unsafe { libc::swapoff(self.name.as_ptr()) } != 0 {
            let error = io::Error::last_os_error();
            log::error!("cannot switch {} off: {error}", self.path.display());
            return;
        }
        if let Err(error) = std::fs::remove_file(&self.path) {
            log::error!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Writes the file: its signature and otherwise zeros, without holes, which no swap file may have.
fn fill(path: &Path, bytes: u64) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file: File = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    let pages = u32::try_from(bytes / PAGE_SIZE as u64).map_err(io::Error::other)?;
    let mut block = vec![0; BLOCK];
    block[HEADER..HEADER + 4].copy_from_slice(&VERSION.to_ne_bytes());
    block[HEADER + 4..HEADER + 8].copy_from_slice(&(pages - 1).to_ne_bytes());
    block[PAGE_SIZE - SIGNATURE.len()..PAGE_SIZE].copy_from_slice(SIGNATURE);
    let mut left = usize::try_from(bytes).map_err(io::Error::other)?;
    while left > 0 {
        let part = left.min(BLOCK);
        file.write_all(&block[..part])?;
        left -= part;
        block[..PAGE_SIZE].fill(0);
    }
    file.sync_all()
}

/// Asks the kernel to swap out `bytes` from address `start` of a process; how many it looked at.
///
/// # Errors
/// The kernel's: EPERM without privileges.
pub fn page_out(pid: i32, start: usize, bytes: usize) -> io::Result<usize> {
    let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::other("no process"))?;
    let pidfd: OwnedFd = pidfd_open(pid, PidfdFlags::empty())?;
    let range = libc::iovec {
        iov_base: start as *mut _,
        iov_len: bytes,
    };
    // SAFETY: one range, which is read only; the memory that it names is another process's, and what
    // the kernel swaps out stays readable there.
    let done = unsafe {
        libc::syscall(
            libc::SYS_process_madvise,
            pidfd.as_raw_fd(),
            &raw const range,
            1_usize,
            libc::MADV_PAGEOUT,
            0_u32,
        )
    };
    usize::try_from(done).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swap_file_begins_with_its_signature() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("swap");
        fill(&path, 3 << 20).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 3 << 20);
        assert_eq!(&bytes[PAGE_SIZE - 10..PAGE_SIZE], SIGNATURE);
        assert_eq!(bytes[HEADER + 4..HEADER + 8], 767_u32.to_ne_bytes());
        assert!(bytes[PAGE_SIZE..].iter().all(|byte| *byte == 0));
        // What is there is somebody's.
        assert!(fill(&path, 1 << 20).is_err());
    }

    #[test]
    fn nothing_is_left_of_what_cannot_be_switched_on() {
        let folder = tempfile::tempdir().unwrap();
        // A memory file system cannot be swapped to; nor can anybody without privileges.
        let path = folder.path().join("swap");
        if let Ok(area) = SwapArea::switch_on(&path, 1 << 20) {
            drop(area);
        }
        assert!(!path.exists());
    }
}
