//! What the machine has, as far as the configuration depends on it.

use crate::boot::builtin;
use crate::config::Machine;
use crate::sys::proc;

/// Calls `use_it` with this machine's facts.
pub fn with<T>(use_it: impl FnOnce(&Machine<'_>) -> T) -> T {
    let guests: Vec<&str> = builtin::names().collect();
    use_it(&Machine {
        available: proc::meminfo("MemAvailable"),
        guests: &guests,
    })
}
