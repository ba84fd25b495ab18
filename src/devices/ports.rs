//! Ports that end the machine: 0xf4 (QEMU's isa-debug-exit), the keyboard controller's reset, and
//! the sleep and reset registers that our ACPI tables name.

use super::bus::BusDevice;

/// What a guest asked for by a port write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndRequest {
    /// End with this code.
    Exit(u32),
    /// Reset the machine.
    Reset,
    /// Switch it off.
    Shutdown,
}

/// Receives the guest's wish to end; called on the vCPU thread, possibly more than once.
pub trait EndSink: Send + Sync {
    /// The guest asked to end.
    fn end(&self, request: EndRequest);
}

/// The first value of a port write, zero-extended.
pub(super) fn value(data: &[u8]) -> u32 {
    let mut bytes = [0; 4];
    let length = data.len().min(4);
    bytes[..length].copy_from_slice(&data[..length]);
    u32::from_le_bytes(bytes)
}

/// Port 0xf4: the value written is the exit code.
pub struct ExitPort<S>(pub S);

impl<S: EndSink> BusDevice for ExitPort<S> {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _: u64, data: &[u8]) {
        self.0.end(EndRequest::Exit(value(data)));
    }
}

/// Command port of the keyboard controller (i8042), which PC guests use to reset.
pub const PORT_RESET: u16 = 0x64;
/// Its command "pulse the reset line".
const COMMAND_RESET: u32 = 0xfe;

/// Port 0x64 of a keyboard controller that can do nothing but reset.
pub struct ResetPort<S>(pub S);

impl<S: EndSink> BusDevice for ResetPort<S> {
    fn read(&self, _: u64, data: &mut [u8]) {
        // Zero: the controller is ready for a command and has no key.
        data.fill(0);
    }

    fn write(&self, _: u64, data: &[u8]) {
        if value(&data[..data.len().min(1)]) == COMMAND_RESET {
            self.0.end(EndRequest::Reset);
        }
    }
}

/// First of the ports of [`PowerPorts`] (chosen; other VMMs use it too).
pub const PORT_POWER: u16 = 0x600;
/// Offset of the sleep control register; the sleep status register follows it.
pub const SLEEP_CONTROL: u16 = 0;
/// Offset of the reset register.
pub const RESET_REGISTER: u16 = 2;
/// Number of ports.
pub const POWER_PORTS: u16 = 3;
/// Bit of the sleep control register that starts the sleep (ACPI 6.5, section 4.8.3.7).
const SLEEP_ENABLE: u32 = 1 << 5;
/// Shift of its sleep type.
const SLEEP_TYPE_SHIFT: u32 = 2;
/// Mask of its sleep type, shifted.
const SLEEP_TYPE_MASK: u32 = 7;

/// The registers of hardware-reduced ACPI that end the machine.
pub struct PowerPorts<S> {
    /// Who ends it.
    pub sink: S,
    /// The sleep type that means "off".
    pub sleep_type_off: u8,
    /// The value of the reset register that resets.
    pub reset_value: u8,
}

impl<S: EndSink> BusDevice for PowerPorts<S> {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let value = value(&data[..data.len().min(1)]);
        let sleep_type = value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK;
        if offset == u64::from(RESET_REGISTER) {
            if value == u32::from(self.reset_value) {
                self.sink.end(EndRequest::Reset);
            }
        } else if offset == u64::from(SLEEP_CONTROL)
            && value & SLEEP_ENABLE != 0
            && sleep_type == u32::from(self.sleep_type_off)
        {
            self.sink.end(EndRequest::Shutdown);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Seen(Mutex<Vec<EndRequest>>);
    impl EndSink for &Seen {
        fn end(&self, request: EndRequest) {
            self.0.lock().unwrap().push(request);
        }
    }

    #[test]
    fn writes_of_every_width_are_understood() {
        let seen = Seen::default();
        ExitPort(&seen).write(0, &[7]);
        ExitPort(&seen).write(0, &0x1234_5678u32.to_le_bytes());
        ExitPort(&seen).write(0, &[]);
        ResetPort(&seen).write(0, &[0xd1]);
        ResetPort(&seen).write(0, &[0xfe, 0]);
        assert_eq!(
            *seen.0.lock().unwrap(),
            [
                EndRequest::Exit(7),
                EndRequest::Exit(0x1234_5678),
                EndRequest::Exit(0),
                EndRequest::Reset
            ]
        );
    }

    #[test]
    fn only_off_and_reset_end_the_machine() {
        let seen = Seen::default();
        let power = PowerPorts {
            sink: &seen,
            sleep_type_off: 5,
            reset_value: 1,
        };
        for (offset, value) in [(0, 0x14), (0, 0x24), (1, 0x34), (2, 0), (0, 0x34), (2, 1)] {
            power.write(offset, &[value]);
        }
        power.write(0, &[]);
        assert_eq!(
            *seen.0.lock().unwrap(),
            [EndRequest::Shutdown, EndRequest::Reset]
        );
    }
}
