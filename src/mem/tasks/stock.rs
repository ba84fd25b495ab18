//! The task that frees the stock of large pages when the guest has not wanted one for a while.

use std::sync::Arc;
use std::time::Instant;

use super::{Done, Task};
use crate::mem::Pager;
use crate::mem::pager::Error;

/// See the module documentation.
#[derive(Debug)]
pub struct DropStock {
    pager: Arc<Pager>,
}

impl DropStock {
    /// Nothing is in stock yet.
    pub fn new(pager: Arc<Pager>) -> DropStock {
        DropStock { pager }
    }
}

impl Task for DropStock {
    fn due(&self) -> Option<Instant> {
        self.pager.stock_expires()
    }

    fn run(&mut self, _until: Instant) -> Result<Done, Error> {
        let start = Instant::now();
        self.pager.drop_stock()?;
        Ok(Done::since(start, 0))
    }
}
