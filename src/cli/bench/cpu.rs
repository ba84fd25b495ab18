//! CPU time of processes and threads, as the scheduler counts it: `/proc/PID/task/TID/schedstat`.

use std::fs;
use std::time::Duration;

/// Threads of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Threads {
    /// All of them.
    All,
    /// All but those that run guests.
    AllButVcpus,
}

/// CPU time that the threads of a process that live have had; nothing of a process that has ended.
pub(super) fn time(pid: i32, threads: Threads) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let mut sum = Duration::ZERO;
    for task in tasks.into_iter().flatten().flatten() {
        let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        if threads == Threads::AllButVcpus && read("comm").starts_with("vcpu") {
            continue;
        }
        let nanoseconds = read("schedstat")
            .split_whitespace()
            .next()
            .and_then(|text| text.parse().ok());
        sum += Duration::from_nanos(nanoseconds.unwrap_or(0));
    }
    sum
}

/// The children of a process, with their command lines.
pub(super) fn children(of: u32) -> Vec<(i32, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // Behind a name that may hold anything: state, then parent.
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
        if parent == Some(of) {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            found.push((pid, String::from_utf8_lossy(&line).replace('\0', " ")));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_had_a_cpu() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let all = time(pid, Threads::All);
        assert!(all > Duration::ZERO);
        // No thread of a test program runs a guest.
        assert!(time(pid, Threads::AllButVcpus) >= all);
        assert_eq!(time(i32::MAX, Threads::All), Duration::ZERO);
    }
}
