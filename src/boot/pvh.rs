//! The PVH entry: 32-bit protected mode with `hvm_start_info` in ebx.
//!
//! Source: Xen's public/arch-x86/hvm/start_info.h and docs/misc/pvh.pandoc.

use kvm_bindings::{kvm_regs, kvm_segment};

use super::image::Image;
use super::segments::{flat_code, flat_data, no_task, put_gdt};
use super::{Error, StartState, initrd, memory_map, put, put_cmdline};
use crate::sys::ram::GuestRam;

const GDT: u64 = 0x5000;
const START_INFO: u64 = 0x6000;
const MODULE_LIST: u64 = 0x6800;
const MEMORY_MAP: u64 = 0x7000;

const MAGIC: u32 = 0x336e_c578;
/// Version with a memory map.
const VERSION: u32 = 1;

/// Writes start info, memory map, command line and initial RAM disk, and says how the vCPU starts.
/// `rsdp` is where the ACPI tables start.
///
/// # Errors
/// When something does not fit.
pub fn prepare(
    ram: &GuestRam,
    kernel_end: u64,
    entry: u64,
    cmdline: &str,
    initrd: Option<&Image>,
    rsdp: u64,
) -> Result<StartState, Error> {
    let cmdline = put_cmdline(ram, cmdline)?;
    let modules = match initrd {
        Some(initrd) => {
            let (gpa, length) = initrd::place(ram, kernel_end, u64::MAX, initrd)?;
            let module = [gpa, length, 0, 0].map(u64::to_le_bytes).concat();
            put(ram, MODULE_LIST, &module)?;
            1u32
        }
        None => 0,
    };
    let map = memory_map::of(ram);
    let entries = u32::try_from(map.len()).expect("a handful of entries");
    let map: Vec<u8> = map.iter().flat_map(map_entry).collect();
    put(ram, MEMORY_MAP, &map)?;
    let mut info = Vec::new();
    for word in [MAGIC, VERSION, 0, modules] {
        info.extend_from_slice(&word.to_le_bytes());
    }
    // Module list, command line, RSDP, memory map.
    let list = if modules == 0 { 0 } else { MODULE_LIST };
    for address in [list, cmdline, rsdp, MEMORY_MAP] {
        info.extend_from_slice(&address.to_le_bytes());
    }
    for word in [entries, 0] {
        info.extend_from_slice(&word.to_le_bytes());
    }
    put(ram, START_INFO, &info)?;
    // Kernels load their own GDT; this one only backs the selectors below.
    let gdt = put_gdt(ram, GDT, &[0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff])?;
    Ok(start_state(entry, gdt))
}

/// Start, length, type and 32 unused bits.
fn map_entry(range: &memory_map::Range) -> Vec<u8> {
    let words = [range.start, range.length, range.kind as u64];
    words.map(u64::to_le_bytes).concat()
}

fn start_state(entry: u64, gdt: (u64, u16)) -> StartState {
    let code = kvm_segment {
        db: 1,
        ..flat_code(1 << 3)
    };
    StartState {
        regs: kvm_regs {
            rip: entry,
            rbx: START_INFO,
            rflags: 2,
            ..Default::default()
        },
        segments: [code, flat_data(2 << 3), no_task()],
        gdt,
        // PE and ET.
        cr0: 0x11,
        cr3: 0,
        cr4: 0,
        efer: 0,
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::super::memory_map::{CONVENTIONAL_END, EXTENDED_START};
    use super::*;
    use crate::sys::ram::Layout;
    use crate::units::Pages;

    fn ram(pages: u64) -> std::sync::Arc<GuestRam> {
        GuestRam::new(Layout::new(Pages(pages))).unwrap()
    }

    fn words(ram: &GuestRam, gpa: u64) -> [u64; 4] {
        [0, 8, 16, 24].map(|at| ram.memory().read_obj(GuestAddress(gpa + at)).unwrap())
    }

    #[test]
    fn the_initrd_lies_at_the_top_of_low_memory() {
        let ram = ram(1024);
        let initrd = Image::Owned(vec![7; 0x1801]);
        let state = prepare(&ram, 0x20_0000, 0x10_0000, "quiet", Some(&initrd), 0xe_0000).unwrap();
        assert_eq!(state.regs.rbx, START_INFO);
        assert_eq!(words(&ram, MODULE_LIST), [0x3f_e000, 0x1801, 0, 0]);
        let last: u8 = ram.memory().read_obj(GuestAddress(0x3f_f800)).unwrap();
        assert_eq!(last, 7);
        assert_eq!(words(&ram, START_INFO + 16)[2], 0xe_0000);
        let magic: u32 = ram.memory().read_obj(GuestAddress(START_INFO)).unwrap();
        assert_eq!(magic, MAGIC);
        assert_eq!(words(&ram, MEMORY_MAP)[1], CONVENTIONAL_END);
        assert_eq!(
            words(&ram, MEMORY_MAP + 48)[..2],
            [EXTENDED_START, 0x30_0000]
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let initrd = Image::Owned(vec![7; 0x20_0001]);
        let refused = prepare(&ram(1024), 0x20_0000, 0, "", Some(&initrd), 0);
        assert!(matches!(refused, Err(Error::Initrd { .. })));
        let huge = Image::Owned(vec![7; 0x41_0000]);
        let refused = prepare(&ram(1024), 0, 0, "", Some(&huge), 0);
        assert!(matches!(refused, Err(Error::Initrd { .. })));
        assert!(matches!(
            prepare(&ram(4), 0, 0, "", None, 0),
            Err(Error::TooSmall { .. })
        ));
        for cmdline in ["a".repeat(2048), "a\0b".to_string()] {
            let refused = prepare(&ram(1024), 0, 0, &cmdline, None, 0);
            assert!(matches!(refused, Err(Error::Cmdline { .. })));
        }
    }
}
