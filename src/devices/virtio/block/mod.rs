//! The virtio block device (virtio 1.2, section 5.2) on a raw image.
//!
//! Data goes through a buffer of ours in both directions. The host kernel therefore never touches
//! guest pages during I/O, and the pager may take any page at any time.
//!
//! Requests are served one after the other on the thread of the vCPU that announced them: simple, and
//! enough for test disks. Known gap: a slow disk stalls that vCPU.

mod device;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::mmio::Transport;
use crate::devices::bus::BusDevice;
use crate::devices::idle::IdlePort;
use crate::devices::interrupt::Interrupt;
use crate::sys::ram::GuestRam;

use device::BlockDevice;

/// The unit of addresses on the device, whatever the disk's own is.
pub const SECTOR_BYTES: u64 = 512;

/// Whether the guest may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Any number of VMs at once.
    ReadOnly,
    /// One VM at a time, and no reader beside it.
    Writable,
}

/// Why an image cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Missing, or not ours to open.
    #[error("cannot open the disk {}", path.display())]
    Open {
        /// The image.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Neither a file nor a block device.
    #[error("the disk {} is neither a regular file nor a block device", path.display())]
    Kind {
        /// What it is not.
        path: PathBuf,
    },
    /// Another VM has it.
    #[error("the disk {} is in use by another VM", path.display())]
    Locked {
        /// The image.
        path: PathBuf,
    },
    /// Its file system cannot lock it.
    #[error("cannot lock the disk {}", path.display())]
    Lock {
        /// The image.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Not a whole number of sectors, or none.
    #[error(
        "the disk {} has {bytes} bytes: not a whole number of {SECTOR_BYTES}-byte sectors",
        path.display()
    )]
    Length {
        /// The image.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
}

/// An opened and locked image. The lock lasts as long as this value.
#[derive(Debug)]
pub struct Disk {
    file: File,
    access: Access,
    sectors: u64,
}

impl Disk {
    /// Opens and locks the image at `path`: a file or a block device.
    ///
    /// # Errors
    /// When it is missing, locked, or no disk.
    pub fn open(path: &Path, access: Access) -> Result<Disk, Error> {
        let open_error = |source| Error::Open {
            path: path.into(),
            source,
        };
        let writable = access == Access::Writable;
        let mut options = File::options();
        // What stands there may have become a pipe since it was checked.
        let options = options.read(true).custom_flags(libc::O_NONBLOCK);
        let mut file = options.write(writable).open(path).map_err(open_error)?;
        let kind = file.metadata().map_err(open_error)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(Error::Kind { path: path.into() });
        }
        let operation = match access {
            Access::ReadOnly => FlockOperation::NonBlockingLockShared,
            Access::Writable => FlockOperation::NonBlockingLockExclusive,
        };
        rustix::fs::flock(&file, operation).map_err(|errno| match errno {
            Errno::WOULDBLOCK => Error::Locked { path: path.into() },
            errno => Error::Lock {
                path: path.into(),
                source: errno.into(),
            },
        })?;
        // A block device's metadata do not tell.
        let bytes = file.seek(SeekFrom::End(0)).map_err(open_error)?;
        if bytes == 0 || !bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(Error::Length {
                path: path.into(),
                bytes,
            });
        }
        Ok(Disk {
            file,
            access,
            sectors: bytes / SECTOR_BYTES,
        })
    }
}

/// The registers of a block device on `disk`, to be placed on the memory bus.
pub fn bus_device(
    disk: Disk,
    ram: Arc<GuestRam>,
    interrupt: Arc<dyn Interrupt>,
    idle: Arc<IdlePort>,
) -> Arc<dyn BusDevice> {
    let device = BlockDevice::new(disk);
    Arc::new(Transport::new("disk", device, ram, interrupt, idle))
}
