//! What a VM process leaves for good while its main thread is its only one: its launcher's user, and
//! the host's namespaces.
//!
//! The sandbox takes system calls and rights away from each thread. This takes away what they would find
//! if they had them: files (an empty folder, read-only, becomes the root), other processes of the same
//! user (there are none of a user of its own), the network, System V queues. All that needs a path or
//! root's rights is open by then; threads that are started afterwards are inside from their first
//! instruction.
//!
//! | started by | `--user` | `--hardened` |
//! |---|---|---|
//! | root | that user; a mount namespace with an empty root and an IPC namespace, where the kernel grants them | all of it, a network namespace too, or no start; a free user unless one is named |
//! | anybody else | - | a user namespace, and in it the other three, or no start |
//!
//! A PID namespace holds only what is forked into it: the VM process would be the child of a second one,
//! which has to stay. No thread may signal another process, so there is none.
//!
//! A network namespace is the only dear one: see `tidemark check`.

use std::fmt;
use std::fs;
use std::io;
use std::str::FromStr;

use rustix::fs::Gid;
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};
use rustix::process::{Uid, chdir, getegid, geteuid, getpid, pivot_root};
use rustix::thread::{UnshareFlags, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::sys::namespaces;

/// The first user number of those that are [`User::Auto`]; the process's number is added, of which no
/// two live processes have one. What a Linux system gives to users and containers ends before
/// (systemd, "Users, Groups, UIDs and GIDs on systemd systems").
const FIRST_FREE: u32 = 0x7000_0000;
/// The kernel's largest number of a process (`PID_MAX_LIMIT`).
const PROCESSES_MAX: u32 = 1 << 22;
/// A folder that is there on every host. The new root stands on it for a moment.
const FOLDER: &str = "/proc";

/// Which user a VM process becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// One that nobody else is.
    Auto,
    /// This one.
    Given {
        /// Its number.
        uid: u32,
        /// Its group's.
        gid: u32,
    },
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            User::Auto => f.write_str("auto"),
            User::Given { uid, gid } => write!(f, "{uid}:{gid}"),
        }
    }
}

impl FromStr for User {
    type Err = String;

    /// `auto`, a user's number, a user's and a group's, or a name of /etc/passwd.
    fn from_str(text: &str) -> Result<User, String> {
        let users = || fs::read_to_string("/etc/passwd").unwrap_or_default();
        parse(text, users)
    }
}

fn parse(text: &str, users: impl FnOnce() -> String) -> Result<User, String> {
    let number = |text: &str| text.parse::<u32>().ok();
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (number(user), number(group)),
        None if text == "auto" => return Ok(User::Auto),
        None if number(text).is_some() => (number(text), number(text)),
        None => find(text, &users()).unzip(),
    };
    match (user, group) {
        // The last number means nobody to the kernel.
        (Some(uid), Some(gid)) if uid != 0 && uid != u32::MAX && gid != u32::MAX => {
            Ok(User::Given { uid, gid })
        }
        (Some(0), _) => Err("must not be root".to_owned()),
        _ => Err("must be auto, a user's name or number, or UID:GID".to_owned()),
    }
}

/// The numbers of the user of that name and of its group, as passwd(5) has them.
fn find(name: &str, users: &str) -> Option<(u32, u32)> {
    let mut lines = users
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>());
    let fields = lines.find(|fields| fields.first() == Some(&name))?;
    Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?))
}

/// What a VM process leaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Jail {
    /// Its user, for another one.
    pub user: Option<User>,
    /// All that there is to leave; nothing less will do.
    pub hardened: bool,
}

/// A part of the jail cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Only root becomes somebody else.
    #[error("only root can give a VM process another user")]
    NotRoot,
    /// Another thread would stay outside.
    #[error("{0} threads are there already, where one is left behind")]
    Threads(usize),
    /// The kernel refused.
    #[error("cannot {what} (see `tidemark check`)")]
    Os {
        /// What was to be done.
        what: &'static str,
        /// Its answer.
        source: io::Error,
    },
}

fn os<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Error {
    move |source| Error::Os {
        what,
        source: source.into(),
    }
}

/// Moves the calling thread into each namespace of [`Jail::hardened`] that it may have, and says which. For
/// a process that only wants to know.
pub fn leave_each() -> Vec<&'static str> {
    let kinds = [
        (UnshareFlags::NEWNS, "mount"),
        (UnshareFlags::NEWIPC, "ipc"),
        (UnshareFlags::NEWNET, "net"),
    ];
    let granted = |(kind, name)| namespaces::leave(kind).is_ok().then_some(name);
    kinds.into_iter().filter_map(granted).collect()
}

/// Whether root can become any user that is [`User::Auto`], by the text of /proc/self/uid_map.
pub fn has_users(map: &str) -> bool {
    map.lines().any(|line| {
        let numbers = line.split_whitespace().map(str::parse::<u64>);
        match numbers.collect::<Result<Vec<_>, _>>().as_deref() {
            Ok([first, _, count]) => {
                let end = u64::from(FIRST_FREE) + u64::from(PROCESSES_MAX);
                *first <= FIRST_FREE.into() && first.saturating_add(*count) >= end
            }
            _ => false,
        }
    })
}

/// Takes the process, whose only thread calls this, into the jail.
///
/// # Errors
/// What cannot be had. The process is then partly inside, and must not go on.
pub fn enter(jail: Jail) -> Result<(), Error> {
    if jail == Jail::default() {
        return Ok(());
    }
    let is_root = geteuid().is_root();
    let user = match (is_root, jail.user) {
        (true, None) => Some(User::Auto),
        (false, Some(_)) => return Err(Error::NotRoot),
        (_, user) => user,
    };
    let threads = fs::read_dir("/proc/self/task").map_err(os("count threads"))?;
    match threads.count() {
        1 => {}
        count => return Err(Error::Threads(count)),
    }
    let mut kinds = UnshareFlags::NEWNS | UnshareFlags::NEWIPC;
    if jail.hardened {
        kinds |= UnshareFlags::NEWNET;
        kinds.set(UnshareFlags::NEWUSER, !is_root);
    }
    let (uid, gid) = (geteuid(), getegid());
    match namespaces::leave(kinds) {
        Ok(()) => {
            if kinds.contains(UnshareFlags::NEWUSER) {
                keep_user(uid, gid).map_err(os("keep its user in a user namespace"))?;
            }
            empty_root().map_err(os("have an empty root"))?;
        }
        Err(errno) if jail.hardened => {
            return Err(os("leave the host's namespaces")(errno));
        }
        Err(errno) => log::info!("stays in the host's namespaces: {errno}"),
    }
    match user {
        Some(user) => become_user(user).map_err(os("become another user")),
        None => Ok(()),
    }
}

/// The user has its own number in the new namespace, which knows nobody else.
fn keep_user(uid: Uid, gid: Gid) -> io::Result<()> {
    let (uid, gid) = (uid.as_raw(), gid.as_raw());
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))
}

/// Nothing of the host's files is left to be named: the old root is taken away whole.
fn empty_root() -> Result<(), Errno> {
    // What is mounted here from now on is nobody else's.
    let ours = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", ours)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RDONLY;
    mount(
        "tidemark",
        FOLDER,
        "tmpfs",
        flags,
        c"mode=0555,size=4k,nr_inodes=2",
    )?;
    chdir(FOLDER)?;
    // The old root ends on top of the new one, and goes: pivot_root(2), "pivot_root(".", ".")".
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    chdir("/")
}

/// For good: there is no way back to any user, nor to a group.
fn become_user(user: User) -> Result<(), Errno> {
    let (uid, gid) = match user {
        User::Given { uid, gid } => (uid, gid),
        User::Auto => {
            let pid = getpid().as_raw_nonzero().get().unsigned_abs();
            let number = FIRST_FREE + pid % PROCESSES_MAX;
            (number, number)
        }
    };
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Entering one is tried in `tests/escape`, in processes of their own.

    const USERS: &str = "root:x:0:0:root:/root:/bin/sh\nvm:x:990:980::/:/bin/false\nbroken:x:one\n";

    #[test]
    fn users_are_named_or_numbered_and_never_root() {
        let user = |text| parse(text, || USERS.to_owned());
        let given = |uid, gid| Ok(User::Given { uid, gid });
        assert_eq!(user("auto"), Ok(User::Auto));
        assert_eq!(user("vm"), given(990, 980));
        assert_eq!(user("1234"), given(1234, 1234));
        assert_eq!(user("1234:5"), given(1234, 5));
        for wrong in [
            "0",
            "root",
            "0:5",
            "broken",
            "nobody here",
            "",
            "-1",
            "4294967295",
            "1:x",
        ] {
            assert!(user(wrong).is_err(), "{wrong}");
        }
        for user in [User::Auto, User::Given { uid: 7, gid: 8 }] {
            assert_eq!(user.to_string().parse(), Ok(user));
        }
    }

    #[test]
    fn a_container_may_have_too_few_users() {
        assert!(has_users("         0          0 4294967295\n"));
        assert!(!has_users("         0     100000      65536\n"));
        assert!(!has_users("0 0 x") && !has_users(""));
    }

    #[test]
    fn a_process_with_other_threads_does_not_leave() {
        let jail = Jail {
            hardened: true,
            ..Jail::default()
        };
        // The test's own harness has one.
        let (_keep, wait) = std::sync::mpsc::channel::<()>();
        std::thread::spawn(move || wait.recv());
        assert!(matches!(enter(jail), Err(Error::Threads(2..))));
        assert!(enter(Jail::default()).is_ok());
    }
}
