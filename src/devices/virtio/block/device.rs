//! Requests: a header, data, and a status byte in one chain.

use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::FallocateFlags;

use super::super::chain::{Buffer, Chain, Direction, Malformed};
use super::super::ring::{Ring, read, read_config_of, write};
use super::super::{FEATURE_VERSION_1, Used, VirtioDevice};
use super::{Access, Disk, SECTOR_BYTES};
use crate::sys::guest_range::NotRam;
use crate::sys::ram::GuestRam;

/// Virtio device type of a block device (virtio 1.2, section 5).
const DEVICE_ID: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
/// Feature bits (virtio 1.2, section 5.2.3).
const FEATURE_SIZE_MAX: u64 = 1 << virtio_bindings::virtio_blk::VIRTIO_BLK_F_SIZE_MAX;
const FEATURE_SEG_MAX: u64 = 1 << virtio_bindings::virtio_blk::VIRTIO_BLK_F_SEG_MAX;
const FEATURE_READ_ONLY: u64 = 1 << virtio_bindings::virtio_blk::VIRTIO_BLK_F_RO;
const FEATURE_FLUSH: u64 = 1 << virtio_bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;
const FEATURE_DISCARD: u64 = 1 << virtio_bindings::virtio_blk::VIRTIO_BLK_F_DISCARD;

const QUEUE_SIZES: [u16; 1] = [128];
/// Data buffers of one request: the queue's entries less header and status.
const SEGMENTS_MAX: u32 = 126;
/// Bytes of one data buffer, and of the buffer through which all data go.
const SEGMENT_BYTES_MAX: u32 = 64 * 1024;
/// Sectors of one discarded range (chosen: 2 GiB).
const DISCARD_SECTORS_MAX: u32 = 1 << 22;

/// Request header: type, reserved word, first sector.
const HEADER_BYTES: u32 = 16;
/// A discarded range: first sector, number of sectors, flags.
const DISCARD_BYTES: u32 = 16;
/// Ranges of one discard request that are read (chosen; we announce one).
const DISCARD_RANGES_MAX: u32 = 16;
const CONFIG_BYTES: usize = 60;

/// Request types (virtio 1.2, section 5.2.6).
const TYPE_READ: u32 = virtio_bindings::virtio_blk::VIRTIO_BLK_T_IN;
const TYPE_WRITE: u32 = virtio_bindings::virtio_blk::VIRTIO_BLK_T_OUT;
const TYPE_FLUSH: u32 = virtio_bindings::virtio_blk::VIRTIO_BLK_T_FLUSH;
const TYPE_GET_ID: u32 = virtio_bindings::virtio_blk::VIRTIO_BLK_T_GET_ID;
const TYPE_DISCARD: u32 = 11;

const STATUS_OK: u8 = 0;
const STATUS_IO_ERROR: u8 = 1;
const STATUS_UNSUPPORTED: u8 = 2;

/// Name of the disk, padded with zeros to its fixed length.
const ID: &[u8; 20] = b"tidemark\0\0\0\0\0\0\0\0\0\0\0\0";

/// Why a well-formed request is answered with another status than "ok".
enum Refused {
    /// The image's file failed, or the range is not on the disk.
    Io,
    /// A type or a direction that is not offered.
    Unsupported,
    /// The driver's fault.
    Malformed(Malformed),
}

impl From<Malformed> for Refused {
    fn from(malformed: Malformed) -> Refused {
        Refused::Malformed(malformed)
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Refused {
        log::debug!("disk: {error}");
        Refused::Io
    }
}

impl From<NotRam> for Refused {
    fn from(error: NotRam) -> Refused {
        Refused::Malformed(error.into())
    }
}

/// The device behind the transport.
pub(super) struct BlockDevice {
    disk: Disk,
    bounce: Vec<u8>,
}

/// A chain's parts.
struct Request<'a> {
    kind: u32,
    sector: u64,
    data: &'a [Buffer],
    status: u64,
}

impl BlockDevice {
    pub fn new(disk: Disk) -> BlockDevice {
        BlockDevice {
            disk,
            bounce: Vec::new(),
        }
    }

    /// Serves one chain; returns how many bytes were written into it.
    fn serve(&mut self, chain: &Chain, ram: &GuestRam) -> Result<u32, Malformed> {
        let request = parse(chain, ram)?;
        let (status, written) = match self.carry_out(&request, ram) {
            Ok(written) => (STATUS_OK, written),
            Err(Refused::Io) => (STATUS_IO_ERROR, 0),
            Err(Refused::Unsupported) => (STATUS_UNSUPPORTED, 0),
            Err(Refused::Malformed(malformed)) => return Err(malformed),
        };
        write(ram, request.status, &[status])?;
        Ok(written + 1)
    }

    fn carry_out(&mut self, request: &Request, ram: &GuestRam) -> Result<u32, Refused> {
        let writable = self.disk.access == Access::Writable;
        match request.kind {
            TYPE_READ => self.read(request, ram),
            TYPE_WRITE if writable => self.write(request, ram),
            TYPE_WRITE => Err(Refused::Io),
            TYPE_FLUSH => {
                self.disk.file.sync_data()?;
                Ok(0)
            }
            TYPE_GET_ID => get_id(request, ram),
            TYPE_DISCARD if writable => self.discard(request, ram),
            _ => Err(Refused::Unsupported),
        }
    }

    fn read(&mut self, request: &Request, ram: &GuestRam) -> Result<u32, Refused> {
        let mut offset = self.offset_of(request, Direction::FromDevice)?;
        let mut total = 0;
        for buffer in request.data {
            self.bounce.resize(buffer.length as usize, 0);
            self.disk.file.read_exact_at(&mut self.bounce, offset)?;
            write(ram, buffer.gpa, &self.bounce)?;
            offset += u64::from(buffer.length);
            // At most 126 buffers of 64 KiB.
            total += buffer.length;
        }
        Ok(total)
    }

    fn write(&mut self, request: &Request, ram: &GuestRam) -> Result<u32, Refused> {
        let mut offset = self.offset_of(request, Direction::ToDevice)?;
        for buffer in request.data {
            self.bounce.resize(buffer.length as usize, 0);
            read(ram, buffer.gpa, &mut self.bounce)?;
            self.disk.file.write_all_at(&self.bounce, offset)?;
            offset += u64::from(buffer.length);
        }
        Ok(0)
    }

    /// Where the request starts in the file, when all of it is on the disk.
    fn offset_of(&self, request: &Request, expected: Direction) -> Result<u64, Refused> {
        let mut bytes = 0;
        for buffer in request.data {
            if buffer.way != expected {
                return Err(Refused::Unsupported);
            }
            if buffer.length > SEGMENT_BYTES_MAX {
                return Err(Refused::Malformed(Malformed::Length {
                    length: buffer.length.into(),
                    allowed: SEGMENT_BYTES_MAX.into(),
                }));
            }
            bytes += u64::from(buffer.length);
        }
        if !bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(Refused::Io);
        }
        self.check_range(request.sector, bytes / SECTOR_BYTES)
    }

    /// The byte offset of a range of sectors that lies on the disk as a whole.
    fn check_range(&self, sector: u64, sectors: u64) -> Result<u64, Refused> {
        match sector.checked_add(sectors) {
            Some(end) if end <= self.disk.sectors => Ok(sector * SECTOR_BYTES),
            _ => Err(Refused::Io),
        }
    }

    fn discard(&mut self, request: &Request, ram: &GuestRam) -> Result<u32, Refused> {
        for buffer in request.data {
            let (length, entry) = (buffer.length, DISCARD_BYTES);
            if buffer.way != Direction::ToDevice {
                return Err(Refused::Unsupported);
            }
            if length % entry != 0 || length > entry * DISCARD_RANGES_MAX {
                return Err(Malformed::Entries { length, entry }.into());
            }
            let mut ranges = [0; (DISCARD_BYTES * DISCARD_RANGES_MAX) as usize];
            let ranges = &mut ranges[..length as usize];
            read(ram, buffer.gpa, ranges)?;
            for range in ranges.chunks_exact(entry as usize) {
                self.discard_range(range)?;
            }
        }
        Ok(0)
    }

    fn discard_range(&self, range: &[u8]) -> Result<(), Refused> {
        let sector = u64::from_le_bytes(range[..8].try_into().expect("8 bytes"));
        let sectors = u32::from_le_bytes(range[8..12].try_into().expect("4 bytes"));
        let offset = self.check_range(sector, sectors.into())?;
        if sectors == 0 || sectors > DISCARD_SECTORS_MAX {
            return Err(Refused::Io);
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let length = u64::from(sectors) * SECTOR_BYTES;
        match rustix::fs::fallocate(&self.disk.file, flags, offset, length) {
            // A discard is a hint: a file system without holes just keeps the data.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            Err(errno) => Err(io::Error::from(errno).into()),
        }
    }
}

fn get_id(request: &Request, ram: &GuestRam) -> Result<u32, Refused> {
    let Some(buffer) = request.data.first() else {
        return Err(Refused::Unsupported);
    };
    if buffer.way != Direction::FromDevice {
        return Err(Refused::Unsupported);
    }
    let length = ID.len().min(buffer.length as usize);
    write(ram, buffer.gpa, &ID[..length])?;
    Ok(u32::try_from(length).expect("at most 20"))
}

/// Takes a chain apart. Header and status are buffers of their own, as every driver has them.
fn parse<'a>(chain: &'a Chain, ram: &GuestRam) -> Result<Request<'a>, Malformed> {
    let [header, data @ .., status] = chain.buffers.as_slice() else {
        return Err(Malformed::Chain { head: chain.head });
    };
    expect_way(header, Direction::ToDevice)?;
    expect_way(status, Direction::FromDevice)?;
    if header.length != HEADER_BYTES || status.length != 1 {
        let (length, allowed) = match header.length {
            HEADER_BYTES => (status.length, 1),
            length => (length, HEADER_BYTES),
        };
        return Err(Malformed::Length {
            length: length.into(),
            allowed: allowed.into(),
        });
    }
    let mut bytes = [0; HEADER_BYTES as usize];
    read(ram, header.gpa, &mut bytes)?;
    Ok(Request {
        kind: u32::from_le_bytes(bytes[..4].try_into().expect("4 bytes")),
        sector: u64::from_le_bytes(bytes[8..].try_into().expect("8 bytes")),
        data,
        status: status.gpa,
    })
}

fn expect_way(buffer: &Buffer, expected: Direction) -> Result<(), Malformed> {
    if buffer.way == expected {
        return Ok(());
    }
    Err(Malformed::Direction {
        found: buffer.way.name(),
        expected: expected.name(),
    })
}

impl VirtioDevice for BlockDevice {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn features(&self) -> u64 {
        let common = FEATURE_VERSION_1 | FEATURE_SIZE_MAX | FEATURE_SEG_MAX | FEATURE_FLUSH;
        match self.disk.access {
            Access::ReadOnly => common | FEATURE_READ_ONLY,
            Access::Writable => common | FEATURE_DISCARD,
        }
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; CONFIG_BYTES];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.disk.sectors.to_le_bytes());
        put(8, &SEGMENT_BYTES_MAX.to_le_bytes());
        put(12, &SEGMENTS_MAX.to_le_bytes());
        put(36, &DISCARD_SECTORS_MAX.to_le_bytes());
        put(40, &1u32.to_le_bytes());
        // Alignment of discarded ranges, in sectors: one page of the file.
        put(44, &8u32.to_le_bytes());
        read_config_of(&config, offset, data);
    }

    fn notify(&mut self, ring: &mut Ring<'_>) -> Result<Used, Malformed> {
        ring.serve_each(Direction::Both, |chain, ram| self.serve(chain, ram))
    }

    fn reset(&mut self) {
        self.bounce = Vec::new();
    }
}
