//! One connection, by what is known of it.
//!
//! ```text
//! Launched --Hello-----> Vm
//! Knocking --Again-----> Vm
//! Stranger --request---> Reply --all of it was sent--> closed, or LeaseOwner
//! LeaseOwner --its lease has ended--> Reply
//! ```

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use crate::host::process::Process;
use crate::host::registration::Registration;
use crate::link::socket::HostLink;
use crate::policy::types::VmId;

pub(super) enum Connection {
    /// Came to our socket, and has not said yet what it wants.
    Stranger { fd: OwnedFd, since: Instant },
    /// One end of a pair, over which the VM that was registered has not said hello yet.
    Launched {
        fd: OwnedFd,
        expected: Expected,
        /// When it came to us, if from another process than ours.
        since: Option<Instant>,
    },
    /// We are at the door of that VM, and it has not answered yet.
    Knocking { id: VmId, fd: OwnedFd },
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

/// Who has the other end of a pair: nobody else speaks there.
pub(super) struct Expected {
    pub registration: Registration,
    pub process: Process,
    /// At which it can be found again.
    pub door: Option<u32>,
}

impl Connection {
    pub fn stranger(fd: OwnedFd) -> Connection {
        Connection::Stranger {
            fd,
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
    /// while, and their number is bounded. A VM process that we started or that lives already may take its
    /// time, and leases have a bound of their own.
    pub fn idle_since(&self) -> Option<Instant> {
        match self {
            Connection::Stranger { since, .. } | Connection::Reply { since, .. } => Some(*since),
            Connection::Launched { since, .. } => *since,
            Connection::Knocking { .. } | Connection::Vm { .. } | Connection::LeaseOwner { .. } => {
                None
            }
        }
    }

    /// Whether something waits to be sent.
    pub fn wants_room(&self) -> bool {
        match self {
            Connection::Vm { link, .. } => link.is_waiting(),
            Connection::Reply { parts, .. } => !parts.is_empty(),
            Connection::Stranger { .. }
            | Connection::Launched { .. }
            | Connection::Knocking { .. }
            | Connection::LeaseOwner { .. } => false,
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Connection::Stranger { fd, .. }
            | Connection::Launched { fd, .. }
            | Connection::Knocking { fd, .. }
            | Connection::Reply { fd, .. }
            | Connection::LeaseOwner { fd } => fd.as_fd(),
            Connection::Vm { link, .. } => link.as_fd(),
        }
    }
}
