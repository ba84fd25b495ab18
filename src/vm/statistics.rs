//! Asks the guest's balloon driver for its statistics: every second, and while the VM rests seldom,
//! since the question wakes the guest.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::devices::virtio::balloon::Balloon;
use crate::threads::STATISTICS;

/// Time between two questions. Chosen: the kernel's driver answers from counters at hand.
const PERIOD: Duration = Duration::from_secs(1);
/// How much longer it is while the VM rests. Chosen: the answer is what it was, or nearly.
const REST: Duration = Duration::from_secs(30);

/// Whoever asks, for those who know whether the VM rests.
#[derive(Debug, Default)]
pub(super) struct Statistics {
    resting: Mutex<bool>,
    ended: Condvar,
}

impl Statistics {
    /// Starts the thread that asks. It ends with the process. A thread of its own, since the question
    /// stands in the guest's memory and may have to wait for a page.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn start(self: Arc<Self>, balloon: Balloon) -> io::Result<()> {
        let ask = move || {
            loop {
                thread::sleep(PERIOD);
                self.sleep_while_resting(REST);
                if balloon.driver_up() {
                    balloon.request_stats();
                }
            }
        };
        STATISTICS.spawn(ask).map(|_detached| ())
    }

    /// The VM rests from now on, or does not any more.
    pub fn set_resting(&self, resting: bool) {
        let mut known = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        if *known && !resting {
            self.ended.notify_all();
        }
        *known = resting;
    }

    /// Returns when the VM does not rest, at the latest after `limit`.
    fn sleep_while_resting(&self, limit: Duration) {
        let resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        drop(
            self.ended
                .wait_timeout_while(resting, limit, |resting| *resting),
        );
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn the_end_of_a_rest_ends_the_wait() {
        let statistics = Statistics::default();
        let long = Duration::from_secs(60);
        let start = Instant::now();
        // Nobody rests.
        statistics.sleep_while_resting(long);
        statistics.set_resting(true);
        thread::scope(|scope| {
            let asker = scope.spawn(|| statistics.sleep_while_resting(long));
            statistics.set_resting(false);
            asker.join().unwrap();
        });
        assert!(start.elapsed() < long);
        statistics.set_resting(true);
        statistics.sleep_while_resting(Duration::from_millis(1));
    }
}
