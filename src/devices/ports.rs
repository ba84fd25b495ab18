//! Ports that end the machine: 0xf4 (QEMU's isa-debug-exit) and the keyboard controller's reset.

use super::bus::BusDevice;

/// What a guest asked for by a port write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndRequest {
    /// End with this code.
    Exit(u32),
    /// Reset the machine.
    Reset,
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
}
