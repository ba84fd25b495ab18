//! Asks the guest's balloon driver for its statistics.

use std::io;
use std::thread;
use std::time::Duration;

use crate::devices::virtio::balloon::Balloon;
use crate::threads::STATISTICS;

/// Time between two questions. Chosen: the kernel's driver answers from counters at hand.
const PERIOD: Duration = Duration::from_secs(1);

/// Starts the thread that asks. It ends with the process. A thread of its own, since the question
/// stands in the guest's memory and may have to wait for a page.
///
/// # Errors
/// When there can be no thread.
pub(super) fn start(balloon: Balloon) -> io::Result<()> {
    let ask = move || {
        loop {
            thread::sleep(PERIOD);
            if balloon.driver_up() {
                balloon.request_stats();
            }
        }
    };
    STATISTICS.spawn(ask).map(|_detached| ())
}
