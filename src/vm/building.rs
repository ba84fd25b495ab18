//! The machine under construction, while the main thread obeys orders already.
//!
//! Loading a guest writes its memory, which takes credit, which the main thread brings. So a thread
//! of its own builds the machine. It has ended when the machine is handed over, before the guest's
//! first instruction: the builder may open files.

use std::os::fd::BorrowedFd;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

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
    result: Receiver<Result<Machine, Error>>,
    builder: Mutex<Option<JoinHandle<()>>>,
}

impl Building {
    /// Starts a thread that builds the machine of `spec` and `files`, and then the one that asks for
    /// the guest's statistics, where it has a balloon.
    ///
    /// # Errors
    /// When the thread or its eventfd cannot be had.
    pub fn start(
        spec: &VmSpec,
        files: Files,
        console: Arc<Console>,
        ram: Arc<GuestRam>,
        sink: Arc<dyn BalloonSink>,
    ) -> Result<Building, Error> {
        let machine = MachineSpec {
            kernel: files.kernel,
            initrd: files.initrd,
            disks: files.disk.into_iter().collect(),
            cmdline: spec.cmdline.clone(),
            balloon: spec.management.is_managed(),
            cpus: spec.cpus,
        };
        let has_balloon = machine.balloon;
        let done = EventFd::new(libc::EFD_NONBLOCK).map_err(os("create an eventfd"))?;
        let tell = done.try_clone().map_err(os("create an eventfd"))?;
        let (sender, result) = mpsc::sync_channel(1);
        let statistics = Arc::new(Statistics::default());
        let asker = Arc::clone(&statistics);
        let build = move || -> Result<Machine, Error> {
            let machine = Machine::new(machine, ram, sink, console)?;
            if has_balloon {
                let started = asker.start(machine.balloon().clone());
                started.map_err(os("start a thread"))?;
            }
            Ok(machine)
        };
        let work = move || {
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
            result,
            builder: Mutex::new(Some(builder)),
        })
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
