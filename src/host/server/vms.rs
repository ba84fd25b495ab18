//! The links of the VMs, and their processes.
//!
//! A link is how a VM is talked to; its process is what holds memory. A link that closes detaches the
//! VM and costs it nothing; only the end of the process, which its pidfd tells, returns what it held. A
//! VM that breaks the protocol is killed: as long as it lives it maps frames.

use std::os::fd::OwnedFd;

use super::connection::Connection;
use super::{Event, MESSAGES_PER_TURN, PROCESS, Server};
use crate::host::process::Process;
use crate::link::message::ToVm;
use crate::link::socket;
use crate::policy::types::VmId;

/// Messages that are read from a link whose process has ended, at most: what a socket holds is less.
const LAST_WORDS_MAX: usize = 4096;
/// Processes that are measured in one turn, at most: two files in /proc each, and two or three of a cgroup,
/// 60 to 100 us.
const MEASURED_A_TURN: usize = 32;

impl Server {
    /// Watches the process of a VM from now on.
    pub(super) fn mind_process(&mut self, id: VmId, mut process: Process) {
        process.find_cgroup();
        if let Err(error) = self.add(&process, PROCESS | u64::from(id.0)) {
            // Without it nobody would notice its end.
            self.complain(|| format!("{error}: a VM is killed"));
            process.kill();
        }
        self.processes.insert(id, process);
    }

    pub(super) fn serve_vm(&mut self, token: u64) {
        for read in 0..MESSAGES_PER_TURN {
            if read > 0 && self.now() >= self.links_until {
                break;
            }
            let Some(Connection::Vm { id, link, .. }) = self.connections.get_mut(&token) else {
                return;
            };
            let id = *id;
            let result = link.flush().and_then(|()| link.recv(&mut self.buffer));
            let now = self.start.elapsed();
            match result {
                Ok(Some(message)) => {
                    if let Err(violation) = self.manager.message(id, message, now) {
                        return self.kill(id, &violation.to_string());
                    }
                    // A VM that waits for credit does not wait for what it has said since.
                    self.deliver();
                }
                Ok(None) => break,
                Err(socket::Error::Closed) => return self.detach(id, None),
                Err(error @ socket::Error::Codec(_)) => return self.kill(id, &error.to_string()),
                Err(error) => return self.detach(id, Some(error.to_string())),
            }
        }
        self.note_backlog(token);
        self.rewatch(token);
    }

    /// Asks the kernel what the processes of some VMs have.
    pub(super) fn measure_vms(&mut self) {
        self.note_cgroups();
        for _ in 0..MEASURED_A_TURN {
            let now = self.now();
            let Some(id) = self.manager.unmeasured(now) else {
                return;
            };
            let process = self.processes.get(&id);
            let footprint = process.and_then(Process::footprint);
            self.manager.measured(id, footprint, now);
        }
    }

    /// Counts what waits for VMs to be read.
    pub(super) fn note_unread(&mut self) {
        for connection in self.connections.values() {
            if let Connection::Vm { id, link, .. } = connection {
                self.manager.set_unread(*id, link.unread_bytes());
            }
        }
    }

    /// Takes the cgroups that are ready.
    fn note_cgroups(&mut self) {
        let Some(keeper) = &self.cgroups else {
            return;
        };
        for (pid, cgroup) in keeper.made() {
            let mut processes = self.processes.values_mut();
            match processes.find(|process| process.id().pid == pid) {
                Some(process) => process.set_cgroup(cgroup),
                // It was not let in, or has ended.
                None => keeper.remove(cgroup),
            }
        }
    }

    /// A VM broke the protocol, or a rule. Its frames stay charged until it is dead.
    pub(super) fn kill(&mut self, id: VmId, why: &str) {
        let name = self.manager.name(id).unwrap_or_default().to_owned();
        if let Some(process) = self.processes.get(&id) {
            let pid = process.id().pid;
            process.kill();
            self.complain(|| format!("killed {name} (process {pid}): {why}"));
        }
        self.close_link(id);
        self.manager.detach(id);
    }

    /// A VM's link has closed, or is of no use any more.
    fn detach(&mut self, id: VmId, why: Option<String>) {
        let name = self.manager.name(id).unwrap_or_default().to_owned();
        match why {
            Some(why) => self.complain(|| format!("closed the link of {name}: {why}")),
            None => log::info!("{name} closed its link"),
        }
        self.close_link(id);
        self.manager.detach(id);
        self.find_again(id);
    }

    pub(super) fn close_link(&mut self, id: VmId) {
        if let Some(token) = self.token_of.remove(&id) {
            self.connections.remove(&token);
        }
    }

    /// A VM's process has ended: what it said last is heard, then all it held returns.
    pub(super) fn process_ended(&mut self, number: u64) {
        let Some(id) = u32::try_from(number).ok().map(VmId) else {
            return;
        };
        if !self.processes.contains_key(&id) {
            return;
        }
        self.hear_last_words(id);
        self.close_link(id);
        if let Some(process) = self.processes.remove(&id) {
            // Its descriptor may be a copy of one that stays open.
            self.unwatch(&process);
            if let (Some(keeper), Some(cgroup)) = (&self.cgroups, process.own_cgroup()) {
                keeper.remove(cgroup.clone());
            }
        }
        let name = self.manager.name(id).unwrap_or_default().to_owned();
        log::info!("{name} has ended");
        if let Some(way) = self.manager.way_back(id) {
            self.remove_door(way);
        }
        self.manager.gone(id);
        self.events.push(Event::Ended(name));
    }

    /// Reads what a VM has said before its process ended: how it ended is among it.
    fn hear_last_words(&mut self, id: VmId) {
        let Some(token) = self.token_of.get(&id) else {
            return;
        };
        let Some(Connection::Vm { link, .. }) = self.connections.get_mut(token) else {
            return;
        };
        for _ in 0..LAST_WORDS_MAX {
            match link.recv(&mut self.buffer) {
                Ok(Some(message)) => {
                    let now = self.start.elapsed();
                    if self.manager.message(id, message, now).is_err() {
                        return;
                    }
                }
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// Sends a message to a VM, if it has a link.
    pub(super) fn send(&mut self, id: VmId, message: ToVm, fd: Option<OwnedFd>) {
        let Some(&token) = self.token_of.get(&id) else {
            return;
        };
        let Some(Connection::Vm { link, .. }) = self.connections.get_mut(&token) else {
            return;
        };
        let was_waiting = link.is_waiting();
        match link.send(message, fd) {
            Ok(()) => {
                let changed = link.is_waiting() != was_waiting;
                self.note_backlog(token);
                if changed {
                    self.rewatch(token);
                }
            }
            Err(error) => self.detach(id, Some(error.to_string())),
        }
    }

    /// Who has fallen behind is lent nothing more until it has caught up.
    fn note_backlog(&mut self, token: u64) {
        if let Some(Connection::Vm { id, link, behind }) = self.connections.get_mut(&token)
            && *behind != link.is_behind()
        {
            *behind = link.is_behind();
            self.manager.set_behind(*id, *behind);
        }
    }
}
