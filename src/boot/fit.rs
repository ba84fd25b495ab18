//! Whether a guest's files can be booted in its memory, asked of the loaders' own parsers and
//! placement before there is a guest.

use super::image::Image;
use super::{Error, bzimage, elf, initrd};
use crate::sys::ram::Layout;

/// What a kernel leaves for its initial RAM disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    kernel_end: u64,
    initrd_last: u64,
}

/// Checks a kernel file against memory of this layout.
///
/// # Errors
/// Those of loading it.
pub fn kernel(image: &Image, layout: &Layout) -> Result<Room, Error> {
    if bzimage::is_bzimage(image)? {
        let header = bzimage::read(image, layout)?;
        return Ok(Room {
            kernel_end: header.kernel_end(),
            initrd_last: header.initrd_last(),
        });
    }
    let executable = elf::read(image, layout)?;
    Ok(Room {
        kernel_end: executable.loaded.end,
        initrd_last: u64::MAX,
    })
}

/// Checks an initial RAM disk of `length` bytes against the room that its kernel leaves.
///
/// # Errors
/// Those of loading it.
pub fn initrd(length: u64, room: Room, layout: &Layout) -> Result<(), Error> {
    initrd::find_place(layout, room.kernel_end, room.initrd_last, length).map(|_| ())
}
