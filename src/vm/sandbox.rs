//! What a VM process may no longer do once it runs its guest.
//!
//! Everything it needs is open by then. The filter closes the way back: no file can be opened (so
//! that the read-only descriptor of the frame pool cannot be opened again for writing through
//! /proc), no program started, no other process's memory read or traced. Connecting to a socket
//! stays allowed: a VM joins its host manager again when that was restarted.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

/// The filter could not be made or installed.
#[derive(Debug, thiserror::Error)]
#[error("cannot install the system call filter")]
pub struct Error(#[from] seccompiler::Error);

/// System calls that fail with EPERM from now on.
const DENIED: &[libc::c_long] = &[
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_creat,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_fork,
    libc::SYS_vfork,
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

/// Applies the filter to every thread of this process, and forbids gaining privileges.
///
/// # Errors
/// When the kernel refuses.
pub fn enter() -> Result<(), Error> {
    let rules: BTreeMap<i64, Vec<seccompiler::SeccompRule>> =
        DENIED.iter().map(|number| (*number, Vec::new())).collect();
    let denied = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, denied, TargetArch::x86_64)
        .map_err(seccompiler::Error::Backend)?;
    let program: BpfProgram = filter.try_into().map_err(seccompiler::Error::Backend)?;
    Ok(seccompiler::apply_filter_all_threads(&program)?)
}
