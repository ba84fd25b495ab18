//! A guest's virtio driver: a correct one, that can also do anything else.

use tidemark::devices::bus::BusDevice;
use tidemark::sys::ram::GuestRam;
use vm_memory::{Bytes, GuestAddress};

use super::input::Input;

/// The buffer is followed by another one.
pub const NEXT: u16 = 1;
/// The device writes the buffer.
pub const WRITE: u16 = 2;

/// Version 1, which every device demands.
pub const VERSION_1: u64 = 1 << 32;

/// Registers (virtio 1.2, section 4.2.2).
const FEATURES: u64 = 0x20;
const FEATURES_SEL: u64 = 0x24;
const QUEUE_SEL: u64 = 0x30;
const QUEUE_NUM: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
const QUEUE_NOTIFY: u64 = 0x50;
const STATUS: u64 = 0x70;
const QUEUE_DESC: u64 = 0x80;
const QUEUE_DRIVER: u64 = 0x90;
const QUEUE_DEVICE: u64 = 0xa0;
/// Configuration space.
pub const CONFIG: u64 = 0x100;

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;

/// Bytes between the rings of two queues, and from the descriptors to the rings of one.
const QUEUE_BYTES: u64 = 0x4000;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
/// The first byte that no ring needs.
pub const DATA: u64 = 0x10_0000;

/// A buffer: address, length, flags.
pub type Buffer = (u64, u32, u16);

/// Where the driver is in one queue.
#[derive(Clone, Copy, Default)]
struct Place {
    descriptor: u16,
    available: u16,
    used: u16,
}

/// The driver of one device, whose queues are all of one size.
pub struct Driver<'a> {
    registers: &'a dyn BusDevice,
    ram: &'a GuestRam,
    size: u16,
    places: Vec<Place>,
    /// Whether the device was used as it should be since it was started.
    pub correct: bool,
}

impl<'a> Driver<'a> {
    /// A driver that knows so many queues, with so many entries each, a power of two.
    pub fn new(
        registers: &'a dyn BusDevice,
        ram: &'a GuestRam,
        queues: usize,
        size: u16,
    ) -> Driver<'a> {
        Driver {
            registers,
            ram,
            size,
            places: vec![Place::default(); queues],
            correct: false,
        }
    }

    pub fn size(&self) -> u16 {
        self.size
    }

    pub fn read(&self, register: u64) -> u32 {
        let mut bytes = [0; 4];
        self.registers.read(register, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    pub fn write(&self, register: u64, value: u32) {
        self.registers.write(register, &value.to_le_bytes());
    }

    fn write_wide(&self, register: u64, value: u64) {
        let bytes = value.to_le_bytes();
        self.registers.write(register, &bytes[..4]);
        self.registers.write(register + 4, &bytes[4..]);
    }

    /// Whether the device waits for a reset.
    pub fn has_failed(&self) -> bool {
        self.read(STATUS) & NEEDS_RESET != 0
    }

    pub fn is_up(&self) -> bool {
        self.read(STATUS) & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK
    }

    /// Resets the device and starts it with `features`, which it offers.
    pub fn start(&mut self, features: u64) {
        self.write(STATUS, 0);
        self.write(STATUS, ACKNOWLEDGE | DRIVER);
        for (half, at) in [(0, 0), (1, 4)] {
            self.write(FEATURES_SEL, half);
            self.registers
                .write(FEATURES, &features.to_le_bytes()[at..at + 4]);
        }
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        let queues = (0..).zip(0..self.places.len());
        for (number, index) in queues {
            let base = number * QUEUE_BYTES;
            self.put(base + AVAILABLE, &[0; 4]);
            self.put(base + USED, &[0; 4]);
            self.write_wide(QUEUE_SEL, number);
            self.write(QUEUE_NUM, self.size.into());
            self.write_wide(QUEUE_DESC, base);
            self.write_wide(QUEUE_DRIVER, base + AVAILABLE);
            self.write_wide(QUEUE_DEVICE, base + USED);
            self.write(QUEUE_READY, 1);
            self.places[index] = Place::default();
        }
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        assert!(self.is_up(), "the device does not start");
        self.correct = true;
    }

    pub fn put(&self, gpa: u64, bytes: &[u8]) {
        let written = self.ram.memory().write_slice(bytes, GuestAddress(gpa));
        written.expect("the driver's own memory is RAM");
    }

    pub fn get(&self, gpa: u64, bytes: &mut [u8]) {
        let read = self.ram.memory().read_slice(bytes, GuestAddress(gpa));
        read.expect("the driver's own memory is RAM");
    }

    fn get_u16(&self, gpa: u64) -> u16 {
        let mut bytes = [0; 2];
        self.get(gpa, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    fn base(queue: usize) -> u64 {
        queue as u64 * QUEUE_BYTES
    }

    /// Puts a chain of buffers into a queue; returns its head. At most as many buffers as the queue
    /// has entries may be on their way.
    pub fn add(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let first = self.places[queue].descriptor;
        let last = buffers.len() - 1;
        for (at, &(gpa, length, flags)) in buffers.iter().enumerate() {
            let place = &mut self.places[queue];
            let index = place.descriptor;
            place.descriptor = (index + 1) % self.size;
            let next = place.descriptor;
            let flags = if at < last { flags | NEXT } else { flags };
            self.describe(queue, index, (gpa, length, flags), next);
        }
        self.offer(queue, first);
        first
    }

    fn describe(&self, queue: usize, index: u16, (gpa, length, flags): Buffer, next: u16) {
        let at = Self::base(queue) + u64::from(index % self.size) * 16;
        self.put(at, &gpa.to_le_bytes());
        self.put(at + 8, &length.to_le_bytes());
        self.put(at + 12, &flags.to_le_bytes());
        self.put(at + 14, &next.to_le_bytes());
    }

    fn offer(&mut self, queue: usize, head: u16) {
        let ring = Self::base(queue) + AVAILABLE;
        let place = &mut self.places[queue];
        let entry = ring + 4 + u64::from(place.available % self.size) * 2;
        place.available = place.available.wrapping_add(1);
        let available = place.available;
        self.put(entry, &head.to_le_bytes());
        self.put(ring + 2, &available.to_le_bytes());
    }

    pub fn notify(&self, queue: usize) {
        let index = u32::try_from(queue).expect("a handful of queues");
        self.write(QUEUE_NOTIFY, index);
    }

    /// Heads and lengths of the chains that came back since the last call.
    pub fn returned(&mut self, queue: usize) -> Vec<(u32, u32)> {
        let ring = Self::base(queue) + USED;
        let now = self.get_u16(ring + 2);
        let mut found = Vec::new();
        while self.places[queue].used != now && found.len() < usize::from(self.size) {
            let at = ring + 4 + u64::from(self.places[queue].used % self.size) * 8;
            let (mut head, mut length) = ([0; 4], [0; 4]);
            self.get(at, &mut head);
            self.get(at + 4, &mut length);
            found.push((u32::from_le_bytes(head), u32::from_le_bytes(length)));
            let place = &mut self.places[queue];
            place.used = place.used.wrapping_add(1);
        }
        found
    }

    /// Does one thing that a correct driver does not.
    pub fn disturb(&mut self, input: &mut Input<'_>) {
        self.correct = false;
        let queue = usize::from(input.u8()) % self.places.len();
        match input.below(8) {
            // Any chain.
            0..=2 => {
                let head = input.u16();
                let head = if head & 0x8000 == 0 {
                    head % self.size
                } else {
                    head
                };
                for _ in 0..=input.below(4) {
                    let (gpa, length) = (self.address(input), self.length(input));
                    let (index, flags, next) = (input.u16(), input.u16(), input.u16());
                    let next = if next & 0x8000 == 0 {
                        next % self.size
                    } else {
                        next
                    };
                    let flags = if flags & 0x8000 == 0 {
                        flags & 7
                    } else {
                        flags
                    };
                    self.describe(queue, index, (gpa, length, flags), next);
                }
                self.offer(queue, head);
                self.notify(queue);
            }
            // Any bytes in the rings.
            3 => {
                let at = Self::base(queue) + u64::from(input.u16()) % (QUEUE_BYTES - 16);
                let length = input.below(16).into();
                self.put(at, input.bytes(length));
            }
            // Any index of what is available.
            4 => {
                let index = input.u16();
                self.places[queue].available = index;
                self.put(Self::base(queue) + AVAILABLE + 2, &index.to_le_bytes());
                self.notify(queue);
            }
            // Any register, in any width.
            5 => {
                let register = register(input);
                let length = input.pick(&[4, 4, 4, 4, 1, 2, 8, 16]);
                self.registers.write(register, input.bytes(length));
            }
            6 => {
                let mut bytes = [0xa5; 16];
                let length = input.pick(&[4, 4, 0, 1, 2, 8, 16]);
                self.registers.read(register(input), &mut bytes[..length]);
            }
            _ => self.write(QUEUE_NOTIFY, input.u32()),
        }
    }

    fn address(&self, input: &mut Input<'_>) -> u64 {
        let end = self.ram.layout().end().gpa();
        match input.below(4) {
            0 => DATA + u64::from(input.u16()),
            1 => u64::from(input.u32()) % end,
            _ => input.number(end),
        }
    }

    fn length(&self, input: &mut Input<'_>) -> u32 {
        match input.below(4) {
            0 => input.u8().into(),
            1 => input.u16().into(),
            2 => 4 * u32::from(input.u8()),
            _ => input.u32(),
        }
    }
}

/// Mostly one that there is.
fn register(input: &mut Input<'_>) -> u64 {
    match input.below(8) {
        0 => input.u64(),
        1 => CONFIG + u64::from(input.u8()),
        _ => u64::from(input.u8()) & !3,
    }
}
