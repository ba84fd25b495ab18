use super::*;

const UNIFIED: &str = "24 1 0:22 / /proc rw - proc proc rw\n\
    35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
const HYBRID: &str = "31 24 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
    33 24 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
    34 24 0:30 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n";

fn at(mounts: &str, membership: &str) -> Option<(String, Version)> {
    let (folder, version) = place(mounts, membership)?;
    Some((folder.to_str().unwrap().to_owned(), version))
}

#[test]
fn a_cgroup_is_found_by_its_membership_and_mount() {
    let found = |path: &str, version| Some((path.to_owned(), version));
    let own = "0::/user.slice/run-1.scope\n";
    let place = "/sys/fs/cgroup/user.slice/run-1.scope";
    assert_eq!(at(UNIFIED, own), found(place, Version::V2));
    assert_eq!(at(UNIFIED, "0::/\n"), found("/sys/fs/cgroup", Version::V2));
    let own = "4:memory:/a/b\n1:cpu,cpuacct:/c\n0::/\n";
    assert_eq!(
        at(HYBRID, own),
        found("/sys/fs/cgroup/memory/a/b", Version::V1)
    );
    // Some other namespace's, and in a container that sees its own part only.
    assert_eq!(at(UNIFIED, "0::/../other\n"), None);
    let part = UNIFIED.replace("0:30 / ", "0:30 /docker/1 ");
    let own = "0::/docker/1/vms\n";
    assert_eq!(at(&part, own), found("/sys/fs/cgroup/vms", Version::V2));
    assert_eq!(at(&part, "0::/docker/2\n"), None);
    assert_eq!((at("", own), at(UNIFIED, "")), (None, None));
    // The controller is elsewhere, and not mounted.
    assert_eq!(at(UNIFIED, "4:memory:/\n0::/\n"), None);
}

/// A cgroup as files.
fn made_of(version: Version, files: &[(&str, &str)]) -> (tempfile::TempDir, Cgroup) {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    let cgroup = Cgroup {
        folder: folder.path().to_owned(),
        version,
    };
    (folder, cgroup)
}

#[test]
fn what_is_charged_and_no_file_is_used() {
    let stat = "anon 4096\nfile 16384\nkernel 8192\nkernel_stack 4096\nshmem 4096\ninactive_anon 4097\n\
        active_anon 65536\ninactive_file 8192\nactive_file 8192\nunevictable 0\n";
    let files = [("memory.stat", stat), ("memory.max", "max")];
    let (folder, cgroup) = made_of(Version::V2, &files);
    assert_eq!(cgroup.used(), Some(Pages(20)));
    fs::write(folder.path().join("memory.swap.current"), "4096\n").unwrap();
    assert_eq!(cgroup.used(), Some(Pages(21)));
    let stat = "active_anon 1\nswap 1\ntotal_rss 4096\ntotal_active_anon 8192\n\
        total_inactive_anon 4096\ntotal_active_file 409600\ntotal_swap 4096\ntotal_unevictable 0\n";
    let files = [("memory.stat", stat), ("memory.limit_in_bytes", "1")];
    let (folder, cgroup) = made_of(Version::V1, &files);
    assert_eq!(cgroup.used(), Some(Pages(4)));
    fs::write(folder.path().join("memory.kmem.usage_in_bytes"), "8192\n").unwrap();
    assert_eq!(cgroup.used(), Some(Pages(6)));
    // The root of a hierarchy counts nothing, and one without the controller has no such file.
    let root = made_of(Version::V2, &[("memory.stat", stat)]);
    assert_eq!(root.1.used(), None);
    assert_eq!(made_of(Version::V2, &[]).1.used(), None);
}

#[test]
fn a_limit_is_no_less_than_what_is_there_and_swap_is_off() {
    let (folder, cgroup) = made_of(
        Version::V2,
        &[
            ("memory.stat", "active_anon 8388608\n"),
            ("memory.max", "max"),
        ],
    );
    let read = |name| fs::read_to_string(folder.path().join(name)).ok();
    cgroup.limit(Pages::mib(64)).unwrap();
    assert_eq!(read("memory.max").unwrap(), "67108864");
    // Nothing is made that the kernel has not.
    assert_eq!(read("memory.swap.max"), None);
    fs::write(folder.path().join("memory.swap.max"), "max").unwrap();
    fs::write(folder.path().join("memory.max"), "").unwrap();
    cgroup.limit(Pages::mib(4)).unwrap();
    assert_eq!(read("memory.max").unwrap(), "8388608");
    assert!(read("memory.swap.max").unwrap().starts_with('0'));
    let missing = made_of(Version::V1, &[]).1.limit(Pages::mib(4));
    assert_eq!(missing.unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn alone_is_who_shares_with_nobody() {
    let own = own_pid();
    // Number 1 has memory, and who does not exist has none.
    for (procs, alone) in [
        (format!("{own}\n"), true),
        (format!("{own}\n{}\n", i32::MAX), true),
        (format!("1\n{own}\n"), false),
        ("1\n".to_owned(), false),
        (String::new(), false),
    ] {
        let (_folder, cgroup) = made_of(Version::V2, &[("cgroup.procs", &procs)]);
        assert_eq!(cgroup.holds_only(own), alone, "{procs:?}");
    }
}

/// As long as it is ours by neither mark nor owner, nothing is made in it.
#[test]
fn a_home_is_ours_and_nobody_elses() {
    let own = own_pid();
    let procs = format!("{own}\n1\n");
    let (folder, cgroup) = made_of(Version::V2, &[("cgroup.procs", &procs)]);
    if rustix::process::geteuid().is_root() {
        let found = Home::at(cgroup.clone(), own).unwrap_err();
        assert_eq!(found, Absent::NotOurs(folder.path().into(), Version::V2));
        let flags = rustix::fs::XattrFlags::empty();
        if rustix::fs::setxattr(folder.path(), MARKS[0], b"1", flags).is_err() {
            println!("SKIP no such attributes in the folder for temporary files");
            return;
        }
    }
    let shared = Home::at(cgroup.clone(), own).unwrap_err();
    assert_eq!(shared, Absent::Shared(folder.path().into()));
    fs::write(folder.path().join("cgroup.procs"), format!("{own}\n")).unwrap();
    let home = Home::at(cgroup, own).unwrap();
    let made = home.make(own).unwrap();
    assert_eq!(made, home.make(own).unwrap());
    // Left behind by a dead one, and things that are not ours.
    let dead = home.make(i32::MAX).unwrap();
    for name in ["tidemark-vm-", "tidemark-vm-x", "vm-2147483647", "other"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    home.tidy();
    assert!(!dead.folder().exists() && made.folder().exists());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 6);
    dead.remove().unwrap();
}
