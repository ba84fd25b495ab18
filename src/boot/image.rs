//! A file to be loaded into a guest, in memory or on disk, copied piece by piece: a kernel of
//! 40 MiB costs the VM process one buffer.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::{Error, put};
use crate::sys::ram::GuestRam;

/// Bytes copied at a time.
const PIECE_BYTES: usize = 64 * 1024;

/// The bytes of a kernel or an initial RAM disk.
#[derive(Debug)]
pub enum Image {
    /// Part of this program.
    Builtin(&'static [u8]),
    /// In memory.
    Owned(Vec<u8>),
    /// An open file, of which no more than its content is asked for.
    File {
        /// The file.
        file: File,
        /// Its length in bytes, when it was opened.
        length: u64,
    },
}

impl Image {
    /// The image in a regular file.
    ///
    /// # Errors
    /// When the file does not tell its length.
    pub fn file(file: File) -> io::Result<Image> {
        let length = file.metadata()?.len();
        Ok(Image::File { file, length })
    }

    /// Length in bytes.
    pub fn length(&self) -> u64 {
        match self {
            Image::Builtin(bytes) => bytes.len() as u64,
            Image::Owned(bytes) => bytes.len() as u64,
            Image::File { length, .. } => *length,
        }
    }

    /// Checks that the image has `length` bytes from `offset`; returns where they end.
    ///
    /// # Errors
    /// When the image ends before.
    pub fn check(&self, what: &'static str, offset: u64, length: u64) -> Result<u64, Error> {
        let file_bytes = self.length();
        let end = offset.checked_add(length);
        end.filter(|end| *end <= file_bytes)
            .ok_or(Error::Truncated {
                what,
                offset,
                length,
                file_bytes,
            })
    }

    /// Fills `bytes` from `offset`.
    ///
    /// # Errors
    /// When the image ends before, or cannot be read.
    pub fn read(&self, what: &'static str, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let end = self.check(what, offset, bytes.len() as u64)?;
        let copy = |memory: &[u8], bytes: &mut [u8]| {
            let range = usize::try_from(offset).ok()?..usize::try_from(end).ok()?;
            bytes.copy_from_slice(memory.get(range)?);
            Some(())
        };
        let wraps = Error::Broken("an offset wraps");
        match self {
            Image::Builtin(memory) => copy(memory, bytes).ok_or(wraps),
            Image::Owned(memory) => copy(memory, bytes).ok_or(wraps),
            Image::File { file, .. } => file
                .read_exact_at(bytes, offset)
                .map_err(|source| Error::Read { what, source }),
        }
    }

    /// Copies `length` bytes from `offset` to guest memory.
    pub(super) fn copy_to(
        &self,
        what: &'static str,
        (offset, length): (u64, u64),
        ram: &GuestRam,
        gpa: u64,
    ) -> Result<(), Error> {
        let piece_bytes = length.min(PIECE_BYTES as u64);
        let mut piece = vec![0; usize::try_from(piece_bytes).unwrap_or(PIECE_BYTES)];
        let mut done = 0;
        while done < length {
            let now = (length - done).min(piece_bytes);
            let piece = &mut piece[..usize::try_from(now).unwrap_or(PIECE_BYTES)];
            let at = offset
                .checked_add(done)
                .ok_or(Error::Broken("an offset wraps"))?;
            self.read(what, at, piece)?;
            put(ram, gpa + done, piece)?;
            done += now;
        }
        Ok(())
    }
}
