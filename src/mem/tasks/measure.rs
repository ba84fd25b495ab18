//! The task that keeps the credit account right: reads the kernel's cheap count.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Done, Rest, Task};
use crate::mem::Pager;
use crate::mem::pager::Error;

/// Time between measurements while the VM grows or the host is short. Chosen: in this time one
/// vCPU can fill about 4 MiB unseen.
pub const BUSY: Duration = Duration::from_millis(10);
/// Time between measurements of a VM that does not grow, at most.
const QUIET_MAX: Duration = Duration::from_millis(100);
/// The same of one that is still. Chosen: what it costs is not worth less often, and it bounds what a
/// guest can do that runs and is not noticed to (ARCHITECTURE.md, *Counting*).
const STILL_MAX: Duration = Duration::from_secs(2);

/// See the module documentation.
#[derive(Debug)]
pub struct Measure {
    pager: Arc<Pager>,
    /// When the last measurement was.
    measured: Instant,
    /// From it to the next, unless something happens.
    period: Duration,
    /// The host is short of memory.
    short: bool,
    rest: Rest,
}

impl Measure {
    /// The first measurement is due now.
    pub fn new(pager: Arc<Pager>) -> Measure {
        Measure {
            pager,
            measured: Instant::now(),
            period: Duration::ZERO,
            short: false,
            rest: Rest::default(),
        }
    }

    /// While the host is short of memory the period stays short.
    pub fn set_short(&mut self, short: bool) {
        self.short = short;
        if short {
            self.period = BUSY;
        }
    }

    /// For how long the VM has been still.
    pub fn set_still(&mut self, still: Duration) {
        self.rest.set_still(still);
    }

    /// A fault waits for credit: the next measurement may find some.
    pub fn hurry(&mut self) {
        self.period = BUSY;
    }
}

/// The longest period of a VM that does not grow.
fn longest(short: bool, rest: &Rest) -> Duration {
    let awake = if short { BUSY } else { QUIET_MAX };
    rest.period(awake, STILL_MAX)
}

impl Task for Measure {
    fn due(&self) -> Option<Instant> {
        Some(self.measured + self.period.min(longest(self.short, &self.rest)))
    }

    fn run(&mut self, _until: Instant) -> Result<Done, Error> {
        let start = Instant::now();
        let used = || self.pager.with_credit(|credit| credit.used());
        let before = used();
        self.rest.looked();
        self.pager.measure()?;
        self.period = match used() <= before {
            true => (self.period * 2).clamp(BUSY, longest(self.short, &self.rest)),
            false => BUSY,
        };
        self.measured = start;
        // Pages that were filled and not written are free again: they may serve a fault that waits.
        self.pager.retry_starving()?;
        Ok(Done::since(start, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_still_vm_is_measured_seldom() {
        let ms = Duration::from_millis;
        // (the host is short, still for, at most from one measurement to the next)
        let table = [
            (false, 0, 100),
            (false, 100, 100),
            (false, 101, 101),
            (false, 1500, 1500),
            (false, 3_600_000, 2000),
            (true, 0, 10),
            (true, 10, 10),
            (true, 300, 300),
            (true, 3_600_000, 2000),
        ];
        for (short, still, most) in table {
            let mut rest = Rest::default();
            rest.set_still(ms(still));
            rest.looked();
            assert_eq!(longest(short, &rest), ms(most), "{short} {still}");
        }
    }
}
