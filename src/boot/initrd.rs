//! Where the initial RAM disk goes.

use super::image::Image;
use super::memory_map::EXTENDED_START;
use super::{Error, low_ram_end};
use crate::sys::ram::{GuestRam, Layout};
use crate::units::{PAGE_SIZE, Pages};

/// Copies the RAM disk to the top of low RAM, at most up to the address `last`; returns where it
/// is and its length.
///
/// # Errors
/// When it does not fit above the kernel, or cannot be read.
pub(super) fn place(
    ram: &GuestRam,
    kernel_end: u64,
    last: u64,
    initrd: &Image,
) -> Result<(u64, u64), Error> {
    let length = initrd.length();
    let gpa = find_place(ram.layout(), kernel_end, last, length)?;
    initrd.copy_to("the initrd", (0, length), ram, gpa)?;
    Ok((gpa, length))
}

/// Where [`place`] would put one of `length` bytes.
///
/// # Errors
/// When it does not fit above the kernel.
pub(super) fn find_place(
    layout: &Layout,
    kernel_end: u64,
    last: u64,
    length: u64,
) -> Result<u64, Error> {
    let ram_end = low_ram_end(layout).min(last.saturating_add(1));
    let pages = Pages::holding_bytes(length);
    let first_free = kernel_end.max(EXTENDED_START);
    let gpa = Pages::in_bytes(ram_end).saturating_sub(pages).bytes();
    let fits = pages.0 <= ram_end / PAGE_SIZE as u64 && gpa >= first_free;
    if !fits {
        return Err(Error::Initrd {
            length,
            kernel_end: first_free,
            ram_end,
        });
    }
    Ok(gpa)
}
