//! What would make VMs run better on this host: from what its kernel says to one line with the command
//! that mends it. Pure, so that every answer of a kernel can be tested anywhere.

use std::io;

use crate::sys::cgroup::{Absent, Version};
use crate::sys::priority::AHEAD;

/// Mappings that a VM with many scattered shared or swapped pages may need: each costs two. The
/// kernel's default, 65530, is reached by a guest of 512 MiB whose every other page is written.
const MAP_COUNT_WANTED: u64 = 1_048_576;

/// Kernels on which moving a page that the host has swapped may lose it: from the first with
/// UFFDIO_MOVE to the last without the mend.
const MOVE_LOSES_SWAPPED: std::ops::RangeInclusive<(u32, u32)> = (6, 8)..=(6, 13);

/// The first Landlock ABI with scopes.
const LANDLOCK_SCOPES: u32 = 6;

/// Where the limit of mappings is too low.
pub(super) fn on_mappings(max_map_count: u64) -> Option<String> {
    (max_map_count < MAP_COUNT_WANTED).then(|| {
        format!(
            "vm.max_map_count is {max_map_count}: scattered pages cannot all be shared; `sudo \
             sysctl -w vm.max_map_count={MAP_COUNT_WANTED}`"
        )
    })
}

/// Where a host manager may not run ahead of its VMs, for this reason.
pub(super) fn on_priority(why: &io::Error) -> String {
    format!(
        "a host manager may not raise its priority ({why}): where CPUs are scarce its decisions are late; \
         `sudo prlimit --nice={0}:{0} --pid $$` for this shell, or LimitNICE={AHEAD} for the service",
        20 - AHEAD
    )
}

/// Where the host itself swaps; `swaps` is the text of /proc/swaps.
pub(super) fn on_swap(kernel: &str, swaps: &str) -> Option<String> {
    if !is_on(swaps) || !version(kernel).is_some_and(|v| MOVE_LOSES_SWAPPED.contains(&v)) {
        return None;
    }
    Some(format!(
        "the host swaps, and Linux {kernel} may lose a page that is moved while it is swapped (mended \
         in 6.14): pages are taken out by copying, which is slower; `sudo swapoff -a`, or \
         MemorySwapMax=0 for the service"
    ))
}

/// Whether the host has swap on: a line for each below the heading.
pub(super) fn is_on(swaps: &str) -> bool {
    swaps.lines().skip(1).any(|line| !line.trim().is_empty())
}

/// Where memory files get large pages; `mode` is the text of `shmem_enabled`.
pub(super) fn on_large_pages(mode: &str) -> Option<String> {
    let mode = chosen(mode)?;
    matches!(mode, "always" | "within_size" | "force").then(|| {
        format!(
            "memory files get large pages (shmem_enabled is {mode}): each new shared frame costs \
             splitting one; `echo advise | sudo tee \
             /sys/kernel/mm/transparent_hugepage/shmem_enabled`"
        )
    })
}

/// Where Landlock holds a VM process less than it could; `abi` is what the kernel has.
pub(super) fn on_landlock(abi: Option<u32>) -> Option<String> {
    match abi {
        Some(LANDLOCK_SCOPES..) => None,
        Some(abi) => Some(format!(
            "Landlock ABI {abi} keeps VM processes from paths, not from other processes' signals and \
             abstract sockets (ABI {LANDLOCK_SCOPES}, Linux 6.12): their system call filters do alone"
        )),
        None => Some(
            "no Landlock: VM processes are held by their system call filters alone; on Linux 5.13 \
             and later boot with lsm=landlock, before what `cat /sys/kernel/security/lsm` shows"
                .to_owned(),
        ),
    }
}

/// Where VM processes would run as root.
pub(super) fn on_user(is_root: bool) -> Option<String> {
    is_root.then(|| {
        "VM processes run as root here, without capabilities: what a guest that has broken out could \
         still reach is root's; `tidemark run --user auto ...`, or --hardened"
            .to_owned()
    })
}

/// Where --hardened is refused, since one of these namespaces is missing.
pub(super) fn on_namespaces(granted: &[&str]) -> Option<String> {
    let all = ["mount", "ipc", "net"]
        .iter()
        .all(|kind| granted.contains(kind));
    (!all).then(|| {
        "--hardened is refused here: VM processes cannot have mount, ipc and net namespaces; as root in a \
         container CAP_SYS_ADMIN grants them (`docker run --cap-add SYS_ADMIN`), to others `sudo sysctl -w \
         user.max_user_namespaces=10000 kernel.unprivileged_userns_clone=1 \
         kernel.apparmor_restrict_unprivileged_userns=0` does, as far as these settings exist"
            .to_owned()
    })
}

/// Where `tidemark run` may make no memory cgroups.
pub(super) fn on_cgroups(why: &Absent, is_root: bool) -> String {
    let command = match (why, is_root) {
        (Absent::NotOurs(_, Version::V1), _) => {
            "`sudo sh -c 'cd /sys/fs/cgroup/memory && mkdir tidemark && setfattr -n trusted.delegate -v 1 \
             tidemark && echo $$ >tidemark/cgroup.procs && exec tidemark run ...'`"
        }
        (_, true) => "`systemd-run --scope -p Delegate=yes tidemark run ...`",
        (_, false) => "`systemd-run --user --scope -p Delegate=yes tidemark run ...`",
    };
    format!(
        "VM processes get no memory cgroups of their own ({why}): what the kernel keeps for them, and the \
         rest of large pages dropped in part, is not seen, and nothing but the host manager bounds \
         them; {command}"
    )
}

/// Whether a process without privileges may make user namespaces, by three settings of the kernel, of
/// which Debian's and Ubuntu's own are absent elsewhere.
pub(super) fn allows_user_namespaces(
    most: Option<&str>,
    debian: Option<&str>,
    apparmor_restricts: Option<&str>,
) -> bool {
    most.is_some_and(|most| most != "0") && debian != Some("0") && apparmor_restricts != Some("1")
}

/// The word in brackets.
pub(super) fn chosen(mode: &str) -> Option<&str> {
    let (_, rest) = mode.split_once('[')?;
    Some(rest.split_once(']')?.0)
}

fn version(kernel: &str) -> Option<(u32, u32)> {
    let mut numbers = kernel.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next()?.parse().ok();
    Some((next()?, next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_low_limit_of_mappings_is_answered_with_the_command() {
        let line = on_mappings(65530).unwrap();
        assert!(
            line.contains("sysctl -w vm.max_map_count=1048576"),
            "{line}"
        );
        assert!(on_mappings(262_144).is_some());
        assert_eq!(on_mappings(1_048_576), None);
    }

    #[test]
    fn swap_of_the_host_matters_on_kernels_that_lose_moved_pages() {
        let off = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";
        let on = format!("{off}/dev/vda2\tpartition\t1048572\t0\t-2\n");
        let advised = ["6.8.0-31-generic", "6.12.12+bpo-amd64", "6.13"];
        let mended = ["6.1.0-13-amd64", "6.7.9", "6.14.0-rc1", "7.0", "", "x"];
        for kernel in advised {
            let line = on_swap(kernel, &on).unwrap();
            assert!(line.contains(kernel) && line.contains("swapoff"), "{line}");
            assert_eq!(on_swap(kernel, off), None);
        }
        for kernel in mended {
            assert_eq!(on_swap(kernel, &on), None, "{kernel}");
        }
        assert!(!is_on(""));
    }

    #[test]
    fn a_priority_that_is_refused_is_answered_with_the_command() {
        let line = on_priority(&io::Error::from_raw_os_error(libc::EACCES));
        assert!(
            line.contains("prlimit --nice=30:30") && line.contains("LimitNICE=-10"),
            "{line}"
        );
    }

    #[test]
    fn what_holds_a_vm_process_less_than_it_could_is_named() {
        assert!(on_landlock(None).unwrap().contains("lsm=landlock"));
        assert!(on_landlock(Some(3)).unwrap().contains("ABI 3"));
        assert_eq!((on_landlock(Some(6)), on_landlock(Some(9))), (None, None));
        assert!(on_user(true).unwrap().contains("--user auto"));
        assert!(
            on_namespaces(&["mount", "net"])
                .unwrap()
                .contains("SYS_ADMIN")
        );
        assert_eq!(on_namespaces(&["user", "mount", "ipc", "net"]), None);
        assert_eq!(on_user(false), None);
        let most = Some("96365");
        assert!(allows_user_namespaces(most, None, None));
        assert!(allows_user_namespaces(most, Some("1"), Some("0")));
        for settings in [
            (None, None, None),
            (Some("0"), None, None),
            (most, Some("0"), None),
            (most, None, Some("1")),
        ] {
            assert!(!allows_user_namespaces(settings.0, settings.1, settings.2));
        }
    }

    #[test]
    fn cgroups_that_cannot_be_made_are_answered_with_the_command() {
        let not_ours = |version| Absent::NotOurs("/sys/fs/cgroup/x".into(), version);
        let line = on_cgroups(&not_ours(Version::V2), false);
        let user = "`systemd-run --user --scope -p Delegate=yes";
        assert!(line.contains(user) && line.contains("/x was not"), "{line}");
        let line = on_cgroups(&Absent::NoController, true);
        assert!(line.contains("`systemd-run --scope"), "{line}");
        let line = on_cgroups(&not_ours(Version::V1), true);
        assert!(
            line.contains("-n trusted.delegate -v 1 tidemark &&"),
            "{line}"
        );
    }

    #[test]
    fn large_pages_of_memory_files_are_named() {
        const ALL: &str = "always within_size advise never deny force";
        for mode in ["always", "within_size", "force"] {
            let text = ALL.replace(mode, &format!("[{mode}]"));
            let line = on_large_pages(&text).unwrap();
            assert!(line.contains(&format!("is {mode}")), "{line}");
        }
        for text in [
            "always [never] deny",
            "[advise]",
            "[deny]",
            "always]never[",
            "",
            "[",
        ] {
            assert_eq!(on_large_pages(text), None, "{text}");
        }
    }
}
