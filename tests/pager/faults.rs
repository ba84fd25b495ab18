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
fn serve_until(pager: &Pager, end: &AtomicBool) -> Result<(), Error> {
    while !end.load(Ordering::Relaxed) {
        let fds = pager.space().uffd().poll_fds();
        let mut fds = fds.each_ref().map(|fd| PollFd::new(fd, PollFlags::IN));
        poll(&mut fds, Some(&PERIOD)).expect("poll");
        pager.serve()?;
    }
    Ok(())
}

/// The fault thread of a VM process: serves faults; when it cannot go on, tells why and does what
/// such a thread does until the process ends.
pub fn run(pager: &Pager, end: &AtomicBool, tell: impl FnOnce(&Error)) -> Result<(), Error> {
    let result = serve_until(pager, end);
    if let Err(error) = &result {
        tell(error);
        after_failure(pager, end);
    }
    result
}

/// What `vm::process` does after a failure, in one place.
fn after_failure(_pager: &Pager, _end: &AtomicBool) {}
