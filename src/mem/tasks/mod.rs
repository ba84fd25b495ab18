//! What a VM process does for its memory besides serving faults.
//!
//! A [`Task`] owns its state, says when it is due, and works for as long as it is given. Which task
//! runs when, and how much of the time all of them may take, is decided elsewhere
//! ([`crate::vm`]'s schedule); which pages they may take is the host manager's.
//!
//! | task | due | one run |
//! |---|---|---|
//! | [`measure`] | every 10 to 100 ms, while the VM rests up to 2 s | one reading of the kernel's count |
//! | [`swap`] | while more is used than the orders allow | batches of 128 pages |
//! | [`prefetch`] | while the guest comes back to swapped memory | reads of 32 pages |
//! | [`merge`] | while there are candidates | runs of neighbours, 128 candidates at a time |
//! | [`census`] | a second after the last one, sooner where the VM depends on it, later while it rests | chunks of 512 pages; the next run goes on |
//! | [`stock`] | a second after a large page was wanted last | frees the stock |
//! | [`scan`] | while a chunk is due, as fast as its rate allows | slices of 64 pages |
//!
//! Sampling is a task too, beside the estimate that it is for (`vm::active`). Dropping what the guest
//! calls dead is none: the guest waits for it.
//!
//! Tasks that look whether something has changed are told for how long the VM has been *still*: nothing
//! has happened in it that could have changed anything. Their periods grow with that ([`Rest`]) and
//! are short again as soon as something happens.

use std::time::{Duration, Instant};

use super::pager::Error;

pub mod census;
pub mod measure;
pub mod merge;
pub mod prefetch;
pub mod scan;
pub mod stock;
pub mod swap;

/// What a run of a task achieved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Done {
    /// Pages that it dealt with.
    pub pages: u32,
    /// How long it took.
    pub took: Duration,
}

impl Done {
    /// A run that began at `start` and dealt with so many pages ends now.
    pub fn since(start: Instant, pages: u32) -> Done {
        Done {
            pages,
            took: start.elapsed(),
        }
    }
}

/// From one look to the next in a VM that may be still.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rest {
    /// For how long it has been still, and had been at the last look.
    still: Duration,
    then: Duration,
}

impl Rest {
    /// For how long the VM has been still.
    pub fn set_still(&mut self, still: Duration) {
        self.still = still;
    }

    /// This is a look.
    pub fn looked(&mut self) {
        self.then = self.still;
    }

    /// From the last look to the next: as long as the VM had been still, so that it doubles from look
    /// to look, between these two; and no longer than it has been still since something happened.
    pub fn period(&self, shortest: Duration, longest: Duration) -> Duration {
        let still = self.then.min(self.still);
        still.clamp(shortest, longest.max(shortest))
    }
}

/// Something that is done now and then, a part at a time.
pub trait Task {
    /// Since when it has work, or from when on; `None` while it has none.
    fn due(&self) -> Option<Instant>;

    /// Works at least a step, and goes on until there is nothing to do or it is `until`. No step
    /// waits for the host manager or for a fault.
    ///
    /// # Errors
    /// The VM cannot go on.
    fn run(&mut self, until: Instant) -> Result<Done, Error>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_double_while_a_vm_is_still_and_are_short_again_at_once() {
        let ms = Duration::from_millis;
        let mut rest = Rest::default();
        let mut period = |still, looks| {
            rest.set_still(ms(still));
            if looks {
                rest.looked();
            }
            rest.period(ms(100), ms(2000)).as_millis()
        };
        // (still for, at a look, then until the next)
        let table = [
            (0, true, 100),
            (90, true, 100),
            (190, true, 190),
            // That a look is not due yet does not put it off.
            (300, false, 190),
            (380, true, 380),
            (760, true, 760),
            (1520, true, 1520),
            (3040, true, 2000),
            // Something happens between two looks.
            (10, false, 100),
            (400, false, 400),
        ];
        for (still, looks, expected) in table {
            assert_eq!(period(still, looks), expected, "{still} {looks}");
        }
        assert_eq!(rest.period(ms(5000), ms(2000)), ms(5000));
    }
}
