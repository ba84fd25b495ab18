//! For how long nothing has happened in the VM that its memory's books would have to hear of.
//!
//! What ends stillness: a fault, a message of the host manager, a fault or a VM that waits for credit,
//! and a guest that runs. A guest that runs can write shared pages, and pages that read as zero, without
//! a fault that we hear of, so its vCPUs' CPU time is watched: read at each look, and while the process
//! rests by an *alarm* of each vCPU ([`cpu_time`](crate::sys::cpu_time)), which costs a vCPU that sleeps
//! nothing. An operating system that has nothing to do runs for some hundredths of a second in each;
//! that counts as still, but for a VM that is *watched closely*, since memory is scarce or it is capped.
//!
//! | | watched | closely |
//! |---|---|---|
//! | runs, at a look | more than 1/64 of the time | more than 1/1024 |
//! | alarm, a vCPU's CPU time since the last look | 10 ms | 1 ms |
//!
//! Where the kernel keeps no such accounts no VM is ever still.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::active::Account;
use crate::link::message::Orders;
use crate::mem::tasks::measure::BUSY;
use crate::sys::cpu_time::{ALARM, ThreadTime};
use crate::sys::signals;
use crate::words::MemState;

/// From one look at the CPU time to the next, at least: over less, a guest's tick would be much.
const LOOK: Duration = BUSY;
/// A VM that was still for so long rests. Chosen: before that all periods are what they always are.
const RESTS_AFTER: Duration = Duration::from_millis(100);

/// How closely a guest is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Watch {
    /// It has spare credit for what it writes unseen.
    Loosely,
    /// Its host is short of memory, or it is capped.
    Closely,
}

impl Watch {
    /// As the host manager's orders ask for.
    pub fn of(orders: &Orders) -> Watch {
        match (orders.state, orders.private_max) {
            (MemState::High, None) => Watch::Loosely,
            _ => Watch::Closely,
        }
    }

    /// A guest is still while its vCPUs run for no more than one part in so many of the time.
    fn still_part(self) -> u32 {
        match self {
            Watch::Loosely => 64,
            Watch::Closely => 1024,
        }
    }

    /// CPU time that a vCPU may have before the process wakes up. Chosen: in as much time it can fill
    /// about 4 MiB unseen, as between two measurements of a VM that grows; and the shortest time that
    /// the kernel's tick tells.
    fn alarm(self) -> Duration {
        match self {
            Watch::Loosely => BUSY,
            Watch::Closely => Duration::from_millis(1),
        }
    }
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Stillness {
    /// Of the vCPUs. None before the guest runs, and where the kernel has no such clocks.
    times: Vec<ThreadTime>,
    /// Readable after an alarm.
    alarms: UnixStream,
    /// CPU time of each vCPU at the last look.
    had: Vec<Duration>,
    looked: Instant,
    since: Instant,
}

impl Stillness {
    /// Nothing is known of a guest yet.
    ///
    /// # Errors
    /// When the kernel refuses descriptors or handlers.
    pub fn new(now: Instant) -> io::Result<Stillness> {
        let (alarms, _) = signals::pipe(&[ALARM])?;
        Ok(Stillness {
            times: Vec::new(),
            alarms,
            had: Vec::new(),
            looked: now,
            since: now,
        })
    }

    /// The guest runs from now on; `accounts` are those of its vCPUs.
    pub fn start(&mut self, accounts: &[Account]) {
        let times = accounts.iter().map(|vcpu| ThreadTime::of(vcpu.thread));
        match times.collect() {
            Ok(times) => self.times = times,
            Err(error) => log::info!("a guest's rest goes unnoticed: no CPU timers: {error}"),
        }
        self.had = vec![Duration::ZERO; self.times.len()];
    }

    /// Something happened.
    pub fn stir(&mut self, now: Instant) {
        self.since = now;
    }

    /// For how long nothing has happened, the guest's running included.
    pub fn look(&mut self, watch: Watch, now: Instant) -> Duration {
        let rang = signals::drain(&self.alarms) > 0;
        if self.times.is_empty() || rang {
            self.since = now;
        }
        let elapsed = now.saturating_duration_since(self.looked);
        if rang || elapsed >= LOOK {
            let ran = self.ran();
            self.looked = now;
            if runs(watch, ran, elapsed) {
                self.since = now;
            }
        }
        now.saturating_duration_since(self.since)
    }

    /// CPU time of all vCPUs since the last look.
    fn ran(&mut self) -> Duration {
        let times = self.times.iter().zip(&mut self.had);
        let ran = times.map(|(time, had)| {
            let before = *had;
            // A vCPU that has ended does not run.
            *had = time.had().unwrap_or(before);
            had.saturating_sub(before)
        });
        ran.sum()
    }

    /// Sets the alarms if the VM rests, so that nobody need look before one goes off. Whether it does.
    pub fn rest(&self, watch: Watch, now: Instant) -> bool {
        let rests = now.saturating_duration_since(self.since) >= RESTS_AFTER;
        for (time, had) in self.times.iter().zip(&self.had).filter(|_| rests) {
            time.set_alarm(*had + watch.alarm());
        }
        rests
    }

    /// Readable after an alarm.
    pub fn alarms(&self) -> BorrowedFd<'_> {
        self.alarms.as_fd()
    }
}

/// Whether a guest that had so much CPU time in `elapsed` runs.
fn runs(watch: Watch, ran: Duration, elapsed: Duration) -> bool {
    ran > elapsed / watch.still_part()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_only_ticks_is_still() {
        let us = Duration::from_micros;
        // (watched, CPU time in us, of so much time, runs)
        let table = [
            (Watch::Loosely, 0, 10_000, false),
            (Watch::Loosely, 150, 10_000, false),
            (Watch::Loosely, 160, 10_000, true),
            (Watch::Loosely, 10_000, 1_000_000, false),
            (Watch::Closely, 150, 10_000, true),
            (Watch::Closely, 90, 100_000, false),
            (Watch::Closely, 100, 100_000, true),
            (Watch::Closely, 0, 10_000, false),
        ];
        for (watch, ran, elapsed, expected) in table {
            assert_eq!(
                runs(watch, us(ran), us(elapsed)),
                expected,
                "{watch:?} {ran} {elapsed}"
            );
        }
    }

    #[test]
    fn a_vm_without_accounts_is_never_still() {
        let start = Instant::now();
        let mut stillness = Stillness::new(start).unwrap();
        let later = start + Duration::from_secs(60);
        assert_eq!(stillness.look(Watch::Loosely, later), Duration::ZERO);
        assert!(!stillness.rest(Watch::Loosely, later));
    }

    #[test]
    fn stillness_lasts_until_something_happens() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut stillness = Stillness::new(start).unwrap();
        // A vCPU that sleeps: a thread that waits for the end of this test.
        std::thread::scope(|scope| {
            let (tell, told) = std::sync::mpsc::channel();
            let (end, ended) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || {
                tell.send(rustix::thread::gettid()).unwrap();
                let _ = ended.recv();
            });
            stillness.times = vec![ThreadTime::of(told.recv().unwrap()).unwrap()];
            stillness.had = vec![Duration::ZERO];
            // What it did before counts as running.
            stillness.look(Watch::Closely, at(10));
            let still = |stillness: &mut Stillness, ms| {
                let still = stillness.look(Watch::Loosely, at(ms));
                (still.as_millis(), stillness.rest(Watch::Loosely, at(ms)))
            };
            stillness.stir(at(20));
            assert_eq!(still(&mut stillness, 60), (40, false));
            assert_eq!(still(&mut stillness, 120), (100, true));
            assert_eq!(still(&mut stillness, 9020), (9000, true));
            stillness.stir(at(9500));
            assert_eq!(still(&mut stillness, 9520), (20, false));
            drop(end);
        });
    }
}
