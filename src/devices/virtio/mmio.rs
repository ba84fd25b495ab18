//! The virtio-mmio transport, version 2 (virtio 1.2, section 4.2).
//!
//! One window of registers in front of one device. Malformed input stops that device: the status
//! gets DEVICE_NEEDS_RESET and the driver a configuration interrupt; nothing else is affected.
//!
//! Known gaps: no shared memory regions, no queue reset, no notification data, no event index.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Instant;

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use super::super::LOG_INTERVAL;
use super::super::bus::BusDevice;
use super::super::idle::IdlePort;
use super::super::interrupt::Interrupt;
use super::chain::Malformed;
use super::ring::Ring;
use super::signals::{STATUS_DRIVER_OK, STATUS_FEATURES_OK, STATUS_NEEDS_RESET, Signals};
use super::{FEATURE_VERSION_1, Used, VirtioDevice};
use crate::out::rate_limit::RateLimit;
use crate::sys::guest_range::frames_touched;
use crate::sys::ram::{GuestRam, Layout};

/// Bytes of a transport's window.
pub const WINDOW_BYTES: u64 = 0x1000;

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// Subsystem vendor; free to choose ("TDMK").
const VENDOR: u32 = 0x4b4d_4454;
/// Offset of the configuration space.
const CONFIG: u64 = 0x100;

/// Register offsets (virtio 1.2, section 4.2.2, table 4.1).
mod register {
    use virtio_bindings::virtio_mmio as mmio;

    pub const MAGIC: u64 = mmio::VIRTIO_MMIO_MAGIC_VALUE as u64;
    pub const VERSION: u64 = mmio::VIRTIO_MMIO_VERSION as u64;
    pub const DEVICE_ID: u64 = mmio::VIRTIO_MMIO_DEVICE_ID as u64;
    pub const VENDOR_ID: u64 = mmio::VIRTIO_MMIO_VENDOR_ID as u64;
    pub const DEVICE_FEATURES: u64 = mmio::VIRTIO_MMIO_DEVICE_FEATURES as u64;
    pub const DEVICE_FEATURES_SEL: u64 = mmio::VIRTIO_MMIO_DEVICE_FEATURES_SEL as u64;
    pub const DRIVER_FEATURES: u64 = mmio::VIRTIO_MMIO_DRIVER_FEATURES as u64;
    pub const DRIVER_FEATURES_SEL: u64 = mmio::VIRTIO_MMIO_DRIVER_FEATURES_SEL as u64;
    pub const QUEUE_SEL: u64 = mmio::VIRTIO_MMIO_QUEUE_SEL as u64;
    pub const QUEUE_NUM_MAX: u64 = mmio::VIRTIO_MMIO_QUEUE_NUM_MAX as u64;
    pub const QUEUE_NUM: u64 = mmio::VIRTIO_MMIO_QUEUE_NUM as u64;
    pub const QUEUE_READY: u64 = mmio::VIRTIO_MMIO_QUEUE_READY as u64;
    pub const QUEUE_NOTIFY: u64 = mmio::VIRTIO_MMIO_QUEUE_NOTIFY as u64;
    pub const INTERRUPT_STATUS: u64 = mmio::VIRTIO_MMIO_INTERRUPT_STATUS as u64;
    pub const INTERRUPT_ACK: u64 = mmio::VIRTIO_MMIO_INTERRUPT_ACK as u64;
    pub const STATUS: u64 = mmio::VIRTIO_MMIO_STATUS as u64;
    pub const QUEUE_DESC_LOW: u64 = mmio::VIRTIO_MMIO_QUEUE_DESC_LOW as u64;
    pub const QUEUE_DESC_HIGH: u64 = mmio::VIRTIO_MMIO_QUEUE_DESC_HIGH as u64;
    pub const QUEUE_DRIVER_LOW: u64 = mmio::VIRTIO_MMIO_QUEUE_AVAIL_LOW as u64;
    pub const QUEUE_DRIVER_HIGH: u64 = mmio::VIRTIO_MMIO_QUEUE_AVAIL_HIGH as u64;
    pub const QUEUE_DEVICE_LOW: u64 = mmio::VIRTIO_MMIO_QUEUE_USED_LOW as u64;
    pub const QUEUE_DEVICE_HIGH: u64 = mmio::VIRTIO_MMIO_QUEUE_USED_HIGH as u64;
    pub const SHM_LEN_LOW: u64 = mmio::VIRTIO_MMIO_SHM_LEN_LOW as u64;
    pub const SHM_BASE_HIGH: u64 = mmio::VIRTIO_MMIO_SHM_BASE_HIGH as u64;
    pub const CONFIG_GENERATION: u64 = mmio::VIRTIO_MMIO_CONFIG_GENERATION as u64;
}

/// One queue and what the driver wrote about it; checked when it is made ready.
struct QueueSlot {
    queue: Queue,
    size: u32,
    descriptors: u64,
    driver: u64,
    device: u64,
}

/// What calls to the device are serialised by. Held while a device copies from guest memory, which
/// may wait for the pager, and while it calls its sink: the pager never takes this lock.
struct Inner<D> {
    device: D,
    queues: Vec<QueueSlot>,
    queue_select: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    malformed_count: u64,
    log_limit: RateLimit,
}

/// A device behind its registers.
pub struct Transport<D> {
    name: &'static str,
    inner: Mutex<Inner<D>>,
    signals: Signals,
    ram: Arc<GuestRam>,
}

impl<D: VirtioDevice> Transport<D> {
    /// Puts `device` behind registers. `name` appears in the log.
    pub fn new(
        name: &'static str,
        device: D,
        ram: Arc<GuestRam>,
        interrupt: Arc<dyn Interrupt>,
        idle: Arc<IdlePort>,
    ) -> Transport<D> {
        let queues = device.queue_sizes().iter().map(|max| QueueSlot {
            queue: Queue::new(*max).expect("device queue sizes are powers of two"),
            size: u32::from(*max),
            descriptors: 0,
            driver: 0,
            device: 0,
        });
        let queues = queues.collect();
        Transport {
            name,
            inner: Mutex::new(Inner {
                device,
                queues,
                queue_select: 0,
                device_features_select: 0,
                driver_features_select: 0,
                driver_features: 0,
                malformed_count: 0,
                log_limit: RateLimit::new(1, LOG_INTERVAL),
            }),
            signals: Signals::new(interrupt, idle),
            ram,
        }
    }

    /// Whether a driver runs the device. Never waits.
    pub fn driver_up(&self) -> bool {
        self.signals.running()
    }

    /// Tells the driver that the configuration space changed. Never waits.
    pub fn config_changed(&self) {
        self.signals.config_changed();
    }

    /// How often the driver's input was malformed.
    pub fn malformed_count(&self) -> u64 {
        self.lock().malformed_count
    }

    /// Lets the host side work on queue `index` as if the driver had notified; skipped when the
    /// device is busy or not running.
    pub(super) fn try_with_queue(
        &self,
        index: usize,
        work: impl FnOnce(&mut D, &mut Ring<'_>) -> Result<Used, Malformed>,
    ) {
        let mut guard = match self.inner.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let inner = &mut *guard;
        let Some(slot) = inner.queues.get_mut(index) else {
            return;
        };
        if !self.signals.running() || !slot.queue.ready() {
            return;
        }
        let mut ring = Ring::new(index, &mut slot.queue, &self.ram);
        let outcome = work(&mut inner.device, &mut ring);
        let returned = matches!(outcome, Ok(Used::Buffers));
        self.conclude(inner, outcome);
        if returned {
            self.signals.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<D>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notify(&self, inner: &mut Inner<D>, index: u32) {
        if !self.signals.running() {
            return;
        }
        let Some(index) = usize::try_from(index).ok() else {
            return;
        };
        let Some(slot) = inner.queues.get_mut(index) else {
            return;
        };
        if slot.queue.ready() {
            let mut ring = Ring::new(index, &mut slot.queue, &self.ram);
            let outcome = inner.device.notify(&mut ring);
            self.conclude(inner, outcome);
        }
    }

    fn conclude(&self, inner: &mut Inner<D>, outcome: Result<Used, Malformed>) {
        match outcome {
            Ok(Used::Nothing) => {}
            Ok(Used::Buffers) => self.signals.used(),
            Ok(Used::BuffersAndConfig) => {
                self.signals.used();
                self.signals.config_changed();
            }
            Err(malformed) => self.fail(inner, &malformed),
        }
    }

    /// Stops the device until the driver resets it.
    fn fail(&self, inner: &mut Inner<D>, malformed: &Malformed) {
        inner.malformed_count += 1;
        if let Some(suppressed) = inner.log_limit.allow(Instant::now()) {
            let name = self.name;
            log::warn!("{name} stopped: {malformed} ({suppressed} such messages suppressed)");
        }
        self.signals.add_status(STATUS_NEEDS_RESET);
        self.signals.config_changed();
    }

    fn set_status(&self, inner: &mut Inner<D>, value: u32) {
        if value == 0 {
            self.signals.reset();
            inner.device.reset();
            inner.driver_features = 0;
            inner.queue_select = 0;
            for slot in &mut inner.queues {
                slot.queue.reset();
                slot.size = u32::from(slot.queue.max_size());
                (slot.descriptors, slot.driver, slot.device) = (0, 0, 0);
            }
            return;
        }
        let before = self.signals.status();
        // Bits are only ever added, and the device's own bit is not the driver's to set.
        let mut added = value & !before & 0xff & !STATUS_NEEDS_RESET;
        if added & STATUS_FEATURES_OK != 0 {
            let offered = inner.device.features();
            let accepted = inner.driver_features;
            if accepted & !offered != 0 || accepted & FEATURE_VERSION_1 == 0 {
                // The driver reads the status back and sees that its choice was refused.
                added &= !STATUS_FEATURES_OK;
            }
        }
        if added & STATUS_DRIVER_OK != 0 {
            if (before | added) & STATUS_FEATURES_OK == 0 {
                added &= !STATUS_DRIVER_OK;
            } else {
                inner.device.activate(inner.driver_features);
            }
        }
        self.signals.add_status(added);
        if added & STATUS_DRIVER_OK != 0 {
            // Linux' balloon driver announces its statistics buffer before it says that it is
            // ready, and does not do so again.
            for index in (0u32..).take(inner.queues.len()) {
                self.notify(inner, index);
            }
        }
    }

    fn set_driver_features(&self, inner: &mut Inner<D>, value: u32) {
        if self.signals.status() & STATUS_FEATURES_OK != 0 {
            return;
        }
        let value = u64::from(value);
        match inner.driver_features_select {
            0 => inner.driver_features = inner.driver_features & !0xffff_ffff | value,
            1 => inner.driver_features = inner.driver_features & 0xffff_ffff | value << 32,
            // No feature of ours is above bit 63; one accepted there is one not offered.
            _ if value != 0 => inner.driver_features |= 1 << 63,
            _ => {}
        }
    }

    fn set_queue_ready(&self, inner: &mut Inner<D>, value: u32) {
        let select = inner.queue_select;
        let Some(slot) = selected(&mut inner.queues, select) else {
            return;
        };
        if value == 0 {
            slot.queue.set_ready(false);
            return;
        }
        // A queue in use starts over only after the driver stopped it.
        if slot.queue.ready() {
            return;
        }
        if let Err(malformed) = make_ready(select as usize, slot, self.ram.layout()) {
            self.fail(inner, &malformed);
        }
    }

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            register::MAGIC => return MAGIC,
            register::VERSION => return VERSION,
            register::VENDOR_ID => return VENDOR,
            register::INTERRUPT_STATUS => return self.signals.causes(),
            register::STATUS => return self.signals.status(),
            register::CONFIG_GENERATION => return self.signals.generation(),
            // No shared memory region: length and base read as all ones.
            register::SHM_LEN_LOW..=register::SHM_BASE_HIGH => return u32::MAX,
            _ => {}
        }
        let mut inner = self.lock();
        let select = inner.queue_select;
        match offset {
            register::DEVICE_ID => inner.device.device_id(),
            register::DEVICE_FEATURES => {
                half(inner.device.features(), inner.device_features_select)
            }
            register::QUEUE_NUM_MAX => selected(&mut inner.queues, select)
                .map_or(0, |slot| u32::from(slot.queue.max_size())),
            register::QUEUE_READY => {
                selected(&mut inner.queues, select).map_or(0, |slot| u32::from(slot.queue.ready()))
            }
            _ => 0,
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        if offset == register::INTERRUPT_ACK {
            self.signals.acknowledge(value);
            return;
        }
        let mut guard = self.lock();
        let inner = &mut *guard;
        match offset {
            register::DEVICE_FEATURES_SEL => inner.device_features_select = value,
            register::DRIVER_FEATURES_SEL => inner.driver_features_select = value,
            register::DRIVER_FEATURES => self.set_driver_features(inner, value),
            register::QUEUE_SEL => inner.queue_select = value,
            register::QUEUE_READY => self.set_queue_ready(inner, value),
            register::QUEUE_NOTIFY => self.notify(inner, value),
            register::STATUS => self.set_status(inner, value),
            _ => {
                let select = inner.queue_select;
                if let Some(slot) = selected(&mut inner.queues, select)
                    && !slot.queue.ready()
                {
                    slot.write(offset, value);
                }
            }
        }
    }
}

impl QueueSlot {
    /// Takes a register that describes a queue which is not in use yet.
    fn write(&mut self, offset: u64, value: u32) {
        let value64 = u64::from(value);
        let low = |old: u64| old & !0xffff_ffff | value64;
        let high = |old: u64| old & 0xffff_ffff | value64 << 32;
        match offset {
            register::QUEUE_NUM => self.size = value,
            register::QUEUE_DESC_LOW => self.descriptors = low(self.descriptors),
            register::QUEUE_DESC_HIGH => self.descriptors = high(self.descriptors),
            register::QUEUE_DRIVER_LOW => self.driver = low(self.driver),
            register::QUEUE_DRIVER_HIGH => self.driver = high(self.driver),
            register::QUEUE_DEVICE_LOW => self.device = low(self.device),
            register::QUEUE_DEVICE_HIGH => self.device = high(self.device),
            _ => {}
        }
    }
}

fn selected(queues: &mut [QueueSlot], select: u32) -> Option<&mut QueueSlot> {
    queues.get_mut(usize::try_from(select).ok()?)
}

fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => (features & 0xffff_ffff) as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

/// Hands the driver's description to virtio-queue, if the rings lie in RAM as a whole: accesses to
/// them then cannot fail, and virtio-queue has nothing to log about.
fn make_ready(index: usize, slot: &mut QueueSlot, layout: &Layout) -> Result<(), Malformed> {
    let bad = |source| Malformed::Queue { index, source };
    let size = u16::try_from(slot.size).map_err(|_| bad(virtio_queue::Error::InvalidSize))?;
    slot.queue.reset();
    slot.queue.try_set_size(size).map_err(bad)?;
    // Ring lengths: virtio 1.2, section 2.7, with the event words.
    let entries = u64::from(size);
    frames_touched(layout, slot.descriptors, 16 * entries)?;
    frames_touched(layout, slot.driver, 6 + 2 * entries)?;
    frames_touched(layout, slot.device, 6 + 8 * entries)?;
    let queue = &mut slot.queue;
    queue
        .try_set_desc_table_address(GuestAddress(slot.descriptors))
        .map_err(bad)?;
    queue
        .try_set_avail_ring_address(GuestAddress(slot.driver))
        .map_err(bad)?;
    queue
        .try_set_used_ring_address(GuestAddress(slot.device))
        .map_err(bad)?;
    queue.set_ready(true);
    Ok(())
}

impl<D: VirtioDevice> BusDevice for Transport<D> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.lock().device.read_config(offset, data);
        } else if data.len() == 4 {
            // Registers are read and written with aligned 32-bit accesses only.
            data.copy_from_slice(&self.read_register(offset).to_le_bytes());
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.lock().device.write_config(offset, data);
        } else if let Ok(bytes) = data.try_into() {
            self.write_register(offset, u32::from_le_bytes(bytes));
        }
    }
}
