//! Flat segments: base zero, the whole address space.

use kvm_bindings::kvm_segment;

use super::{Error, put};
use crate::sys::ram::GuestRam;

/// A code segment of ring 0, neither of 32 nor of 64 bits yet.
pub fn flat_code(selector: u16) -> kvm_segment {
    kvm_segment {
        limit: u32::MAX,
        selector,
        type_: 11,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    }
}

/// A data segment of ring 0.
pub fn flat_data(selector: u16) -> kvm_segment {
    kvm_segment {
        type_: 3,
        db: 1,
        ..flat_code(selector)
    }
}

/// A busy task register without a task, as a CPU wants to have one.
pub fn no_task() -> kvm_segment {
    kvm_segment {
        limit: 0x67,
        type_: 11,
        present: 1,
        ..Default::default()
    }
}

/// Writes a GDT; returns its base and limit.
///
/// # Errors
/// When the guest is too small.
pub fn put_gdt(ram: &GuestRam, gpa: u64, entries: &[u64]) -> Result<(u64, u16), Error> {
    let bytes: Vec<u8> = entries
        .iter()
        .flat_map(|entry| entry.to_le_bytes())
        .collect();
    put(ram, gpa, &bytes)?;
    let limit = u16::try_from(bytes.len() - 1).expect("a handful of entries");
    Ok((gpa, limit))
}
