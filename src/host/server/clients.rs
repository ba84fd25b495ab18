//! Connections that are no VM's: who has not spoken yet, control clients, owners of leases.
//!
//! None of them is waited for: there are at most [`IDLE_MAX`] of those who have not spoken or do not
//! read their reply. Each is closed after [`SILENCE_MAX`], or when it has to make way for a new one.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::connection::Connection;
use super::crowd::IDLE_MAX;
use super::{Server, joining};
use crate::host::control::{self, Request};
use crate::host::manager::LeaseEnd;
use crate::host::process::Process;
use crate::link::socket::{self, TakeFd};
use crate::policy::lease::OwnerId;

/// How long a connection may stay without a first message, or with an unread reply.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// Connections that are let in before the others have their turn.
const ACCEPTS_PER_TURN: usize = 16;

impl Server {
    /// Some have connected.
    pub(super) fn accept(&mut self) {
        for _ in 0..ACCEPTS_PER_TURN {
            let Some(listener) = &mut self.listener else {
                return;
            };
            match listener.accept() {
                Ok(fd) => self.let_in(fd),
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(errno) => {
                    // Out of descriptors: somebody who says nothing has one. If nobody does, whoever
                    // has come must go: left in the backlog it would wake us for ever.
                    if !self.make_way() {
                        if let Some(listener) = &mut self.listener {
                            listener.turn_away();
                        }
                        self.complain(|| format!("cannot accept a connection: {errno}"));
                    }
                }
            }
        }
    }

    /// Somebody has connected.
    fn let_in(&mut self, fd: OwnedFd) {
        let peer = socket::peer(&fd).ok();
        let Some(peer) = peer.filter(socket::is_ours) else {
            self.complain(|| "refused a connection of another user".to_owned());
            return;
        };
        // A VM has nothing to ask here, whatever its process has become.
        let is = |process: &Process| process.id().pid == peer.pid.as_raw_pid();
        if self.processes.values().any(is) {
            self.complain(|| "refused a connection of a VM's process".to_owned());
            return;
        }
        let idle = self.connections.values().filter_map(Connection::idle_since);
        if idle.count() >= IDLE_MAX {
            self.make_way();
        }
        match self.connect(Connection::stranger(fd)) {
            // What it asks is mostly there already.
            Ok(token) => self.first_message(token),
            Err(error) => self.complain(|| error.to_string()),
        }
    }

    /// The first datagram is a request.
    pub(super) fn first_message(&mut self, token: u64) {
        let Some(Connection::Stranger { fd, .. }) = self.connections.get(&token) else {
            return;
        };
        // A launcher hands over one end of its VM's link.
        let (bytes, handed) = match socket::recv_datagram(fd, &mut self.buffer, TakeFd::One) {
            Err(Errno::AGAIN | Errno::INTR) => return,
            Ok(datagram) => (datagram.bytes, datagram.fd),
            Err(_) => (0, None),
        };
        let Some(Connection::Stranger { fd, .. }) = self.connections.remove(&token) else {
            return;
        };
        match self.buffer[..bytes].first() {
            // As `ps` does when it looks for the host manager that is meant.
            None => log::debug!("a connection closed without a word"),
            Some(b'{') if bytes <= control::REQUEST_BYTES_MAX => {
                self.answer(token, fd, bytes, handed);
            }
            Some(_) => {
                // A VM process of another version deserves to be told so.
                joining::refuse(fd, "a VM does not join here: its launcher registers it");
                self.complain(|| "closed a connection: its first word is no request".to_owned());
            }
        }
    }

    /// Answers the request in the first `bytes` of the buffer, which came with `handed`.
    fn answer(&mut self, token: u64, fd: OwnedFd, bytes: usize, handed: Option<OwnedFd>) {
        let now = self.start.elapsed();
        let reply = match control::read(&self.buffer[..bytes]) {
            Ok(Request::Join { registration, door }) => {
                self.register(&fd, registration, door, handed)
            }
            request => control::carry_out(&mut self.manager, request, OwnerId(token), now),
        };
        self.keep_record();
        let reply = Connection::reply(fd, control::datagrams(&reply));
        self.connections.insert(token, reply);
        self.send_reply(token);
    }

    /// Sends as much of a reply as there is room for. Behind the last part the connection closes,
    /// unless it has taken a lease.
    pub(super) fn send_reply(&mut self, token: u64) {
        let Some(Connection::Reply { fd, parts, .. }) = self.connections.get_mut(&token) else {
            return;
        };
        while let Some(part) = parts.front() {
            match socket::send_datagram(&*fd, part, None) {
                Ok(()) => drop(parts.pop_front()),
                Err(Errno::AGAIN | Errno::INTR) => return self.rewatch(token),
                Err(_) => return self.hang_up(token),
            }
        }
        if !self.manager.has_lease(OwnerId(token)) {
            return self.hang_up(token);
        }
        if let Some(Connection::Reply { fd, .. }) = self.connections.remove(&token) {
            self.connections
                .insert(token, Connection::LeaseOwner { fd });
            self.rewatch(token);
        }
    }

    /// The owner of a lease has nothing more to say but that it goes.
    pub(super) fn hear_lease_owner(&mut self, token: u64) {
        let Some(Connection::LeaseOwner { fd }) = self.connections.get(&token) else {
            return;
        };
        let heard = socket::recv_datagram(fd, &mut self.buffer, TakeFd::Never);
        if !matches!(heard, Err(Errno::AGAIN | Errno::INTR)) {
            self.hang_up(token);
        }
    }

    /// Says how a lease ended: behind what its owner has not read yet, if there is any of that.
    pub(super) fn end_lease(&mut self, owner: OwnerId, end: &LeaseEnd) {
        let OwnerId(token) = owner;
        let last = control::datagrams(&control::lease_ended(end));
        match self.connections.remove(&token) {
            Some(Connection::LeaseOwner { fd }) => {
                self.connections.insert(token, Connection::reply(fd, last));
            }
            Some(Connection::Reply { fd, mut parts, .. }) => {
                parts.extend(last);
                self.connections.insert(token, Connection::reply(fd, parts));
            }
            // The tokens of owners are those of control clients.
            Some(
                Connection::Stranger { .. }
                | Connection::Launched { .. }
                | Connection::Knocking { .. }
                | Connection::Vm { .. },
            )
            | None => return,
        }
        self.send_reply(token);
    }

    /// Closes a connection that is no VM's; its lease ends with it.
    pub(super) fn hang_up(&mut self, token: u64) {
        self.connections.remove(&token);
        self.manager.owner_gone(OwnerId(token));
    }

    /// Closes connections that never said what they are, or do not read their reply.
    pub(super) fn drop_idle(&mut self) {
        let now = Instant::now();
        let is_over = |connection: &Connection| {
            let since = connection.idle_since();
            since.is_some_and(|since| now.duration_since(since) > SILENCE_MAX)
        };
        let over = self.connections.iter().filter(|(_, each)| is_over(each));
        let over: Vec<u64> = over.map(|(&token, _)| token).collect();
        for token in over {
            self.hang_up(token);
        }
    }
}
