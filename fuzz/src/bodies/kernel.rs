//! Kernel files: any file boots or is refused, and whoever only asks is told the same as who loads.

use tidemark::boot::acpi::{self, Hardware};
use tidemark::boot::image::Image;
use tidemark::boot::{Entry, Error, StartState, bzimage, direct, elf, fit, pvh};
use tidemark::sys::guest_range::frames_touched;
use tidemark::sys::ram::{GuestRam, LOW_RAM_END, Layout};
use tidemark::units::Pages;

use super::input::Input;

/// Where devices begin in the direct entry.
const DEVICES: u64 = 0xd000_0000;
const SEGMENT_LOAD: u32 = 1;
const SEGMENT_NOTE: u32 = 4;
const NOTE_PVH: u32 = 18;
/// Where most segments begin.
const SEGMENT: u64 = 0x10_0000;

/// Whether it was loaded and prepared.
pub fn body(data: &[u8]) -> bool {
    let mut input = Input::new(data);
    let kind = input.u8();
    let sizes = [
        Pages::mib(32),
        Pages::mib(32),
        Pages::mib(4),
        Pages::mib(17),
        Pages(1 + u64::from(kind)),
        Pages::in_bytes(LOW_RAM_END) + Pages::mib(8),
    ];
    let layout = Layout::new(input.pick(&sizes));
    let initrd = match input.below(4) {
        0 => Some(Image::Owned(vec![7; 1 + usize::from(input.u16())])),
        _ => None,
    };
    let cmdline = match input.below(8) {
        0 => "x".repeat(input.u16().into()),
        1 => "a\0b".to_owned(),
        _ => "console=ttyS0".to_owned(),
    };
    let file = match kind & 7 {
        0 => input.rest().to_vec(),
        1..=4 => elf_file(&mut input),
        _ => bzimage_file(&mut input),
    };
    let image = Image::Owned(file);
    let ram = GuestRam::new(layout).expect("address space suffices");
    let fits = fit::kernel(&image, ram.layout()).and_then(|room| {
        let fits = initrd
            .as_ref()
            .map(|initrd| fit::initrd(initrd.length(), room, ram.layout()));
        fits.unwrap_or(Ok(()))
    });
    match load(&image, initrd.as_ref(), &cmdline, &ram) {
        Ok((start, takes_initrd)) => {
            assert!(fits.is_ok() || !takes_initrd, "it boots, and: {fits:?}");
            let entry = start.regs.rip;
            frames_touched(ram.layout(), entry, 1).expect("the first instruction is in RAM");
            frames_touched(ram.layout(), start.cr3, 1).expect("page tables are in RAM");
            true
        }
        // The tables and the command line are nobody's question before.
        Err(Error::TooSmall { .. } | Error::Cmdline { .. } | Error::Broken(_)) => false,
        Err(error) => {
            assert!(fits.is_err(), "it is said to fit, and: {error}");
            assert!(!error.to_string().contains('\n'));
            false
        }
    }
}

/// As the machine does; whether the kernel gets an initial RAM disk.
fn load(
    image: &Image,
    initrd: Option<&Image>,
    cmdline: &str,
    ram: &GuestRam,
) -> Result<(StartState, bool), Error> {
    let hardware = Hardware {
        cpus: 2,
        virtio: Vec::new(),
        serial: (0x3f8, 4),
        sleep_port: 0x600,
        reset_port: 0x604,
    };
    if bzimage::is_bzimage(image)? {
        let header = bzimage::load(image, ram)?;
        let rsdp = acpi::write(ram, &hardware)?;
        return Ok((bzimage::prepare(ram, &header, cmdline, initrd, rsdp)?, true));
    }
    let loaded = elf::load(image, ram)?;
    match loaded.entry {
        Entry::Ring3 { gpa } => {
            let start = direct::prepare(ram, &loaded, gpa, cmdline, DEVICES)?;
            Ok((start, false))
        }
        Entry::Pvh { gpa } => {
            let rsdp = acpi::write(ram, &hardware)?;
            let start = pvh::prepare(ram, loaded.end, gpa, cmdline, initrd, rsdp)?;
            Ok((start, true))
        }
    }
}

/// Overwrites some bytes of a file, or cuts it.
fn damage(mut file: Vec<u8>, input: &mut Input<'_>) -> Vec<u8> {
    for _ in 0..input.pick(&[0u8, 0, 0, 1, 2, 4]) {
        let at = usize::from(input.u16()) % file.len();
        let length = usize::from(input.pick(&[1u8, 1, 2, 4, 8]));
        for (old, new) in file[at..].iter_mut().zip(input.bytes(length)) {
            *old = *new;
        }
        if input.u8() == 0xff {
            file.truncate(at.max(1));
        }
    }
    file
}

/// An executable with a program's segments and notes.
fn elf_file(input: &mut Input<'_>) -> Vec<u8> {
    let mut notes = Vec::new();
    for _ in 0..=input.below(2) {
        let entry = match input.below(8) {
            0 => input.number(SEGMENT),
            _ => SEGMENT + 0x10,
        };
        let (name, kind, bytes) = match input.below(4) {
            0 => (&b"tidemark\0"[..], 1, entry.to_le_bytes().to_vec()),
            1 => (&b"GNU\0"[..], 3, vec![0; 20]),
            _ => {
                let entry = u32::try_from(entry).unwrap_or(u32::MAX);
                (&b"Xen\0"[..], NOTE_PVH, entry.to_le_bytes().to_vec())
            }
        };
        note(&mut notes, name, kind, &bytes);
    }
    let loads = 1 + input.below(3);
    let headers = usize::from(loads) + 1;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(64, 0);
    file[18] = 62;
    file[32] = 64;
    file[54] = 56;
    file[56] = loads + 1;
    let mut data = 64 + 56 * headers as u64;
    let mut content = Vec::new();
    for number in 0..u64::from(loads) {
        let (gpa, length) = match input.below(12) {
            0 => (input.number(32 << 20), input.number(4096)),
            _ => (SEGMENT + number * 0x1000, 0x1000),
        };
        let bytes = vec![0x90; usize::from(input.u8())];
        segment(
            &mut file,
            SEGMENT_LOAD,
            data,
            gpa,
            [bytes.len() as u64, length],
        );
        data += bytes.len() as u64;
        content.extend(bytes);
    }
    let length = notes.len() as u64;
    segment(&mut file, SEGMENT_NOTE, data, 0, [length, length]);
    file.extend(content);
    file.extend(notes);
    damage(file, input)
}

fn segment(file: &mut Vec<u8>, kind: u32, offset: u64, gpa: u64, [in_file, in_memory]: [u64; 2]) {
    file.extend_from_slice(&u64::from(kind).to_le_bytes());
    for word in [offset, gpa, gpa, in_file, in_memory, 1] {
        file.extend_from_slice(&word.to_le_bytes());
    }
}

fn note(notes: &mut Vec<u8>, name: &[u8], kind: u32, content: &[u8]) {
    for length in [name.len(), content.len()] {
        let length = u32::try_from(length).expect("a short note");
        notes.extend_from_slice(&length.to_le_bytes());
    }
    notes.extend_from_slice(&kind.to_le_bytes());
    for part in [name, content] {
        notes.extend_from_slice(part);
        notes.resize(notes.len().next_multiple_of(4), 0);
    }
}

/// A Linux kernel of one setup sector (Documentation/arch/x86/boot.rst).
fn bzimage_file(input: &mut Input<'_>) -> Vec<u8> {
    let paragraphs = 1 + u16::from(input.u8());
    let mut file = vec![0; 2 * 512 + usize::from(paragraphs) * 16];
    let load = match input.below(8) {
        0 => input.number(32 << 20),
        _ => SEGMENT,
    };
    let init_bytes = match input.below(8) {
        0 => input.u32(),
        _ => 0x20_0000,
    };
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1f4, &u32::from(paragraphs).to_le_bytes());
    put(0x1fe, &0xaa55u16.to_le_bytes());
    put(0x200, &[0xeb, 0x66]);
    put(0x202, b"HdrS");
    put(0x206, &0x20fu16.to_le_bytes());
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x236, &1u16.to_le_bytes());
    put(0x258, &load.to_le_bytes());
    put(0x260, &init_bytes.to_le_bytes());
    damage(file, input)
}
