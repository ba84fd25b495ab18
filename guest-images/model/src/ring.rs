//! Where the parts of a split virtqueue lie. Source: virtio 1.2, 2.7 "Split Virtqueues".

/// Byte offsets of a virtqueue that lies, with its buffer, in one 4 KiB page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingLayout {
    /// Number of descriptors, a power of two.
    pub size: u16,
}

impl RingLayout {
    /// The most descriptors that leave half the page to the buffer.
    pub const SIZE_MAX: u16 = 64;
    /// Offset of the descriptor table, 16 bytes each.
    pub const DESCRIPTORS: u64 = 0;
    /// Offset of the buffer: the second half of the page.
    pub const BUFFER: u64 = 2048;
    /// Bytes of the buffer.
    pub const BUFFER_BYTES: u32 = 2048;

    /// The layout for a device that allows at most `device_max` descriptors; `None` if it has no
    /// such queue.
    #[must_use]
    pub fn new(device_max: u32) -> Option<Self> {
        let size = device_max.min(u32::from(Self::SIZE_MAX));
        (size > 0).then(|| Self {
            size: 1 << size.ilog2(),
        })
    }

    /// Offset of a descriptor.
    #[must_use]
    pub const fn descriptor(self, index: u16) -> u64 {
        Self::DESCRIPTORS + 16 * (index % self.size) as u64
    }

    /// Offset of the available ring: flags, index, entries of 2 bytes.
    #[must_use]
    pub const fn available(self) -> u64 {
        16 * self.size as u64
    }

    /// Offset of the available ring's entry for a running index.
    #[must_use]
    pub const fn available_entry(self, index: u16) -> u64 {
        self.available() + 4 + 2 * (index % self.size) as u64
    }

    /// Offset of the used ring: flags, index, entries of 8 bytes.
    #[must_use]
    pub const fn used(self) -> u64 {
        // After the available ring's entries and its event field, aligned to 4.
        (self.available() + 4 + 2 * self.size as u64 + 2).next_multiple_of(4)
    }

    /// Offset of the first byte after the used ring.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.used() + 4 + 8 * self.size as u64 + 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_each_other_and_stay_below_the_buffer() {
        for max in [1, 2, 3, 16, 64, 128, 1024] {
            let ring = RingLayout::new(max).expect("not zero");
            assert!(ring.size.is_power_of_two() && u32::from(ring.size) <= max);
            assert_eq!(ring.descriptor(ring.size - 1) + 16, ring.available());
            assert!(ring.available_entry(ring.size - 1) + 2 <= ring.used());
            assert_eq!(ring.used() % 4, 0);
            assert!(
                ring.end() <= RingLayout::BUFFER,
                "{ring:?} ends at {}",
                ring.end()
            );
        }
    }

    #[test]
    fn a_queue_of_size_zero_does_not_exist() {
        assert_eq!(RingLayout::new(0), None);
    }

    #[test]
    fn running_indices_wrap() {
        let ring = RingLayout::new(16).expect("not zero");
        assert_eq!(ring.available_entry(16), ring.available_entry(0));
        assert_eq!(ring.available_entry(u16::MAX), ring.available_entry(15));
    }
}
