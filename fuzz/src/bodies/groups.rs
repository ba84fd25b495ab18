//! Share groups of a host manager that is fuzzed.

use std::cell::Cell;
use std::io;

use tidemark::host::pool::{self, FramePool};
use tidemark::host::share::GroupSource;
use tidemark::units::Pages;

/// Groups whose secrets are known, so that the same input does the same.
#[derive(Debug, Default)]
pub struct Groups {
    secrets: Cell<u64>,
}

impl GroupSource for Groups {
    fn secret(&self) -> io::Result<u64> {
        Ok(self.secrets.replace(self.secrets.get() + 1))
    }

    fn pool(&self, budget: Pages) -> Result<FramePool, pool::Error> {
        FramePool::new(budget)
    }
}
