//! ELF kernels: loading and finding the entry.
//!
//! Read by hand: linux-loader's loader does not check the machine, cannot tell a truncated file
//! from a segment outside RAM, and adds unchecked numbers of the file while it walks notes. The
//! file may be anything; every offset is checked against its length, every address against RAM.
//!
//! Source: System V ABI, chapter 4 and 5; the notes are described in the guest protocol crate and
//! in Xen's public/elfnote.h.

use tidemark_guest_protocol::{LOW_MEMORY_END, NOTE_NAME, NOTE_TYPE_RING3};

use super::image::Image;
use super::{Entry, Error, foreign};
use crate::sys::guest_range::frames_touched;
use crate::sys::ram::{GuestRam, Layout};

const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
/// Most program headers a file may have (chosen; Linux kernels have 5).
const PROGRAM_HEADERS_MAX: u16 = 64;
/// Longest note segment that is read (chosen; Linux' is about 500 bytes).
const NOTES_BYTES_MAX: u64 = 64 * 1024;

const CLASS_64: u8 = 2;
const DATA_LITTLE_ENDIAN: u8 = 1;
const MACHINE_X86_64: u16 = 62;
const SEGMENT_LOAD: u32 = 1;
const SEGMENT_NOTE: u32 = 4;

const XEN_NAME: &[u8] = b"Xen\0";
/// Type of Xen's note with the 32-bit PVH entry.
const XEN_NOTE_PHYS32_ENTRY: u32 = 18;

/// A loaded kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    /// Where it starts.
    pub entry: Entry,
    /// First guest-physical address after its last segment.
    pub end: u64,
}

/// An executable that can be loaded.
#[derive(Debug)]
pub struct Executable {
    /// What it will be once it is.
    pub loaded: Loaded,
    segments: Vec<ProgramHeader>,
}

#[derive(Debug)]
struct ProgramHeader {
    kind: u32,
    offset: u64,
    physical: u64,
    file_bytes: u64,
    memory_bytes: u64,
}

/// Copies the kernel's segments into guest memory, which must read as zero elsewhere.
///
/// # Errors
/// One for each way in which the file can be unsuitable; guest memory is then partly written.
pub fn load(image: &Image, ram: &GuestRam) -> Result<Loaded, Error> {
    let executable = read(image, ram.layout())?;
    for header in &executable.segments {
        let source = (header.offset, header.file_bytes);
        image.copy_to("a segment", source, ram, header.physical)?;
    }
    Ok(executable.loaded)
}

/// Reads the headers, and checks that every segment is in the file and has room in memory.
///
/// # Errors
/// One for each way in which the file can be unsuitable.
pub fn read(image: &Image, layout: &Layout) -> Result<Executable, Error> {
    let headers = program_headers(image)?;
    let entry = find_entry(image, &headers)?;
    let segments: Vec<ProgramHeader> = headers
        .into_iter()
        .filter(|header| header.kind == SEGMENT_LOAD)
        .collect();
    let mut end = 0;
    for segment in &segments {
        end = end.max(check_segment(image, segment, entry, layout)?);
    }
    let (Entry::Ring3 { gpa } | Entry::Pvh { gpa }) = entry;
    frames_touched(layout, gpa, 1).map_err(|_| Error::EntryOutsideRam { gpa })?;
    Ok(Executable {
        loaded: Loaded { entry, end },
        segments,
    })
}

/// First guest-physical address after the segment.
fn check_segment(
    image: &Image,
    header: &ProgramHeader,
    entry: Entry,
    layout: &Layout,
) -> Result<u64, Error> {
    let (gpa, length) = (header.physical, header.memory_bytes);
    if header.file_bytes > length {
        return Err(Error::Broken(
            "a segment is longer in the file than in memory",
        ));
    }
    if length == 0 {
        return Ok(0);
    }
    frames_touched(layout, gpa, length).map_err(|_| Error::SegmentOutsideRam {
        gpa,
        length,
        ram: layout.size(),
    })?;
    if matches!(entry, Entry::Ring3 { .. }) && gpa < LOW_MEMORY_END {
        return Err(Error::SegmentInLowMemory {
            gpa,
            low_end: LOW_MEMORY_END,
        });
    }
    image.check("a segment", header.offset, header.file_bytes)?;
    Ok(gpa + length)
}

fn program_headers(image: &Image) -> Result<Vec<ProgramHeader>, Error> {
    let mut magic = [0; 4];
    match image.read("the magic number", 0, &mut magic) {
        Ok(()) if magic == *b"\x7fELF" => {}
        Ok(()) | Err(Error::Truncated { .. }) => return Err(foreign::error(image)),
        Err(error) => return Err(error),
    }
    let mut header = [0; HEADER_BYTES];
    image.read("the ELF header", 0, &mut header)?;
    let machine = match header[5] {
        DATA_LITTLE_ENDIAN => u16_at(&header, 18),
        _ => u16::from_be_bytes([header[18], header[19]]),
    };
    if machine != MACHINE_X86_64 {
        let what = format!("it is for {}", foreign::machine(machine));
        return Err(Error::WrongMachine(what));
    }
    if header[4] != CLASS_64 || header[5] != DATA_LITTLE_ENDIAN {
        let what = format!("class {}, byte order {}", header[4], header[5]);
        return Err(Error::WrongMachine(what));
    }
    let (table, entry_bytes, count) = (
        u64_at(&header, 32),
        u16_at(&header, 54),
        u16_at(&header, 56),
    );
    if usize::from(entry_bytes) != PROGRAM_HEADER_BYTES {
        return Err(Error::Broken("program headers of an unknown size"));
    }
    if count > PROGRAM_HEADERS_MAX {
        return Err(Error::Broken("too many program headers"));
    }
    let mut bytes = vec![0; usize::from(count) * PROGRAM_HEADER_BYTES];
    image.read("the program headers", table, &mut bytes)?;
    let headers = bytes.chunks_exact(PROGRAM_HEADER_BYTES);
    Ok(headers.map(program_header).collect())
}

fn program_header(bytes: &[u8]) -> ProgramHeader {
    ProgramHeader {
        kind: u32_at(bytes, 0),
        offset: u64_at(bytes, 8),
        physical: u64_at(bytes, 24),
        file_bytes: u64_at(bytes, 32),
        memory_bytes: u64_at(bytes, 40),
    }
}

/// The ring-3 entry if there is one, else PVH.
fn find_entry(image: &Image, headers: &[ProgramHeader]) -> Result<Entry, Error> {
    let mut pvh = None;
    for header in headers.iter().filter(|header| header.kind == SEGMENT_NOTE) {
        let length = usize::try_from(header.file_bytes.min(NOTES_BYTES_MAX))
            .map_err(|_| Error::Broken("a note segment is too long"))?;
        let mut notes = vec![0; length];
        image.read("the notes", header.offset, &mut notes)?;
        for note in Notes(&notes) {
            if note.name == NOTE_NAME && note.kind == NOTE_TYPE_RING3 {
                let gpa = note.value::<8>().map(u64::from_le_bytes);
                let gpa = gpa.ok_or(Error::Broken("tidemark's note is shorter than 8 bytes"))?;
                return Ok(Entry::Ring3 { gpa });
            }
            if note.name == XEN_NAME && note.kind == XEN_NOTE_PHYS32_ENTRY {
                let gpa = note.value::<4>().map(u32::from_le_bytes);
                let gpa = gpa.ok_or(Error::Broken("the PVH note is shorter than 4 bytes"))?;
                pvh = Some(Entry::Pvh { gpa: gpa.into() });
            }
        }
    }
    pvh.ok_or(Error::NoEntry)
}

struct Note<'a> {
    name: &'a [u8],
    kind: u32,
    descriptor: &'a [u8],
}

impl Note<'_> {
    fn value<const N: usize>(&self) -> Option<[u8; N]> {
        self.descriptor.first_chunk().copied()
    }
}

/// The notes of a segment; ends at the first that does not fit.
struct Notes<'a>(&'a [u8]);

impl<'a> Iterator for Notes<'a> {
    type Item = Note<'a>;

    fn next(&mut self) -> Option<Note<'a>> {
        let (header, rest) = self.0.split_at_checked(12)?;
        let name_bytes = usize::try_from(u32_at(header, 0)).ok()?;
        let descriptor_bytes = usize::try_from(u32_at(header, 4)).ok()?;
        let name = rest.get(..name_bytes)?;
        // Names and descriptors are padded to 4 bytes; the last padding may be missing.
        let rest = rest.get(name_bytes.checked_next_multiple_of(4)?..)?;
        let descriptor = rest.get(..descriptor_bytes)?;
        let next = descriptor_bytes.checked_next_multiple_of(4)?;
        self.0 = rest.get(next..).unwrap_or_default();
        Some(Note {
            name,
            kind: u32_at(header, 8),
            descriptor,
        })
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("2 bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

#[cfg(test)]
mod tests;
