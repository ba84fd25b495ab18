//! The machine under construction, while the main thread obeys orders already.
//!
//! Loading a guest writes its memory, which takes credit, which the main thread brings. So a thread
//! of its own builds the machine. It is there before the main thread is confined and begins after: the
//! guest's files are the first that somebody else wrote. It has ended when the machine is handed over.

use std::os::fd::BorrowedFd;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use kvm_ioctls::Kvm;
use vmm_sys_util::eventfd::EventFd;

use super::error::{Error, os};
use super::files::Files;
use super::statistics::Statistics;
use crate::config::VmSpec;
use crate::devices::console::Console;
use crate::devices::sink::BalloonSink;
use crate::machine::{Machine, MachineSpec};
use crate::sys::event;
use crate::sys::ram::GuestRam;
use crate::threads::BUILDER;

/// A machine under construction.
pub(super) struct Building {
    statistics: Arc<Statistics>,
    done: EventFd,
    /// Lets the builder begin.
    begin: SyncSender<()>,
    result: Receiver<Result<Machine, Error>>,
    builder: Mutex<Option<JoinHandle<()>>>,
}

impl Building {
    /// Starts a thread that builds the machine of `spec` and `files` once it may [begin](Building::begin),
    /// and then starts the one that asks for the guest's statistics, where it has a balloon.
    ///
    /// # Errors
    /// When the thread or its eventfd cannot be had.
    pub fn prepare(
        spec: &VmSpec,
        files: Files,
        kvm: Kvm,
        console: Arc<Console>,
        ram: Arc<GuestRam>,
        sink: Arc<dyn BalloonSink>,
    ) -> Result<Building, Error> {
        let parts = MachineSpec {
            kernel: files.kernel,
            initrd: files.initrd,
            disks: files.disk.into_iter().collect(),
            cmdline: spec.cmdline.clone(),
            balloon: spec.management.is_managed(),
            cpus: spec.cpus,
        };
        let has_balloon = parts.balloon;
        let done = EventFd::new(libc::EFD_NONBLOCK).map_err(os("create an eventfd"))?;
        let tell = done.try_clone().map_err(os("create an eventfd"))?;
        let (sender, result) = mpsc::sync_channel(1);
        let statistics = Arc::new(Statistics::default());
        let asker = Arc::clone(&statistics);
        let build = move || -> Result<Machine, Error> {
            let machine = Machine::build(&kvm, parts, ram, sink, console)?;
            if has_balloon {
                let started = asker.start(machine.balloon().clone());
                started.map_err(os("start a thread"))?;
            }
            Ok(machine)
        };
        let (begin, begun) = mpsc::sync_channel(1);
        let work = move || {
            if begun.recv().is_err() {
                // The VM ends before.
                return;
            }
            // Nobody waits for it any more when the receiver is gone.
            let told = sender.send(build()).is_ok();
            if told && let Err(error) = tell.write(1) {
                log::error!("cannot tell that the machine is built: {error}");
            }
        };
        let builder = BUILDER.spawn(work).map_err(os("start a thread"))?;
        Ok(Building {
            statistics,
            done,
            begin,
            result,
            builder: Mutex::new(Some(builder)),
        })
    }

    /// Lets the builder work. The main thread has been confined.
    pub fn begin(&self) {
        // One that has ended has panicked, which ends the process.
        let _ = self.begin.try_send(());
    }

    /// Who asks for the guest's statistics.
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// Readable when [`Building::take`] has something.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        event::borrow(&self.done)
    }

    /// The machine, once. Its builder has ended.
    pub fn take(&self) -> Option<Result<Machine, Error>> {
        let built = self.result.try_recv().ok()?;
        let mut builder = self.builder.lock().unwrap_or_else(PoisonError::into_inner);
        // It has nothing left to do but to write to the eventfd; a panic has ended the process.
        if let Some(builder) = builder.take()
            && builder.join().is_err()
        {
            log::error!("the builder panicked");
        }
        Some(built)
    }
}
