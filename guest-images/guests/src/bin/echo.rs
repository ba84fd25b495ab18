//! Sends back what it reads from the serial port, control characters as `^C`, and exits with code 0
//! at Ctrl-D.
#![no_std]
#![no_main]

use core::fmt::Write as _;

use tidemark_guest_runtime::console::Console;
use tidemark_guest_runtime::{BootInfo, port, println};

tidemark_guest_runtime::guest!(main);

const END: u8 = 0x04;

fn main(_boot: BootInfo) -> u32 {
    println!("echo is ready");
    loop {
        let Some(byte) = Console.read() else {
            port::sleep_at_most_ms(1000);
            continue;
        };
        // The console never fails.
        let _ = match byte {
            END => return 0,
            b'\r' => writeln!(Console),
            0..0x20 => write!(Console, "^{}", char::from(byte | 0x40)),
            0x20..0x7f => Console.write_char(char::from(byte)),
            _ => write!(Console, "?"),
        };
    }
}
