//! What a thread of a VM process may not ask of the kernel.
//!
//! Everything that a VM needs is open before its guest runs. The filters close the way back: no file
//! can be opened (so that the read-only descriptor of the frame pool cannot be opened again for
//! writing through /proc), no program started, no other process's memory read or traced. What some
//! threads need and others do not ([`Guarded`]) stands in their rows. None connects to a socket: a
//! host manager that was restarted comes to the VM.
//!
//! What no thread needs is denied once, by [`begin`], and inherited: the kernel runs each new filter
//! once for every system call there is, and full filters in all threads took 1.5 ms of a VM's start.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use super::{Guarded, MAIN, Thread};

/// The filter could not be made or installed.
#[derive(Debug, thiserror::Error)]
#[error("cannot install the system call filter")]
pub struct Error(#[from] seccompiler::Error);

/// Whether what no thread needs is denied to the main thread, and to those it starts.
static BEGUN: AtomicBool = AtomicBool::new(false);

/// System calls that no thread needs. They fail with EPERM.
const DENIED: &[libc::c_long] = &[
    // Files are opened by open and openat, threads started by clone.
    libc::SYS_openat2,
    libc::SYS_creat,
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    // A ring opens files without a system call of that name.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_mount,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_rename,
    libc::SYS_renameat2,
    libc::SYS_bpf,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_kexec_load,
];

impl Guarded {
    /// Every value.
    pub const ALL: [Guarded; 3] = [Guarded::Open, Guarded::Connect, Guarded::Spawn];

    fn calls(self) -> &'static [libc::c_long] {
        match self {
            Guarded::Open => &[libc::SYS_open, libc::SYS_openat],
            Guarded::Connect => &[libc::SYS_socket, libc::SYS_connect],
            Guarded::Spawn => &[libc::SYS_clone, libc::SYS_clone3],
        }
    }
}

/// The filter of one thread.
#[derive(Debug)]
pub struct Filter(BpfProgram);

impl Filter {
    /// The filter that the row of `thread` asks for.
    ///
    /// # Errors
    /// When it cannot be compiled.
    pub fn of(thread: &Thread) -> Result<Filter, Error> {
        let inherited = BEGUN.load(Ordering::Relaxed);
        let guarded = Guarded::ALL
            .into_iter()
            .filter(|calls| !thread.needs.contains(calls))
            .flat_map(Guarded::calls);
        let denied = if inherited { &[] } else { DENIED };
        Filter::against(denied.iter().chain(guarded))
    }

    fn against<'a>(calls: impl Iterator<Item = &'a libc::c_long>) -> Result<Filter, Error> {
        let rules: BTreeMap<i64, Vec<seccompiler::SeccompRule>> =
            calls.map(|number| (*number, Vec::new())).collect();
        let denied = SeccompAction::Errno(libc::EPERM.unsigned_abs());
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, denied, TargetArch::x86_64)
            .map_err(seccompiler::Error::Backend)?;
        let program = filter.try_into().map_err(seccompiler::Error::Backend)?;
        Ok(Filter(program))
    }

    /// Applies the filter to the calling thread, and to those that it starts from now on. They
    /// cannot gain privileges any more.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn enter(&self) -> Result<(), Error> {
        Ok(seccompiler::apply_filter(&self.0)?)
    }
}

/// Denies the calling thread, which is the process's main one, and all that it starts from now on
/// what no thread needs. Threads that were started before have that in their own filters.
///
/// # Errors
/// When the kernel refuses.
pub fn begin() -> Result<(), Error> {
    Filter::against(DENIED.iter())?.enter()?;
    BEGUN.store(true, Ordering::Relaxed);
    Ok(())
}

/// Confines the main thread to its row: all others are confined since they were started.
///
/// # Errors
/// When the kernel refuses.
pub fn enter() -> Result<(), Error> {
    Filter::of(&MAIN)?.enter()
}
