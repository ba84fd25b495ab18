//! The console: bytes to the serial port. Each byte is an exit from the guest; the transmitter is
//! never polled, because emulated ones are always ready.

use core::fmt;

use tidemark_guest_protocol::PORT_SERIAL;

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

/// Prints a line on the console.
#[macro_export]
macro_rules! println {
    ($($argument:tt)*) => {{
        use core::fmt::Write as _;
        // The console never fails.
        let _ = writeln!($crate::console::Console, $($argument)*);
    }};
}
