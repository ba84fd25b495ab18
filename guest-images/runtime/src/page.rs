//! Reading and writing the bytes of a page frame.
//!
//! Rules: a frame is addressed by number and only through the functions here; every access is
//! volatile, because the VMM may replace the memory behind a frame at any time; no reference to a
//! frame's bytes is ever made. [`Frame`] can only be had from an owner of memory that is not part of
//! the image, so that a write hits nothing the compiler knows of.

use tidemark_guest_model::content::{Identity, Mismatch, WORDS};

/// Bytes of a page.
pub const BYTES: u64 = 4096;

/// A page frame: identity-mapped memory outside the image, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame(u32);

impl Frame {
    /// The frame of this number.
    ///
    /// # Safety
    ///
    /// It must lie in memory, mapped at its own address, and overlap no object of the program.
    #[must_use]
    pub const unsafe fn new(number: u32) -> Self {
        Self(number)
    }

    /// Its number: the address divided by the page size.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }

    /// Its address.
    #[must_use]
    pub const fn address(self) -> u64 {
        self.0 as u64 * BYTES
    }

    const fn pointer(self, word: usize) -> *mut u64 {
        (self.address() as *mut u64).wrapping_add(word % WORDS)
    }

    /// Reads one of the 512 words.
    #[inline(always)]
    #[must_use]
    pub fn word(self, word: usize) -> u64 {
        // SAFETY: within the frame, which is mapped memory by the contract of `new`.
        unsafe { self.pointer(word).read_volatile() }
    }

    /// Writes one of the 512 words.
    #[inline(always)]
    pub fn set_word(self, word: usize, value: u64) {
        // SAFETY: within the frame, which no object of the program overlaps.
        unsafe { self.pointer(word).write_volatile(value) }
    }

    /// Writes one value into every word, as fast as the processor can.
    pub fn fill(self, value: u64) {
        // SAFETY: the whole frame and nothing else is written, and no object of the program overlaps
        // it; the direction flag is clear.
        unsafe {
            core::arch::asm!("rep stosq", inout("rcx") WORDS => _, inout("rdi") self.pointer(0) => _,
                in("rax") value, options(nostack, preserves_flags));
        }
    }

    /// Writes the whole content of an identity.
    pub fn write(self, identity: Identity) {
        identity.write(|word, value| self.set_word(word, value));
    }

    /// Compares all 4096 bytes with the content of an identity.
    pub fn compare(self, identity: Identity) -> Result<(), Mismatch> {
        identity.compare(|word| self.word(word))
    }
}
