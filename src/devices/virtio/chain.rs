//! Descriptor chains, read once and checked as a whole before a device sees them.
//!
//! virtio-queue ends the iteration of a broken chain as if it had ended well; here it is told apart.

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use crate::sys::guest_range::{NotRam, frames_touched};
use crate::sys::ram::{GuestRam, Layout};

/// Why a device stopped: what the driver did that no correct driver does.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// A queue's addresses, size or indices are impossible, or its rings are not in RAM.
    #[error("queue {index}: {source}")]
    Queue {
        /// Which queue.
        index: usize,
        /// What virtio-queue found.
        source: virtio_queue::Error,
    },
    /// A chain that loops, leaves the table, or is empty.
    #[error("descriptor chain at {head} does not end")]
    Chain {
        /// Index of its first descriptor.
        head: u16,
    },
    /// A buffer outside RAM.
    #[error("buffer: {0}")]
    Buffer(#[from] NotRam),
    /// A buffer of the wrong direction.
    #[error("{found} buffer where a {expected} one is due")]
    Direction {
        /// What the driver gave.
        found: &'static str,
        /// What it should have given.
        expected: &'static str,
    },
    /// A buffer or a chain longer than any driver's.
    #[error("{length} bytes where at most {allowed} are taken")]
    Length {
        /// What the driver gave.
        length: u64,
        /// The bound.
        allowed: u64,
    },
    /// A length that is not a whole number of entries.
    #[error("{length} bytes are not a whole number of {entry}-byte entries")]
    Entries {
        /// What the driver gave.
        length: u32,
        /// Size of one entry.
        entry: u32,
    },
}

/// Which way the buffers of a queue go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The device reads them.
    ToDevice,
    /// The device may write them.
    FromDevice,
    /// A device that tells them apart itself. No buffer goes both ways.
    Both,
}

impl Direction {
    /// The driver's word for such a buffer.
    pub(super) fn name(self) -> &'static str {
        match self {
            Direction::ToDevice => "device-readable",
            Direction::FromDevice => "device-writable",
            Direction::Both => "two-way",
        }
    }
}

/// A checked buffer: every byte of it is guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// First guest-physical address.
    pub gpa: u64,
    /// Length in bytes; may be zero.
    pub length: u32,
    /// Which way it goes.
    pub way: Direction,
}

/// A chain whose descriptors all passed: it ends, goes the right way, lies in RAM.
#[derive(Debug, PartialEq, Eq)]
pub struct Chain {
    /// What to give back to the driver.
    pub head: u16,
    /// Its buffers in order, at most as many as the queue has entries.
    pub buffers: Vec<Buffer>,
}

/// Takes the chains that are available now, at most the queue's size: a driver that adds more
/// while the device works notifies again.
///
/// # Errors
/// At the first chain that fails a check; chains before it are lost with the device.
pub fn take_available(
    index: usize,
    queue: &mut Queue,
    ram: &GuestRam,
    direction: Direction,
) -> Result<Vec<Chain>, Malformed> {
    let size = queue.size();
    let chains = queue
        .iter(ram.memory())
        .map_err(|source| Malformed::Queue { index, source })?;
    chains
        .map(|chain| check(chain, size, ram.layout(), direction))
        .collect()
}

fn check(
    chain: DescriptorChain<&GuestMemoryMmap>,
    queue_size: u16,
    layout: &Layout,
    direction: Direction,
) -> Result<Chain, Malformed> {
    let head = chain.head_index();
    let endless = Malformed::Chain { head };
    if head >= queue_size {
        return Err(endless);
    }
    let mut buffers = Vec::new();
    let mut last: Option<Descriptor> = None;
    // One more than a chain may have, so that a loop is seen as one; an indirect table, which no
    // device of ours offers, could otherwise hold 65535.
    for descriptor in chain.take(usize::from(queue_size) + 1) {
        buffers.push(check_buffer(&descriptor, layout, direction)?);
        last = Some(descriptor);
    }
    let ended = last.is_some_and(|last| !last.has_next());
    if !ended || buffers.len() > usize::from(queue_size) {
        return Err(endless);
    }
    Ok(Chain { head, buffers })
}

fn check_buffer(
    descriptor: &Descriptor,
    layout: &Layout,
    direction: Direction,
) -> Result<Buffer, Malformed> {
    let way = if descriptor.is_write_only() {
        Direction::FromDevice
    } else {
        Direction::ToDevice
    };
    if direction != Direction::Both && way != direction {
        return Err(Malformed::Direction {
            found: way.name(),
            expected: direction.name(),
        });
    }
    let (gpa, length) = (descriptor.addr().0, descriptor.len());
    frames_touched(layout, gpa, u64::from(length))?;
    Ok(Buffer { gpa, length, way })
}
