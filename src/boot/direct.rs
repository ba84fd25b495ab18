//! The direct entry of tidemark's test guests: 64-bit ring 3 from the first instruction.
//!
//! ```text
//! 0x01000  PML4          0x07000  TSS with an I/O bitmap that allows every port
//! 0x02000  PDPT          0x10000 .. 0x20000  boot stack
//! 0x03000  4 page dirs   0x20000  command line
//! 0x0a000  GDT           0x100000  end: the guest's own from here
//! ```
//!
//! RAM below 3 GiB and the page of device windows are mapped at their own addresses with 2 MiB
//! pages, user-accessible. Nothing else is mapped and there is no IDT: a wild access ends the VM
//! with the instruction pointer at the culprit. Some software KVMs ignore IOPL, hence the bitmap.

use kvm_bindings::{kvm_regs, kvm_segment};

use super::elf::Loaded;
use super::page_tables::{LARGE_PAGE, PageTables};
use super::segments::{flat_code, flat_data, no_task, put_gdt};
use super::{Error, StartState, low_ram_end, put, put_cmdline};
use crate::sys::ram::GuestRam;

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PAGE_DIRECTORIES: u64 = 0x3000;
const TSS: u64 = 0x7000;
const GDT: u64 = 0xa000;
const STACK_TOP: u64 = 0x2_0000;

const TABLES: PageTables = PageTables {
    pml4: PML4,
    pdpt: PDPT,
    directories: PAGE_DIRECTORIES,
    // Present, writable, user; and for a large page also its size bit, accessed and dirty, so that
    // the walker never writes the tables.
    table: 0x07,
    large: 0xe7,
};

/// Bytes of the TSS before its I/O bitmap.
const TSS_BYTES: u16 = 104;
/// 65536 ports, and the byte of ones that must follow (Intel SDM 3A, section 20.5.2 "I/O permission
/// bit map").
const BITMAP_BYTES: u16 = 8192 + 1;

const SELECTOR_CODE: u16 = 3 << 3 | 3;
const SELECTOR_DATA: u16 = 4 << 3 | 3;
const SELECTOR_TSS: u16 = 5 << 3;

/// Writes tables and command line, and says how the vCPU starts.
///
/// `devices` is the guest-physical start of the device windows, which lie in one large page.
///
/// # Errors
/// When the guest is too small or the command line too long.
pub fn prepare(
    ram: &GuestRam,
    loaded: &Loaded,
    entry: u64,
    cmdline: &str,
    devices: u64,
) -> Result<StartState, Error> {
    if loaded.end == 0 {
        return Err(Error::Broken("no segment to load"));
    }
    let (ram_end, devices_page) = (low_ram_end(ram.layout()), devices - devices % LARGE_PAGE);
    TABLES.write(ram, |page| page < ram_end || page == devices_page)?;
    let (gdt, tr) = write_descriptors(ram)?;
    let cmdline = put_cmdline(ram, cmdline)?;
    let regs = kvm_regs {
        rip: entry,
        rsp: STACK_TOP,
        rdi: cmdline,
        rsi: ram_end,
        // Bit 1 is always set; IOPL 3. Interrupts stay off: there is no IDT.
        rflags: 0x3002,
        ..Default::default()
    };
    let code = kvm_segment {
        dpl: 3,
        l: 1,
        ..flat_code(SELECTOR_CODE)
    };
    let data = kvm_segment {
        dpl: 3,
        ..flat_data(SELECTOR_DATA)
    };
    Ok(StartState {
        regs,
        segments: [code, data, tr],
        gdt,
        // PG, AM, WP, NE, ET, MP, PE.
        cr0: 0x8005_0033,
        cr3: PML4,
        // PAE, OSFXSR, OSXMMEXCPT: Rust's core library uses SSE.
        cr4: 0x620,
        // Long mode enabled and active.
        efer: 0x500,
    })
}

/// GDT and TSS. Returns where the GDT is, and the task register.
fn write_descriptors(ram: &GuestRam) -> Result<((u64, u16), kvm_segment), Error> {
    let limit = u64::from(TSS_BYTES + BITMAP_BYTES - 1);
    // A busy 64-bit TSS; bits 24.. of its base are zero.
    let tss = limit | TSS << 16 | 0x8b << 40;
    let gdt = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00af_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
        tss,
        0,
    ];
    let gdt = put_gdt(ram, GDT, &gdt)?;
    // Fresh RAM is zero: no ring-0 stack, and an I/O bitmap that allows every port.
    put(ram, TSS + 102, &TSS_BYTES.to_le_bytes())?;
    put(ram, TSS + limit, &[0xff])?;
    let task = kvm_segment {
        base: TSS,
        limit: u32::from(TSS_BYTES + BITMAP_BYTES - 1),
        selector: SELECTOR_TSS,
        ..no_task()
    };
    Ok((gdt, task))
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::boot::Entry;
    use crate::boot::page_tables::GIB;
    use crate::sys::ram::Layout;
    use crate::units::Pages;

    const DEVICES: u64 = 0xd000_0000;

    fn mapped(ram: &GuestRam, gpa: u64) -> bool {
        let table = |at: u64| -> u64 { ram.memory().read_obj(GuestAddress(at)).unwrap() };
        let directory = table(PDPT + gpa / GIB * 8);
        directory != 0
            && table((directory & !0xfff) + gpa % GIB / LARGE_PAGE * 8) == gpa | TABLES.large
    }

    #[test]
    fn memory_and_device_windows_are_mapped_and_nothing_else() {
        let ram = GuestRam::new(Layout::new(Pages::mib(1536))).unwrap();
        let entry = Entry::Ring3 { gpa: 0x10_0000 };
        let loaded = Loaded {
            entry,
            end: 0x10_0001,
        };
        let state = prepare(&ram, &loaded, 0x10_0000, "", DEVICES).unwrap();
        assert_eq!(state.regs.rsi, 1536 << 20);
        for gpa in [0, GIB, (1536 << 20) - LARGE_PAGE, DEVICES] {
            assert!(mapped(&ram, gpa), "{gpa:#x}");
        }
        for gpa in [
            1536 << 20,
            2 * GIB,
            DEVICES - LARGE_PAGE,
            DEVICES + LARGE_PAGE,
        ] {
            assert!(!mapped(&ram, gpa), "{gpa:#x}");
        }
    }

    #[test]
    fn a_guest_too_small_for_the_tables_is_refused() {
        let ram = GuestRam::new(Layout::new(Pages(4))).unwrap();
        let entry = Entry::Ring3 { gpa: 0 };
        let loaded = Loaded { entry, end: 1 };
        let refused = prepare(&ram, &loaded, 0, "", DEVICES);
        assert!(matches!(refused, Err(Error::TooSmall { .. })));
    }
}
