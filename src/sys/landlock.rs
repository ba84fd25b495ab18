//! A Landlock domain in which no path can be opened.
//!
//! Rights over paths are given up by naming them in a ruleset that has no rule. What is open stays
//! open, and a connection to a socket by its path is not refused (no ABI up to 7 does). A domain is a
//! thread's: each thread of a process enters one of its own.
//!
//! Source: `Documentation/userspace-api/landlock.rst`, `include/uapi/linux/landlock.h`.
#![expect(unsafe_code)]
// UNSAFETY: the system calls have no wrapper in our libraries; they read one structure of ours.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

/// `struct landlock_ruleset_attr`. A kernel of an earlier ABI takes it as long as the fields that it
/// does not know are zero.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Ruleset {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

const CREATE_RULESET_VERSION: u32 = 1 << 0;
/// From Linux 6.15 on.
const CREATE_RULESET_ERRATA: u32 = 1 << 1;

/// Rights over files and folders, as many as each ABI has: ABI 2 has REFER, 3 TRUNCATE, 5 IOCTL_DEV.
const FILE_RIGHTS: [(u32, u32); 4] = [(1, 13), (2, 14), (3, 15), (5, 16)];
/// BIND_TCP and CONNECT_TCP, ABI 4.
const NET: u64 = 0b11;
const SCOPE_ABSTRACT_UNIX_SOCKET: u64 = 1 << 0;
const SCOPE_SIGNAL: u64 = 1 << 1;
/// The second erratum: threads of one process that are in different domains can signal each other. A
/// kernel with the scope and without this mend would refuse the vCPUs' kick.
const SIGNALS_MENDED: u32 = 1 << 1;

/// The newest ABI that the kernel has; `None` where it has no Landlock or was booted without it.
pub fn abi() -> Option<u32> {
    u32::try_from(query(CREATE_RULESET_VERSION).ok()?).ok()
}

fn query(flags: u32) -> Result<i64, Errno> {
    // SAFETY: with these flags the call takes no structure: a null pointer and no size.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<Ruleset>(),
            0_usize,
            flags,
        )
    };
    match answer {
        0.. => Ok(answer),
        _ => Err(last_errno()),
    }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// All that a kernel of this ABI, with these errata mended, can take away.
fn everything(abi: u32, errata: u32) -> Ruleset {
    let known = FILE_RIGHTS.iter().rev().find(|(since, _)| abi >= *since);
    let mut ruleset = Ruleset {
        handled_access_fs: known.map_or(0, |(_, rights)| (1 << rights) - 1),
        ..Ruleset::default()
    };
    if abi >= 4 {
        ruleset.handled_access_net = NET;
    }
    if abi >= 6 {
        ruleset.scoped = SCOPE_ABSTRACT_UNIX_SOCKET;
        if errata & SIGNALS_MENDED != 0 {
            ruleset.scoped |= SCOPE_SIGNAL;
        }
    }
    ruleset
}

/// Puts the calling thread, which can gain no new privileges, and those that it starts from now on
/// into a domain without any path. Does nothing where the kernel has no Landlock.
///
/// # Errors
/// When the kernel refuses.
pub fn enter() -> Result<(), Errno> {
    let Some(abi) = abi() else {
        return Ok(());
    };
    let errata = query(CREATE_RULESET_ERRATA).ok();
    let errata = errata
        .and_then(|bits| u32::try_from(bits).ok())
        .unwrap_or(0);
    let ruleset = everything(abi, errata);
    // SAFETY: the pointer is of a value that lives during the call, which reads as many bytes as are
    // named.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            &raw const ruleset,
            size_of::<Ruleset>(),
            0_u32,
        )
    };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0);
    let fd = fd.ok_or_else(last_errno)?;
    // SAFETY: the kernel has just made this descriptor, closed on exec, and nobody else knows it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: two numbers.
    let answer = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, fd.as_raw_fd(), 0_u32) };
    match answer {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use super::*;

    #[test]
    fn each_abi_is_asked_for_what_it_knows() {
        assert_eq!(everything(1, 0).handled_access_fs, 0x1fff);
        assert_eq!(everything(4, 0).handled_access_fs, 0x7fff);
        assert_eq!(everything(3, 0).handled_access_net, 0);
        let newest = everything(7, 0xff);
        assert_eq!(
            newest,
            Ruleset {
                handled_access_fs: 0xffff,
                handled_access_net: 3,
                scoped: 3
            }
        );
        // Not mended: no kick would arrive.
        assert_eq!(everything(6, 0b101).scoped, SCOPE_ABSTRACT_UNIX_SOCKET);
        assert_eq!(everything(5, 0xff).scoped, 0);
    }

    #[test]
    fn no_path_is_left_and_what_is_open_stays_open() {
        let confined = std::thread::spawn(|| {
            rustix::thread::set_no_new_privs(true).unwrap();
            let mut open = File::open("/proc/self/status").unwrap();
            enter().unwrap();
            let mut text = String::new();
            open.read_to_string(&mut text).unwrap();
            assert!(!text.is_empty());
            // A second domain is no more.
            enter().unwrap();
            for path in ["/proc/self/status", "/dev/null", "/", "/etc/passwd"] {
                let opened = File::open(path);
                assert_eq!(opened.is_err(), abi().is_some(), "{path}");
            }
        });
        confined.join().unwrap();
        assert!(File::open("/dev/null").is_ok());
    }
}
