//! Virtio devices behind the MMIO transport (virtio 1.2).

pub mod balloon;
pub mod block;
pub mod chain;
pub mod mmio;
pub mod ring;
pub mod rng;
mod signals;

use chain::Malformed;
use ring::Ring;

/// Feature bit that every device of ours demands: virtio 1.0 or later (virtio 1.2, section 6).
pub const FEATURE_VERSION_1: u64 = 1 << virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;

/// Whether the driver is to be interrupted because buffers were returned to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Used {
    /// Nothing was returned.
    Nothing,
    /// At least one buffer was returned.
    Buffers,
    /// The same, and the configuration space has changed.
    BuffersAndConfig,
}

/// A device behind a transport, which serialises all calls.
pub trait VirtioDevice: Send {
    /// Device type (virtio 1.2, section 5).
    fn device_id(&self) -> u32;
    /// Features offered, [`FEATURE_VERSION_1`] included.
    fn features(&self) -> u64;
    /// Largest size of each queue; its length is the number of queues.
    fn queue_sizes(&self) -> &'static [u16];
    /// Reads configuration space; bytes beyond its end stay zero.
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}
    /// Writes configuration space; what cannot be written is ignored.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    /// The driver is ready, having accepted `features`.
    fn activate(&mut self, _features: u64) {}
    /// The driver has put buffers into a queue, or at least says so.
    ///
    /// # Errors
    /// Malformed input: the transport stops the device until the driver resets it.
    fn notify(&mut self, ring: &mut Ring<'_>) -> Result<Used, Malformed>;
    /// Back to the state before `activate`.
    fn reset(&mut self) {}
}
