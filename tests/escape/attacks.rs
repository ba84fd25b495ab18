//! What an attacker tries: system calls by their numbers, with what is passed to them.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use libc::c_long;
use tidemark::threads::Need;

use Argument::{Here, Log, LogByProc, Memory, N, Parent, Path, Text};

/// What an attacker has at hand: all of it was open before.
pub struct Tools {
    /// A folder with a file `log` whose content the guest chose, which is open, and `keys`.
    pub folder: PathBuf,
    pub log: File,
    /// A page that can be written.
    pub memory: *mut libc::c_void,
}

// SAFETY: the pointer is of a mapping that lasts as long as the process.
unsafe impl Send for Tools {}

impl Tools {
    /// With a new page.
    pub fn new(folder: PathBuf, log: File) -> Tools {
        // SAFETY: new memory, at an address of the kernel's choice.
        let memory = unsafe { libc::mmap(std::ptr::null_mut(), 4096, 3, 0x22, -1, 0) };
        Tools {
            folder,
            log,
            memory,
        }
    }
}

/// An argument of a call.
#[derive(Clone, Copy)]
pub enum Argument {
    N(usize),
    /// AT_FDCWD.
    Here,
    /// A path in the folder.
    Path(&'static str),
    /// The log's descriptor, and its path in /proc.
    Log,
    LogByProc,
    Memory,
    /// The process that started this one.
    Parent,
    Text(&'static CStr),
}

type Attack = (&'static str, c_long, &'static [Argument]);

/// What no thread may do, but for [`ALLOWED`].
pub const ATTACKS: &[Attack] = &[
    // Code outside: the console log becomes a file that somebody runs.
    (
        "link a log to a name",
        libc::SYS_linkat,
        &[Here, LogByProc, Here, Path("owned"), N(0x400)],
    ),
    (
        "rename over a file",
        libc::SYS_renameat,
        &[Here, Path("log"), Here, Path("keys")],
    ),
    ("rename", libc::SYS_rename, &[Path("log"), Path("keys")]),
    ("link", libc::SYS_link, &[Path("log"), Path("owned")]),
    (
        "link symbolically",
        libc::SYS_symlinkat,
        &[Path("log"), Here, Path("owned")],
    ),
    ("remove", libc::SYS_unlink, &[Path("keys")]),
    ("make a folder", libc::SYS_mkdir, &[Path("owned"), N(0o700)]),
    (
        "make a device",
        libc::SYS_mknod,
        &[Path("owned"), N(0o020_600), N(0x101)],
    ),
    (
        "open for writing",
        libc::SYS_openat,
        &[Here, Path("keys"), N(1)],
    ),
    ("open a secret", libc::SYS_open, &[Text(c"/etc/shadow")]),
    (
        "open with openat2",
        libc::SYS_openat2,
        &[Here, Path("keys"), Memory, N(24)],
    ),
    ("open a handle", libc::SYS_open_by_handle_at, &[]),
    ("watch all files", libc::SYS_fanotify_init, &[N(0), N(2)]),
    ("mark files", libc::SYS_fanotify_mark, &[]),
    ("watch a file", libc::SYS_inotify_init1, &[]),
    // The user's shell.
    (
        "type on the terminal",
        libc::SYS_ioctl,
        &[N(0), N(0x5412), Text(c"x")],
    ),
    (
        "type, with a wide request",
        libc::SYS_ioctl,
        &[N(0), N(0x1_0000_5412), Text(c"x")],
    ),
    (
        "paste on the terminal",
        libc::SYS_ioctl,
        &[N(0), N(0x541c), Text(c"\x03")],
    ),
    // Other groups' pages, by way of the host manager; the network.
    ("a link's socket", libc::SYS_socket, &[N(1), N(5)]),
    ("connect", libc::SYS_connect, &[N(99), Memory, N(16)]),
    ("a socket of another kind", libc::SYS_socket, &[N(1), N(1)]),
    ("a socket on the internet", libc::SYS_socket, &[N(2), N(1)]),
    ("a netlink socket", libc::SYS_socket, &[N(16), N(3)]),
    ("a socket to the host", libc::SYS_socket, &[N(40), N(1)]),
    (
        "send to an address",
        libc::SYS_sendto,
        &[N(99), Memory, N(1), N(0), Memory, N(16)],
    ),
    ("bind", libc::SYS_bind, &[N(99), Memory, N(16)]),
    ("listen", libc::SYS_listen, &[N(99)]),
    // The frames of a group, and other files that are open.
    ("change a mode", libc::SYS_fchmod, &[Log, N(0o777)]),
    (
        "change a mode by path",
        libc::SYS_chmod,
        &[LogByProc, N(0o777)],
    ),
    ("truncate", libc::SYS_ftruncate, &[Log]),
    ("truncate by path", libc::SYS_truncate, &[LogByProc]),
    ("change the owner", libc::SYS_fchown, &[Log, N(0), N(0)]),
    ("an attribute", libc::SYS_fsetxattr, &[Log]),
    // Code of its own.
    (
        "memory to run",
        libc::SYS_mmap,
        &[N(0), N(4096), N(5), N(0x22), N(usize::MAX)],
    ),
    (
        "make memory run",
        libc::SYS_mprotect,
        &[Memory, N(4096), N(5)],
    ),
    (
        "make memory run, with a key",
        libc::SYS_pkey_mprotect,
        &[Memory, N(4096), N(5)],
    ),
    (
        "shared memory",
        libc::SYS_mmap,
        &[N(0), N(4096), N(3), N(0x21), N(usize::MAX)],
    ),
    (
        "shared memory, checked",
        libc::SYS_mmap,
        &[N(0), N(4096), N(3), N(0x23), N(usize::MAX)],
    ),
    (
        "remap a file",
        libc::SYS_remap_file_pages,
        &[Memory, N(4096)],
    ),
    ("a memory file", libc::SYS_memfd_create, &[Text(c"owned")]),
    ("a secret memory file", libc::SYS_memfd_secret, &[]),
    ("a program", libc::SYS_execve, &[Text(c"/bin/true")]),
    (
        "a program, by a descriptor",
        libc::SYS_execveat,
        &[Log, Text(c""), N(0), N(0), N(0x1000)],
    ),
    ("run data", libc::SYS_personality, &[N(0x0040_0000)]),
    // Other processes.
    ("a process", libc::SYS_fork, &[]),
    ("a process, by vfork", libc::SYS_vfork, &[]),
    ("a process, by clone", libc::SYS_clone, &[N(17)]),
    ("a user namespace", libc::SYS_clone, &[N(0x1000_0011)]),
    ("a process, by clone3", libc::SYS_clone3, &[]),
    ("leave the namespace", libc::SYS_unshare, &[N(0x1000_0000)]),
    ("enter a namespace", libc::SYS_setns, &[]),
    ("kill", libc::SYS_kill, &[Parent]),
    ("kill a thread", libc::SYS_tgkill, &[Parent, Parent]),
    ("kill a thread by number", libc::SYS_tkill, &[Parent]),
    ("a signal with data", libc::SYS_rt_sigqueueinfo, &[Parent]),
    ("a pidfd", libc::SYS_pidfd_open, &[Parent]),
    ("another's descriptor", libc::SYS_pidfd_getfd, &[]),
    ("a signal by pidfd", libc::SYS_pidfd_send_signal, &[]),
    ("trace", libc::SYS_ptrace, &[N(16), Parent]),
    (
        "read another's memory",
        libc::SYS_process_vm_readv,
        &[Parent],
    ),
    (
        "write another's memory",
        libc::SYS_process_vm_writev,
        &[Parent],
    ),
    ("advise another's memory", libc::SYS_process_madvise, &[]),
    ("move another's pages", libc::SYS_move_pages, &[Parent]),
    ("limit another", libc::SYS_prlimit64, &[Parent, N(4)]),
    ("place another", libc::SYS_sched_setaffinity, &[Parent]),
    ("schedule another", libc::SYS_sched_setscheduler, &[Parent]),
    (
        "be nicer to another",
        libc::SYS_setpriority,
        &[N(0), Parent, N(19)],
    ),
    ("compare processes", libc::SYS_kcmp, &[Parent, Parent]),
    (
        "System V memory",
        libc::SYS_shmget,
        &[N(0), N(4096), N(0o1000)],
    ),
    ("a System V queue", libc::SYS_msgget, &[]),
    ("keys", libc::SYS_keyctl, &[]),
    ("another key", libc::SYS_add_key, &[]),
    // The kernel.
    ("a ring", libc::SYS_io_uring_setup, &[N(1), Memory]),
    ("asynchronous I/O", libc::SYS_io_setup, &[]),
    ("counters", libc::SYS_perf_event_open, &[]),
    ("kernel programs", libc::SYS_bpf, &[]),
    ("another userfaultfd", libc::SYS_userfaultfd, &[]),
    ("change the root", libc::SYS_chroot, &[Text(c"/")]),
    ("mount", libc::SYS_mount, &[]),
    ("open a file system", libc::SYS_fsopen, &[Text(c"tmpfs")]),
    (
        "copy a mount",
        libc::SYS_open_tree,
        &[Here, Text(c"/"), N(1)],
    ),
    ("accounting", libc::SYS_acct, &[]),
    ("restart the machine", libc::SYS_reboot, &[]),
    ("another kernel", libc::SYS_kexec_file_load, &[]),
    ("a kernel module", libc::SYS_finit_module, &[]),
    ("remove a kernel module", libc::SYS_delete_module, &[]),
    ("the clock", libc::SYS_clock_settime, &[]),
    ("the host's name", libc::SYS_sethostname, &[]),
    ("ports", libc::SYS_iopl, &[N(3)]),
    ("a user", libc::SYS_setuid, &[]),
    ("dump again", libc::SYS_prctl, &[N(4), N(1)]),
    (
        "poison memory",
        libc::SYS_madvise,
        &[Memory, N(4096), N(100)],
    ),
    ("merge memory", libc::SYS_madvise, &[Memory, N(4096), N(12)]),
    ("another filter", libc::SYS_seccomp, &[]),
    // x32's getpid, which has bit 30.
    ("a call of another kind", 39 | 1 << 30, &[]),
];

/// What a row may do that needs it.
pub const ALLOWED: &[(Need, &[&str])] = &[
    (Need::Build, &["shared memory", "shared memory, checked"]),
    // Another filter only takes away.
    (Need::Spawn, &["another filter"]),
];

/// Makes the call. Its error's number, if it fails.
pub fn make(attack: &Attack, tools: &Tools) -> Result<(), i32> {
    let (_, number, passed) = attack;
    let text = |path: &str| CString::new(path).expect("no zero byte");
    let mut texts = Vec::new();
    let mut arguments = [0; 6];
    for (place, argument) in passed.iter().enumerate() {
        let mut keep = |path: CString| {
            let address = path.as_ptr() as usize;
            texts.push(path);
            address
        };
        arguments[place] = match argument {
            N(number) => *number,
            Here => libc::AT_FDCWD as usize,
            Path(name) => keep(text(tools.folder.join(name).to_str().expect("text"))),
            Log => tools.log.as_raw_fd() as usize,
            LogByProc => keep(text(&format!("/proc/self/fd/{}", tools.log.as_raw_fd()))),
            Memory => tools.memory as usize,
            Parent => std::os::unix::process::parent_id() as usize,
            Text(text) => text.as_ptr() as usize,
        };
    }
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: what the addresses point to lives until the call is over; no call of the list writes
    // anywhere else, and the process does nothing afterwards that could notice.
    let answer = unsafe { libc::syscall(*number, a, b, c, d, e, f) };
    match answer {
        -1 => Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)),
        _ => Ok(()),
    }
}

/// Whether this thread may trace the process.
pub fn trace(process: i32) -> std::io::Result<()> {
    // SAFETY: the request takes no address and changes nothing here.
    answer(unsafe { libc::ptrace(libc::PTRACE_SEIZE, process, 0, 0) })
}

/// Whether this thread can be root.
pub fn be_root() -> std::io::Result<()> {
    // SAFETY: three numbers.
    answer(unsafe { libc::syscall(libc::SYS_setresuid, 0, 0, 0) })
}

fn answer(answer: c_long) -> std::io::Result<()> {
    match answer {
        -1 => Err(std::io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// A copy of this process with this thread alone, which does `work`; its status.
pub fn forked(work: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the C library's locks are free in the copy, and no other lock is taken there.
    let process = unsafe { libc::fork() };
    if process == 0 {
        let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        // SAFETY: ends the process, where no destructor of a test's has a say.
        unsafe { libc::_exit(code.unwrap_or(101)) }
    }
    let mut status = 0;
    // SAFETY: the status is a value that lives during the call, which fills it.
    let waited = unsafe { libc::waitpid(process, &raw mut status, 0) };
    assert_eq!(waited, process);
    libc::WEXITSTATUS(status)
}

/// getpid(2) as 32-bit programs have it.
pub fn call_as_32_bits() {
    // SAFETY: the 32-bit gate keeps all registers but the one of the answer.
    unsafe {
        std::arch::asm!("int 0x80", inout("rax") 20_usize => _, options(nostack));
    }
}
