//! How the machine ended: the first reason counts.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::sys::event;
use crate::words::Exit;

/// Keeps the first exit and announces it.
#[derive(Debug)]
pub(super) struct ExitCell {
    first: Mutex<Option<Exit>>,
    changed: Condvar,
    event: EventFd,
}

impl ExitCell {
    pub fn new() -> std::io::Result<ExitCell> {
        Ok(ExitCell {
            first: Mutex::new(None),
            changed: Condvar::new(),
            event: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
        })
    }

    /// Records why the machine ended, unless it has ended already.
    pub fn set(&self, exit: Exit) {
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_none() {
            *first = Some(exit);
            self.changed.notify_all();
            if let Err(error) = self.event.write(1) {
                log::error!("the exit event was not raised: {error}");
            }
        }
    }

    /// How the machine ended; `None` while it runs.
    pub fn get(&self) -> Option<Exit> {
        self.first
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits at most `limit` for the end.
    pub fn wait(&self, limit: Duration) -> Option<Exit> {
        let deadline = Instant::now() + limit;
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        while first.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let wait = self.changed.wait_timeout(first, left);
            first = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
        first.clone()
    }
}

impl AsFd for ExitCell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        event::borrow(&self.event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::ExitReason;

    #[test]
    fn the_first_reason_counts() {
        let cell = ExitCell::new().unwrap();
        assert_eq!(cell.wait(Duration::ZERO), None);
        cell.set(Exit::plain(ExitReason::Reset));
        cell.set(Exit::plain(ExitReason::Stopped));
        assert_eq!(
            cell.wait(Duration::ZERO),
            Some(Exit::plain(ExitReason::Reset))
        );
        assert_eq!(cell.event.read().unwrap(), 1);
    }
}
