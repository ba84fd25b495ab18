//! The virtio-mmio transport, modern interface. Source: virtio 1.2, 4.2 "Virtio Over MMIO".

use core::arch::asm;

/// Register offsets.
mod register {
    pub const MAGIC: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SELECT: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SELECT: u64 = 0x024;
    pub const QUEUE_SELECT: u64 = 0x030;
    pub const QUEUE_SIZE_MAX: u64 = 0x034;
    pub const QUEUE_SIZE: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESCRIPTORS: u64 = 0x080;
    pub const QUEUE_AVAILABLE: u64 = 0x090;
    pub const QUEUE_USED: u64 = 0x0a0;
    pub const CONFIG: u64 = 0x100;
}

const MAGIC: u32 = 0x7472_6976;
const STATUS_ACKNOWLEDGE: u32 = 1;
const STATUS_DRIVER: u32 = 2;
const STATUS_DRIVER_OK: u32 = 4;
const STATUS_FEATURES_OK: u32 = 8;
const FEATURE_VERSION_1: u64 = 1 << 32;

/// A virtio device.
#[derive(Debug, Clone, Copy)]
pub struct Device {
    base: u64,
}

/// Why a device cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceError {
    /// It has no modern interface.
    NotModern,
    /// It refused the chosen features.
    FeaturesRefused,
}

impl Device {
    /// The device at this address, if there is one of this type.
    #[must_use]
    pub fn find(base: u64, device_id: u32) -> Option<Self> {
        let device = Self { base };
        let found = base.is_multiple_of(4)
            && (0x8000_0000..0xffff_f000).contains(&base)
            && device.register(register::MAGIC) == MAGIC
            && device.register(register::DEVICE_ID) == device_id;
        found.then_some(device)
    }

    /// Reads a register as it is.
    #[must_use]
    pub fn register(self, offset: u64) -> u32 {
        let value;
        // SAFETY: an address between memory and 4 GiB, mapped, where only devices are; a plain
        // move, which every instruction emulator knows. The device may change memory.
        unsafe {
            asm!("mov {0:e}, [{1}]", out(reg) value, in(reg) self.base + offset, options(nostack));
        }
        value
    }

    /// Writes a register as it is.
    pub fn set_register(self, offset: u64, value: u32) {
        // SAFETY: as for reads.
        unsafe {
            asm!("mov [{1}], {0:e}", in(reg) value, in(reg) self.base + offset, options(nostack));
        }
    }

    /// Resets the device and agrees on features: all of `wanted` that it offers.
    pub fn negotiate(self, wanted: u64) -> Result<u64, DeviceError> {
        if self.register(register::VERSION) != 2 {
            return Err(DeviceError::NotModern);
        }
        self.set_register(register::STATUS, 0);
        self.set_register(register::STATUS, STATUS_ACKNOWLEDGE);
        self.set_register(register::STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER);
        let offered = [0, 1].map(|half| {
            self.set_register(register::DEVICE_FEATURES_SELECT, half);
            u64::from(self.register(register::DEVICE_FEATURES)) << (32 * half)
        });
        let features = (offered[0] | offered[1]) & (wanted | FEATURE_VERSION_1);
        if features & FEATURE_VERSION_1 == 0 {
            return Err(DeviceError::NotModern);
        }
        for half in [0, 1] {
            self.set_register(register::DRIVER_FEATURES_SELECT, half);
            self.set_register(register::DRIVER_FEATURES, (features >> (32 * half)) as u32);
        }
        let status = STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK;
        self.set_register(register::STATUS, status);
        if self.register(register::STATUS) & STATUS_FEATURES_OK == 0 {
            return Err(DeviceError::FeaturesRefused);
        }
        Ok(features)
    }

    /// Tells the device that its driver is ready.
    pub fn start(self) {
        let status = self.register(register::STATUS);
        self.set_register(register::STATUS, status | STATUS_DRIVER_OK);
    }

    /// The device's status register.
    #[must_use]
    pub fn status(self) -> u32 {
        self.register(register::STATUS)
    }

    /// The most descriptors a queue may have; 0 if there is no such queue.
    #[must_use]
    pub fn queue_size_max(self, queue: u16) -> u32 {
        self.set_register(register::QUEUE_SELECT, u32::from(queue));
        self.register(register::QUEUE_SIZE_MAX)
    }

    /// Tells the device where a queue lies.
    pub fn set_queue(self, queue: u16, size: u16, descriptors: u64, available: u64, used: u64) {
        self.set_register(register::QUEUE_SELECT, u32::from(queue));
        self.set_register(register::QUEUE_SIZE, u32::from(size));
        for (offset, address) in [
            (register::QUEUE_DESCRIPTORS, descriptors),
            (register::QUEUE_AVAILABLE, available),
            (register::QUEUE_USED, used),
        ] {
            self.set_register(offset, address as u32);
            self.set_register(offset + 4, (address >> 32) as u32);
        }
        self.set_register(register::QUEUE_READY, 1);
    }

    /// Tells the device that a queue has something new.
    pub fn notify(self, queue: u16) {
        self.set_register(register::QUEUE_NOTIFY, u32::from(queue));
    }

    /// Reads a 32-bit field of the device's own configuration.
    #[must_use]
    pub fn config(self, offset: u64) -> u32 {
        self.register(register::CONFIG + offset)
    }

    /// Writes a 32-bit field of the device's own configuration.
    pub fn set_config(self, offset: u64, value: u32) {
        self.set_register(register::CONFIG + offset, value);
    }
}
