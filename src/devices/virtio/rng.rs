//! The virtio entropy device (virtio 1.2, section 5.4): the host kernel's random numbers.

use std::sync::Arc;

use rustix::rand::{GetRandomFlags, getrandom};

use super::chain::{Buffer, Chain, Direction, Malformed};
use super::mmio::Transport;
use super::ring::{Ring, write};
use super::{FEATURE_VERSION_1, Used, VirtioDevice};
use crate::devices::bus::BusDevice;
use crate::devices::idle::IdlePort;
use crate::devices::interrupt::Interrupt;
use crate::sys::guest_range::NotRam;
use crate::sys::ram::GuestRam;

/// Virtio device type of an entropy source (virtio 1.2, section 5).
const DEVICE_ID: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
const QUEUE_SIZES: [u16; 1] = [64];
/// Bytes given for one request, however many were asked for: the device may give fewer.
const REQUEST_BYTES_MAX: u32 = 256;

struct EntropyDevice;

/// The registers of an entropy device, to be placed on the memory bus.
pub fn bus_device(
    ram: Arc<GuestRam>,
    interrupt: Arc<dyn Interrupt>,
    idle: Arc<IdlePort>,
) -> Arc<dyn BusDevice> {
    Arc::new(Transport::new("rng", EntropyDevice, ram, interrupt, idle))
}

/// Fills the first bytes of a chain; returns how many.
fn fill(chain: &Chain, ram: &GuestRam) -> Result<u32, NotRam> {
    // Waits early in the host's boot, a second at most: drivers take an empty answer for an error.
    let mut bytes = [0; REQUEST_BYTES_MAX as usize];
    let available = getrandom(&mut bytes, GetRandomFlags::empty()).unwrap_or(0);
    let mut rest = &bytes[..available];
    for Buffer { gpa, length, .. } in &chain.buffers {
        let (now, later) = rest.split_at(rest.len().min(*length as usize));
        write(ram, *gpa, now)?;
        rest = later;
    }
    Ok(u32::try_from(available - rest.len()).expect("at most 256"))
}

impl VirtioDevice for EntropyDevice {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn features(&self) -> u64 {
        FEATURE_VERSION_1
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUE_SIZES
    }

    fn notify(&mut self, ring: &mut Ring<'_>) -> Result<Used, Malformed> {
        ring.serve_each(Direction::FromDevice, |chain, ram| Ok(fill(chain, ram)?))
    }
}
