//! One queue of a device, and the guest memory that its buffers lie in.

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::Used;
use super::chain::{self, Chain, Direction, Malformed};
use crate::sys::guest_range::NotRam;
use crate::sys::ram::GuestRam;

/// A queue that its device works on.
pub struct Ring<'a> {
    /// Its number, for messages.
    index: usize,
    queue: &'a mut Queue,
    ram: &'a GuestRam,
}

impl<'a> Ring<'a> {
    /// Queue `index` of a device; its buffers lie in `ram`.
    pub fn new(index: usize, queue: &'a mut Queue, ram: &'a GuestRam) -> Ring<'a> {
        Ring { index, queue, ram }
    }

    /// Its number.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The guest's memory.
    pub fn ram(&self) -> &'a GuestRam {
        self.ram
    }

    /// The chains that are available now: see [`chain::take_available`].
    ///
    /// # Errors
    /// At the first chain that fails a check.
    pub fn take(&mut self, direction: Direction) -> Result<Vec<Chain>, Malformed> {
        chain::take_available(self.index, self.queue, self.ram, direction)
    }

    /// Gives a chain back to the driver, with `written` bytes written into it.
    ///
    /// # Errors
    /// When the used ring is not RAM.
    pub fn give_back(&mut self, head: u16, written: u32) -> Result<(), Malformed> {
        self.queue
            .add_used(self.ram.memory(), head, written)
            .map_err(|source| Malformed::Queue {
                index: self.index,
                source,
            })
    }

    /// Has each chain that is available served by `serve`, which returns how many bytes it wrote,
    /// and gives it back.
    ///
    /// # Errors
    /// At the first chain that is malformed; it is not given back.
    pub fn serve_each(
        &mut self,
        direction: Direction,
        mut serve: impl FnMut(&Chain, &GuestRam) -> Result<u32, Malformed>,
    ) -> Result<Used, Malformed> {
        let mut used = Used::Nothing;
        for chain in self.take(direction)? {
            let written = serve(&chain, self.ram)?;
            self.give_back(chain.head, written)?;
            used = Used::Buffers;
        }
        Ok(used)
    }
}

/// Copies out of guest memory. The range was checked with its chain and guest RAM never shrinks, so
/// that this does not fail.
///
/// # Errors
/// When the range is not RAM.
pub fn read(ram: &GuestRam, gpa: u64, bytes: &mut [u8]) -> Result<(), NotRam> {
    let length = bytes.len() as u64;
    let copied = ram.memory().read_slice(bytes, GuestAddress(gpa));
    copied.map_err(|_| NotRam { gpa, length })
}

/// Copies into guest memory, as [`read`] out of it.
///
/// # Errors
/// When the range is not RAM.
pub fn write(ram: &GuestRam, gpa: u64, bytes: &[u8]) -> Result<(), NotRam> {
    let length = bytes.len() as u64;
    let copied = ram.memory().write_slice(bytes, GuestAddress(gpa));
    copied.map_err(|_| NotRam { gpa, length })
}

/// Answers a read of configuration space out of all of its bytes; those beyond their end stay as
/// they are in `data`.
pub fn read_config_of(config: &[u8], offset: u64, data: &mut [u8]) {
    let rest = usize::try_from(offset).ok().and_then(|at| config.get(at..));
    for (to, from) in data.iter_mut().zip(rest.unwrap_or_default()) {
        *to = *from;
    }
}
