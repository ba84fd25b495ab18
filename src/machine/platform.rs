//! The fixed platform: which device is where.
//!
//! | what | address | interrupt |
//! |---|---|---|
//! | serial console | ports 0x3f8-0x3ff | 4 |
//! | keyboard controller (reset only) | port 0x64 | - |
//! | exit port | port 0xf4 | - |
//! | idle port | port 0xf8 | - |
//! | power off and reset (ACPI) | ports 0x600-0x602 | - |
//! | virtio-mmio window n | 0xd0000000 + n * 0x1000 | 5 + n |

use crate::boot::acpi::{Hardware, VirtioWindow};
use crate::devices::virtio::mmio::WINDOW_BYTES;
use crate::devices::{ports, serial};

/// Guest-physical start of the virtio-mmio windows.
pub(super) const VIRTIO_START: u64 = 0xd000_0000;
/// Interrupt line of the first window.
pub(super) const VIRTIO_IRQ: u32 = 5;
/// Windows that fit the free interrupt lines 5 to 12.
pub(super) const VIRTIO_WINDOWS: u32 = 8;

/// Guest-physical start of window `n`.
pub(super) fn virtio_window(n: u32) -> u64 {
    VIRTIO_START + u64::from(n) * WINDOW_BYTES
}

/// Interrupt line of window `n`.
pub(super) fn virtio_irq(n: u32) -> u32 {
    VIRTIO_IRQ + n
}

/// What the ACPI tables of a machine with the first `windows` windows in use say.
pub(super) fn hardware(cpus: u8, windows: u32) -> Hardware {
    let low = |address: u64| u32::try_from(address).expect("windows lie below 4 GiB");
    let window = |n| VirtioWindow {
        gpa: low(virtio_window(n)),
        length: low(WINDOW_BYTES),
        gsi: virtio_irq(n),
    };
    Hardware {
        cpus,
        virtio: (0..windows).map(window).collect(),
        serial: (serial::PORT, serial::IRQ),
        sleep_port: ports::PORT_POWER + ports::SLEEP_CONTROL,
        reset_port: ports::PORT_POWER + ports::RESET_REGISTER,
    }
}

/// The command line of a test guest with the `windows` first windows named as Linux wants it.
pub(super) fn cmdline_with_devices(cmdline: &str, windows: u32) -> String {
    let mut words: Vec<String> = Vec::new();
    if !cmdline.is_empty() {
        words.push(cmdline.to_string());
    }
    for n in 0..windows {
        let (start, irq) = (virtio_window(n), virtio_irq(n));
        words.push(format!("virtio_mmio.device=4K@{start:#x}:{irq}"));
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_follow_the_users_words() {
        assert_eq!(
            cmdline_with_devices("quiet", 2),
            "quiet virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6"
        );
        assert_eq!(
            cmdline_with_devices("", 1),
            "virtio_mmio.device=4K@0xd0000000:5"
        );
    }
}
