//! A 16550 serial port (vm-superio's registers) whose output goes to a [`ConsoleSink`].

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial as Registers};

use super::bus::BusDevice;
use super::idle::IdlePort;
use super::interrupt::Interrupt;

/// First port of the first serial line.
pub const PORT: u16 = 0x3f8;
/// Number of ports.
pub const PORTS: u16 = 8;
/// Interrupt line of the first serial line.
pub const IRQ: u32 = 4;

/// Input that waits for room in the port's queue, at most, bytes. Chosen: a pasted file or two.
pub const WAITING_BYTES_MAX: usize = 64 << 10;
/// The port's queue, bytes.
const QUEUE_BYTES: usize = 64;

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
    port: Mutex<Port>,
    idle: Arc<IdlePort>,
}

struct Port {
    registers: Registers<Line, NoEvents, Output>,
    /// Input behind that in the port's queue.
    waiting: VecDeque<u8>,
}

impl Port {
    /// Moves input up once the guest has read all that was there: one interrupt for a queue full.
    fn refill(&mut self) {
        if self.registers.fifo_capacity() < QUEUE_BYTES {
            return;
        }
        let (first, _) = self.waiting.as_slices();
        // Nothing is taken while the guest has the port in loop-back mode.
        match self.registers.enqueue_raw_bytes(first) {
            Ok(taken) => drop(self.waiting.drain(..taken)),
            Err(error) => log::debug!("serial input refused: {error}"),
        }
    }
}

impl Serial {
    /// A port that writes to `sink` and interrupts through `interrupt`; input ends a sleep on the
    /// `idle` port.
    pub fn new(
        interrupt: Arc<dyn Interrupt>,
        idle: Arc<IdlePort>,
        sink: Arc<dyn ConsoleSink>,
    ) -> Serial {
        Serial {
            port: Mutex::new(Port {
                registers: Registers::new(Line(interrupt), Output(sink)),
                waiting: VecDeque::new(),
            }),
            idle,
        }
    }

    /// Puts input before the guest, and what its queue does not hold behind that; returns how many
    /// bytes were taken, which are all unless [`WAITING_BYTES_MAX`] wait already.
    pub fn input(&self, bytes: &[u8]) -> usize {
        let mut port = self.lock();
        let taken = bytes.len().min(WAITING_BYTES_MAX - port.waiting.len());
        port.waiting.extend(&bytes[..taken]);
        port.refill();
        self.idle.wake();
        taken
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Port> {
        self.port.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut port = self.lock();
        let offset = u8::try_from(offset).unwrap_or(0);
        for byte in data {
            *byte = port.registers.read(offset);
            port.refill();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut port = self.lock();
        let offset = u8::try_from(offset).unwrap_or(0);
        for byte in data {
            // Neither the sink nor the line can fail; a full loop-back queue drops the byte, as
            // the hardware does.
            let _ = port.registers.write(offset, *byte);
        }
        // Loop-back mode may be over.
        port.refill();
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
        let serial = Serial::new(edges.clone(), Arc::default(), seen.clone());
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
    fn input_waits_for_the_guest_and_none_is_lost() {
        let (seen, edges) = (Arc::new(Seen::default()), Arc::new(Edges::default()));
        let serial = Serial::new(edges.clone(), Arc::default(), seen);
        serial.write(1, &[1]);
        let text: Vec<u8> = (0..=255).cycle().take(WAITING_BYTES_MAX + 200).collect();
        // Loop-back mode: nothing arrives, nothing is lost.
        serial.write(4, &[0x10]);
        assert_eq!(serial.input(&text[..100]), 100);
        serial.write(4, &[0]);
        let taken = 100 + serial.input(&text[100..]);
        assert_eq!(taken, WAITING_BYTES_MAX + QUEUE_BYTES);
        assert_eq!(serial.input(b"x"), 0);
        let mut read = vec![0; taken];
        serial.read(0, &mut read);
        assert_eq!(read, text[..taken]);
        let mut status = [0];
        serial.read(5, &mut status);
        assert_eq!(status[0] & 1, 0, "nothing is left");
        // One for each time that the queue was filled.
        assert_eq!(edges.0.load(Ordering::Relaxed), 1025);
    }

    #[test]
    fn any_register_takes_any_bytes() {
        let serial = Serial::new(
            Arc::new(Edges::default()),
            Arc::default(),
            Arc::new(Seen::default()),
        );
        for offset in 0..8 {
            for value in 0..=255 {
                serial.write(offset, &[value, value]);
                serial.read(offset, &mut [0; 300]);
            }
        }
    }
}
