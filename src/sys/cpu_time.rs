//! The CPU time of one thread, and a signal once the thread has had more of it.
//!
//! The kernel compares a thread's CPU time with such an *alarm* at its own clock tick, and only while
//! the thread has a CPU: an alarm is late by a tick of a busy thread (1 to 10 ms), and a thread that is
//! never on a CPU when the tick comes does not set it off. The time itself is exact whenever it is
//! read. An alarm costs a thread that sleeps nothing.
#![expect(unsafe_code)]
// UNSAFETY: POSIX timers have no safe wrapper; a timer is a number that only its owner here uses.

use std::io;
use std::mem::MaybeUninit;
use std::time::Duration;

use rustix::thread::Pid;

/// The signal of every alarm. It comes to the thread that made the [`ThreadTime`].
pub const ALARM: i32 = libc::SIGVTALRM;

/// See the module documentation.
#[derive(Debug)]
pub struct ThreadTime {
    clock: libc::clockid_t,
    timer: libc::timer_t,
}

impl ThreadTime {
    /// The CPU time of a thread of this process. [`ALARM`] must have a handler before the first alarm
    /// is set.
    ///
    /// # Errors
    /// When there is no such thread, or the kernel has no such timers.
    pub fn of(thread: Pid) -> io::Result<ThreadTime> {
        let clock = clock_of(thread);
        // SAFETY: zero is a value of every field.
        let mut event: libc::sigevent = unsafe { MaybeUninit::zeroed().assume_init() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = ALARM;
        event.sigev_notify_thread_id = rustix::thread::gettid().as_raw_nonzero().get();
        let mut timer = MaybeUninit::uninit();
        // SAFETY: both pointers are of values that live during the call, which fills the second.
        let made = unsafe { libc::timer_create(clock, &raw mut event, timer.as_mut_ptr()) };
        if made != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call has succeeded.
        let timer = unsafe { timer.assume_init() };
        Ok(ThreadTime { clock, timer })
    }

    /// CPU time that the thread has had; `None` when it has ended.
    pub fn had(&self) -> Option<Duration> {
        let mut time = MaybeUninit::uninit();
        // SAFETY: the pointer is of a value that lives during the call, which fills it.
        let read = unsafe { libc::clock_gettime(self.clock, time.as_mut_ptr()) };
        if read != 0 {
            return None;
        }
        // SAFETY: the call has succeeded.
        let time: libc::timespec = unsafe { time.assume_init() };
        let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
        Some(Duration::new(time.tv_sec.unsigned_abs(), nanos))
    }

    /// Sends [`ALARM`] once, when the thread has had `had`. Replaces an earlier alarm.
    pub fn set_alarm(&self, had: Duration) {
        // Zero would be no alarm.
        let had = had.max(Duration::from_nanos(1));
        let zero = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let alarm = libc::itimerspec {
            it_interval: zero,
            it_value: libc::timespec {
                tv_sec: had.as_secs().cast_signed(),
                tv_nsec: had.subsec_nanos().into(),
            },
        };
        // SAFETY: the timer is ours until we are dropped, and the pointer is of a value that lives during
        // the call; where the old alarm would be written is null, which is allowed.
        let set = unsafe {
            libc::timer_settime(
                self.timer,
                libc::TIMER_ABSTIME,
                &raw const alarm,
                std::ptr::null_mut(),
            )
        };
        if set != 0 {
            // A thread that has ended needs none.
            log::debug!("no alarm: {}", io::Error::last_os_error());
        }
    }
}

impl Drop for ThreadTime {
    fn drop(&mut self) {
        // SAFETY: the timer is ours, and nobody uses it after this.
        unsafe { libc::timer_delete(self.timer) };
    }
}

/// The clock of a thread's CPU time, as the scheduler counts it: `MAKE_THREAD_CPUCLOCK(tid,
/// CPUCLOCK_SCHED)` of the kernel's `include/linux/posix-timers_types.h`.
fn clock_of(thread: Pid) -> libc::clockid_t {
    const PER_THREAD: libc::clockid_t = 4;
    const SCHED: libc::clockid_t = 2;
    (!thread.as_raw_nonzero().get() << 3) | PER_THREAD | SCHED
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::sys::signals;

    #[test]
    fn a_thread_that_works_sets_its_alarm_off() {
        let (heard, _) = signals::pipe(&[ALARM]).unwrap();
        let own = ThreadTime::of(rustix::thread::gettid()).unwrap();
        let before = own.had().unwrap();
        let alarm = before + Duration::from_millis(20);
        own.set_alarm(alarm);
        let deadline = Instant::now() + Duration::from_secs(20);
        while signals::drain(&heard) == 0 {
            assert!(Instant::now() < deadline, "no alarm");
        }
        // Never early.
        assert!(own.had().unwrap() >= alarm);
    }

    #[test]
    fn of_no_thread_there_is_no_time() {
        let none = Pid::from_raw(i32::MAX >> 3).unwrap();
        assert!(ThreadTime::of(none).is_err());
    }
}
