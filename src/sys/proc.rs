//! What the kernel says of processes and of the machine in /proc: see proc(5).

use std::fs;
use std::time::Duration;

use crate::units::Pages;

/// Kernel memory of one mapping, bytes: 62,000 took 11.5 MiB of `vm_area_struct` and 6.6 MiB of the
/// nodes of their tree (Linux 6.18). A page that maps a frame between pages that do not takes two,
/// 0.6 KiB; of two such pages that map one frame, 2.8 KiB of what they save are left.
pub const MAPPING_BYTES: u64 = 306;

/// The size in a line such as `VmPTE:     12 kB` of a status file or of /proc/meminfo, rounded up.
pub fn size(text: &str, name: &str) -> Option<Pages> {
    let mut lines = text.lines();
    let rest = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = rest.split_whitespace().next()?.parse().ok()?;
    let bytes = kib.checked_mul(1 << 10)?;
    Some(Pages::holding_bytes(bytes))
}

/// A size of /proc/meminfo; zero when there is none of that name.
pub fn meminfo(name: &str) -> Pages {
    size_in("/proc/meminfo", name)
}

/// A counter of /proc/vmstat; zero when there is none of that name.
pub fn vmstat(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines
        .find(|(key, _)| *key == name)
        .and_then(|(_, value)| value.parse().ok())
        .unwrap_or(0)
}

/// Resident anonymous memory of a process; zero when it has ended.
pub fn anonymous(pid: i32) -> Pages {
    size_in(&format!("/proc/{pid}/status"), "RssAnon")
}

/// Private memory and page tables of this process; `None` when no file can be opened.
pub fn own_memory() -> Option<Pages> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    Some(size(&status, "RssAnon")? + size(&status, "VmPTE")?)
}

/// The same of another one, what of it the kernel has swapped included, unless it has ended.
pub fn private_memory(pid: i32) -> Option<Pages> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let parts = ["RssAnon", "VmSwap", "VmPTE"].map(|name| size(&status, name));
    // A process that is ending has no memory, and no such lines.
    parts[0]?;
    Some(parts.into_iter().flatten().sum())
}

/// CPU time of all threads of a process in user and kernel mode, unless it has ended: fields 14 and 15
/// of its stat file, to a hundredth of a second.
pub fn cpu_time(pid: i32) -> Option<Duration> {
    let ticks: u64 = stat_field(pid, 14)?.checked_add(stat_field(pid, 15)?)?;
    let second = rustix::param::clock_ticks_per_second();
    Some(Duration::from_millis(
        ticks.checked_mul(1000)? / second.max(1),
    ))
}

/// Start time of a process in the kernel's clock ticks since boot, unless it has ended.
pub fn started(pid: i32) -> Option<u64> {
    stat_field(pid, 22)
}

/// A number of a process's stat file, counted as proc(5) does: they lie behind a name that may hold
/// anything.
fn stat_field(pid: i32, number: usize) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(number - 3)?.parse().ok()
}

fn size_in(path: &str, name: &str) -> Pages {
    let text = fs::read_to_string(path).unwrap_or_default();
    size(&text, name).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_by_their_whole_name() {
        let text = "Name:\tVmPTE: 3 kB\nVmPTESum:\t 8 kB\nVmPTE:\t      13 kB\nVmSwap:\tmuch\n";
        assert_eq!(size(text, "VmPTE"), Some(Pages(4)));
        assert_eq!(size(text, "VmSwap"), None);
        assert_eq!(size(text, "Vm"), None);
        assert_eq!(size(text, "RssAnon"), None);
    }

    #[test]
    fn this_process_has_memory_and_a_start() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(own_memory() >= Some(anonymous(pid).min(Pages(1))));
        assert!(anonymous(pid) > Pages::ZERO && meminfo("MemTotal") > Pages::ZERO);
        assert!(started(pid).is_some());
        assert!(private_memory(pid) > Some(anonymous(pid)));
        let before = cpu_time(pid).unwrap();
        while cpu_time(pid).unwrap() == before {}
        assert!(cpu_time(pid).unwrap() - before < Duration::from_secs(1));
        assert!(vmstat("pgfault") > 0 && vmstat("pgfaul") == 0);
        assert_eq!((started(0), anonymous(0)), (None, Pages::ZERO));
        assert_eq!((private_memory(0), cpu_time(0)), (None, None));
    }
}
