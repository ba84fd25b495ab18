//! A VM's swap file: created unlinked and with mode 0, so that nobody else can open it and nothing
//! is left when the process ends, however it ends.
//!
//! Reads and writes bypass the page cache where the file system can (`O_DIRECT`): a swapped page
//! that sits in the host's page cache would not be reclaimed at all.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::sys::space::PageBuf;
use crate::units::{PAGE_SIZE, SwapSlot};

/// Where swapped pages go. The tests have one that fails on demand.
pub trait SwapStore: Send + Sync + std::fmt::Debug {
    /// Writes `pages` to the slots from `first`.
    ///
    /// # Errors
    /// When not all was written; the slots' content is undefined then.
    fn write(&self, first: SwapSlot, pages: &[PageBuf]) -> io::Result<()>;

    /// Reads one slot.
    ///
    /// # Errors
    /// When not all was read.
    fn read(&self, slot: SwapSlot, page: &mut PageBuf) -> io::Result<()>;

    /// Reads the slots from `first`, a batch at most.
    ///
    /// # Errors
    /// When not all was read; what `pages` hold is undefined then.
    fn read_run(&self, first: SwapSlot, pages: &mut [PageBuf]) -> io::Result<()> {
        let mut slots = (first.0..).map(SwapSlot).zip(pages);
        slots.try_for_each(|(slot, page)| self.read(slot, page))
    }
}

/// The swap file could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot create a swap file in {}", folder.display())]
pub struct CreateError {
    folder: PathBuf,
    source: Errno,
}

/// The real one.
#[derive(Debug)]
pub struct SwapFile {
    file: OwnedFd,
}

impl SwapFile {
    /// Creates a swap file in `folder`; it grows as it is used.
    ///
    /// # Errors
    /// When the folder's file system refuses unnamed files.
    pub fn create(folder: &Path) -> Result<SwapFile, CreateError> {
        // O_EXCL: the unnamed file can never be given a name.
        let flags = OFlags::TMPFILE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        let open = |flags| rustix::fs::open(folder, flags, Mode::empty());
        let file = match open(flags | OFlags::DIRECT) {
            Err(Errno::INVAL) => open(flags),
            answer => answer,
        }
        .map_err(|source| CreateError {
            folder: folder.into(),
            source,
        })?;
        Ok(SwapFile { file })
    }
}

impl SwapStore for SwapFile {
    fn write(&self, first: SwapSlot, pages: &[PageBuf]) -> io::Result<()> {
        // IOV_MAX is 1024; a batch is far smaller.
        let parts: Vec<_> = pages.iter().map(|page| io::IoSlice::new(&page.0)).collect();
        let written = rustix::io::pwritev(&self.file, &parts, first.offset())?;
        // A short write means that the disk is full: the rest would fail the same way.
        if written == pages.len() * PAGE_SIZE {
            Ok(())
        } else {
            Err(io::Error::from(io::ErrorKind::StorageFull))
        }
    }

    fn read(&self, slot: SwapSlot, page: &mut PageBuf) -> io::Result<()> {
        let read = rustix::io::pread(&self.file, &mut page.0, slot.offset())?;
        if read == PAGE_SIZE {
            Ok(())
        } else {
            Err(io::Error::from(io::ErrorKind::UnexpectedEof))
        }
    }

    fn read_run(&self, first: SwapSlot, pages: &mut [PageBuf]) -> io::Result<()> {
        let wanted = pages.len() * PAGE_SIZE;
        let parts = pages.iter_mut();
        let mut parts: Vec<_> = parts.map(|page| io::IoSliceMut::new(&mut page.0)).collect();
        let read = rustix::io::preadv(&self.file, &mut parts, first.offset())?;
        if read == wanted {
            Ok(())
        } else {
            Err(io::Error::from(io::ErrorKind::UnexpectedEof))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_come_back_and_the_file_has_no_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = SwapFile::create(folder.path()).unwrap();
        let pages = [PageBuf([1; PAGE_SIZE]), PageBuf([2; PAGE_SIZE])];
        file.write(SwapSlot(3), &pages).unwrap();
        let mut back = PageBuf::ZERO;
        file.read(SwapSlot(4), &mut back).unwrap();
        assert_eq!(back.0, [2; PAGE_SIZE]);
        assert!(file.read(SwapSlot(9), &mut back).is_err());
        let mut run = [PageBuf::ZERO, PageBuf::ZERO, PageBuf::ZERO];
        file.read_run(SwapSlot(3), &mut run[..2]).unwrap();
        assert!(run[0].0 == [1; PAGE_SIZE] && run[1].0 == [2; PAGE_SIZE]);
        assert!(
            file.read_run(SwapSlot(3), &mut run).is_err(),
            "a short read"
        );
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = SwapFile::create(Path::new("/nonexistent/folder")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/folder"));
    }
}
