//! bzImage: the file that distributions ship, entered by Linux' 64-bit boot protocol.
//!
//! ```text
//! 0x05000  GDT            0x07000  zero page (boot_params)
//! 0x09000  PML4, PDPT, 4 page directories
//! 0x20000  command line   0xe0000  ACPI tables
//! 0x1000000 (the kernel's choice)  compressed kernel, and room to unpack itself
//! ```
//!
//! Read by hand like [`super::elf`]: every offset is checked against the file, every address
//! against RAM. Source: Documentation/arch/x86/boot.rst.

use kvm_bindings::{kvm_regs, kvm_segment};

use super::image::Image;
use super::memory_map::{self, Kind};
use super::page_tables::PageTables;
use super::segments::{flat_code, flat_data, no_task, put_gdt};
use super::{Error, StartState, initrd, put, put_cmdline};
use crate::sys::guest_range::frames_touched;
use crate::sys::ram::{GuestRam, Layout};

const GDT: u64 = 0x5000;
const ZERO_PAGE: u64 = 0x7000;
const PML4: u64 = 0x9000;
const PDPT: u64 = 0xa000;
const PAGE_DIRECTORIES: u64 = 0xb000;

/// Where the setup header starts in the file and in the zero page.
const HEADER: usize = 0x1f1;
/// End of the part of the file that is read at once: the longest possible setup header.
const HEADER_END: usize = 0x202 + 0xff;
const BOOT_FLAG: u16 = 0xaa55;
const MAGIC: &[u8; 4] = b"HdrS";
/// 2.12 introduced the flag that says whether there is a 64-bit entry (Linux 3.8).
const VERSION_MIN: u16 = 0x020c;
/// Flag of `xloadflags`: 64-bit entry at 0x200.
const HAS_64BIT_ENTRY: u16 = 1;
/// Flag of `loadflags`: the kernel belongs above 1 MiB.
const LOADED_HIGH: u8 = 1;
const ENTRY_64BIT: u64 = 0x200;
/// A boot loader without a number of its own.
const LOADER_UNKNOWN: u8 = 0xff;
const SECTOR_BYTES: u64 = 512;
const PARAGRAPH_BYTES: u64 = 16;

/// What the setup header says, checked.
#[derive(Debug)]
pub struct SetupHeader {
    /// The header itself, as it goes into the zero page.
    raw: Vec<u8>,
    /// Where the kernel proper starts in the file.
    offset: u64,
    /// Its length in the file.
    length: u64,
    /// Where it is loaded.
    load_gpa: u64,
    /// Memory from there that it needs before it looks at the memory map.
    init_bytes: u64,
    /// Last address that an initial RAM disk may have.
    initrd_last: u64,
}

/// Whether the file calls itself a Linux boot image for x86.
///
/// # Errors
/// When it cannot be read.
pub fn is_bzimage(image: &Image) -> Result<bool, Error> {
    let mut magic = [0; 4];
    match image.read("the boot header", 0x202, &mut magic) {
        Ok(()) => Ok(magic == *MAGIC),
        Err(Error::Truncated { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Copies the kernel to where it wants to be.
///
/// # Errors
/// One for each way in which the file can be unsuitable.
pub fn load(image: &Image, ram: &GuestRam) -> Result<SetupHeader, Error> {
    let header = read(image, ram.layout())?;
    let gpa = header.load_gpa;
    let source = (header.offset, header.length);
    image.copy_to("the compressed kernel", source, ram, gpa)?;
    Ok(header)
}

/// Reads the setup header, and checks that the kernel is in the file and has room in memory.
///
/// # Errors
/// One for each way in which the file can be unsuitable.
pub fn read(image: &Image, layout: &Layout) -> Result<SetupHeader, Error> {
    let header = read_header(image)?;
    let (gpa, length) = (header.load_gpa, header.init_bytes.max(header.length));
    frames_touched(layout, gpa, length).map_err(|_| Error::SegmentOutsideRam {
        gpa,
        length,
        ram: layout.size(),
    })?;
    Ok(header)
}

impl SetupHeader {
    /// First address after the memory that the kernel needs.
    pub(super) fn kernel_end(&self) -> u64 {
        // `read` has found all of it in RAM.
        self.load_gpa + self.init_bytes.max(self.length)
    }

    /// Last address that an initial RAM disk may have.
    pub(super) fn initrd_last(&self) -> u64 {
        self.initrd_last
    }
}

fn read_header(image: &Image) -> Result<SetupHeader, Error> {
    let mut bytes = vec![0; HEADER_END];
    image.read("the boot header", 0, &mut bytes)?;
    let u8_at = |at: usize| bytes[at];
    let u16_at = |at| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let u32_at = |at| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
    let u64_at = |at| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
    if u16_at(0x1fe) != BOOT_FLAG {
        return Err(Error::Broken("no boot flag before the boot header"));
    }
    let version = u16_at(0x206);
    if version < VERSION_MIN {
        return Err(Error::TooOld { version });
    }
    if u16_at(0x236) & HAS_64BIT_ENTRY == 0 {
        return Err(Error::WrongMachine("a 32-bit bzImage".into()));
    }
    if u8_at(0x211) & LOADED_HIGH == 0 {
        return Err(Error::Broken("a kernel for below 1 MiB"));
    }
    // Zero stands for four, for the sake of very old loaders.
    let sectors = match u8_at(0x1f1) {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let offset = (sectors + 1) * SECTOR_BYTES;
    let described = u64::from(u32_at(0x1f4)) * PARAGRAPH_BYTES;
    let file_bytes = image.length();
    // The length is rounded up to paragraphs, the file need not be.
    let present = file_bytes.saturating_sub(offset);
    if described == 0 || present + PARAGRAPH_BYTES <= described {
        return Err(Error::Truncated {
            what: "the compressed kernel",
            offset,
            length: described,
            file_bytes,
        });
    }
    let end = (0x202 + usize::from(u8_at(0x201))).min(HEADER_END);
    if end < 0x264 {
        return Err(Error::Broken("the boot header is too short"));
    }
    Ok(SetupHeader {
        offset,
        length: described.min(present),
        load_gpa: u64_at(0x258),
        init_bytes: u32_at(0x260).into(),
        initrd_last: u32_at(0x22c).into(),
        raw: bytes[HEADER..end].to_vec(),
    })
}

/// Writes the zero page, command line, initial RAM disk and page tables, and says how the first
/// vCPU starts. `rsdp` is where the ACPI tables start.
///
/// # Errors
/// When something does not fit.
pub fn prepare(
    ram: &GuestRam,
    header: &SetupHeader,
    cmdline: &str,
    initrd: Option<&Image>,
    rsdp: u64,
) -> Result<StartState, Error> {
    let cmdline = put_cmdline(ram, cmdline)?;
    let (initrd_gpa, initrd_bytes) = match initrd {
        Some(initrd) => initrd::place(ram, header.kernel_end(), header.initrd_last, initrd)?,
        None => (0, 0),
    };
    let mut page = ZeroPage(vec![0; 0x1000]);
    page.put(HEADER, &header.raw);
    page.put(0x210, &[LOADER_UNKNOWN]);
    page.put(0x218, &low(initrd_gpa).to_le_bytes());
    page.put(0x21c, &low(initrd_bytes).to_le_bytes());
    page.put(0x228, &low(cmdline).to_le_bytes());
    page.put(0x070, &rsdp.to_le_bytes());
    let map = memory_map::of(ram);
    page.put(
        0x1e8,
        &[u8::try_from(map.len()).expect("a handful of entries")],
    );
    for (at, entry) in (0x2d0..).step_by(20).zip(&map) {
        page.put(at, &entry.start.to_le_bytes());
        page.put(at + 8, &entry.length.to_le_bytes());
        page.put(at + 16, &(entry.kind as u32).to_le_bytes());
    }
    debug_assert!(map.iter().any(|entry| entry.kind == Kind::Ram));
    put(ram, ZERO_PAGE, &page.0)?;
    TABLES.write(ram, |_| true)?;
    let gdt = put_gdt(ram, GDT, &DESCRIPTORS)?;
    Ok(start_state(header.load_gpa + ENTRY_64BIT, gdt))
}

struct ZeroPage(Vec<u8>);

impl ZeroPage {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// Everything we place lies below 4 GiB.
fn low(gpa: u64) -> u32 {
    u32::try_from(gpa).expect("placed below 4 GiB")
}

/// For the kernel's first instructions.
const TABLES: PageTables = PageTables {
    pml4: PML4,
    pdpt: PDPT,
    directories: PAGE_DIRECTORIES,
    table: 0x03,
    large: 0x83,
};

/// The protocol wants code at selector 0x10 and data at 0x18.
const DESCRIPTORS: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

fn start_state(entry: u64, gdt: (u64, u16)) -> StartState {
    let code = kvm_segment {
        l: 1,
        ..flat_code(0x10)
    };
    StartState {
        regs: kvm_regs {
            rip: entry,
            rsi: ZERO_PAGE,
            rflags: 2,
            ..Default::default()
        },
        segments: [code, flat_data(0x18), no_task()],
        gdt,
        // PG, ET, PE.
        cr0: 0x8000_0011,
        cr3: PML4,
        // PAE.
        cr4: 0x20,
        // Long mode enabled and active.
        efer: 0x500,
    }
}

#[cfg(test)]
mod tests;
