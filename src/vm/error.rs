//! What ends a VM process before its guest does.

use std::io;

use crate::link::socket;
use crate::machine;
use crate::mem::{self, swapfile};
use crate::sys::{ram, space, uffd};
use crate::threads::{jail, sandbox};

/// Why a VM process cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The link failed before the VM was admitted.
    #[error(transparent)]
    Link(#[from] socket::Error),
    /// The host manager refused the VM.
    #[error("{0}")]
    Refused(String),
    /// The host manager did not follow the protocol.
    #[error("the host manager {0}")]
    Protocol(&'static str),
    /// Guest memory.
    #[error(transparent)]
    Ram(#[from] ram::Error),
    /// userfaultfd.
    #[error(transparent)]
    Uffd(#[from] uffd::OpenError),
    /// The environment forces a take path that is not to be had.
    #[error("{0}")]
    TakePath(String),
    /// Page-table operations.
    #[error(transparent)]
    Space(#[from] space::Error),
    /// The pager.
    #[error(transparent)]
    Pager(#[from] mem::Error),
    /// The swap file.
    #[error(transparent)]
    SwapFile(#[from] swapfile::CreateError),
    /// A key for the swap file.
    #[error("cannot keep a key for the swap file in memory")]
    SwapKey(#[source] io::Error),
    /// The machine.
    #[error(transparent)]
    Machine(#[from] machine::Error),
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
    /// The jail.
    #[error(transparent)]
    Jail(#[from] jail::Error),
    /// The console's terminal.
    #[error("cannot use the terminal as a console")]
    Terminal {
        /// The reason.
        source: io::Error,
    },
    /// The console's file.
    #[error("cannot open {path}")]
    Open {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A thread or descriptor.
    #[error("cannot {what}")]
    Os {
        /// What failed.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// An [`Error::Os`] of the kernel's answer.
pub(super) fn os(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Os { what, source }
}
