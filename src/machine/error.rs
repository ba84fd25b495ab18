//! What goes wrong before a machine runs.

use crate::devices::bus::WindowError;

/// What went wrong while a machine was built or started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No /dev/kvm, or not ours to open.
    #[error("cannot open /dev/kvm")]
    OpenKvm {
        /// The reason.
        source: kvm_ioctls::Error,
    },
    /// A KVM call failed.
    #[error("KVM cannot {what}")]
    Kvm {
        /// What was asked of it.
        what: &'static str,
        /// Its answer.
        source: kvm_ioctls::Error,
    },
    /// More vCPUs than this KVM or the entry allows.
    #[error("{cpus} vCPUs were asked for, {allowed} are possible")]
    Cpus {
        /// Asked for.
        cpus: u8,
        /// Most that are possible.
        allowed: usize,
    },
    /// More disks than there are windows.
    #[error("{count} disks were asked for, {allowed} are possible")]
    Disks {
        /// Asked for.
        count: usize,
        /// Most that are possible.
        allowed: u32,
    },
    /// Memslots or the kick signal.
    #[error(transparent)]
    Sys(#[from] crate::sys::kvm::Error),
    /// The guest's program.
    #[error(transparent)]
    Boot(#[from] crate::boot::Error),
    /// Two devices in one place.
    #[error(transparent)]
    Window(#[from] WindowError),
    /// An eventfd for an interrupt or the exit.
    #[error("cannot create an eventfd")]
    EventFd {
        /// The reason.
        source: std::io::Error,
    },
    /// A vCPU's thread.
    #[error("cannot start the thread of vCPU {vcpu}")]
    Thread {
        /// Which.
        vcpu: u8,
        /// The reason.
        source: std::io::Error,
    },
}
