//! The fault thread of a VM process, without the process.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidemark::mem::{Error, Pager};

/// How often the thread looks whether it shall end.
const PERIOD: Duration = Duration::from_millis(10);

/// Serves faults until `end` is set; when it cannot go on, tells why.
pub fn run(pager: &Pager, end: &AtomicBool, tell: impl FnOnce(&Error)) -> Result<(), String> {
    let mut result = Ok(());
    let ended = || end.load(Ordering::Relaxed);
    pager.serve_faults(Some(PERIOD), ended, |error| {
        result = Err(error.to_string());
        tell(error);
    });
    result
}
