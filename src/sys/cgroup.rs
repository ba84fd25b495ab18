//! Memory cgroups: which one a process is in, what is charged to it, and where we may make our own.
//!
//! A cgroup sees what /proc/PID/status does not: all of a large page until the kernel has freed it,
//! page tables, and the kernel's memory for mappings and for KVM. Not counted is the page cache of files,
//! which the kernel drops by itself, and so neither are `memory.current` and `memory.usage_in_bytes`, which
//! contain it, and up to 256 KiB for each CPU that are charged ahead. Nor is `anon`, which has mapped
//! pages only: of 32 large pages that were dropped but for one page each it had 128 KiB, and
//! `active_anon` all of their 64 MiB (Linux 6.12).
//!
//! | | version 2, memory.stat | version 1, the same with `total_` |
//! |---|---|---|
//! | pages of no file | `active_anon`, `inactive_anon`, `unevictable` | the same |
//! | the kernel's | `kernel` | `memory.kmem.usage_in_bytes` |
//! | swapped | `memory.swap.current` | `swap` |
//! | the most | `memory.max` | `memory.limit_in_bytes`, and with swap `memory.memsw.limit_in_bytes` |
//! | no swap | `memory.swap.max` = 0 | `memory.swappiness` = 0: unless there is nothing else to reclaim |
//!
//! Sources: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
//!
//! **Ours** is a cgroup that was given to us: it belongs to our user, who is not root, or bears the mark
//! with which systemd notes `Delegate=yes`, an extended attribute. In version 2 a cgroup with processes
//! gives its children no controllers, so nobody else may be in it, and the host manager goes into a
//! child itself.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use crate::sys::proc;
use crate::units::Pages;

/// What marks a cgroup as given away. Source: systemd's src/core/cgroup.c.
const MARKS: [&str; 2] = ["trusted.delegate", "user.delegate"];
/// What the names of our cgroups begin with; behind it is the number of a process.
const HOST: &str = "tidemark-host-";
const VM: &str = "tidemark-vm-";

/// Whose files a cgroup has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// A hierarchy of the memory controller alone, or of several.
    V1,
    /// The unified hierarchy.
    V2,
}

/// A cgroup to which memory is charged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    folder: PathBuf,
    version: Version,
}

impl Cgroup {
    /// The one that a process is in, unless memory is not charged there.
    pub fn of(pid: i32) -> Option<Cgroup> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let membership = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let (folder, version) = place(&mounts, &membership)?;
        let cgroup = Cgroup { folder, version };
        cgroup.used().is_some().then_some(cgroup)
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Which version it is.
    pub fn version(&self) -> Version {
        self.version
    }

    /// What its processes have, in RAM and in the host's swap, the kernel's memory for them included;
    /// not the page cache of files.
    pub fn used(&self) -> Option<Pages> {
        let stat = self.read("memory.stat")?;
        let (prefix, kernel, swapped) = match self.version {
            Version::V1 => (
                "total_",
                self.number("memory.kmem.usage_in_bytes"),
                field(&stat, "total_", "swap"),
            ),
            Version::V2 => (
                "",
                field(&stat, "", "kernel"),
                self.number("memory.swap.current"),
            ),
        };
        // The root has no limit in version 2, and counts the whole machine.
        fs::metadata(self.folder.join(self.bound())).ok()?;
        let pages = ["active_anon", "inactive_anon", "unevictable"];
        let pages = pages.map(|name| field(&stat, prefix, name));
        // Kernels without swap, or without an account of their own memory, lack some.
        let parts = pages.into_iter().chain([kernel, swapped]).flatten();
        Some(Pages::holding_bytes(parts.fold(0, u64::saturating_add)))
    }

    /// The most that may be charged to it, bytes, if that is bounded here.
    pub fn most(&self) -> Option<u64> {
        // Version 1 says "none" by a number that no machine has.
        self.number(self.bound()).filter(|&most| most < 1 << 62)
    }

    /// Whether that process is in it, and no other that has memory; those in cgroups below it do not
    /// count. In version 1 a thread of KVM's is in it too, which is the kernel's.
    pub fn holds_only(&self, pid: i32) -> bool {
        let text = self.read("cgroup.procs").unwrap_or_default();
        let pids: Vec<i32> = text.lines().filter_map(|line| line.parse().ok()).collect();
        let others = || pids.iter().filter(|&&it| it != pid);
        pids.contains(&pid) && others().all(|&it| proc::private_memory(it).is_none())
    }

    /// Bounds it to `most`, or to what it has if that is more, and keeps it out of the host's swap as far
    /// as its version can.
    ///
    /// # Errors
    /// The kernel's. What is for swap alone may be missing.
    pub fn limit(&self, most: Pages) -> io::Result<()> {
        let most = most.max(self.used().unwrap_or_default()).bytes();
        let most = most.to_string();
        let swap: &[_] = match self.version {
            Version::V1 => &[
                ("memory.memsw.limit_in_bytes", most.as_str()),
                ("memory.swappiness", "0"),
            ],
            Version::V2 => &[("memory.swap.max", "0")],
        };
        self.write(self.bound(), &most)?;
        for (name, value) in swap {
            match self.write(name, value) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Moves a process into it, for which the kernel may wait for tens of milliseconds. What the
    /// process has stays charged where it was.
    ///
    /// # Errors
    /// The kernel's.
    pub fn take_in(&self, pid: i32) -> io::Result<()> {
        self.write("cgroup.procs", &pid.to_string())
    }

    /// Removes it.
    ///
    /// # Errors
    /// When somebody is in it, or in one below it.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_dir(&self.folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    fn bound(&self) -> &'static str {
        match self.version {
            Version::V1 => "memory.limit_in_bytes",
            Version::V2 => "memory.max",
        }
    }

    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.folder.join(name)).ok()
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.read(name)?.trim().parse().ok()
    }

    /// Not `fs::write`, which would try to make a file.
    fn write(&self, name: &str, text: &str) -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .open(self.folder.join(name))?;
        file.write_all(text.as_bytes())
    }
}

/// Why there is no cgroup in which we may make our own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Absent {
    /// Nothing is charged to the one that we are in.
    #[error("no memory cgroup")]
    NoController,
    /// It is somebody else's.
    #[error("{} was not given to us", .0.display())]
    NotOurs(PathBuf, Version),
    /// It is ours, and others are in it.
    #[error("other processes are in {}", .0.display())]
    Shared(PathBuf),
}

/// A cgroup in which we may make our own.
#[derive(Debug)]
pub struct Home(Cgroup);

impl Home {
    /// The one that this process is in. What dead host managers have left there is removed.
    ///
    /// # Errors
    /// Why there is none; nothing is changed.
    pub fn find() -> Result<Home, Absent> {
        let own = own_pid();
        let cgroup = Cgroup::of(own).ok_or(Absent::NoController)?;
        let home = Home::at(cgroup, own)?;
        home.tidy();
        Ok(home)
    }

    fn at(cgroup: Cgroup, own: i32) -> Result<Home, Absent> {
        if !is_ours(&cgroup.folder) {
            return Err(Absent::NotOurs(cgroup.folder, cgroup.version));
        }
        match cgroup.version {
            Version::V2 if !cgroup.holds_only(own) => Err(Absent::Shared(cgroup.folder)),
            Version::V1 | Version::V2 => Ok(Home(cgroup)),
        }
    }

    /// Where it is.
    pub fn cgroup(&self) -> &Cgroup {
        &self.0
    }

    /// A cgroup for the VM of that process, which is not in it yet.
    ///
    /// # Errors
    /// The kernel's.
    pub fn make(&self, pid: i32) -> io::Result<Cgroup> {
        self.child(VM, pid)
    }

    /// Moves this process into a cgroup of its own, where that must be: none if not.
    ///
    /// # Errors
    /// The kernel's.
    pub fn step_aside(&self) -> io::Result<Option<Cgroup>> {
        if self.0.version == Version::V1 {
            return Ok(None);
        }
        let aside = self.child(HOST, own_pid())?;
        aside.take_in(own_pid())?;
        Ok(Some(aside))
    }

    /// Ends [`Home::step_aside`].
    ///
    /// # Errors
    /// When there are cgroups of others beside it.
    pub fn step_back(&self, aside: &Cgroup) -> io::Result<()> {
        self.0.write("cgroup.subtree_control", "-memory")?;
        self.0.take_in(own_pid())?;
        aside.remove()
    }

    /// Has memory charged to the cgroups made here. Until then theirs have no such files.
    ///
    /// # Errors
    /// While somebody is in the home itself.
    pub fn divide(&self) -> io::Result<()> {
        match self.0.version {
            Version::V1 => Ok(()),
            Version::V2 => self.0.write("cgroup.subtree_control", "+memory"),
        }
    }

    fn child(&self, kind: &str, pid: i32) -> io::Result<Cgroup> {
        let folder = self.0.folder.join(format!("{kind}{pid}"));
        match fs::create_dir(&folder) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let version = self.0.version;
        Ok(Cgroup { folder, version })
    }

    /// Removes those of ours whose process has ended. The kernel removes none that somebody is in.
    fn tidy(&self) {
        let entries = fs::read_dir(&self.0.folder).into_iter().flatten();
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_str().unwrap_or_default();
            let number = name.strip_prefix(HOST).or(name.strip_prefix(VM));
            let pid = number.and_then(|number| number.parse::<i32>().ok());
            if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                let _ = fs::remove_dir(entry.path());
            }
        }
    }
}

fn own_pid() -> i32 {
    std::process::id().cast_signed()
}

fn is_ours(folder: &Path) -> bool {
    let us = rustix::process::geteuid();
    let owner = fs::metadata(folder).map(|it| it.uid());
    if !us.is_root() && owner.is_ok_and(|owner| owner == us.as_raw()) {
        return true;
    }
    MARKS.iter().any(|mark| {
        let mut value = [0_u8; 8];
        let length = rustix::fs::getxattr(folder, *mark, &mut value);
        length.is_ok_and(|length| value[..length] == *b"1")
    })
}

/// A number of memory.stat.
fn field(stat: &str, prefix: &str, name: &str) -> Option<u64> {
    let mut lines = stat.lines().filter_map(|line| line.split_once(' '));
    let is_it = |key: &str| key.strip_prefix(prefix) == Some(name);
    lines.find(|(key, _)| is_it(key))?.1.parse().ok()
}

/// Where the cgroup lies that `membership` (/proc/PID/cgroup) names, among `mounts`
/// (/proc/self/mountinfo).
fn place(mounts: &str, membership: &str) -> Option<(PathBuf, Version)> {
    let named = |wanted: Version| {
        membership.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            let found = match wanted {
                Version::V1 => controllers.split(',').any(|name| name == "memory"),
                Version::V2 => line.starts_with("0::"),
            };
            found.then_some(path)
        })
    };
    // A controller is in one hierarchy, and where it is in one of its own the unified one lacks it.
    let (path, version) = match named(Version::V1) {
        Some(path) => (path, Version::V1),
        None => (named(Version::V2)?, Version::V2),
    };
    mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let (kind, options) = right.split_once(' ')?;
        let is_it = match version {
            Version::V1 => {
                kind == "cgroup" && options.split([' ', ',']).any(|option| option == "memory")
            }
            Version::V2 => kind == "cgroup2",
        };
        let mut parts = left.split(' ').skip(3).filter(|_| is_it);
        let (root, point) = (parts.next()?, parts.next()?);
        let below = Path::new(path).strip_prefix(root).ok()?;
        // One outside of our namespace's root begins with "..".
        let plain = |part: Component<'_>| matches!(part, Component::Normal(_));
        let mut folder = PathBuf::from(point);
        folder.extend(below.components());
        below.components().all(plain).then_some((folder, version))
    })
}

#[cfg(test)]
mod tests;
