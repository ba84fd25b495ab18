//! What the host computer has, as far as the configuration depends on it.

use crate::boot::builtin;
use crate::config::Resources;
use crate::sys::proc;

/// Calls `use_it` with what this one has.
pub fn with<T>(use_it: impl FnOnce(&Resources<'_>) -> T) -> T {
    let guests: Vec<&str> = builtin::names().collect();
    use_it(&Resources {
        available: proc::meminfo("MemAvailable"),
        guests: &guests,
    })
}
