//! Threads that wait for vCPUs.
//!
//! They are there, and confined, before the guest's files are read: whoever reads those can start no
//! thread, and how many vCPUs a guest has is known before.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender};
use std::thread::JoinHandle;

use kvm_ioctls::VcpuFd;

use super::Error;
use super::vcpu::{self, Shared};
use crate::threads::VCPU;
use crate::words::Exit;

/// See the module documentation. Threads that have got no vCPU end with this value.
#[derive(Debug, Default)]
pub struct Seats(VecDeque<Seat>);

#[derive(Debug)]
struct Seat {
    place: SyncSender<(VcpuFd, Arc<Shared>)>,
    thread: JoinHandle<()>,
}

impl Seats {
    /// Starts `count` threads.
    ///
    /// # Errors
    /// When one is refused.
    pub fn new(count: u8) -> Result<Seats, Error> {
        (0..count)
            .map(Seat::new)
            .collect::<Result<_, _>>()
            .map(Seats)
    }

    /// Runs a vCPU on the next thread, which comes back.
    pub(super) fn take(&mut self, fd: VcpuFd, shared: Arc<Shared>) -> JoinHandle<()> {
        let seat = self.0.pop_front().expect("a thread for each vCPU");
        let sent = seat.place.send((fd, shared));
        // Only a panic ends a thread that waits, and with it the process.
        assert!(sent.is_ok(), "a vCPU's thread has ended before its vCPU");
        seat.thread
    }
}

impl Seat {
    fn new(vcpu: u8) -> Result<Seat, Error> {
        let (place, taken) = mpsc::sync_channel::<(VcpuFd, Arc<Shared>)>(1);
        let work = move || {
            if let Ok((fd, shared)) = taken.recv() {
                let _alive = Alive(&shared);
                vcpu::run(fd, &shared);
            }
        };
        let thread = VCPU.spawn_nth(vcpu.into(), work);
        let thread = thread.map_err(|source| Error::Thread { vcpu, source })?;
        Ok(Seat { place, thread })
    }
}

/// Tells the gate that the thread is gone, also when it panics.
struct Alive<'a>(&'a Shared);

impl Drop for Alive<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let exit = Exit::error("a vCPU thread panicked".into());
            self.0.ending.finish(exit);
        }
        self.0.ending.gate.thread_ends();
    }
}
