//! A memory cgroup of the bench's own, in either version, for what the kernel is to page out.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How a version of the memory controller is told what to do: files, and what is written there.
#[derive(Debug, Clone, Copy)]
struct Files {
    /// Where its hierarchy is mounted.
    root: &'static str,
    /// Gives up what can be had again.
    reclaim: (&'static str, &'static str),
    /// Bounds the memory of the group.
    limit: &'static str,
    /// What it has.
    usage: &'static str,
}

const V1: Files = Files {
    root: "/sys/fs/cgroup/memory",
    reclaim: ("memory.force_empty", "0"),
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
};
const V2: Files = Files {
    root: "/sys/fs/cgroup",
    reclaim: ("memory.reclaim", "16G"),
    limit: "memory.max",
    usage: "memory.current",
};

/// A memory cgroup below our own. Dropping it removes it, once its processes are gone.
#[derive(Debug)]
pub(super) struct Group {
    path: PathBuf,
    files: Files,
}

impl Group {
    /// A new one.
    ///
    /// # Errors
    /// Why there is none, for people.
    pub fn new() -> Result<Group, String> {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let Some((files, below)) = own.lines().find_map(memory_group) else {
            return Err("no memory cgroup that could be emptied".to_owned());
        };
        let name = format!("tidemark-bench-{}", std::process::id());
        let path = Path::new(files.root).join(below).join(name);
        fs::create_dir(&path)
            .map_err(|error| format!("cannot make {}: {error}", path.display()))?;
        Ok(Group { path, files })
    }

    /// Does `work` inside the group: whatever it starts stays there. To be put into the group later
    /// would be too late: memory stays with the group in which it was touched.
    ///
    /// # Errors
    /// When the group cannot be entered or left, for people.
    pub fn around<T>(&self, work: impl FnOnce() -> T) -> Result<T, String> {
        let enter = |group: &Path| {
            let file = group.join("cgroup.procs");
            let write = fs::write(&file, std::process::id().to_string());
            write.map_err(|error| format!("cannot use {}: {error}", file.display()))
        };
        enter(&self.path)?;
        let done = work();
        enter(self.path.parent().unwrap_or(&self.path))?;
        Ok(done)
    }

    /// Its processes may have so many bytes; what they touch beyond is swapped.
    ///
    /// # Errors
    /// When the kernel does not limit it, for people.
    pub fn limit(&self, bytes: u64) -> Result<(), String> {
        let file = self.path.join(self.files.limit);
        let write = fs::write(&file, bytes.to_string());
        write.map_err(|error| format!("cannot write {}: {error}", file.display()))
    }

    /// Bytes that it has.
    pub fn usage(&self) -> Option<u64> {
        let text = fs::read_to_string(self.path.join(self.files.usage)).ok()?;
        text.trim().parse().ok()
    }

    /// Gives up what of it can be had again: the swap cache. What cannot be emptied is no error.
    ///
    /// # Errors
    /// When the kernel has no such thing, for people.
    pub fn empty(&self) -> Result<(), String> {
        let (file, text) = self.files.reclaim;
        let path = self.path.join(file);
        match path.exists() {
            // It fails where something is left, as the VM's own pages are.
            false => Err(format!("{} is missing", path.display())),
            true => {
                let _ = fs::write(path, text);
                Ok(())
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its processes were waited for; the kernel may need a moment more.
        for _ in 0..100 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        log::error!("cannot remove {}", self.path.display());
    }
}

/// What a line of `/proc/self/cgroup` says of the memory controller: its version, and our own group
/// below its root.
fn memory_group(line: &str) -> Option<(Files, &str)> {
    let mut parts = line.splitn(3, ':');
    let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let path = path.trim_start_matches('/');
    let memory = controllers.split(',').any(|name| name == "memory");
    match (memory, controllers.is_empty()) {
        (true, _) => Some((V1, path)),
        // Below it a new group will have the same file; the root has none.
        (_, true) => {
            let own = Path::new(V2.root).join(path).join(V2.reclaim.0);
            own.exists().then_some((V2, path))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_controller_is_found_among_the_others() {
        let found = |line| memory_group(line).map(|(files, path)| (files.limit, path));
        assert_eq!(
            found("4:memory:/a/b"),
            Some(("memory.limit_in_bytes", "a/b"))
        );
        assert_eq!(found("3:cpu,memory:/").map(|(_, path)| path), Some(""));
        assert_eq!(found("8:pids:/"), None);
        assert_eq!(found("0::/no/such/group"), None);
        assert_eq!(found("nonsense"), None);
    }
}
