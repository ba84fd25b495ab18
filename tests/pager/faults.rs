//! The loop that serves a pager's page faults.

use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tidemark::mem::{Error, Pager};

/// How often the loop looks whether it shall end.
const PERIOD: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 10_000_000,
};

/// Serves every fault until `end` is set or the VM cannot go on.
pub fn serve_until(pager: &Pager, end: &AtomicBool) -> Result<(), Error> {
    while !end.load(Ordering::Relaxed) {
        let fds = pager.space().uffd().poll_fds();
        let mut fds = fds.each_ref().map(|fd| PollFd::new(fd, PollFlags::IN));
        poll(&mut fds, Some(&PERIOD)).expect("poll");
        pager.serve()?;
    }
    Ok(())
}

/// What the fault thread of a VM process does when it has failed, until the process ends. It is what
/// `vm::process` does, in one place.
pub fn after_failure(_pager: &Pager, _end: &AtomicBool) {}
