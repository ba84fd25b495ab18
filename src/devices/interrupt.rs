//! How a device gets the guest's attention.

use vmm_sys_util::eventfd::EventFd;

/// One interrupt line of the guest.
pub trait Interrupt: Send + Sync {
    /// Raises one edge. Never blocks.
    fn raise(&self);
}

/// A line wired to the in-kernel interrupt controller through an irqfd.
#[derive(Debug)]
pub struct IrqFd(pub EventFd);

impl Interrupt for IrqFd {
    fn raise(&self) {
        // A full counter means that 2^64-2 edges are pending; one more would add nothing.
        if let Err(error) = self.0.write(1) {
            log::debug!("interrupt not raised: {error}");
        }
    }
}

/// A line that leads nowhere: guests entered in ring 3 have no IDT and poll.
#[derive(Debug, Clone, Copy)]
pub struct NoInterrupt;

impl Interrupt for NoInterrupt {
    fn raise(&self) {}
}
