//! Opening what a user named, whatever that is: no pipe makes the opener wait, no device is read, and
//! nothing is read without a bound.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// A fleet file or scenario, at most. Chosen: ten times a fleet of 10,000 tables of 10 words.
pub(crate) const TEXT_BYTES_MAX: u64 = 8 << 20;
/// A kernel or an initial RAM disk, at most: below 4 GiB is what either of them can be loaded to.
pub(crate) const IMAGE_BYTES_MAX: u64 = 4 << 30;
/// A disk, at most. Chosen: what ext4 can hold, four times.
pub(crate) const DISK_BYTES_MAX: u64 = 64 << 40;

/// Why a file is not what it must be.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// It cannot be opened or read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is a folder.
    #[error("is a folder, must be a file")]
    Folder,
    /// It is a pipe, a socket or a device.
    #[error("must be a regular file")]
    Kind,
    /// It is too long.
    #[error("has {bytes} bytes, may have {most}")]
    Long {
        /// Its length.
        bytes: u64,
        /// What it may have.
        most: u64,
    },
    /// It is no text.
    #[error("is not UTF-8")]
    Text,
}

/// What a file may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A regular file.
    Regular,
    /// Or a block device.
    Disk,
}

/// Opens the file at `path` for reading. What was opened is looked at, not what stands at the path
/// before or after.
///
/// # Errors
/// When it is none, or longer than `bytes_max`.
pub(crate) fn open_file(path: &Path, kind: Kind, bytes_max: u64) -> Result<File, Unfit> {
    let mut options = OpenOptions::new();
    // A pipe without a writer opens at once; regular files and disks do not mind.
    options.read(true).custom_flags(libc::O_NONBLOCK);
    let file = options.open(path)?;
    let meta = file.metadata()?;
    match meta.file_type() {
        found if found.is_file() => {}
        found if found.is_block_device() && kind == Kind::Disk => {}
        found if found.is_dir() => return Err(Unfit::Folder),
        _ => return Err(Unfit::Kind),
    }
    match meta.len() {
        bytes if bytes > bytes_max => Err(Unfit::Long {
            bytes,
            most: bytes_max,
        }),
        _ => Ok(file),
    }
}

/// The text of the file at `path`.
///
/// # Errors
/// When it is no regular file, no text, or longer than [`TEXT_BYTES_MAX`].
pub(crate) fn read_text(path: &Path) -> Result<String, Unfit> {
    let file = open_file(path, Kind::Regular, TEXT_BYTES_MAX)?;
    let mut bytes = Vec::new();
    // It may grow meanwhile, and files of /proc do not tell their length.
    file.take(TEXT_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 {
        bytes if bytes > TEXT_BYTES_MAX => Err(Unfit::Long {
            bytes,
            most: TEXT_BYTES_MAX,
        }),
        _ => String::from_utf8(bytes).map_err(|_| Unfit::Text),
    }
}
