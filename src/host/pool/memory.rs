//! What the frames of a pool lie in.
//!
//! The host manager's frames lie in a memory file ([`FrameFile`]), because VM processes map it. The
//! pool's own bookkeeping needs no file, so it stands on a trait: a simulated host has frames that
//! nobody maps, and makes no file.

use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{FallocateFlags, MemfdFlags, Mode, OFlags, SealFlags, SeekFrom, Stat};
use rustix::io::Errno;

use crate::units::{FrameId, PAGE_SIZE, Pages};

/// Memory for the frames of one pool. Frames that were never written, or were punched out, take none.
pub trait FrameMemory: fmt::Debug + Send {
    /// The content of a frame.
    ///
    /// # Errors
    /// When it cannot be read whole.
    fn read(&self, frame: FrameId, page: &mut [u8; PAGE_SIZE]) -> Result<(), Errno>;

    /// Writes a frame.
    ///
    /// # Errors
    /// When there is no memory for it.
    fn write(&mut self, frame: FrameId, page: &[u8; PAGE_SIZE]) -> Result<(), Errno>;

    /// Gives the memory of so many frames back to the host.
    fn punch(&mut self, first: FrameId, frames: usize);

    /// Memory that it takes.
    fn taken(&self) -> Pages;

    /// A read-only descriptor for a VM process.
    ///
    /// # Errors
    /// When there is no descriptor left, or nothing that a process could map.
    fn reader(&self) -> Result<OwnedFd, Errno>;
}

/// What nobody can do to a pool, whoever opens it: change its length. Holes can still be punched.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

/// A memory file that the host manager alone writes.
#[derive(Debug)]
pub(super) struct FrameFile {
    file: OwnedFd,
}

impl FrameFile {
    /// An empty file of so many frames.
    pub(super) fn new(frames: u32) -> Result<FrameFile, super::Error> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let create = |flags| rustix::fs::memfd_create("tidemark-frames", flags);
        let file = match create(flags | MemfdFlags::NOEXEC_SEAL) {
            // Linux before 6.3 does not know NOEXEC_SEAL.
            Err(Errno::INVAL) => create(flags),
            other => other,
        }
        .map_err(super::error("create"))?;
        rustix::fs::ftruncate(&file, FrameId(frames).offset()).map_err(super::error("size"))?;
        // Nobody takes frames away from under those who map them, and nobody undoes this.
        rustix::fs::fcntl_add_seals(&file, SEALS).map_err(super::error("seal"))?;
        rustix::fs::fchmod(&file, Mode::RUSR).map_err(super::error("protect"))?;
        Ok(FrameFile { file })
    }

    /// The file of which `handed` is a read-only descriptor. Its mode says that nobody may write, so
    /// its owner first lets itself; root needs no leave. VM processes cannot open it meanwhile: see
    /// the pool's documentation.
    pub(super) fn reopen(handed: &OwnedFd) -> Result<FrameFile, super::Error> {
        let path = format!("/proc/self/fd/{}", handed.as_raw_fd());
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let opened = match rustix::fs::open(&path, flags, Mode::empty()) {
            Err(Errno::ACCESS) => {
                rustix::fs::fchmod(handed, Mode::RUSR | Mode::WUSR)
                    .map_err(super::error("unlock"))?;
                rustix::fs::open(&path, flags, Mode::empty())
            }
            other => other,
        };
        // Also where an earlier attempt was cut off in between.
        rustix::fs::fchmod(handed, Mode::RUSR).map_err(super::error("protect"))?;
        let file = opened.map_err(super::error("reopen"))?;
        Ok(FrameFile { file })
    }

    /// Which file it is.
    pub(super) fn stat(&self) -> Result<Stat, super::Error> {
        rustix::fs::fstat(&self.file).map_err(super::error("look at"))
    }

    /// The first `most` frames that the file has memory for, in ascending order.
    pub(super) fn frames(&self, most: u32) -> Result<Vec<FrameId>, super::Error> {
        let mut used = Vec::new();
        let mut at = 0;
        loop {
            let data = match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
                Ok(data) => data,
                Err(Errno::NXIO) => return Ok(used),
                Err(errno) => return Err(super::error("scan")(errno)),
            };
            let hole =
                rustix::fs::seek(&self.file, SeekFrom::Hole(data)).map_err(super::error("scan"))?;
            let range = Pages::in_bytes(data).0..Pages::holding_bytes(hole).0;
            let ids = range.filter_map(|frame| u32::try_from(frame).ok());
            used.extend(ids.filter(|id| *id < most).map(FrameId));
            // Whatever the file says, the search moves on.
            at = hole.max(data + PAGE_SIZE as u64);
        }
    }
}

impl FrameMemory for FrameFile {
    fn read(&self, frame: FrameId, page: &mut [u8; PAGE_SIZE]) -> Result<(), Errno> {
        match rustix::io::pread(&self.file, &mut page[..], frame.offset()) {
            Ok(PAGE_SIZE) => Ok(()),
            Ok(_) => Err(Errno::IO),
            Err(errno) => Err(errno),
        }
    }

    fn write(&mut self, frame: FrameId, page: &[u8; PAGE_SIZE]) -> Result<(), Errno> {
        let mut done = 0;
        while done < PAGE_SIZE {
            match rustix::io::pwrite(&self.file, &page[done..], frame.offset() + done as u64) {
                Ok(0) => return Err(Errno::NOSPC),
                Ok(bytes) => done += bytes,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    fn punch(&mut self, first: FrameId, frames: usize) {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let bytes = (frames * PAGE_SIZE) as u64;
        if let Err(errno) = rustix::fs::fallocate(&self.file, flags, first.offset(), bytes) {
            // The memory is reused with the frames; until then the host holds it.
            log::warn!("cannot punch {bytes} bytes out of the frame pool: {errno}");
        }
    }

    fn taken(&self) -> Pages {
        // The kernel counts in units of 512 bytes; a file of ours can always be asked.
        let blocks = rustix::fs::fstat(&self.file).map_or(0, |stat| stat.st_blocks);
        Pages::holding_bytes(u64::try_from(blocks).unwrap_or(0) * 512)
    }

    fn reader(&self) -> Result<OwnedFd, Errno> {
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// What a process of the same user tries that opens the file anew, as /proc lets it.
    #[test]
    fn nobody_takes_frames_away_from_who_maps_them() {
        let mut pool = FrameFile::new(4).unwrap();
        let page = [7; PAGE_SIZE];
        for frame in 0..4 {
            pool.write(FrameId(frame), &page).unwrap();
        }
        let reader = File::from(pool.reader().unwrap());
        let path = format!("/proc/self/fd/{}", reader.as_raw_fd());
        reader
            .set_permissions(Permissions::from_mode(0o600))
            .unwrap();
        let writer = OpenOptions::new().write(true).open(&path).unwrap();
        for length in [0, PAGE_SIZE, 5 * PAGE_SIZE] {
            let answer = writer.set_len(length as u64).unwrap_err();
            assert_eq!(answer.raw_os_error(), Some(libc::EPERM), "{length}");
            let by_path = OpenOptions::new().write(true).truncate(true).open(&path);
            assert!(by_path.is_err(), "{length}");
        }
        let mut back = [0; PAGE_SIZE];
        pool.read(FrameId(3), &mut back).unwrap();
        assert_eq!(back, page);
        // And freed frames still return to the host.
        pool.punch(FrameId(0), 4);
        assert_eq!(pool.taken(), Pages::ZERO);
    }
}
