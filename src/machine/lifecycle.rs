//! Starting and ending one machine, and what its owner reaches of it meanwhile.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;

use super::Error;
use super::gate::Gate;
use super::seats::Seats;
use super::vcpu::Shared;
use crate::devices::console::Console;
use crate::devices::serial::Serial;
use crate::devices::virtio::balloon::Balloon;
use crate::words::{Exit, ExitReason};

/// How long dropping a machine waits for its vCPU threads.
const END_LIMIT: Duration = Duration::from_secs(2);

/// One machine. Dropping it ends it.
pub struct Machine {
    pub(super) shared: Arc<Shared>,
    pub(super) balloon: Balloon,
    pub(super) serial: Arc<Serial>,
    pub(super) console: Arc<Console>,
    /// Created vCPUs that wait for [`Machine::start`].
    pub(super) vcpus: Vec<VcpuFd>,
    /// Threads for vCPUs that the guest turned out not to have.
    pub(super) spare: Seats,
}

impl Machine {
    /// Starts the vCPUs on threads of their own. A second call does nothing.
    ///
    /// # Errors
    /// When a thread is refused; the machine has then ended.
    pub fn start(&mut self) -> Result<(), Error> {
        let count = u8::try_from(self.vcpus.len()).expect("a machine has at most 255 vCPUs");
        match Seats::new(count) {
            Ok(seats) => self.start_on(seats),
            Err(error) => {
                self.stop();
                return Err(error);
            }
        }
        Ok(())
    }

    /// Starts the vCPUs on these threads, of which there is one for each at least. A second call does
    /// nothing.
    ///
    /// # Panics
    /// When there are too few.
    pub fn start_on(&mut self, mut seats: Seats) {
        for fd in std::mem::take(&mut self.vcpus) {
            self.shared.ending.gate.thread_starts();
            let thread = seats.take(fd, Arc::clone(&self.shared));
            self.shared.ending.gate.attach(thread);
        }
        self.spare = seats;
        // A hold or an end between `take` and `attach` kicked nobody; the thread saw it at the gate
        // unless it was already inside. One more kick covers that.
        self.shared.ending.gate.kick_all();
    }

    /// The balloon.
    pub fn balloon(&self) -> &Balloon {
        &self.balloon
    }

    /// The gate that holds the vCPUs.
    pub fn gate(&self) -> &Gate {
        &self.shared.ending.gate
    }

    /// The console.
    pub fn console(&self) -> &Arc<Console> {
        &self.console
    }

    /// The serial port.
    pub fn serial(&self) -> &Arc<Serial> {
        &self.serial
    }

    /// Types on the guest's serial console; returns how many bytes were taken.
    pub fn input(&self, bytes: &[u8]) -> usize {
        self.serial.input(bytes)
    }

    /// When a vCPU first entered the guest.
    pub fn first_run(&self) -> Option<Instant> {
        self.shared.first_run.get().copied()
    }

    /// Ends the guest now, as [`ExitReason::Stopped`] unless it has ended already. Does not wait.
    pub fn stop(&self) {
        self.end(Exit::plain(ExitReason::Stopped));
    }

    /// Ends the guest for a reason that its owner names. Does not wait.
    pub fn end(&self, exit: Exit) {
        self.shared.ending.finish(exit);
    }

    /// How the guest ended; `None` while it runs.
    pub fn exit(&self) -> Option<Exit> {
        self.shared.ending.exit.get()
    }

    /// Waits at most `limit` for the guest to end.
    pub fn wait(&self, limit: Duration) -> Option<Exit> {
        self.shared.ending.exit.wait(limit)
    }

    /// Waits at most `limit` for the vCPU threads of a guest that has ended. False when one sits
    /// in a page fault that nobody serves.
    pub fn join(&self, limit: Duration) -> bool {
        self.shared.ending.gate.join(limit)
    }
}

impl AsFd for Machine {
    /// Becomes readable, and stays so, once the guest has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.ending.exit.as_fd()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
        self.console.flush();
        if !self.join(END_LIMIT) {
            // The thread keeps VM and memory alive by itself.
            log::error!("a vCPU thread does not end: an unserved page fault?");
        }
    }
}
