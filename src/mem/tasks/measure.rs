//! The task that keeps the credit account right: reads the kernel's cheap count.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Done, Task};
use crate::mem::Pager;
use crate::mem::pager::Error;

/// Time between measurements while the VM grows or the host is short. Chosen: in this time one
/// vCPU can fill about 4 MiB unseen.
pub const BUSY: Duration = Duration::from_millis(10);
/// Time between measurements of a VM that does not grow, at most.
const QUIET_MAX: Duration = Duration::from_millis(100);

/// See the module documentation.
#[derive(Debug)]
pub struct Measure {
    pager: Arc<Pager>,
    due: Instant,
    period: Duration,
    /// The host is short of memory.
    short: bool,
}

impl Measure {
    /// The first measurement is due now.
    pub fn new(pager: Arc<Pager>) -> Measure {
        Measure {
            pager,
            due: Instant::now(),
            period: BUSY,
            short: false,
        }
    }

    /// While the host is short of memory the period stays short.
    pub fn set_short(&mut self, short: bool) {
        self.short = short;
        if short {
            self.period = BUSY;
        }
    }

    /// A fault waits for credit: the next measurement may find some.
    pub fn hurry(&mut self) {
        self.period = BUSY;
        self.due = self.due.min(Instant::now() + BUSY);
    }
}

impl Task for Measure {
    fn due(&self) -> Option<Instant> {
        Some(self.due)
    }

    fn run(&mut self, _until: Instant) -> Result<Done, Error> {
        let start = Instant::now();
        let used = || self.pager.with_credit(|credit| credit.used());
        let before = used();
        self.pager.measure()?;
        self.period = match used() <= before && !self.short {
            true => (self.period * 2).min(QUIET_MAX),
            false => BUSY,
        };
        self.due = start + self.period;
        // Pages that were filled and not written are free again: they may serve a fault that waits.
        self.pager.retry_starving()?;
        Ok(Done::since(start, 0))
    }
}
