//! A 16550 serial port (vm-superio's registers) whose output goes to a [`ConsoleSink`].

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial as Registers};

use super::bus::BusDevice;
use super::interrupt::Interrupt;

/// First port of the first serial line.
pub const PORT: u16 = 0x3f8;
/// Number of ports.
pub const PORTS: u16 = 8;
/// Interrupt line of the first serial line.
pub const IRQ: u32 = 4;

/// Receives what the guest writes to its console, in order.
pub trait ConsoleSink: Send + Sync {
    /// Takes the bytes, which may be anything. Called on a vCPU thread, under the port's lock.
    fn write(&self, bytes: &[u8]);
}

struct Line(Arc<dyn Interrupt>);

impl Trigger for Line {
    type E = Infallible;
    fn trigger(&self) -> Result<(), Infallible> {
        self.0.raise();
        Ok(())
    }
}

struct Output(Arc<dyn ConsoleSink>);

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The serial port at [`PORT`].
pub struct Serial {
    registers: Mutex<Registers<Line, NoEvents, Output>>,
}

impl Serial {
    /// A port that writes to `sink` and interrupts through `interrupt`.
    pub fn new(interrupt: Arc<dyn Interrupt>, sink: Arc<dyn ConsoleSink>) -> Serial {
        Serial {
            registers: Mutex::new(Registers::new(Line(interrupt), Output(sink))),
        }
    }

    /// Puts input before the guest; returns how many bytes fitted its 64-byte queue.
    pub fn input(&self, bytes: &[u8]) -> usize {
        let mut registers = self.lock();
        if registers.fifo_capacity() == 0 {
            return 0;
        }
        registers.enqueue_raw_bytes(bytes).unwrap_or_else(|error| {
            // The guest put the port into loop-back mode, where nothing can arrive.
            log::debug!("serial input refused: {error}");
            0
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Registers<Line, NoEvents, Output>> {
        self.registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut registers = self.lock();
        let offset = u8::try_from(offset).unwrap_or(0);
        for byte in data {
            *byte = registers.read(offset);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut registers = self.lock();
        let offset = u8::try_from(offset).unwrap_or(0);
        for byte in data {
            // Neither the sink nor the line can fail; a full loop-back queue drops the byte, as
            // the hardware does.
            let _ = registers.write(offset, *byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[derive(Default)]
    struct Seen(Mutex<Vec<u8>>);
    impl ConsoleSink for Seen {
        fn write(&self, bytes: &[u8]) {
            self.0.lock().unwrap().extend_from_slice(bytes);
        }
    }

    #[derive(Default)]
    struct Edges(AtomicU32);
    impl Interrupt for Edges {
        fn raise(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn strings_go_out_and_input_interrupts() {
        let (seen, edges) = (Arc::new(Seen::default()), Arc::new(Edges::default()));
        let serial = Serial::new(edges.clone(), seen.clone());
        serial.write(0, b"string\n");
        assert_eq!(*seen.0.lock().unwrap(), b"string\n");
        serial.write(1, &[1]);
        assert_eq!(serial.input(b"x"), 1);
        assert_eq!(edges.0.load(Ordering::Relaxed), 1);
        let mut byte = [0];
        serial.read(0, &mut byte);
        assert_eq!(&byte, b"x");
    }

    #[test]
    fn any_register_takes_any_bytes() {
        let serial = Serial::new(Arc::new(Edges::default()), Arc::new(Seen::default()));
        for offset in 0..8 {
            for value in 0..=255 {
                serial.write(offset, &[value, value]);
                serial.read(offset, &mut [0; 300]);
            }
        }
    }
}
