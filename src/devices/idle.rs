//! Port 0xf8: a polling guest lets its vCPU sleep until something changes.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::bus::BusDevice;

/// Longest sleep of one write in milliseconds: a guest that asks for more comes back earlier. Chosen: a
/// guest that rests does so next to never, and one that missed what should have woken it goes on.
pub const SLEEP_MS_MAX: u32 = 60_000;

#[derive(Debug, Default)]
struct State {
    /// Something changed since the last sleep ended: the next sleep ends at once, so that a change
    /// between the guest's look and its sleep is not missed.
    pending: bool,
    /// The machine is stopping: nobody sleeps any more.
    stopped: bool,
}

/// The idle port. Sleeping vCPUs are outside the guest and hold nothing.
#[derive(Debug, Default)]
pub struct IdlePort {
    state: Mutex<State>,
    changed: Condvar,
}

impl IdlePort {
    /// Ends the present sleep, or the next one if nobody sleeps.
    pub fn wake(&self) {
        self.lock().pending = true;
        self.changed.notify_all();
    }

    /// Ends all sleeps from now on.
    pub fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    fn sleep(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        while !state.pending && !state.stopped {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let wait = self.changed.wait_timeout(state, left);
            state = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.pending = false;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for IdlePort {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _: u64, data: &[u8]) {
        let ms = super::ports::value(data).min(SLEEP_MS_MAX);
        if ms > 0 {
            self.sleep(Duration::from_millis(u64::from(ms)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_before_the_sleep_is_not_lost() {
        let port = IdlePort::default();
        port.wake();
        let start = Instant::now();
        port.write(0, &1000u32.to_le_bytes());
        assert!(start.elapsed() < Duration::from_millis(900));
    }

    #[test]
    fn a_stop_ends_a_long_sleep() {
        let port = IdlePort::default();
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| {
                let start = Instant::now();
                port.write(0, &u32::MAX.to_le_bytes());
                start.elapsed()
            });
            port.stop();
            assert!(sleeper.join().unwrap() < Duration::from_millis(900));
        });
    }
}
