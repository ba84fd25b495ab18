//! What the machine has, as far as the configuration depends on it.

use crate::boot::builtin;
use crate::config::Machine;
use crate::units::Pages;

/// Calls `use_it` with this machine's facts.
pub fn with<T>(use_it: impl FnOnce(&Machine<'_>) -> T) -> T {
    let guests: Vec<&str> = builtin::names().collect();
    use_it(&Machine {
        available: meminfo("MemAvailable:"),
        guests: &guests,
    })
}

/// A line of /proc/meminfo; zero when there is none.
pub fn meminfo(key: &str) -> Pages {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let kib: u64 = line
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0);
    Pages::in_bytes(kib << 10)
}
