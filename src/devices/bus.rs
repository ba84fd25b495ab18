//! Dispatch of guest accesses, by port or by guest-physical address, to devices.

use std::sync::Arc;

/// What a bus can reach. Methods run on vCPU threads, several at once.
pub trait BusDevice: Send + Sync {
    /// The guest reads `data.len()` bytes at `offset` into the device's window.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// The guest writes. On ports, a string instruction arrives as one call whose `data` holds the
    /// consecutive values, all meant for the port at `offset`.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Two devices claimed the same address.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("bus window {start:#x}+{length:#x} is empty, wraps or overlaps another")]
pub struct WindowError {
    /// First address of the refused window.
    pub start: u64,
    /// Its length.
    pub length: u64,
}

struct Window {
    start: u64,
    length: u64,
    device: Arc<dyn BusDevice>,
}

/// An interval map from addresses to devices; fixed once the machine runs, so it needs no lock.
#[derive(Default)]
pub struct Bus {
    /// Ascending by `start`, disjoint.
    windows: Vec<Window>,
}

impl Bus {
    /// Places a device at `start .. start + length`.
    ///
    /// # Errors
    /// When the window is empty, wraps, or overlaps another.
    pub fn insert(
        &mut self,
        start: u64,
        length: u64,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), WindowError> {
        let error = WindowError { start, length };
        let end = start.checked_add(length).filter(|end| *end > start);
        let Some(end) = end else { return Err(error) };
        let at = self.windows.partition_point(|window| window.start < start);
        let free_before = at == 0 || {
            let before = &self.windows[at - 1];
            before.start + before.length <= start
        };
        let free_after = self.windows.get(at).is_none_or(|after| end <= after.start);
        if !(free_before && free_after) {
            return Err(error);
        }
        self.windows.insert(
            at,
            Window {
                start,
                length,
                device,
            },
        );
        Ok(())
    }

    fn find(&self, address: u64) -> Option<(&dyn BusDevice, u64)> {
        let at = self
            .windows
            .partition_point(|window| window.start <= address);
        let window = &self.windows[at.checked_sub(1)?];
        let offset = address - window.start;
        (offset < window.length).then(|| (window.device.as_ref(), offset))
    }

    /// A guest read. Where no device is, all bits are one, as on a real bus.
    ///
    /// The first byte's address chooses the device; devices bound the length themselves.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((device, offset)) = self.find(address) {
            device.read(offset, data);
        }
    }

    /// A guest write. Where no device is, nothing happens.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(address) {
            device.write(offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(u8);
    impl BusDevice for Echo {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data[0] = self.0 + u8::try_from(offset).unwrap();
        }
        fn write(&self, _: u64, _: &[u8]) {}
    }

    #[test]
    fn an_access_reaches_the_window_that_holds_it() {
        let mut bus = Bus::default();
        bus.insert(0x20, 8, Arc::new(Echo(0x80))).unwrap();
        bus.insert(0x10, 0x10, Arc::new(Echo(0x40))).unwrap();
        let read = |address| {
            let mut byte = [0];
            bus.read(address, &mut byte);
            byte[0]
        };
        assert_eq!(read(0x0f), 0xff);
        assert_eq!(read(0x10), 0x40);
        assert_eq!(read(0x1f), 0x4f);
        assert_eq!(read(0x27), 0x87);
        assert_eq!(read(0x28), 0xff);
        assert_eq!(read(u64::MAX), 0xff);
    }

    #[test]
    fn windows_never_overlap_or_wrap() {
        let mut bus = Bus::default();
        bus.insert(0x10, 0x10, Arc::new(Echo(0))).unwrap();
        for (start, length) in [(0x1f, 1), (0, 0x11), (0x8, 0x20), (0x40, 0), (u64::MAX, 2)] {
            assert_eq!(
                bus.insert(start, length, Arc::new(Echo(0))),
                Err(WindowError { start, length })
            );
        }
    }
}
