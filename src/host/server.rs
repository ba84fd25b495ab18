//! The event loop around [`Manager`]: sockets, links, control connections, the clock.
//!
//! Owns every descriptor. Single-threaded: [`Server::turn`] waits for the next event or decision,
//! carries it out and returns what its caller may want to know. A caller with descriptors of its own
//! (`tidemark run` has children and signals) has them watched here, so that there is one wait.
//!
//! Nothing a peer does makes the loop wait: reads and writes never block, a link is read at most
//! `MESSAGES_PER_TURN` messages at a time, and connections that say nothing are closed after a
//! while. Who asks waits for no VM's messages: in each turn the links of VMs come last, and once they
//! have taken `LINKS_TIME` each is read one message only.
//!
//! | file | does |
//! |---|---|
//! | `server/listener.rs` | the socket file |
//! | `server/connection.rs` | what a connection can be |
//! | `server/clients.rs` | those that are no VM's: accepting, control requests, leases |
//! | `server/crowd.rs` | what many connections may cost |
//! | `server/joining.rs` | who becomes a VM: registrations, hellos, knocking at doors |
//! | `server/vms.rs` | links and processes of VMs: talking, detaching, ending |
//! | `server/cgroups.rs` | a memory cgroup for each VM that we start |
//! | `server/takeover.rs` | what an earlier host manager left, and what this one leaves |

mod cgroups;
mod clients;
mod connection;
mod crowd;
mod joining;
mod listener;
mod takeover;
mod vms;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use self::cgroups::Keeper;
use self::connection::{Connection, Expected};
use self::listener::Listener;
use super::manager::{Manager, Outgoing, Settings, process_max};
use super::pool::{self, FramePool};
use super::process::Process;
use super::record::Record;
use super::registration::Registration;
use crate::link::message::{MESSAGE_BYTES_MAX, ToVm};
use crate::out::rate_limit::RateLimit;
use crate::policy::types::VmId;
use crate::sys::cgroup::{self, Home};
use crate::sys::proc;

/// Messages taken from one link before the others have their turn.
const MESSAGES_PER_TURN: usize = 64;
/// Time in which links are read for longer than that. Chosen: what a decision may take besides.
const LINKS_TIME: Duration = Duration::from_millis(5);
/// What peers can make us log in a second, lines.
const COMPLAINTS_PER_SECOND: u32 = 5;
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
    /// Where the VMs that we start get memory cgroups of their own.
    cgroups: Option<Keeper>,
    record: Option<Record>,
    next_token: u64,
    buffer: Vec<u8>,
    complaints: RateLimit,
    overhead_due: Duration,
    /// [`LINKS_TIME`], and when it ends in this turn.
    links_time: Duration,
    links_until: Duration,
    events: Vec<Event>,
}

impl Server {
    /// A host manager that nobody can reach yet.
    ///
    /// # Errors
    /// When the kernel refuses memory or descriptors.
    pub fn new(settings: Settings) -> Result<Server, Error> {
        let mut manager = Manager::new(settings);
        manager.set_vms_max(crowd::vms_max());
        Ok(Server {
            manager,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).map_err(os("create an epoll"))?,
            start: Instant::now(),
            listener: None,
            connections: HashMap::new(),
            token_of: HashMap::new(),
            processes: HashMap::new(),
            cgroups: None,
            record: None,
            next_token: LISTENER + 1,
            buffer: vec![0; MESSAGE_BYTES_MAX],
            complaints: RateLimit::new(COMPLAINTS_PER_SECOND, Duration::from_secs(1)),
            overhead_due: Duration::ZERO,
            links_time: LINKS_TIME,
            links_until: Duration::ZERO,
            events: Vec::new(),
        })
    }

    /// Listens at `path` for control requests, by which launchers hand us their VMs too. A socket file
    /// that nobody listens at is replaced; the folder is made if it is missing.
    ///
    /// # Errors
    /// When another host manager listens there, or the socket cannot be made.
    pub fn listen(&mut self, path: &Path) -> Result<(), Error> {
        let listener = Listener::new(path)?;
        self.add(&listener.fd, LISTENER)?;
        self.listener = Some(listener);
        Ok(())
    }

    /// Gives each VM that is adopted from now on a memory cgroup of its own. Call it before any of them
    /// is started.
    ///
    /// # Errors
    /// Why it cannot: then they are measured by /proc alone.
    pub fn use_cgroups(&mut self) -> Result<(), cgroup::Absent> {
        let home = Home::find()?;
        self.cgroups = match Keeper::start(home) {
            Ok(keeper) => Some(keeper),
            Err(error) => {
                log::warn!("cannot start a thread for memory cgroups: {error}");
                None
            }
        };
        Ok(())
    }

    /// Takes over one end of a link whose other end `process` has, which we started: the VM of that
    /// registration. It ends with us.
    ///
    /// # Errors
    /// When the kernel refuses to watch it.
    pub fn adopt(
        &mut self,
        fd: OwnedFd,
        registration: Registration,
        process: Process,
    ) -> Result<(), Error> {
        if let Some(keeper) = &self.cgroups {
            let most = process_max(registration.allocation.size);
            keeper.take(process.id().pid, most);
        }
        let (door, since) = (None, None);
        let expected = Expected {
            registration,
            process,
            door,
        };
        self.connect(Connection::Launched {
            fd,
            expected,
            since,
        })?;
        Ok(())
    }

    /// Watches a connection from now on.
    fn connect(&mut self, connection: Connection) -> Result<u64, Error> {
        let token = self.next_token;
        self.next_token += 1;
        self.add(&connection, token)?;
        self.connections.insert(token, connection);
        Ok(token)
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
        let more = self.manager.give_back(self.now());
        self.deliver();
        let decision = self.manager.next_decision();
        let due = more.map_or(decision, |more| more.min(decision));
        let wait = due.saturating_sub(self.now()).min(timeout);
        let wait = Timespec::try_from(wait).expect("a tick is short");
        let mut ready = Vec::with_capacity(64);
        let spare = rustix::buffer::spare_capacity(&mut ready);
        match epoll::wait(&self.epoll, spare, Some(&wait)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(os("wait for events")(errno)),
        }
        self.manager.passed(self.start.elapsed());
        let tokens = ready.iter().map(|event| event.data.u64());
        let (links, others): (Vec<u64>, Vec<u64>) = tokens.partition(|&token| self.is_link(token));
        for token in others {
            match token {
                LISTENER => self.accept(),
                token if token & WATCHED != 0 => self.events.push(Event::Ready(token & !WATCHED)),
                token if token & PROCESS != 0 => self.process_ended(token & !PROCESS),
                token => self.ready(token),
            }
            self.deliver();
        }
        self.links_until = self.now() + self.links_time;
        for token in links {
            self.ready(token);
            self.deliver();
        }
        let now = self.now();
        if now >= self.overhead_due {
            self.overhead_due = now + OVERHEAD_EVERY;
            // Where /proc cannot be read the last figure stands.
            if let Some(overhead) = proc::own_memory() {
                self.note_unread();
                self.manager.set_host_overhead(overhead);
            }
            self.drop_idle();
            self.find_lost();
        }
        if self.manager.is_due(now) {
            self.manager.is_late(now.saturating_sub(due));
            self.manager.tick(now);
            // By then it is known who has given.
            self.measure_vms();
        }
        self.deliver();
        Ok(std::mem::take(&mut self.events))
    }

    fn add(&self, fd: impl AsFd, token: u64) -> Result<(), Error> {
        let data = epoll::EventData::new_u64(token);
        epoll::add(&self.epoll, fd, data, epoll::EventFlags::IN).map_err(os("watch a descriptor"))
    }

    fn complain(&mut self, line: impl FnOnce() -> String) {
        if let Some(suppressed) = self.complaints.allow(Instant::now()) {
            match suppressed {
                0 => log::warn!("{}", line()),
                _ => log::warn!("{} ({suppressed} lines before it were suppressed)", line()),
            }
        }
    }

    fn is_link(&self, token: u64) -> bool {
        matches!(self.connections.get(&token), Some(Connection::Vm { .. }))
    }

    /// A connection can be read or written, or has hung up.
    fn ready(&mut self, token: u64) {
        match self.connections.get(&token) {
            None => {}
            Some(Connection::Stranger { .. }) => self.first_message(token),
            Some(Connection::Launched { .. }) => self.first_word(token),
            Some(Connection::Knocking { .. }) => self.answered(token),
            Some(Connection::Vm { .. }) => self.serve_vm(token),
            Some(Connection::Reply { .. }) => self.send_reply(token),
            Some(Connection::LeaseOwner { .. }) => self.hear_lease_owner(token),
        }
    }

    /// Watches for room to write exactly while something waits for it.
    fn rewatch(&self, token: u64) {
        let Some(connection) = self.connections.get(&token) else {
            return;
        };
        let flags = match connection.wants_room() {
            true => epoll::EventFlags::IN | epoll::EventFlags::OUT,
            false => epoll::EventFlags::IN,
        };
        let data = epoll::EventData::new_u64(token);
        let _ = epoll::modify(&self.epoll, connection, data, flags);
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
                    Outgoing::Kill(id, why) => self.kill(id, &why),
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
}

#[cfg(test)]
mod tests;
