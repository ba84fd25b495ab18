//! Who becomes a VM of this host manager, and over which link.
//!
//! | VM | link | who it is, says |
//! |---|---|---|
//! | a child of `tidemark run` | a socketpair that it inherited | `run`, with [`Server::adopt`] |
//! | any other | a socketpair, one end of which came with a `join` request | the request; whose process it is, the kernel |
//! | one without a link, of this host manager or an earlier one | a connection that we make to its door | the record: its process is the one that listens there, and it knows the token |
//!
//! No connection that somebody makes to us becomes a VM's link.

use std::fs;
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::io::Errno;

use super::connection::{Connection, Expected};
use super::{Event, Server};
use crate::host::control::{Reply, RequestError};
use crate::host::manager::WayBack;
use crate::host::process::Process;
use crate::host::registration::Registration;
use crate::link::message::{TEXT_BYTES_MAX, ToHost, ToVm};
use crate::link::socket::{self, HostLink, TakeFd};
use crate::link::{codec, door};
use crate::policy::types::VmId;
use crate::units::Pages;
use crate::words::Token;

/// A first word over a link.
struct Said {
    /// `None`: the link ended instead.
    message: Option<Result<ToHost, codec::Error>>,
    handed: Option<OwnedFd>,
}

impl Server {
    /// A launcher, who is at the other end of `client`, registers a VM in its own process and hands
    /// over one end of its link. The answer to its hello comes over that.
    pub(super) fn register(
        &mut self,
        client: &OwnedFd,
        registration: Registration,
        door: Option<u32>,
        handed: Option<OwnedFd>,
    ) -> Reply {
        let registered = self.registered(client, registration, door, handed);
        match registered {
            Ok(token) => {
                // Its hello is mostly there already.
                self.first_word(token);
                Reply::Ok(serde_json::Value::Null)
            }
            Err(error) => Reply::Error(error),
        }
    }

    fn registered(
        &mut self,
        client: &OwnedFd,
        registration: Registration,
        door: Option<u32>,
        handed: Option<OwnedFd>,
    ) -> Result<u64, String> {
        let fd = handed.ok_or_else(|| RequestError::NoLink.to_string())?;
        if !socket::is_link(&fd) {
            return Err(RequestError::NoLink.to_string());
        }
        let process = Process::peer(client).map_err(|error| error.to_string())?;
        let expected = Expected {
            registration,
            process,
            door,
        };
        let since = Some(Instant::now());
        let launched = Connection::Launched {
            fd,
            expected,
            since,
        };
        self.connect(launched).map_err(|error| error.to_string())
    }

    /// What stands in the next datagram of `fd`; `None`: nothing yet.
    fn hear_first(fd: &OwnedFd, buffer: &mut [u8]) -> Option<Said> {
        let (message, handed) = match socket::recv_datagram(fd, buffer, TakeFd::One) {
            Err(Errno::AGAIN | Errno::INTR) => return None,
            Ok(datagram) if datagram.bytes > 0 => {
                let message = codec::decode(&buffer[..datagram.bytes]);
                (Some(message), datagram.fd)
            }
            Ok(_) | Err(_) => (None, None),
        };
        Some(Said { message, handed })
    }

    /// A VM that was registered says hello, or breaks the protocol.
    pub(super) fn first_word(&mut self, token: u64) {
        let Some(Connection::Launched { fd, .. }) = self.connections.get(&token) else {
            return;
        };
        let Some(said) = Server::hear_first(fd, &mut self.buffer) else {
            return;
        };
        let Some(Connection::Launched { fd, expected, .. }) = self.connections.remove(&token)
        else {
            return;
        };
        let name = expected.registration.name.clone();
        match said.message {
            Some(Ok(ToHost::Hello)) => match self.admit(expected) {
                Ok(id) => {
                    log::info!("{name} joined");
                    self.link(id, token, fd);
                    self.events.push(Event::Joined(name));
                }
                Err(reason) => {
                    refuse(fd, &reason);
                    self.complain(|| format!("refused {name:?}: {reason}"));
                    self.events.push(Event::Refused(name, reason));
                }
            },
            Some(Ok(_)) => self.unlinked(name, "its first message is no Hello"),
            None => self.unlinked(name, "it hung up before it said anything"),
            Some(Err(error)) => {
                // A VM process of another version deserves to be told so.
                if matches!(error, codec::Error::Version { .. }) {
                    refuse(fd, &error.to_string());
                }
                self.unlinked(name, &error.to_string());
            }
        }
    }

    /// A link ended before it became a VM's.
    fn unlinked(&mut self, name: String, why: &str) {
        self.complain(|| format!("closed the link of {name:?}: {why}"));
        self.events.push(Event::Ended(name));
    }

    fn admit(&mut self, expected: Expected) -> Result<VmId, String> {
        let Expected {
            registration,
            process,
            door,
        } = expected;
        let admitted = self.manager.admit(registration, process.id(), door);
        let id = admitted.map_err(|refused| refused.to_string())?;
        if !self.keep_record() {
            self.manager.gone(id);
            return Err("cannot be recorded".to_owned());
        }
        self.mind_process(id, process);
        Ok(id)
    }

    fn link(&mut self, id: VmId, token: u64, fd: OwnedFd) {
        let (link, behind) = (HostLink::new(fd), false);
        self.connections
            .insert(token, Connection::Vm { id, link, behind });
        self.token_of.insert(id, token);
    }

    /// Knocks at the doors of all VMs without a link where we do not stand yet.
    pub(super) fn find_lost(&mut self) {
        for id in self.manager.to_be_found() {
            self.find_again(id);
        }
    }

    /// Knocks at a VM's door, if it has one. That it does not answer costs a descriptor, and no time.
    pub(super) fn find_again(&mut self, id: VmId) {
        let Some(way) = self.manager.way_back(id) else {
            return;
        };
        if self.token_of.contains_key(&id) || !self.manager.to_be_found().contains(&id) {
            return;
        }
        if let Err(why) = self.knock(id, way) {
            let name = self.manager.name(id).unwrap_or_default();
            log::debug!("{name} is not found: {why}");
        }
    }

    fn knock(&mut self, id: VmId, way: WayBack) -> Result<(), String> {
        let Some(listener) = &self.listener else {
            return Err("it was never looked for".to_owned());
        };
        let path = door::path(&listener.path, way.door);
        let fd = socket::connect_now(&path).map_err(|error| error.to_string())?;
        // The kernel says who listens there. Nobody else hears the token.
        let there = Process::peer(&fd).map_err(|error| error.to_string())?;
        if self.processes.get(&id).map(Process::id) != Some(there.id()) {
            let pid = there.id().pid;
            self.complain(|| format!("{}: process {pid} is no VM", path.display()));
            return Err("another process listens there".to_owned());
        }
        let knock = codec::encode(&ToVm::Knock { token: way.token });
        let knock = knock.map_err(|error| error.to_string())?;
        socket::send_datagram(&fd, &knock, None).map_err(|errno| errno.to_string())?;
        let knocking = Connection::Knocking { id, fd };
        let token = self.connect(knocking).map_err(|error| error.to_string())?;
        self.token_of.insert(id, token);
        Ok(())
    }

    /// A VM at whose door we are has answered, or has hung up.
    pub(super) fn answered(&mut self, token: u64) {
        let Some(&Connection::Knocking { id, ref fd }) = self.connections.get(&token) else {
            return;
        };
        let Some(said) = Server::hear_first(fd, &mut self.buffer) else {
            return;
        };
        let Some(Connection::Knocking { fd, .. }) = self.connections.remove(&token) else {
            return;
        };
        self.token_of.remove(&id);
        let (theirs, held) = match said.message {
            Some(Ok(ToHost::Again { token, held })) => (token, held),
            // We come again.
            None => return,
            Some(_) => return self.kill(id, "its answer at its door is no Again"),
        };
        match self.rejoin(id, theirs, held, said.handed.as_ref()) {
            Ok(()) => {
                let name = self.manager.name(id).unwrap_or_default().to_owned();
                log::info!("{name} joined again");
                self.link(id, token, fd);
                self.events.push(Event::Joined(name));
            }
            Err(reason) => {
                refuse(fd, &reason);
                let name = self.manager.name(id).unwrap_or_default().to_owned();
                self.complain(|| format!("{name:?} does not join again: {reason}"));
            }
        }
    }

    fn rejoin(
        &mut self,
        id: VmId,
        token: Token,
        held: Pages,
        handed: Option<&OwnedFd>,
    ) -> Result<(), String> {
        let process = self.processes.get(&id);
        let resident = process.map_or(Pages::ZERO, Process::anonymous);
        let rejoined = self.manager.rejoin(id, token, [held, resident], handed);
        rejoined.map_err(|refused| refused.to_string())?;
        match self.keep_record() {
            true => Ok(()),
            false => {
                self.manager.detach(id);
                Err("cannot be recorded".to_owned())
            }
        }
    }

    /// Removes the door of a VM whose process has ended.
    pub(super) fn remove_door(&self, way: WayBack) {
        if let Some(listener) = &self.listener {
            let _ = fs::remove_file(door::path(&listener.path, way.door));
        }
    }
}

/// Tells a peer why it may not join.
pub(super) fn refuse(fd: OwnedFd, reason: &str) {
    let mut reason = reason.to_owned();
    while reason.len() > TEXT_BYTES_MAX {
        reason.pop();
    }
    // The peer may be gone already; there is nobody else to tell.
    let _ = HostLink::new(fd).send(ToVm::Refused { reason }, None);
}
