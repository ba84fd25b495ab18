//! The event loop around [`Manager`]: sockets, links, control connections, the clock.
//!
//! Owns every descriptor. Single-threaded: [`Server::turn`] waits for the next event or decision,
//! carries it out and returns what its caller may want to know. A caller with descriptors of its own
//! (`tidemark run` has children and signals) has them watched here, so that there is one wait.
//!
//! Nothing a peer does makes the loop wait: reads and writes never block, a link is read at most
//! `MESSAGES_PER_TURN` messages at a time, and connections that say nothing are closed after
//! `SILENCE_MAX`.
//!
//! | file | does |
//! |---|---|
//! | `server/listener.rs` | the socket file |
//! | `server/vms.rs` | links and processes of VMs: joining, detaching, ending |
//! | `server/takeover.rs` | what an earlier host manager left, and what this one leaves |

mod listener;
mod takeover;
mod vms;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{self, SocketFlags};

use self::listener::Listener;
use super::control;
use super::manager::{LeaseEnd, Manager, Outgoing, Settings};
use super::pool::{self, FramePool};
use super::process::Process;
use super::rate_limit::{Allowed, RateLimit};
use super::record::Record;
use crate::link::codec;
use crate::link::message::{MESSAGE_BYTES_MAX, ToHost, ToVm};
use crate::link::socket::{self, HostLink, TakeFd};
use crate::policy::lease::OwnerId;
use crate::policy::types::VmId;
use crate::units::Pages;

/// Messages taken from one link before the others have their turn.
const MESSAGES_PER_TURN: usize = 64;
/// How long a connection may stay without a first message, or with an unread reply.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// Connections that have not said yet what they are, or whose reply is unread, at most.
const GUESTS_MAX: usize = 64;
/// Time between measurements of our own memory.
const OVERHEAD_EVERY: Duration = Duration::from_secs(1);

/// The event loop cannot be set up or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("cannot {operation}")]
    Os {
        /// What failed.
        operation: &'static str,
        /// The kernel's answer.
        source: Errno,
    },
    /// The socket cannot be made.
    #[error("cannot listen at {}", path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no record for the next host manager.
    #[error(transparent)]
    Record(#[from] super::record::Error),
    /// Somebody listens there.
    #[error("a host manager listens at {} already", path.display())]
    InUse {
        /// Where.
        path: PathBuf,
    },
}

fn os(operation: &'static str) -> impl FnOnce(Errno) -> Error {
    move |source| Error::Os { operation, source }
}

/// What happened, for the caller of [`Server::turn`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A descriptor given to [`Server::watch`] is ready.
    Ready(u64),
    /// A VM was admitted.
    Joined(String),
    /// A VM was refused: name and reason.
    Refused(String, String),
    /// A VM's process has ended; its figures say how.
    Ended(String),
}

/// A connection, by what is known of it.
enum Connection {
    /// Nothing yet. `expected`: who has the other end, and nobody else may come.
    Guest {
        fd: OwnedFd,
        expected: Option<Expected>,
        since: Instant,
    },
    Vm {
        id: VmId,
        link: HostLink,
        behind: bool,
    },
    /// The rest of a control reply; without one, the owner of a lease.
    Control {
        fd: OwnedFd,
        parts: Vec<Vec<u8>>,
        since: Instant,
    },
}

impl Connection {
    fn fd(&self) -> &dyn AsRefFd {
        match self {
            Connection::Guest { fd, .. } | Connection::Control { fd, .. } => fd,
            Connection::Vm { link, .. } => link,
        }
    }
}

/// `AsFd` of either kind of owner.
trait AsRefFd {
    fn borrowed(&self) -> rustix::fd::BorrowedFd<'_>;
}

impl<T: AsFd> AsRefFd for T {
    fn borrowed(&self) -> rustix::fd::BorrowedFd<'_> {
        self.as_fd()
    }
}

/// A VM process that we started, at the other end of a pair.
struct Expected {
    name: String,
    process: Process,
}

/// Tokens of descriptors that callers watch have this bit; connections and listeners do not.
const WATCHED: u64 = 1 << 63;
/// Tokens of the processes of VMs have this bit, and the VM's number.
const PROCESS: u64 = 1 << 62;
const LISTENER: u64 = 0;

/// The event loop.
pub struct Server {
    manager: Manager,
    epoll: OwnedFd,
    start: Instant,
    listener: Option<Listener>,
    connections: HashMap<u64, Connection>,
    token_of: HashMap<VmId, u64>,
    /// Each VM's process, with which it ends.
    processes: HashMap<VmId, Process>,
    record: Option<Record>,
    next_token: u64,
    buffer: Vec<u8>,
    complaints: RateLimit,
    overhead_due: Duration,
    events: Vec<Event>,
}

impl Server {
    /// A host manager that nobody can reach yet.
    ///
    /// # Errors
    /// When the kernel refuses memory or descriptors.
    pub fn new(settings: Settings) -> Result<Server, Error> {
        Ok(Server {
            manager: Manager::new(settings),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).map_err(os("create an epoll"))?,
            start: Instant::now(),
            listener: None,
            connections: HashMap::new(),
            token_of: HashMap::new(),
            processes: HashMap::new(),
            record: None,
            next_token: LISTENER + 1,
            buffer: vec![0; MESSAGE_BYTES_MAX],
            complaints: RateLimit::default(),
            overhead_due: Duration::ZERO,
            events: Vec::new(),
        })
    }

    /// Listens at `path` for VMs and control requests. A socket file that nobody listens at is
    /// replaced; the folder is made if it is missing.
    ///
    /// # Errors
    /// When another host manager listens there, or the socket cannot be made.
    pub fn listen(&mut self, path: &Path) -> Result<(), Error> {
        let listener = Listener::new(path)?;
        self.add(&listener.fd, LISTENER)?;
        self.listener = Some(listener);
        Ok(())
    }

    /// Takes over one end of a link whose other end `process` has, which we started. Only the VM
    /// `name` may join over it.
    ///
    /// # Errors
    /// When the kernel refuses to watch it.
    pub fn adopt(&mut self, fd: OwnedFd, name: String, process: Process) -> Result<(), Error> {
        self.add_guest(fd, Some(Expected { name, process }))
    }

    fn add_guest(&mut self, fd: OwnedFd, expected: Option<Expected>) -> Result<(), Error> {
        let token = self.next_token;
        self.next_token += 1;
        self.add(&fd, token)?;
        let since = Instant::now();
        let guest = Connection::Guest {
            fd,
            expected,
            since,
        };
        self.connections.insert(token, guest);
        Ok(())
    }

    /// Has `fd` watched: [`Event::Ready`] with `number` whenever it can be read or has hung up.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn watch(&self, fd: impl AsFd, number: u64) -> Result<(), Error> {
        self.add(fd, number | WATCHED)
    }

    /// Ends [`Server::watch`].
    pub fn unwatch(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// The host manager.
    pub fn manager(&mut self) -> &mut Manager {
        &mut self.manager
    }

    /// Time since the start.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Waits for the next event or decision, at most `timeout`, and carries it out.
    ///
    /// # Errors
    /// When the wait itself fails; nothing a peer does is an error.
    pub fn turn(&mut self, timeout: Duration) -> Result<Vec<Event>, Error> {
        self.deliver();
        let now = self.now();
        let wait = self
            .manager
            .next_decision()
            .saturating_sub(now)
            .min(timeout);
        let wait = Timespec::try_from(wait).expect("a tick is short");
        let mut ready = Vec::with_capacity(64);
        let spare = rustix::buffer::spare_capacity(&mut ready);
        match epoll::wait(&self.epoll, spare, Some(&wait)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(os("wait for events")(errno)),
        }
        for event in ready {
            match event.data.u64() {
                LISTENER => self.accept(),
                token if token & WATCHED != 0 => self.events.push(Event::Ready(token & !WATCHED)),
                token if token & PROCESS != 0 => self.process_ended(token & !PROCESS),
                token => self.ready(token),
            }
            self.deliver();
        }
        let now = self.now();
        if now >= self.overhead_due {
            self.overhead_due = now + OVERHEAD_EVERY;
            self.manager.set_host_overhead(own_memory());
            self.drop_silent();
        }
        if self.manager.is_due(now) {
            self.manager.tick(now);
        }
        self.deliver();
        Ok(std::mem::take(&mut self.events))
    }

    fn add(&self, fd: impl AsFd, token: u64) -> Result<(), Error> {
        let data = epoll::EventData::new_u64(token);
        epoll::add(&self.epoll, fd, data, epoll::EventFlags::IN).map_err(os("watch a descriptor"))
    }

    fn complain(&mut self, line: impl FnOnce() -> String) {
        if let Allowed::Yes { suppressed } = self.complaints.ask(self.start.elapsed()) {
            match suppressed {
                0 => log::warn!("{}", line()),
                _ => log::warn!("{} ({suppressed} lines before it were suppressed)", line()),
            }
        }
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else {
            return;
        };
        let fd = match net::accept_with(&listener.fd, SocketFlags::CLOEXEC) {
            Ok(fd) => fd,
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return,
            Err(errno) => {
                // Out of descriptors: the connection stays in the backlog. Do not spin on it.
                self.complain(|| format!("cannot accept a connection: {errno}"));
                std::thread::sleep(Duration::from_millis(10));
                return;
            }
        };
        let us = rustix::process::geteuid();
        let known = socket::peer(&fd).is_ok_and(|peer| peer.uid == us || peer.uid.is_root());
        if !known {
            self.complain(|| "refused a connection of another user".to_owned());
            return;
        }
        let is_guest = |connection: &&Connection| match connection {
            Connection::Vm { .. } => false,
            // Without a part to send it keeps a lease; those are bounded by themselves.
            Connection::Control { parts, .. } => !parts.is_empty(),
            Connection::Guest { .. } => true,
        };
        let guests = self.connections.values().filter(is_guest);
        if guests.count() >= GUESTS_MAX {
            self.complain(|| "refused a connection: too many are silent".to_owned());
            return;
        }
        if let Err(error) = self.add_guest(fd, None) {
            self.complain(|| error.to_string());
        }
    }

    /// A connection can be read or written, or has hung up.
    fn ready(&mut self, token: u64) {
        match self.connections.get_mut(&token) {
            None => {}
            Some(Connection::Guest { .. }) => self.first_message(token),
            Some(Connection::Control { fd, parts, .. }) if parts.is_empty() => {
                // The owner of a lease has nothing more to say but that it goes.
                let heard = socket::recv_datagram(&*fd, &mut self.buffer, TakeFd::Never);
                if !matches!(heard, Err(Errno::AGAIN | Errno::INTR)) {
                    self.hang_up(token);
                }
            }
            Some(Connection::Control { .. }) => self.send_reply(token),
            Some(Connection::Vm { .. }) => self.serve_vm(token),
        }
    }

    /// The first datagram says what a connection is.
    fn first_message(&mut self, token: u64) {
        let Some(Connection::Guest { fd, .. }) = self.connections.get(&token) else {
            return;
        };
        // A VM that joins again hands its frame pool back.
        let (bytes, handed) = match socket::recv_datagram(fd, &mut self.buffer, TakeFd::One) {
            Err(Errno::AGAIN | Errno::INTR) => return,
            Ok(datagram) => (datagram.bytes, datagram.fd),
            Err(_) => (0, None),
        };
        let Some(Connection::Guest { fd, expected, .. }) = self.connections.remove(&token) else {
            return;
        };
        let datagram = &self.buffer[..bytes];
        match datagram.first() {
            // As `ps` does when it looks for the host manager that is meant.
            None if expected.is_none() => log::debug!("a connection closed without a word"),
            None => self.unlinked(expected, "it hung up before it said anything"),
            Some(b'{') if expected.is_none() && bytes <= control::REQUEST_BYTES_MAX => {
                let now = self.start.elapsed();
                let owner = OwnerId(token);
                let reply = control::answer(&mut self.manager, datagram, owner, now);
                self.keep_record();
                let mut parts = control::datagrams(&reply);
                parts.reverse();
                let since = Instant::now();
                self.connections
                    .insert(token, Connection::Control { fd, parts, since });
                self.send_reply(token);
            }
            Some(_) => match codec::decode::<ToHost>(datagram) {
                Ok(ToHost::Hello(hello)) => self.join(token, fd, expected, hello, handed),
                Ok(_) => self.unlinked(expected, "its first message is no Hello"),
                Err(error) => {
                    // A VM process of another version deserves to be told so.
                    if matches!(error, codec::Error::Version { .. }) {
                        vms::refuse(fd, &error.to_string());
                    }
                    self.unlinked(expected, &error.to_string());
                }
            },
        }
    }

    /// A connection ended before it became a VM.
    fn unlinked(&mut self, expected: Option<Expected>, why: &str) {
        match expected {
            Some(expected) => self.events.push(Event::Ended(expected.name)),
            None => self.complain(|| format!("closed a connection: {why}")),
        }
    }

    /// Watches for room to write exactly while something waits for it.
    fn rewatch(&self, token: u64) {
        let Some(connection) = self.connections.get(&token) else {
            return;
        };
        let waiting = match connection {
            Connection::Vm { link, .. } => link.is_waiting(),
            Connection::Control { parts, .. } => !parts.is_empty(),
            Connection::Guest { .. } => false,
        };
        let flags = match waiting {
            true => epoll::EventFlags::IN | epoll::EventFlags::OUT,
            false => epoll::EventFlags::IN,
        };
        let data = epoll::EventData::new_u64(token);
        let _ = epoll::modify(&self.epoll, connection.fd().borrowed(), data, flags);
    }

    fn send_reply(&mut self, token: u64) {
        let Some(Connection::Control { fd, parts, .. }) = self.connections.get_mut(&token) else {
            return;
        };
        while let Some(part) = parts.last() {
            match socket::send_datagram(&*fd, part, None) {
                Ok(()) => drop(parts.pop()),
                Err(Errno::AGAIN | Errno::INTR) => return self.rewatch(token),
                Err(_) => return self.hang_up(token),
            }
        }
        match self.manager.has_lease(OwnerId(token)) {
            true => self.rewatch(token),
            false => self.hang_up(token),
        }
    }

    /// Closes a control connection; its lease ends with it.
    fn hang_up(&mut self, token: u64) {
        self.connections.remove(&token);
        self.manager.owner_gone(OwnerId(token));
    }

    /// Says how a lease ended.
    fn end_lease(&mut self, owner: OwnerId, end: &LeaseEnd) {
        let OwnerId(token) = owner;
        if let Some(Connection::Control { parts, since, .. }) = self.connections.get_mut(&token) {
            let reply = control::datagrams(&control::lease_ended(end));
            parts.splice(0..0, reply.into_iter().rev());
            *since = Instant::now();
            self.send_reply(token);
        }
    }

    /// Sends what the host manager has to say, and records first what the next one must know. Ending
    /// a link can make it say more.
    fn deliver(&mut self) {
        loop {
            self.keep_record();
            let outgoing = self.manager.take_outgoing();
            if outgoing.is_empty() {
                return;
            }
            for outgoing in outgoing {
                match outgoing {
                    Outgoing::LeaseEnded(owner, end) => self.end_lease(owner, &end),
                    Outgoing::Send(id, message) => self.send(id, message, None),
                    Outgoing::Welcome(id, welcome) => match self.pool_reader(id) {
                        None => {}
                        Some(Ok(fd)) => self.send(id, ToVm::Welcome(welcome), Some(fd)),
                        Some(Err(error)) => {
                            self.complain(|| error.to_string());
                            self.send(id, ToVm::Stop, None);
                        }
                    },
                }
            }
        }
    }

    /// A read-only descriptor of the frames of a VM's group, unless the VM has gone.
    fn pool_reader(&self, vm: VmId) -> Option<Result<OwnedFd, pool::Error>> {
        self.manager.pool(vm).map(FramePool::reader)
    }

    /// Closes connections that never said what they are, or do not read their reply.
    fn drop_silent(&mut self) {
        let silent: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, connection)| match connection {
                // A VM process that we started may take its time.
                Connection::Guest {
                    since, expected, ..
                } => expected.is_none() && since.elapsed() > SILENCE_MAX,
                Connection::Control { since, parts, .. } => {
                    !parts.is_empty() && since.elapsed() > SILENCE_MAX
                }
                Connection::Vm { .. } => false,
            })
            .map(|(&token, _)| token)
            .collect();
        for token in silent {
            self.hang_up(token);
        }
    }
}

/// Private memory and page tables of this process.
fn own_memory() -> Pages {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = |key: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .unwrap_or(0)
    };
    Pages::holding_bytes((kib("RssAnon:") + kib("VmPTE:")) << 10)
}

#[cfg(test)]
mod tests;
