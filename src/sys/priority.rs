//! The priority of the calling thread, which those that it starts do not inherit.
#![expect(unsafe_code)]
// UNSAFETY: the C library's call for "not inherited" has no safe wrapper; it takes a value of ours.

use std::io;

use rustix::process::{getpriority_process, setpriority_process};

/// The niceness of who runs ahead. Chosen: such a thread gets ten times the CPU of one of niceness 0
/// that wants as much, and runs at once after a sleep; the kernel's own threads go before it.
pub const AHEAD: i32 = -10;

/// Lets the calling thread run ahead of others, if its niceness is 0: any other was somebody's choice
/// and stays. Threads and processes that it starts later have niceness 0. Returns its niceness.
///
/// # Errors
/// When the kernel does not allow it: it needs CAP_SYS_NICE or a limit of niceness (RLIMIT_NICE).
pub fn run_ahead() -> io::Result<i32> {
    let niceness = getpriority_process(None)?;
    if niceness != 0 {
        return Ok(niceness);
    }
    let none = libc::sched_param { sched_priority: 0 };
    let policy = libc::SCHED_OTHER | libc::SCHED_RESET_ON_FORK;
    // SAFETY: the pointer is of a value that lives during the call; 0 is the calling thread.
    if unsafe { libc::sched_setscheduler(0, policy, &raw const none) } != 0 {
        return Err(io::Error::last_os_error());
    }
    setpriority_process(None, AHEAD)?;
    Ok(AHEAD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_runs_ahead_starts_nobody_ahead() {
        // In a thread of its own, which takes it along when it ends.
        let ahead = std::thread::spawn(|| {
            let Ok(niceness) = run_ahead() else {
                println!("SKIPPED: this user may not raise a priority");
                return;
            };
            let child = std::thread::spawn(|| getpriority_process(None).unwrap());
            let child = child.join().unwrap();
            assert_eq!(getpriority_process(None).unwrap(), niceness);
            assert_eq!(child, niceness.max(0));
            // Asked again it stays as it is.
            assert_eq!(run_ahead().unwrap(), niceness);
        });
        ahead.join().unwrap();
    }
}
