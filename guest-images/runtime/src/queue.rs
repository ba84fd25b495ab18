//! A split virtqueue with one request in flight, polled. Source: virtio 1.2, 2.7.

use core::sync::atomic::{Ordering, fence};

use tidemark_guest_model::ring::RingLayout;

use crate::clock;
use crate::mmio::Device;
use crate::page::Frame;

const FLAG_NEXT: u16 = 1;
const FLAG_DEVICE_WRITES: u16 = 2;
const NO_INTERRUPT: u16 = 1;

/// Who writes into the memory of a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The device only reads.
    DeviceReads,
    /// The device may write.
    DeviceWrites,
}

/// A piece of memory handed to the device.
#[derive(Debug, Clone, Copy)]
pub struct Segment {
    /// Guest-physical address.
    pub address: u64,
    /// Bytes.
    pub bytes: u32,
}

/// A queue with its buffer, both in one frame.
#[derive(Debug)]
pub struct Queue {
    device: Device,
    index: u16,
    frame: Frame,
    layout: RingLayout,
    submitted: u16,
}

impl Queue {
    /// Sets a queue up; `None` if the device has no such queue.
    #[must_use]
    pub fn new(device: Device, index: u16, frame: Frame) -> Option<Self> {
        let layout = RingLayout::new(device.queue_size_max(index))?;
        let base = frame.address();
        let queue = Self {
            device,
            index,
            frame,
            layout,
            submitted: 0,
        };
        queue.set_u16(layout.available(), NO_INTERRUPT);
        device.set_queue(
            index,
            layout.size,
            base + RingLayout::DESCRIPTORS,
            base + layout.available(),
            base + layout.used(),
        );
        Some(queue)
    }

    /// The most segments of one request.
    #[must_use]
    pub const fn segments_max(&self) -> u16 {
        self.layout.size
    }

    /// Whether the device still has the last request.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.u16(self.layout.used() + 2) != self.submitted
    }

    /// Waits for the device, at most until `deadline`; true if it has finished.
    #[must_use]
    pub fn wait(&self, deadline: u64) -> bool {
        while self.is_busy() {
            if clock::now() > deadline {
                return false;
            }
            core::hint::spin_loop();
        }
        fence(Ordering::SeqCst);
        true
    }

    /// Writes a 32-bit word of the buffer.
    pub fn set_buffer_u32(&self, word: usize, value: u32) {
        let at = RingLayout::BUFFER + 4 * word as u64;
        self.set_u16(at, value as u16);
        self.set_u16(at + 2, (value >> 16) as u16);
    }

    /// Reads a 32-bit word of the buffer.
    #[must_use]
    pub fn buffer_u32(&self, word: usize) -> u32 {
        let at = RingLayout::BUFFER + 4 * word as u64;
        u32::from(self.u16(at)) | u32::from(self.u16(at + 2)) << 16
    }

    /// Writes a 16-bit word of the buffer.
    pub fn set_buffer_u16(&self, word: usize, value: u16) {
        self.set_u16(RingLayout::BUFFER + 2 * word as u64, value);
    }

    /// The first bytes of the buffer as a segment.
    #[must_use]
    pub fn buffer(&self, bytes: u32) -> Segment {
        let address = self.frame.address() + RingLayout::BUFFER;
        Segment {
            address,
            bytes: bytes.min(RingLayout::BUFFER_BYTES),
        }
    }

    /// Gives the device a request of one descriptor chain. The queue must not be busy.
    pub fn submit(&mut self, segments: &[Segment], access: Access) {
        let count = segments.len().min(usize::from(self.layout.size)) as u16;
        for (at, segment) in (0..count).zip(segments) {
            let last = at + 1 == count;
            let flags = if last { 0 } else { FLAG_NEXT }
                | if access == Access::DeviceWrites {
                    FLAG_DEVICE_WRITES
                } else {
                    0
                };
            self.set_descriptor(at, *segment, flags, at + 1);
        }
        self.make_available(0);
        self.notify();
    }

    /// Writes a descriptor as it is.
    pub fn set_descriptor(&self, at: u16, segment: Segment, flags: u16, next: u16) {
        let offset = self.layout.descriptor(at);
        for part in 0..4 {
            self.set_u16(offset + 2 * part, (segment.address >> (16 * part)) as u16);
        }
        self.set_u16(offset + 8, segment.bytes as u16);
        self.set_u16(offset + 10, (segment.bytes >> 16) as u16);
        self.set_u16(offset + 12, flags);
        self.set_u16(offset + 14, next);
    }

    /// Puts a chain into the available ring, by its first descriptor.
    pub fn make_available(&mut self, head: u16) {
        self.set_u16(self.layout.available_entry(self.submitted), head);
        self.submitted = self.submitted.wrapping_add(1);
        self.set_available_index(self.submitted);
    }

    /// Writes the index of the available ring as it is.
    pub fn set_available_index(&self, index: u16) {
        fence(Ordering::SeqCst);
        self.set_u16(self.layout.available() + 2, index);
        fence(Ordering::SeqCst);
    }

    /// Tells the device to look at the queue.
    pub fn notify(&self) {
        self.device.notify(self.index);
    }

    fn set_u16(&self, offset: u64, value: u16) {
        let at = (self.frame.address() + offset % 4096) as *mut u16;
        // SAFETY: even offsets within the queue's own frame.
        unsafe { at.write_volatile(value) }
    }

    fn u16(&self, offset: u64) -> u16 {
        let at = (self.frame.address() + offset % 4096) as *const u16;
        // SAFETY: even offsets within the queue's own frame.
        unsafe { at.read_volatile() }
    }
}
