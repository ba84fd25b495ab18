//! The first thing that went wrong in any thread of the process.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, MutexGuard};

use vmm_sys_util::eventfd::EventFd;

use crate::out::with_causes;
use crate::sys::event;

/// The first thing that went wrong in any thread, and a descriptor that tells.
#[derive(Debug)]
pub(super) struct Failure {
    first: Mutex<Option<String>>,
    event: EventFd,
}

impl Failure {
    pub fn new() -> io::Result<Failure> {
        Ok(Failure {
            first: Mutex::default(),
            event: EventFd::new(libc::EFD_NONBLOCK)?,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        self.first.lock().expect("nothing panics under this lock")
    }

    /// Records an error and its causes, unless there is one already.
    pub fn set(&self, error: &dyn std::error::Error) {
        let text = with_causes(error);
        self.lock().get_or_insert(text);
        if let Err(error) = self.event.write(1) {
            log::error!("cannot tell of a failure: {error}");
        }
    }

    /// The error, if there is one.
    pub fn get(&self) -> Option<String> {
        self.lock().clone()
    }

    /// Readable once there is an error.
    pub fn event(&self) -> BorrowedFd<'_> {
        event::borrow(&self.event)
    }
}
