//! The console: bytes to and from the serial port. Each byte is an exit from the guest; the transmitter is
//! never polled, because emulated ones are always ready.

use core::fmt;

use tidemark_guest_protocol::PORT_SERIAL;

/// Offset of the line status register, and its bit "data ready".
const LINE_STATUS: u16 = 5;
const DATA_READY: u8 = 1;

/// The serial port as a sink for formatted text.
#[derive(Debug, Clone, Copy)]
pub struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            crate::port::write_u8(PORT_SERIAL, byte);
        }
        Ok(())
    }
}

impl Console {
    /// The next byte that was sent to the serial port, if there is one.
    pub fn read(self) -> Option<u8> {
        let ready = crate::port::read_u8(PORT_SERIAL + LINE_STATUS) & DATA_READY != 0;
        ready.then(|| crate::port::read_u8(PORT_SERIAL))
    }
}

/// Prints a line on the console.
#[macro_export]
macro_rules! println {
    ($($argument:tt)*) => {{
        use core::fmt::Write as _;
        // The console never fails.
        let _ = writeln!($crate::console::Console, $($argument)*);
    }};
}
