//! Whether the host's own kernel may swap this process, and whether pages can be moved there.
//!
//! UFFDIO_MOVE also moves pages that the kernel has swapped out. From its start in Linux 6.8 it moved
//! the entry without the page that may still be in the swap cache: such a page is lost to the reverse
//! map, and the kernel stops or the content goes ("mm: fix kernel BUG when userfaultfd_move encounters
//! swapcache", c50f8e6053b0, Linux 6.14). A race of the two was left and closed later ("mm:
//! userfaultfd: fix race of userfaultfd_move and swap cache", 0ea148a79919, Linux 6.16). Both came to
//! stable kernels too, but which distribution's kernel has them cannot be told from its number.

use std::fs;
use std::path::{Path, PathBuf};

/// A kernel's version, as in 6.12.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release(pub u32, pub u32);

/// The first kernel that offers UFFDIO_MOVE.
const MOVE_OFFERED: Release = Release(6, 8);
/// The first one that moves swapped pages right, whoever built it.
const MOVE_RIGHT: Release = Release(6, 16);

/// Where pages are swapped by the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostSwap {
    /// Never: there is no swap, or this process's memory cgroup forbids it.
    Off,
    /// There is swap, and nothing forbids it.
    On,
}

/// What decides whether pages can be moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostFacts {
    /// The running kernel; `None` if its version does not read as one.
    pub release: Option<Release>,
    /// Whether it may swap this process.
    pub swap: HostSwap,
}

impl HostFacts {
    /// Those of this process. What cannot be read counts against moving: a kernel of any version,
    /// with swap.
    pub fn read() -> HostFacts {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let swaps = fs::read_to_string("/proc/swaps").ok();
        let swap = match swaps.is_some_and(|text| lists_none(&text))
            || cgroup_forbids(&text("/proc/self/cgroup"), |path| {
                fs::read_to_string(path).ok()
            }) {
            true => HostSwap::Off,
            false => HostSwap::On,
        };
        HostFacts {
            release: parse_release(&text("/proc/sys/kernel/osrelease")),
            swap,
        }
    }

    /// Why pages must not be moved here; `None` where they may.
    pub fn move_hazard(self) -> Option<String> {
        let affected = self
            .release
            .is_none_or(|release| (MOVE_OFFERED..MOVE_RIGHT).contains(&release));
        (affected && self.swap == HostSwap::On).then(|| {
            let kernel = match self.release {
                Some(Release(major, minor)) => format!("Linux {major}.{minor}"),
                None => "a kernel of unknown version".to_owned(),
            };
            format!(
                "{kernel} with swap on may lose pages that UFFDIO_MOVE moves; \
                 set memory.swap.max = 0 for this cgroup, swapoff -a, or use Linux 6.16"
            )
        })
    }
}

/// Major and minor number of a release such as `6.12.117+deb12-cloud-amd64`.
fn parse_release(text: &str) -> Option<Release> {
    let mut numbers = text.trim().split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next()?.parse().ok();
    Some(Release(next()?, next()?))
}

/// Whether /proc/swaps has no line below its heading.
fn lists_none(swaps: &str) -> bool {
    swaps.lines().skip(1).all(|line| line.trim().is_empty())
}

/// Whether the cgroup of `membership` (/proc/self/cgroup), or one above it, allows no swap.
fn cgroup_forbids(membership: &str, read: impl Fn(&Path) -> Option<String>) -> bool {
    let Some(path) = membership
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
    else {
        return false;
    };
    let root = Path::new("/sys/fs/cgroup");
    let own: PathBuf = root.join(path);
    own.ancestors()
        .take_while(|folder| folder.starts_with(root))
        .filter_map(|folder| read(&folder.join("memory.swap.max")))
        .any(|limit| limit.trim() == "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read() {
        let read = parse_release;
        assert_eq!(read("6.12.117+deb12-cloud-amd64\n"), Some(Release(6, 12)));
        assert_eq!(read("6.8.0-31-generic"), Some(Release(6, 8)));
        assert_eq!(read("7.0-rc1"), Some(Release(7, 0)));
        assert_eq!(read("6"), None);
        assert_eq!(read(""), None);
        assert_eq!(read("unknown"), None);
    }

    #[test]
    fn a_heading_is_no_swap() {
        let heading = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";
        assert!(lists_none(heading));
        assert!(!lists_none(&format!(
            "{heading}/dev/dm-1 partition 1000 0 -2\n"
        )));
    }

    #[test]
    fn any_cgroup_above_can_forbid() {
        let forbids = |membership: &str, zero: &str| {
            cgroup_forbids(membership, |path| {
                let zero = path == Path::new(zero);
                Some(if zero { "0\n" } else { "max\n" }.to_owned())
            })
        };
        let mine = "4:memory:/old\n0::/user.slice/vms\n";
        assert!(forbids(
            mine,
            "/sys/fs/cgroup/user.slice/vms/memory.swap.max"
        ));
        assert!(forbids(mine, "/sys/fs/cgroup/user.slice/memory.swap.max"));
        assert!(forbids(mine, "/sys/fs/cgroup/memory.swap.max"));
        assert!(!forbids(mine, "/sys/fs/cgroup/other/memory.swap.max"));
        assert!(!forbids(mine, "/sys/fs/memory.swap.max"));
        assert!(!forbids(
            "4:memory:/old\n",
            "/sys/fs/cgroup/memory.swap.max"
        ));
        assert!(!cgroup_forbids(mine, |_| None));
    }

    #[test]
    fn affected_kernels_with_swap_are_hazards() {
        let hazard = |release, swap| HostFacts { release, swap }.move_hazard();
        for (minor, affected) in [(8, true), (12, true), (15, true), (16, false), (18, false)] {
            let release = Some(Release(6, minor));
            assert_eq!(hazard(release, HostSwap::On).is_some(), affected, "{minor}");
            assert_eq!(hazard(release, HostSwap::Off), None, "{minor}");
        }
        assert_eq!(hazard(Some(Release(7, 0)), HostSwap::On), None);
        assert!(hazard(None, HostSwap::On).is_some());
        let said = hazard(Some(Release(6, 12)), HostSwap::On).unwrap();
        assert!(said.contains("Linux 6.12") && said.contains("memory.swap.max"));
    }
}
