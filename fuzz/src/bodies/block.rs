//! The disk behind its registers, against a model of what is on it.

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidemark::devices::idle::IdlePort;
use tidemark::devices::interrupt::NoInterrupt;
use tidemark::devices::virtio::block::{self, Access, Disk, SECTOR_BYTES};
use tidemark::sys::ram::{GuestRam, Layout};
use tidemark::units::Pages;

use super::driver::{Buffer, DATA, Driver, VERSION_1, WRITE};
use super::input::Input;

const SIZE_MAX: u64 = 1 << 1;
const SEG_MAX: u64 = 1 << 2;
const FLUSH: u64 = 1 << 9;
const DISCARD: u64 = 1 << 13;

const READ_SECTORS: u32 = 0;
const WRITE_SECTORS: u32 = 1;
const FLUSH_ALL: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD_SECTORS: u32 = 11;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// Length of the disk.
const SECTORS: u64 = 64;
const STEPS_MAX: usize = 48;
/// Where a request's parts lie.
const HEADER: u64 = DATA;
const STATUS: u64 = DATA + 0x100;
const BUFFERS: u64 = DATA + 0x1000;
/// From one data buffer to the next.
const BUFFER_BYTES: u64 = 0x1_1000;

/// One file for all inputs, in memory where that can be had.
fn image() -> (File, PathBuf) {
    let shared = Path::new("/dev/shm");
    let file = tempfile::tempfile_in(shared).or_else(|_| tempfile::tempfile());
    let file = file.expect("a temporary file can be made");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    (file, path.into())
}

thread_local! {
    static IMAGE: RefCell<(File, PathBuf)> = RefCell::new(image());
}

/// Whether a request was answered with "ok".
pub fn body(data: &[u8]) -> bool {
    IMAGE.with_borrow(|(file, path)| play(data, file, path))
}

struct Guest<'a> {
    driver: Driver<'a>,
    file: &'a File,
    access: Access,
    features: u64,
    /// What is on the disk.
    model: Vec<u8>,
    answered: u64,
}

fn play(data: &[u8], file: &File, path: &Path) -> bool {
    let mut input = Input::new(data);
    let first = input.u8();
    let mut model = vec![0; index(SECTORS * SECTOR_BYTES)];
    let sectors = model.chunks_mut(index(SECTOR_BYTES));
    for (number, sector) in (0..).zip(sectors) {
        sector.fill(number);
    }
    file.write_all_at(&model, 0).expect("a file in memory");
    let access = match first & 7 {
        0 => Access::ReadOnly,
        _ => Access::Writable,
    };
    let disk = Disk::open(path, access).expect("the image is a disk");
    let ram = GuestRam::new(Layout::new(Pages::mib(4))).expect("address space suffices");
    let (line, idle) = (Arc::new(NoInterrupt), Arc::new(IdlePort::default()));
    let registers = block::bus_device(disk, ram.clone(), line, idle);
    let mut guest = Guest {
        driver: Driver::new(&*registers, &ram, 1, 128 >> (first >> 6)),
        file,
        access,
        features: VERSION_1 | SIZE_MAX | SEG_MAX | FLUSH,
        model,
        answered: 0,
    };
    if access == Access::Writable {
        guest.features |= DISCARD;
    }
    guest.driver.start(guest.features);
    let mut steps = 0;
    while !input.is_empty() && steps < STEPS_MAX {
        match input.below(8) {
            0..=5 => guest.request(&mut input),
            6 => guest.check_disk(),
            _ => guest.driver.disturb(&mut input),
        }
        steps += 1;
    }
    guest.check_disk();
    guest.answered > 0
}

impl Guest<'_> {
    /// A well-formed request, of which the model says what comes of it.
    fn request(&mut self, input: &mut Input<'_>) {
        if !self.driver.correct {
            // What was disturbed may have written anything.
            let all = self.file.read_exact_at(&mut self.model, 0);
            all.expect("the disk has not shrunk");
            if !self.driver.is_up() || input.bool() {
                self.driver.start(self.features);
            }
        }
        let any = input_kind(input);
        let kind = input.pick(&[
            READ_SECTORS,
            READ_SECTORS,
            WRITE_SECTORS,
            WRITE_SECTORS,
            WRITE_SECTORS,
            FLUSH_ALL,
            GET_ID,
            DISCARD_SECTORS,
            any,
        ]);
        let sector = match input.below(8) {
            0 => input.number(SECTORS),
            _ => u64::from(input.u8()) % SECTORS,
        };
        let data = self.data_of(kind, input);
        let expected = self.carry_out(kind, sector, &data);
        self.driver.put(HEADER, &kind.to_le_bytes());
        self.driver.put(HEADER + 8, &sector.to_le_bytes());
        self.driver.put(STATUS, &[0xee]);
        let mut buffers = vec![(HEADER, 16, 0)];
        buffers.extend_from_slice(&data);
        buffers.push((STATUS, 1, WRITE));
        let head = self.driver.add(0, &buffers);
        self.driver.notify(0);
        let mut status = [0];
        self.driver.get(STATUS, &mut status);
        let returned = self.driver.returned(0);
        if self.driver.correct {
            let (status, written, content) = expected.finish(status[0]);
            assert_eq!(
                returned,
                [(head.into(), written)],
                "request {kind} at {sector}"
            );
            assert!(!self.driver.has_failed());
            self.check_read(&data, &content, status);
        }
        self.answered += u64::from(status == [OK]);
    }

    /// The data buffers of a request, with what is written in them.
    fn data_of(&self, kind: u32, input: &mut Input<'_>) -> Vec<Buffer> {
        let parts = match kind {
            FLUSH_ALL => 0,
            GET_ID => 1,
            _ => 1 + u64::from(input.below(3)),
        };
        let mut data = Vec::new();
        for part in 0..parts {
            let gpa = BUFFERS + part * BUFFER_BYTES + u64::from(input.u8());
            let (length, flags) = match kind {
                GET_ID => (input.u8().into(), WRITE),
                DISCARD_SECTORS => (16 * u32::from(input.below(3)), 0),
                READ_SECTORS => (self.data_length(input), WRITE),
                _ => (self.data_length(input), 0),
            };
            if kind == DISCARD_SECTORS {
                let first = u64::from(input.u8()) % SECTORS;
                let count = u32::from(input.u8()) % 16;
                let range = [&first.to_le_bytes()[..], &count.to_le_bytes(), &[0; 4]].concat();
                for at in [0, 16] {
                    self.driver.put(gpa + at, &range);
                }
            } else if flags == 0 {
                self.driver.put(gpa, &[input.u8(); 64]);
            }
            data.push((gpa, length, flags));
        }
        data
    }

    fn data_length(&self, input: &mut Input<'_>) -> u32 {
        match input.u8() {
            0..=15 => input.u16().into(),
            odd @ 16..=31 => u32::from(odd) * 8,
            sectors => 512 * (u32::from(sectors) % 9),
        }
    }

    /// Changes the model as the disk must change; what the driver must see.
    fn carry_out(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> Expected {
        let bytes: u64 = data.iter().map(|(_, length, _)| u64::from(*length)).sum();
        let in_range = |sector: u64, bytes: u64| {
            let whole = bytes.is_multiple_of(SECTOR_BYTES);
            let end = sector.checked_add(bytes / SECTOR_BYTES);
            whole && end.is_some_and(|end| end <= SECTORS)
        };
        let writable = self.access == Access::Writable;
        match kind {
            READ_SECTORS if in_range(sector, bytes) => {
                let start = index(sector * SECTOR_BYTES);
                let content = self.model[start..start + index(bytes)].to_vec();
                Expected::Content(content)
            }
            WRITE_SECTORS if writable && in_range(sector, bytes) => {
                let mut at = index(sector * SECTOR_BYTES);
                for (gpa, length, _) in data {
                    let end = at + index((*length).into());
                    self.driver.get(*gpa, &mut self.model[at..end]);
                    at = end;
                }
                Expected::Status(OK)
            }
            READ_SECTORS | WRITE_SECTORS => Expected::Status(IO_ERROR),
            FLUSH_ALL => Expected::Status(OK),
            GET_ID => Expected::Id(bytes.min(20)),
            DISCARD_SECTORS if writable => Expected::Discarded(self.discard(data)),
            _ => Expected::Status(UNSUPPORTED),
        }
    }

    /// Discards range after range, up to the first that is wrong.
    fn discard(&mut self, data: &[Buffer]) -> u8 {
        for (gpa, length, _) in data {
            for at in (0..u64::from(*length)).step_by(16) {
                let (mut first, mut count) = ([0; 8], [0; 4]);
                self.driver.get(gpa + at, &mut first);
                self.driver.get(gpa + at + 8, &mut count);
                let first = u64::from_le_bytes(first);
                let count = u64::from(u32::from_le_bytes(count));
                if count == 0 || first + count > SECTORS {
                    return IO_ERROR;
                }
                let range = index(first * SECTOR_BYTES)..index((first + count) * SECTOR_BYTES);
                self.model[range].fill(0);
            }
        }
        OK
    }

    fn check_read(&self, data: &[Buffer], content: &[u8], status: u8) {
        let mut rest = content;
        for (gpa, length, _) in data.iter().filter(|_| status == OK) {
            let (now, later) = rest.split_at(rest.len().min(index((*length).into())));
            let mut found = vec![0; now.len()];
            self.driver.get(*gpa, &mut found);
            assert_eq!(found, now, "what was read");
            rest = later;
        }
    }

    /// The disk has its length, and what was written.
    fn check_disk(&mut self) {
        let length = self.file.metadata().expect("it is open").len();
        assert_eq!(length, SECTORS * SECTOR_BYTES, "length of the disk");
        if self.driver.correct {
            let mut found = vec![0; self.model.len()];
            self.file
                .read_exact_at(&mut found, 0)
                .expect("it has not shrunk");
            assert!(found == self.model, "the disk is not what was written");
        }
    }
}

/// What must come of a request.
enum Expected {
    Status(u8),
    Content(Vec<u8>),
    Id(u64),
    /// The file system may refuse, which is no error.
    Discarded(u8),
}

impl Expected {
    /// Against the status that came: it, how many bytes are written, and which.
    fn finish(self, status: u8) -> (u8, u32, Vec<u8>) {
        let (expected, content) = match self {
            Expected::Status(expected) | Expected::Discarded(expected) => (expected, Vec::new()),
            Expected::Content(content) => (OK, content),
            Expected::Id(length) => (
                OK,
                b"tidemark\0\0\0\0\0\0\0\0\0\0\0\0"[..index(length)].to_vec(),
            ),
        };
        assert_eq!(status, expected, "status");
        let written = u32::try_from(content.len()).expect("a few sectors");
        (status, written + 1, content)
    }
}

fn input_kind(input: &mut Input<'_>) -> u32 {
    match input.bool() {
        true => input.u32(),
        false => input.u8().into(),
    }
}

fn index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("64 bits")
}
