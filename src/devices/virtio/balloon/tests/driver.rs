//! A driver that can also do everything wrong.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::super::Balloon;
use crate::devices::bus::BusDevice;
use crate::devices::idle::IdlePort;
use crate::devices::interrupt::Interrupt;
use crate::devices::sink::BalloonSink;
use crate::sys::ram::{GuestRam, Layout};
use crate::units::{Gfn, GfnRange, Pages};

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;

pub const VERSION_1: u64 = 1 << 32;
pub const STATS: u64 = 2;
pub const HINTS: u64 = 1 << 3;
pub const REPORTING: u64 = 1 << 5;
pub const ALL: u64 = VERSION_1 | 1 | STATS | 4 | HINTS | REPORTING;

/// Guest of these tests: 4 MiB, so pages 0 to 1023.
pub const RAM_PAGES: u32 = 1024;
/// Where the driver keeps its lists; the rings of queue n start at n * 0x10000.
pub const LIST: u64 = 0x10_0000;

const QUEUE_SIZE: u16 = 128;
const QUEUES: u32 = 5;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    Inflate(Vec<u32>),
    Deflate(Vec<u32>),
    ReportFree(GfnRange),
}

#[derive(Default)]
pub struct Sink(pub Mutex<Vec<Call>>);

impl BalloonSink for Sink {
    fn inflate(&self, gfns: &[Gfn]) {
        let gfns = gfns.iter().map(|gfn| gfn.0).collect();
        self.0.lock().unwrap().push(Call::Inflate(gfns));
    }

    fn deflate(&self, gfns: &[Gfn]) {
        let gfns = gfns.iter().map(|gfn| gfn.0).collect();
        self.0.lock().unwrap().push(Call::Deflate(gfns));
    }

    fn report_free(&self, range: GfnRange) {
        self.0.lock().unwrap().push(Call::ReportFree(range));
    }
}

#[derive(Default)]
pub struct Edges(AtomicU32);

impl Edges {
    pub fn count(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Interrupt for Edges {
    fn raise(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The device and what it is wired to.
pub struct Bench {
    pub ram: Arc<GuestRam>,
    pub sink: Arc<Sink>,
    pub edges: Arc<Edges>,
    pub balloon: Balloon,
    pub registers: Arc<dyn BusDevice>,
}

impl Bench {
    pub fn new() -> Bench {
        let sink = Arc::new(Sink::default());
        Bench::with_sink(sink.clone(), sink)
    }

    pub fn with_sink(sink: Arc<Sink>, used: Arc<dyn BalloonSink>) -> Bench {
        let ram = GuestRam::new(Layout::new(Pages(RAM_PAGES.into()))).unwrap();
        let edges = Arc::new(Edges::default());
        let idle = Arc::new(IdlePort::default());
        let balloon = Balloon::new(ram.clone(), used, edges.clone(), idle);
        Bench {
            ram,
            sink,
            edges,
            registers: balloon.bus_device(),
            balloon,
        }
    }

    pub fn read(&self, register: u64) -> u32 {
        let mut bytes = [0; 4];
        self.registers.read(register, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    pub fn write(&self, register: u64, value: u32) {
        self.registers.write(register, &value.to_le_bytes());
    }

    /// Whether the device wants a reset.
    pub fn failed(&self) -> bool {
        self.read(0x70) & 64 != 0
    }

    pub fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.sink.0.lock().unwrap())
    }

    /// Accepts `features`; returns whether the device agreed.
    pub fn negotiate(&self, features: u64) -> bool {
        self.write(0x70, 0);
        self.write(0x70, 1);
        self.write(0x70, 3);
        for half in 0..2 {
            self.write(0x24, half);
            self.write(0x20, (features >> (32 * half) & 0xffff_ffff) as u32);
        }
        self.write(0x70, 11);
        self.read(0x70) & 8 != 0
    }
}

/// A driver with its queues in the bench's memory.
pub struct Driver<'a> {
    pub bench: &'a Bench,
    queues: Vec<MockSplitQueue<'a, GuestMemoryMmap>>,
    next_descriptor: Vec<u16>,
}

impl<'a> Driver<'a> {
    /// Starts the device with five queues.
    pub fn start(bench: &'a Bench, features: u64) -> Driver<'a> {
        assert!(bench.negotiate(features));
        let mut queues = Vec::new();
        for index in 0..QUEUES {
            let base = u64::from(index) * 0x1_0000;
            let memory = bench.ram.memory();
            let queue = MockSplitQueue::create(memory, GuestAddress(base), QUEUE_SIZE);
            bench.write(0x30, index);
            assert_eq!(bench.read(0x34), u32::from(QUEUE_SIZE));
            bench.write(0x38, QUEUE_SIZE.into());
            bench.write(0x80, base as u32);
            bench.write(0x90, queue.avail_addr().0 as u32);
            // The mock's own used ring overlaps its available ring.
            bench.write(0xa0, (base + 0x8000) as u32);
            bench
                .ram
                .memory()
                .write_obj(0u32, GuestAddress(base + 0x8000))
                .unwrap();
            bench.write(0x44, 1);
            assert_eq!(bench.read(0x44), 1);
            queues.push(queue);
        }
        bench.write(0x70, 15);
        assert!(bench.balloon.driver_up());
        Driver {
            bench,
            queues,
            next_descriptor: vec![0; QUEUES as usize],
        }
    }

    /// Puts one buffer a descriptor `(gpa, length, flags)`, linked, into queue `index` and notifies.
    pub fn send(&mut self, index: usize, buffers: &[(u64, u32, u16)]) {
        self.add(index, buffers);
        self.notify(index);
    }

    /// As [`Driver::send`], without notifying.
    pub fn add(&mut self, index: usize, buffers: &[(u64, u32, u16)]) {
        let first = self.next_descriptor[index];
        let chain: Vec<_> = (first + 1..)
            .zip(buffers)
            .map(|(next, (gpa, length, flags))| (*gpa, *length, *flags, next))
            .collect();
        let last = chain.len() - 1;
        let chain: Vec<_> = chain
            .into_iter()
            .enumerate()
            .map(|(at, (gpa, length, flags, next))| {
                let flags = if at < last { flags | NEXT } else { flags };
                (gpa, length, flags, next)
            })
            .collect();
        self.add_raw(index, &chain);
    }

    /// Descriptors exactly as given.
    pub fn add_raw(&mut self, index: usize, descriptors: &[(u64, u32, u16, u16)]) {
        let raw: Vec<RawDescriptor> = descriptors
            .iter()
            .map(|(gpa, length, flags, next)| Descriptor::new(*gpa, *length, *flags, *next).into())
            .collect();
        let first = self.next_descriptor[index];
        self.queues[index].add_desc_chains(&raw, first).unwrap();
        self.next_descriptor[index] += descriptors.len() as u16;
    }

    pub fn avail_addr(&self, index: usize) -> u64 {
        self.queues[index].avail_addr().0
    }

    pub fn notify(&self, index: usize) {
        self.bench.write(0x50, index as u32);
    }

    /// Buffers returned in queue `index`.
    pub fn returned(&self, index: usize) -> u16 {
        let at = GuestAddress(index as u64 * 0x1_0000 + 0x8002);
        self.bench.ram.memory().read_obj(at).unwrap()
    }

    /// Writes a list of page numbers to `gpa`; returns its buffer.
    pub fn list(&self, gpa: u64, pfns: &[u32]) -> (u64, u32, u16) {
        let bytes: Vec<u8> = pfns.iter().flat_map(|pfn| pfn.to_le_bytes()).collect();
        self.bytes(gpa, &bytes)
    }

    pub fn bytes(&self, gpa: u64, bytes: &[u8]) -> (u64, u32, u16) {
        let memory = self.bench.ram.memory();
        memory.write_slice(bytes, GuestAddress(gpa)).unwrap();
        (gpa, bytes.len() as u32, 0)
    }
}
