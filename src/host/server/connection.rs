//! One connection, by what is known of it.
//!
//! ```text
//! Stranger --Hello-----> Vm
//!          --request---> Reply --all of it was sent--> closed, or LeaseOwner
//! LeaseOwner --its lease has ended--> Reply
//! ```

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use crate::host::process::Process;
use crate::link::socket::HostLink;
use crate::policy::types::VmId;

pub(super) enum Connection {
    /// Has not said yet what it is.
    Stranger {
        fd: OwnedFd,
        /// Who has the other end of a pair: nobody else may speak there.
        expected: Option<Expected>,
        since: Instant,
    },
    /// The link of a VM.
    Vm {
        id: VmId,
        link: HostLink,
        /// Whether the VM is lent nothing until it has read what it was sent.
        behind: bool,
    },
    /// A control client that has not read all of its reply yet.
    Reply {
        fd: OwnedFd,
        /// The datagrams that are still to be sent, in order.
        parts: VecDeque<Vec<u8>>,
        since: Instant,
    },
    /// A control client whose lease lasts as long as it stays. It has nothing more to say.
    LeaseOwner { fd: OwnedFd },
}

/// A VM process that we started, at the other end of a pair.
pub(super) struct Expected {
    pub name: String,
    pub process: Process,
}

impl Connection {
    pub fn stranger(fd: OwnedFd, expected: Option<Expected>) -> Connection {
        Connection::Stranger {
            fd,
            expected,
            since: Instant::now(),
        }
    }

    pub fn reply(fd: OwnedFd, parts: impl Into<VecDeque<Vec<u8>>>) -> Connection {
        Connection::Reply {
            fd,
            parts: parts.into(),
            since: Instant::now(),
        }
    }

    /// Since when it owes us a word or does not read its reply; such connections are closed after a
    /// while, and their number is bounded. A VM process that we started may take its time, and leases
    /// have a bound of their own.
    pub fn idle_since(&self) -> Option<Instant> {
        match self {
            Connection::Stranger {
                since,
                expected: None,
                ..
            }
            | Connection::Reply { since, .. } => Some(*since),
            Connection::Stranger { .. } | Connection::Vm { .. } | Connection::LeaseOwner { .. } => {
                None
            }
        }
    }

    /// Whether something waits to be sent.
    pub fn wants_room(&self) -> bool {
        match self {
            Connection::Vm { link, .. } => link.is_waiting(),
            Connection::Reply { parts, .. } => !parts.is_empty(),
            Connection::Stranger { .. } | Connection::LeaseOwner { .. } => false,
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Connection::Stranger { fd, .. }
            | Connection::Reply { fd, .. }
            | Connection::LeaseOwner { fd } => fd.as_fd(),
            Connection::Vm { link, .. } => link.as_fd(),
        }
    }
}
