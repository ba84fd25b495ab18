//! What a guest learns at its start: the command line and its memory.

use core::cell::UnsafeCell;
use core::ffi::CStr;

use crate::println;

/// The most of a command line that a guest keeps.
const COMMAND_LINE_BYTES: usize = 1024;
/// Test guests use no memory above this address, where devices begin.
const RAM_END_MAX: u64 = 3 << 30;

/// What a behaviour starts from.
#[derive(Debug, Clone, Copy)]
pub struct BootInfo {
    /// Options and devices.
    pub command_line: &'static str,
    /// First byte that the image does not use, a multiple of the page size.
    pub free_start: u64,
    /// End of memory, a multiple of the page size.
    pub ram_end: u64,
}

struct CommandLine(UnsafeCell<[u8; COMMAND_LINE_BYTES]>);
// SAFETY: a guest has one thread of execution.
unsafe impl Sync for CommandLine {}
static COMMAND_LINE: CommandLine = CommandLine(UnsafeCell::new([0; COMMAND_LINE_BYTES]));

unsafe extern "C" {
    /// End of the image, set by the linker script.
    static image_end: u8;
}

impl BootInfo {
    /// Copies the command line, which the loader may have put into memory that the guest will use.
    ///
    /// Called once.
    pub(crate) fn new(line: &CStr, ram_end: u64) -> Self {
        let bytes = line.to_bytes();
        if bytes.len() > COMMAND_LINE_BYTES {
            println!("command line of {} bytes: too long", bytes.len());
            crate::port::exit(2);
        }
        // SAFETY: called once, before anything refers to the buffer.
        let kept = unsafe { &mut *COMMAND_LINE.0.get() };
        kept[..bytes.len()].copy_from_slice(bytes);
        let Ok(command_line) = core::str::from_utf8(&kept[..bytes.len()]) else {
            println!("command line is no UTF-8");
            crate::port::exit(2);
        };
        Self {
            command_line,
            free_start: (&raw const image_end) as u64,
            ram_end: ram_end.min(RAM_END_MAX) & !0xfff,
        }
    }

    /// Pages of 4 KiB from address zero to the end of memory.
    #[must_use]
    pub fn ram_pages(&self) -> u32 {
        (self.ram_end >> 12) as u32
    }
}

/// Start of `hvm_start_info`. Source: Xen's public/arch-x86/hvm/start_info.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    modules_address: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct MemoryMapEntry {
    address: u64,
    bytes: u64,
    kind: u32,
    reserved: u32,
}

const START_INFO_MAGIC: u32 = 0x336e_c578;
const KIND_RAM: u32 = 1;

/// The command line's address (0: none) and the end of the memory the image lies in.
///
/// # Safety
///
/// `address` must be what a PVH loader left in `ebx`.
pub(crate) unsafe fn read_start_info(address: u64) -> (u64, u64) {
    // SAFETY: the caller passes the address of a start info.
    let info = unsafe { (address as *const StartInfo).read_unaligned() };
    if info.magic != START_INFO_MAGIC || info.version == 0 {
        println!("no PVH start info with a memory map");
        crate::port::exit(2);
    }
    let image = (&raw const image_end) as u64;
    let mut ram_end = 0;
    for index in 0..u64::from(info.memory_map_entries.min(128)) {
        let at = info.memory_map + index * size_of::<MemoryMapEntry>() as u64;
        // SAFETY: the start info names so many entries at this address.
        let entry = unsafe { (at as *const MemoryMapEntry).read_unaligned() };
        let end = entry.address.saturating_add(entry.bytes);
        if entry.kind == KIND_RAM && entry.address < image && image <= end {
            ram_end = end;
        }
    }
    if ram_end == 0 {
        println!("no memory around the image");
        crate::port::exit(2);
    }
    (info.command_line, ram_end)
}
