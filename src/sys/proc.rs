//! What the kernel says of processes and of the machine in /proc: see proc(5).

use std::fs;

use crate::units::Pages;

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

/// Private memory and page tables of this process.
pub fn own_memory() -> Pages {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let size = |name| size(&status, name).unwrap_or_default();
    size("RssAnon") + size("VmPTE")
}

/// Start time of a process in the kernel's clock ticks since boot, unless it has ended: field 22 of
/// its stat file, behind a name that may hold anything.
pub fn started(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
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
        assert!(own_memory() >= anonymous(pid).min(Pages(1)));
        assert!(anonymous(pid) > Pages::ZERO && meminfo("MemTotal") > Pages::ZERO);
        assert!(started(pid).is_some());
        assert!(vmstat("pgfault") > 0 && vmstat("pgfaul") == 0);
        assert_eq!((started(0), anonymous(0)), (None, Pages::ZERO));
    }
}
