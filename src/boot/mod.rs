//! Putting a guest's program into memory and its first vCPU in front of it.
//!
//! [`elf`] and [`bzimage`] read the kernel file, which may be any file; [`direct`] prepares the
//! ring-3 entry of tidemark's test guests, [`pvh`] and [`bzimage`] the entries of everything else,
//! which also gets [`acpi`] tables. [`fit`] asks the same parsers whether files can be booted, before
//! there is a guest. Guest memory is written through vm-memory; each write may fault
//! and wait for the pager.

pub mod acpi;
pub mod builtin;
pub mod bzimage;
pub mod cpuid;
pub mod direct;
pub mod elf;
pub mod fit;
mod foreign;
pub mod image;
mod initrd;
mod memory_map;
mod page_tables;
pub mod pvh;
mod segments;

use kvm_bindings::{kvm_regs, kvm_segment};

use crate::sys::ram::{GuestRam, LOW_RAM_END, Layout};
use crate::units::Pages;

/// Longest kernel command line in bytes, without its end mark (Linux' own limit on x86).
pub const CMDLINE_BYTES_MAX: usize = 2047;
/// Guest-physical address of the command line, for both entries.
const CMDLINE_GPA: u64 = 0x2_0000;

/// Why a guest cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {what}")]
    Read {
        /// Which part of the file.
        what: &'static str,
        /// The reason.
        source: std::io::Error,
    },
    /// No format that we know.
    #[error("the kernel is neither a bzImage nor an ELF file")]
    NotElf,
    /// A format that we know and cannot boot.
    #[error("the kernel is {0}")]
    Foreign(&'static str),
    /// A bzImage of a kernel without 64-bit entry.
    #[error(
        "the kernel is too old: its boot protocol is {}.{}, 2.12 (Linux 3.8) is needed",
        version >> 8,
        version & 0xff
    )]
    TooOld {
        /// Version of the boot protocol, major number in the upper byte.
        version: u16,
    },
    /// An ELF file for something else.
    #[error("the kernel is not a 64-bit x86-64 little-endian executable: {0}")]
    WrongMachine(String),
    /// The file ends before what it describes.
    #[error(
        "the kernel file is truncated: {what} at {offset:#x}+{length:#x}, the file has {file_bytes:#x} bytes"
    )]
    Truncated {
        /// What lies beyond the end.
        what: &'static str,
        /// Where it starts.
        offset: u64,
        /// How long it is.
        length: u64,
        /// Length of the file.
        file_bytes: u64,
    },
    /// Headers that contradict themselves.
    #[error("the kernel file is broken: {0}")]
    Broken(&'static str),
    /// A segment that does not fit the guest's memory.
    #[error("the kernel's segment {gpa:#x}+{length:#x} does not fit the guest's {ram} of memory")]
    SegmentOutsideRam {
        /// First guest-physical address.
        gpa: u64,
        /// Length in memory.
        length: u64,
        /// Size of the guest.
        ram: Pages,
    },
    /// A segment over the tables that the direct entry builds.
    #[error("the test guest's segment at {gpa:#x} lies below {low_end:#x}, which the VMM uses")]
    SegmentInLowMemory {
        /// First guest-physical address.
        gpa: u64,
        /// End of the VMM's area.
        low_end: u64,
    },
    /// Neither entry is there.
    #[error(
        "the kernel has no entry note: neither tidemark's ring-3 note nor PVH (XEN_ELFNOTE_PHYS32_ENTRY)"
    )]
    NoEntry,
    /// The entry is not RAM.
    #[error("the kernel's entry {gpa:#x} is not in the guest's memory")]
    EntryOutsideRam {
        /// Where it points.
        gpa: u64,
    },
    /// The command line does not fit or holds a zero byte.
    #[error(
        "the command line has {length} bytes, at most {CMDLINE_BYTES_MAX} without zero bytes are taken"
    )]
    Cmdline {
        /// Its length.
        length: usize,
    },
    /// The initial RAM disk does not fit.
    #[error(
        "the initrd of {length} bytes does not fit between the kernel's end {kernel_end:#x} and {ram_end:#x}"
    )]
    Initrd {
        /// Its length.
        length: u64,
        /// First address after the kernel.
        kernel_end: u64,
        /// End of RAM below 3 GiB.
        ram_end: u64,
    },
    /// The guest is too small for the tables of its entry.
    #[error("the guest's memory is too small: {gpa:#x}+{length:#x} is needed")]
    TooSmall {
        /// Where something should be.
        gpa: u64,
        /// Its length.
        length: u64,
    },
}

/// Where and in which mode the first vCPU starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// 64-bit ring 3, tidemark's test guests.
    Ring3 {
        /// First instruction.
        gpa: u64,
    },
    /// 32-bit protected mode by the PVH protocol.
    Pvh {
        /// First instruction.
        gpa: u64,
    },
}

/// Registers of a vCPU at its first instruction. Special registers not named stay as KVM made them.
#[derive(Debug, Clone, Copy)]
pub struct StartState {
    /// General registers.
    pub regs: kvm_regs,
    /// cs, then the one for ds, es, ss, fs and gs, then tr.
    pub segments: [kvm_segment; 3],
    /// Base and limit of the GDT.
    pub gdt: (u64, u16),
    /// Control registers and EFER.
    pub cr0: u64,
    /// Page table root.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Extended features.
    pub efer: u64,
}

/// End of the RAM that starts at guest-physical zero.
fn low_ram_end(layout: &Layout) -> u64 {
    layout.size().bytes().min(LOW_RAM_END)
}

/// Writes guest memory during setup.
fn put(ram: &GuestRam, gpa: u64, bytes: &[u8]) -> Result<(), Error> {
    use vm_memory::{Bytes, GuestAddress};
    let length = bytes.len() as u64;
    ram.memory()
        .write_slice(bytes, GuestAddress(gpa))
        .map_err(|_| Error::TooSmall { gpa, length })
}

/// Writes the command line, NUL-terminated; returns its address.
fn put_cmdline(ram: &GuestRam, cmdline: &str) -> Result<u64, Error> {
    if cmdline.len() > CMDLINE_BYTES_MAX || cmdline.as_bytes().contains(&0) {
        let length = cmdline.len();
        return Err(Error::Cmdline { length });
    }
    put(ram, CMDLINE_GPA, &[cmdline.as_bytes(), &[0]].concat())?;
    Ok(CMDLINE_GPA)
}
