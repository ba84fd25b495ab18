//! A driver in memory against a disk in a temporary file.

use std::io::Write;
use std::os::unix::fs::FileExt;

use tempfile::NamedTempFile;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::super::chain::Malformed;
use super::super::ring::Ring;
use super::super::{Used, VirtioDevice};
use super::device::BlockDevice;
use super::*;
use crate::sys::ram::Layout;
use crate::units::Pages;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const SECTORS: u64 = 64;
const HEADER: u64 = 0x10_0000;
const STATUS: u64 = 0x11_0000;
const DATA: u64 = 0x12_0000;
const RAM_END: u64 = 4 << 20;

/// A buffer: address, length, flags.
type Part = (u64, u32, u16);

struct Bench {
    image: NamedTempFile,
    ram: Arc<GuestRam>,
    device: BlockDevice,
}

impl Bench {
    fn new(access: Access) -> Bench {
        let mut image = NamedTempFile::new().unwrap();
        let content: Vec<u8> = (0..SECTORS * SECTOR_BYTES)
            .map(|at| u8::try_from(at / 512).unwrap())
            .collect();
        image.write_all(&content).unwrap();
        Bench {
            device: BlockDevice::new(Disk::open(image.path(), access).unwrap()),
            ram: GuestRam::new(Layout::new(Pages::mib(4))).unwrap(),
            image,
        }
    }

    fn put(&self, gpa: u64, bytes: &[u8]) {
        let memory = self.ram.memory();
        memory.write_slice(bytes, GuestAddress(gpa)).unwrap();
    }

    fn get<const N: usize>(&self, gpa: u64) -> [u8; N] {
        let mut bytes = [0; N];
        let memory = self.ram.memory();
        memory.read_slice(&mut bytes, GuestAddress(gpa)).unwrap();
        bytes
    }

    /// Sends buffers as they are.
    fn raw(&mut self, parts: &[Part]) -> Result<Used, Malformed> {
        let ram = self.ram.clone();
        let mock: MockSplitQueue<GuestMemoryMmap> =
            MockSplitQueue::create(ram.memory(), GuestAddress(0), 128);
        let descriptors: Vec<RawDescriptor> = (1u16..)
            .zip(parts)
            .map(|(next, (gpa, length, flags))| {
                let last = usize::from(next) == parts.len();
                let flags = if last { *flags } else { flags | NEXT };
                Descriptor::new(*gpa, *length, flags, next).into()
            })
            .collect();
        mock.add_desc_chains(&descriptors, 0).unwrap();
        let mut queue: Queue = mock.create_queue().unwrap();
        // The mock's own used ring overlaps its available ring.
        queue.set_used_ring_address(Some(0x8000), Some(0));
        self.device.notify(&mut Ring::new(0, &mut queue, &ram))
    }

    /// Sends a request with `data` between header and status; returns the status.
    fn request(&mut self, kind: u32, sector: u64, data: &[Part]) -> Result<u8, Malformed> {
        self.put(HEADER, &kind.to_le_bytes());
        self.put(HEADER + 8, &sector.to_le_bytes());
        self.put(STATUS, &[0xee]);
        let mut parts = vec![(HEADER, 16, 0)];
        parts.extend_from_slice(data);
        parts.push((STATUS, 1, WRITE));
        assert_eq!(self.raw(&parts)?, Used::Buffers);
        Ok(self.get::<1>(STATUS)[0])
    }

    fn on_disk(&self, sector: u64) -> u8 {
        let mut byte = [0];
        let at = sector * SECTOR_BYTES;
        self.image.as_file().read_exact_at(&mut byte, at).unwrap();
        byte[0]
    }
}

#[test]
fn what_is_written_is_read_back_from_the_file() {
    let mut bench = Bench::new(Access::Writable);
    let parts = [(DATA, 512, WRITE), (DATA + 0x1000, 1024, WRITE)];
    assert_eq!(bench.request(0, 5, &parts).unwrap(), 0);
    assert_eq!(bench.get::<2>(DATA + 511 - 1), [5, 5]);
    assert_eq!(bench.get::<1>(DATA + 0x1000 + 512), [7]);
    bench.put(DATA, &[0xab; 1024]);
    assert_eq!(bench.request(1, 62, &[(DATA, 1024, 0)]).unwrap(), 0);
    assert_eq!(
        (bench.on_disk(61), bench.on_disk(62), bench.on_disk(63)),
        (61, 0xab, 0xab)
    );
    assert_eq!(bench.request(4, 0, &[]).unwrap(), 0);
    assert_eq!(bench.request(8, 0, &[(DATA, 20, WRITE)]).unwrap(), 0);
    assert_eq!(&bench.get::<8>(DATA), b"tidemark");
}

#[test]
fn a_discarded_range_reads_as_zero() {
    let mut bench = Bench::new(Access::Writable);
    let range = |sector: u64, count: u32| {
        [&sector.to_le_bytes()[..], &count.to_le_bytes(), &[0; 4]].concat()
    };
    bench.put(DATA, &range(8, 16));
    assert_eq!(bench.request(11, 0, &[(DATA, 16, 0)]).unwrap(), 0);
    assert_eq!(
        [7, 8, 23, 24].map(|sector| bench.on_disk(sector)),
        [7, 0, 0, 24]
    );
    for outside in [
        range(60, 5),
        range(u64::MAX, 2),
        range(0, 0),
        range(0, u32::MAX),
    ] {
        bench.put(DATA, &outside);
        assert_eq!(bench.request(11, 0, &[(DATA, 16, 0)]).unwrap(), 1);
    }
    assert!(bench.request(11, 0, &[(DATA, 15, 0)]).is_err());
}

#[test]
fn ranges_outside_the_disk_fail_and_change_nothing() {
    let mut bench = Bench::new(Access::Writable);
    for sector in [SECTORS, SECTORS - 1, u64::MAX, u64::MAX / 512, 1 << 55] {
        for (kind, way) in [(0, WRITE), (1, 0)] {
            let status = bench.request(kind, sector, &[(DATA, 1024, way)]).unwrap();
            assert_eq!(status, 1, "request {kind} at {sector}");
        }
    }
    assert_eq!(bench.request(0, 0, &[(DATA, 100, WRITE)]).unwrap(), 1);
    assert_eq!(bench.request(99, 0, &[]).unwrap(), 2);
    assert_eq!(bench.request(0, 0, &[(DATA, 512, 0)]).unwrap(), 2);
    assert_eq!(bench.on_disk(63), 63);
    let bytes = bench.image.as_file().metadata().unwrap().len();
    assert_eq!(bytes, SECTORS * SECTOR_BYTES);
}

#[test]
fn a_read_only_disk_is_not_written() {
    let mut bench = Bench::new(Access::ReadOnly);
    assert_ne!(bench.device.features() & 1 << 5, 0);
    assert_eq!(bench.request(1, 0, &[(DATA, 512, 0)]).unwrap(), 1);
    assert_eq!(bench.request(11, 0, &[(DATA, 16, 0)]).unwrap(), 2);
    assert_eq!(bench.request(0, 9, &[(DATA, 512, WRITE)]).unwrap(), 0);
    assert_eq!(bench.get::<1>(DATA), [9]);
}

#[test]
fn malformed_chains_stop_the_device() {
    let mut bench = Bench::new(Access::Writable);
    let header = (HEADER, 16, 0);
    let status = (STATUS, 1, WRITE);
    let cases: [&[Part]; 10] = [
        &[header],
        &[status],
        &[status, header],
        &[(HEADER, 15, 0), status],
        &[header, (STATUS, 0, WRITE)],
        &[header, (STATUS, 2, WRITE)],
        &[header, (STATUS, 1, 0)],
        &[(RAM_END - 8, 16, 0), status],
        &[header, (u64::MAX - 3, 512, WRITE), status],
        &[header, (DATA, 0x2_0000, WRITE), status],
    ];
    bench.put(HEADER, &[0; 16]);
    for parts in cases {
        assert!(bench.raw(parts).is_err(), "{parts:?}");
    }
}

#[test]
fn two_vms_do_not_share_a_writable_disk() {
    let bench = Bench::new(Access::Writable);
    let path = bench.image.path();
    for access in [Access::Writable, Access::ReadOnly] {
        let error = Disk::open(path, access).unwrap_err();
        assert!(matches!(error, Error::Locked { .. }), "{error}");
    }
    let path = path.to_path_buf();
    drop(bench.device);
    let first = Disk::open(&path, Access::ReadOnly).unwrap();
    let second = Disk::open(&path, Access::ReadOnly).unwrap();
    assert!(Disk::open(&path, Access::Writable).is_err());
    drop((first, second));
    bench.image.as_file().set_len(1000).unwrap();
    let error = Disk::open(&path, Access::Writable).unwrap_err();
    assert!(matches!(error, Error::Length { bytes: 1000, .. }));
    let missing = Disk::open(Path::new("/nonexistent"), Access::Writable).unwrap_err();
    assert!(matches!(missing, Error::Open { .. }));
}
