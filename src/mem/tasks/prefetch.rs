//! The task that brings back what the guest comes back to, before it touches it: see
//! [`crate::mem::returns`].

use std::sync::Arc;
use std::time::Instant;

use super::{Done, Task};
use crate::mem::Pager;
use crate::mem::pager::Error;
use crate::sys::space::PageBuf;

/// See the module documentation.
#[derive(Debug)]
pub struct PrefetchTask {
    pager: Arc<Pager>,
    /// When it ran last.
    ran: Instant,
    buffer: Vec<PageBuf>,
}

impl PrefetchTask {
    /// Nothing is to be brought back yet.
    pub fn new(pager: Arc<Pager>) -> PrefetchTask {
        PrefetchTask {
            pager,
            ran: Instant::now(),
            buffer: Vec::new(),
        }
    }
}

impl Task for PrefetchTask {
    fn due(&self) -> Option<Instant> {
        self.pager.wants_prefetch().then_some(self.ran)
    }

    fn run(&mut self, until: Instant) -> Result<Done, Error> {
        let start = Instant::now();
        let mut pages = 0;
        while self.pager.wants_prefetch() {
            pages += self.pager.prefetch(&mut self.buffer)?;
            if Instant::now() >= until {
                break;
            }
        }
        self.ran = Instant::now();
        Ok(Done::since(start, pages))
    }
}
