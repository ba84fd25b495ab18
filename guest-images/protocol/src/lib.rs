//! What a test guest and its VMM agree on: ports, the direct entry, the report lines.
//!
//! Two ways to enter a test guest's ELF file:
//!
//! * **PVH** (`XEN_ELFNOTE_PHYS32_ENTRY`): 32-bit protected mode, as QEMU and any PVH loader do it.
//! * **direct ring 3**: an ELF note of owner [`NOTE_NAME`] and type [`NOTE_TYPE_RING3`] whose
//!   descriptor is the 64-bit entry address (8 bytes, little-endian). The VMM builds page tables
//!   (identity, user-accessible), a GDT with DPL-3 segments and a TSS whose I/O bitmap allows every
//!   port, all below [`LOW_MEMORY_END`], and starts the vCPU in 64-bit ring 3 at that address with
//!   `rdi` = guest-physical address of the command line (NUL-terminated), `rsi` = bytes of RAM from
//!   address zero (at most 3 GiB; memory above 4 GiB is not used by test guests), `rsp` = top of a
//!   small stack below [`LOW_MEMORY_END`] (the guest switches to its own). There is no IDT: any
//!   fault ends in KVM_EXIT_SHUTDOWN with RIP at the culprit.
//!
//! virtio-mmio devices are named on the command line in Linux' syntax,
//! `virtio_mmio.device=4K@0xd0000000:5`, which the VMM appends; QEMU's microvm machine does the same.
#![no_std]

/// Guest-physical end of the memory that the VMM uses for tables, boot stack and command line in
/// the direct entry. Test guests are linked at or above this address (1 MiB).
pub const LOW_MEMORY_END: u64 = 0x10_0000;

/// Owner of tidemark's ELF notes.
pub const NOTE_NAME: &[u8] = b"tidemark\0";
/// Type of the note that holds the direct ring-3 entry.
pub const NOTE_TYPE_RING3: u32 = 1;

/// Data port of the serial console.
pub const PORT_SERIAL: u16 = 0x3f8;
/// A 32-bit write ends the VM with that value as its exit code (QEMU's isa-debug-exit ends with
/// `value * 2 + 1`).
pub const PORT_EXIT: u16 = 0xf4;
/// A 32-bit write of `n` lets the vCPU sleep for at most `n` milliseconds, or until a device's
/// configuration changes, or serial input arrives. Where nobody listens on the port the write returns at once. (Beyond the
/// four ports that QEMU's isa-debug-exit takes, or it would end the VM.)
pub const PORT_IDLE: u16 = 0xf8;

/// A console line that starts with this carries figures, `key=value` separated by single spaces,
/// decimal values: `tidemark: pages_verified=12 pages_corrupt=0`. The VMM takes such lines out of
/// the console. Keys: [`KEY_VERIFIED`], [`KEY_CORRUPT`]; unknown keys are ignored.
pub const REPORT_PREFIX: &str = "tidemark: ";
/// Pages compared so far.
pub const KEY_VERIFIED: &str = "pages_verified";
/// Pages that differed so far.
pub const KEY_CORRUPT: &str = "pages_corrupt";
