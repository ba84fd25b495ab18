//! What a VM process does for its memory besides serving faults.
//!
//! A [`Task`] owns its state, says when it is due, and works for as long as it is given. Which task
//! runs when, and how much of the time all of them may take, is decided elsewhere
//! ([`crate::vm`]'s schedule); which pages they may take is the host manager's.
//!
//! | task | due | one run |
//! |---|---|---|
//! | [`measure`] | every 10 to 100 ms | one reading of the kernel's count |
//! | [`swap`] | while more is used than the orders allow | batches of 32 pages |
//! | [`prefetch`] | while the guest comes back to swapped memory | reads of 32 pages |
//! | [`merge`] | while there are candidates | runs of neighbours, 128 candidates at a time |
//! | [`census`] | a second after the last one, sooner where the VM depends on it | chunks of 512 pages; the next run goes on |
//! | [`stock`] | a second after a large page was wanted last | frees the stock |
//! | [`scan`] | while a chunk is due, as fast as its rate allows | slices of 64 pages |
//!
//! Sampling is a task too, beside the estimate that it is for (`vm::active`). Dropping what the guest
//! calls dead is none: the guest waits for it.

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
