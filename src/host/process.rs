//! The process of a VM: what the VM holds ends with it, and with nothing else.
//!
//! A number alone names no process, since the kernel uses numbers again. While somebody lives, the
//! pidfd names it; beyond a restart of the host manager its number and start time together do
//! ([`ProcessId`]), which no two processes of one boot have in common.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::link::socket;
use crate::sys::cgroup::Cgroup;
use crate::sys::peer::peer_pidfd;
use crate::sys::proc::{self, started};
use crate::units::Pages;

/// A process of this boot, for comparing and for the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: i32,
    /// When it started, in the kernel's clock ticks since boot.
    pub started: u64,
}

/// A process cannot be had hold of.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It has ended.
    #[error("the process has ended")]
    Ended,
    /// The peer has no number here: it lives in another PID namespace.
    #[error("the process is in another PID namespace")]
    Unseen,
    /// A system call failed.
    #[error("cannot {operation}: {source}")]
    Os {
        /// Which.
        operation: &'static str,
        /// The kernel's answer.
        source: Errno,
    },
}

/// What the kernel says that a process has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Anonymous memory, in RAM and in the host's own swap, and page tables; what its cgroup is charged,
    /// if that is more. Not the frames that it maps.
    pub memory: Pages,
    /// Whether the kernel's memory for it is contained in that: its mappings, and KVM's tables.
    pub whole: bool,
    /// CPU time of all its threads.
    pub cpu: Duration,
}

fn os(operation: &'static str) -> impl FnOnce(Errno) -> Error {
    move |source| match source {
        Errno::SRCH => Error::Ended,
        _ => Error::Os { operation, source },
    }
}

/// A process that may have ended, but whose number means nobody else.
#[derive(Debug)]
pub struct Process {
    pidfd: OwnedFd,
    id: ProcessId,
    cgroup: Option<Place>,
}

/// A cgroup with nobody else in it.
#[derive(Debug)]
enum Place {
    /// That we made for it.
    Own(Cgroup),
    /// That its launcher gave it. Others may come.
    Found(Cgroup),
}

impl Process {
    /// The child that `pidfd` names, which its parent has not waited for.
    ///
    /// # Errors
    /// When /proc does not show it.
    pub fn child(pidfd: OwnedFd, pid: Pid) -> Result<Process, Error> {
        let pid = pid.as_raw_pid();
        let started = started(pid).ok_or(Error::Ended)?;
        let id = ProcessId { pid, started };
        let cgroup = None;
        Ok(Process { pidfd, id, cgroup })
    }

    /// The process that connected to us.
    ///
    /// # Errors
    /// When it has ended, or cannot be named.
    pub fn peer(socket: impl AsFd) -> Result<Process, Error> {
        let credentials = socket::peer(&socket).map_err(|_| Error::Unseen)?;
        let pid = credentials.pid;
        match peer_pidfd(&socket) {
            Ok(pidfd) => {
                let process = Process::child(pidfd, pid)?;
                // Both are of one process only if it lived until its start time had been read.
                match process.has_ended() {
                    true => Err(Error::Ended),
                    false => Ok(process),
                }
            }
            // Before Linux 6.5.
            Err(Errno::NOPROTOOPT) => {
                let pid = pid.as_raw_pid();
                let started = started(pid).ok_or(Error::Ended)?;
                Process::find(ProcessId { pid, started })
            }
            // The kernel has forgotten a peer that was waited for.
            Err(Errno::INVAL) => Err(Error::Ended),
            Err(errno) => Err(os("name the peer")(errno)),
        }
    }

    /// The process of a record, if it still lives.
    ///
    /// # Errors
    /// [`Error::Ended`] when it does not, or its number is another's now.
    pub fn find(id: ProcessId) -> Result<Process, Error> {
        // A number below one is no process, and to some system calls it is a group of them.
        if id.pid <= 0 || started(id.pid) != Some(id.started) {
            return Err(Error::Ended);
        }
        let pid = Pid::from_raw(id.pid).ok_or(Error::Ended)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(os("open a process"))?;
        let cgroup = None;
        let process = Process { pidfd, id, cgroup };
        // The number may have changed hands before it was opened, not since.
        match started(id.pid) == Some(id.started) && !process.has_ended() {
            true => Ok(process),
            false => Err(Error::Ended),
        }
    }

    /// Its name beyond this program's life.
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// Whether it has ended; its memory is free then.
    pub fn has_ended(&self) -> bool {
        let zero = Timespec::default();
        let polled = poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&zero));
        polled.is_ok_and(|ready| ready > 0)
    }

    /// Ends it.
    pub fn kill(&self) {
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(errno) => log::warn!("cannot kill process {}: {errno}", self.id.pid),
        }
    }

    /// What it has and has used, if the kernel shows it.
    pub fn footprint(&self) -> Option<Footprint> {
        let pid = self.id.pid;
        let (private, charged) = (proc::private_memory(pid)?, self.charged());
        let footprint = Footprint {
            memory: private.max(charged.unwrap_or_default()),
            whole: charged.is_some(),
            cpu: proc::cpu_time(pid)?,
        };
        // The number may be another's by now.
        (!self.has_ended()).then_some(footprint)
    }

    /// Looks whether it was given a cgroup of its own.
    pub fn find_cgroup(&mut self) {
        let found = Cgroup::of(self.id.pid);
        let found = found.filter(|cgroup| cgroup.holds_only(self.id.pid));
        self.cgroup = self.cgroup.take().or(found.map(Place::Found));
    }

    /// It has been moved to this one, which was made for it.
    pub fn set_cgroup(&mut self, cgroup: Cgroup) {
        self.cgroup = Some(Place::Own(cgroup));
    }

    /// The cgroup that was made for it.
    pub fn own_cgroup(&self) -> Option<&Cgroup> {
        match &self.cgroup {
            Some(Place::Own(cgroup)) => Some(cgroup),
            Some(Place::Found(_)) | None => None,
        }
    }

    /// What its cgroup is charged.
    fn charged(&self) -> Option<Pages> {
        match self.cgroup.as_ref()? {
            Place::Own(cgroup) => cgroup.used(),
            Place::Found(cgroup) => {
                let alone = cgroup.holds_only(self.id.pid);
                cgroup.used().filter(|_| alone)
            }
        }
    }

    /// Anonymous memory that it has resident: what it holds beside frames, and its own.
    pub fn anonymous(&self) -> Pages {
        proc::anonymous(self.id.pid)
    }
}

impl AsFd for Process {
    /// Readable once it has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_is_found_by_number_and_start_until_it_ends() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let process = Process::child(pidfd, pid).unwrap();
        let id = process.id();
        assert_eq!(Process::find(id).unwrap().id(), id);
        assert!(process.anonymous() > Pages::ZERO && !process.has_ended());
        let footprint = process.footprint().unwrap();
        assert!(footprint.memory > process.anonymous(), "{footprint:?}");
        let other = ProcessId {
            started: id.started + 1,
            ..id
        };
        assert!(matches!(Process::find(other), Err(Error::Ended)));
        process.kill();
        child.wait().unwrap();
        assert!(process.has_ended());
        assert_eq!(process.footprint(), None);
        assert!(matches!(Process::find(id), Err(Error::Ended)));
        process.kill();
    }

    #[test]
    fn numbers_that_are_none_name_nobody() {
        for pid in [0, -1, i32::MIN, i32::MAX] {
            let id = ProcessId { pid, started: 1 };
            assert!(Process::find(id).is_err(), "{pid}");
        }
    }

    #[test]
    fn the_peer_of_a_link_is_known() {
        let (ours, _theirs) = socket::pair().unwrap();
        let us = Process::peer(&ours).unwrap().id();
        assert_eq!(us.pid, i32::try_from(std::process::id()).unwrap());
        assert_eq!(Some(us.started), started(us.pid));
    }
}
