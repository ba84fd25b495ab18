//! The part of a transport that must be reachable without its lock: status and interrupts.
//!
//! A vCPU may sit in the transport for as long as a page takes to come back from disk; changing the
//! balloon's target or acknowledging an interrupt must not wait for that.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::super::idle::IdlePort;
use super::super::interrupt::Interrupt;

/// Device status: the driver found the device and knows how to drive it (virtio 1.2, section 2.1).
pub(super) const STATUS_DRIVER_OK: u32 = virtio_bindings::virtio_config::VIRTIO_CONFIG_S_DRIVER_OK;
/// Device status: the driver accepted features.
pub(super) const STATUS_FEATURES_OK: u32 =
    virtio_bindings::virtio_config::VIRTIO_CONFIG_S_FEATURES_OK;
/// Device status: the device stopped and wants a reset.
pub(super) const STATUS_NEEDS_RESET: u32 =
    virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;

const INTERRUPT_USED: u32 = virtio_bindings::virtio_mmio::VIRTIO_MMIO_INT_VRING;
const INTERRUPT_CONFIG: u32 = virtio_bindings::virtio_mmio::VIRTIO_MMIO_INT_CONFIG;

/// Status, interrupt causes and the line of one device.
pub(super) struct Signals {
    status: AtomicU32,
    causes: AtomicU32,
    /// Counts changes of the configuration space.
    generation: AtomicU32,
    interrupt: Arc<dyn Interrupt>,
    idle: Arc<IdlePort>,
}

impl Signals {
    pub fn new(interrupt: Arc<dyn Interrupt>, idle: Arc<IdlePort>) -> Signals {
        Signals {
            status: AtomicU32::new(0),
            causes: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            interrupt,
            idle,
        }
    }

    pub fn status(&self) -> u32 {
        self.status.load(Ordering::Acquire)
    }

    pub fn add_status(&self, bits: u32) {
        self.status.fetch_or(bits, Ordering::AcqRel);
    }

    pub fn reset(&self) {
        self.status.store(0, Ordering::Release);
        self.causes.store(0, Ordering::Release);
    }

    /// Whether a driver runs the device and the device runs.
    pub fn running(&self) -> bool {
        self.status() & (STATUS_DRIVER_OK | STATUS_NEEDS_RESET) == STATUS_DRIVER_OK
    }

    pub fn causes(&self) -> u32 {
        self.causes.load(Ordering::Acquire)
    }

    pub fn acknowledge(&self, causes: u32) {
        self.causes.fetch_and(!causes, Ordering::AcqRel);
    }

    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// Buffers were returned.
    pub fn used(&self) {
        self.causes.fetch_or(INTERRUPT_USED, Ordering::AcqRel);
        self.interrupt.raise();
    }

    /// Something happened that the guest did not wait for while it notified: end its idle sleep.
    pub fn wake(&self) {
        self.idle.wake();
    }

    /// The configuration space changed, or the device failed. Silent before the driver is up, as
    /// the specification demands: it reads the configuration when it starts.
    pub fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        if self.status() & STATUS_DRIVER_OK != 0 {
            self.causes.fetch_or(INTERRUPT_CONFIG, Ordering::AcqRel);
            self.interrupt.raise();
        }
        self.idle.wake();
    }
}
