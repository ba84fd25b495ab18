//! The control API: `ps`, `set`, `stop`, `reserve`, `join`, `version` as JSON over the host manager's
//! socket. Who reaches that is an operator; no VM does, and no connection to it becomes a VM's link.
//!
//! One request a connection; that of a lease stays open as long as the lease lives, and a second
//! reply says how it ended. A request is one datagram. The reply is JSON cut into datagrams; the first
//! byte of each says whether more follow ([`MORE`]) or not ([`LAST`]). Only processes of the same
//! user or of root are listened to at all; the event loop checks that.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::manager::{Kind, LeaseEnd, Manager, Refused};
use super::registration::Registration;
use crate::link::socket::{self, TakeFd};
use crate::out::printable;
use crate::policy::PolicyKind;
use crate::policy::lease::OwnerId;
use crate::policy::types::VmId;
use crate::units::Pages;
use crate::words::budget::{BUDGET_FORMS, BUDGETS};
use crate::words::names::HOST;
use crate::words::size::{SizeError, parse_duration, parse_size};
use crate::words::{AllocationKey, AllocationKeys, Written};

/// First byte of a reply datagram after which more follow.
pub const MORE: u8 = b'+';
/// First byte of the last reply datagram.
pub const LAST: u8 = b'.';
/// Bytes of JSON in one reply datagram.
const PART_BYTES: usize = 32 * 1024;
/// Longest request, bytes.
pub const REQUEST_BYTES_MAX: usize = 16 * 1024;
/// How long a client waits for the host manager.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);
/// Names of live VMs in a message, at most.
const NAMES_SAID: usize = 20;

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// All figures: [`super::accounts::Figures`].
    Ps,
    /// Changes settings of a VM, or of the host when `vm` is [`HOST`].
    Set {
        /// Name.
        vm: String,
        /// Keys and values as the user wrote them.
        changes: BTreeMap<String, String>,
    },
    /// Ends a VM.
    Stop {
        /// Name.
        vm: String,
    },
    /// Takes a lease, which lives as long as the connection: see [`take_lease`].
    Reserve {
        /// How much, as the user wrote it.
        size: String,
        /// As much up to this as can be promised.
        max: Option<String>,
        /// For how long; until the connection closes when not said.
        time: Option<String>,
    },
    /// Registers a VM in the process that asks, and comes with one end of its link: see
    /// [`super::registration`].
    Join {
        /// Who joins.
        registration: Registration,
        /// Number of the [door](crate::link::door) at which it listens.
        door: Option<u32>,
    },
    /// Version of the host manager.
    Version,
}

/// What it answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    /// Done; the value depends on the request.
    Ok(Value),
    /// Not done, and why in one line.
    Error(String),
}

/// A request that was not carried out, and changed nothing. Displays as one line.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The datagram is no request.
    #[error("not a request: {0}")]
    Malformed(serde_json::Error),
    /// A value has no meaning at its key.
    #[error("`{key} = {value:?}`: {problem}")]
    Value {
        /// Which key.
        key: &'static str,
        /// As the user wrote it.
        value: String,
        /// What is wrong with it, and what would be right.
        problem: String,
    },
    /// A key that no host has.
    #[error("`{0}` is not a setting of the host: memory and policy are")]
    HostKey(String),
    /// A key that no VM has.
    #[error(
        "`{0}` is not a setting of a VM: shares, reservation, limit, dynamic_min, dynamic_max are"
    )]
    VmKey(String),
    /// No live VM has this name.
    #[error("no VM {vm:?}: {}", or_none(.live))]
    NoVm {
        /// The name.
        vm: String,
        /// Names of those that live, not always all.
        live: Vec<String>,
    },
    /// A lease for a request that keeps no connection.
    #[error("a lease needs a connection")]
    NoConnection,
    /// A VM is registered without one end of its link.
    #[error("a VM joins with a link that its launcher made")]
    NoLink,
    /// The host manager refuses.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The answer is no JSON.
    #[error("cannot answer: {0}")]
    Answer(#[from] serde_json::Error),
}

impl RequestError {
    fn value(key: &'static str, value: &str, problem: impl ToString) -> RequestError {
        RequestError::Value {
            key,
            value: value.to_owned(),
            problem: problem.to_string(),
        }
    }

    /// What it means to whoever asked.
    pub fn kind(&self) -> Kind {
        match self {
            RequestError::Malformed(_)
            | RequestError::Value { .. }
            | RequestError::HostKey(_)
            | RequestError::VmKey(_)
            | RequestError::NoConnection
            | RequestError::NoLink => Kind::Invalid,
            RequestError::NoVm { .. } => Kind::NotFound,
            RequestError::Refused(refused) => refused.kind(),
            RequestError::Answer(_) => Kind::Failed,
        }
    }
}

fn or_none(live: &[String]) -> String {
    match live {
        [] => "none runs".to_owned(),
        names => format!("there are {}", names.join(", ")),
    }
}

/// A request could not be put to a host manager.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The socket failed.
    #[error(transparent)]
    Link(#[from] socket::Error),
    /// The host manager did not answer, or not in JSON.
    #[error("no answer from the host manager at {path}: {what}")]
    NoAnswer {
        /// Where.
        path: String,
        /// What came instead.
        what: String,
    },
    /// It refused; its own words.
    #[error("{0}")]
    Refused(String),
}

/// A lease and the connection that keeps it: dropping this ends it.
#[derive(Debug)]
pub struct TakenLease {
    /// `lease`, `token`, `reservation_bytes`, `overhead_bytes`.
    pub lease: Value,
    connection: Connection,
}

impl TakenLease {
    /// Waits until the lease ends: `end`, and the `vm` that redeemed it.
    ///
    /// # Errors
    /// When the host manager goes.
    pub fn wait(self) -> Result<Value, CallError> {
        self.connection.reply(None)
    }
}

/// What the host manager tells the owner of a lease that has ended.
pub fn lease_ended(end: &LeaseEnd) -> Reply {
    Reply::Ok(match end {
        LeaseEnd::Redeemed(vm) => json!({ "end": "redeemed", "vm": vm }),
        LeaseEnd::Expired => json!({ "end": "expired" }),
    })
}

/// The request in `datagram`.
///
/// # Errors
/// When it is none.
pub fn read(datagram: &[u8]) -> Result<Request, RequestError> {
    serde_json::from_slice(datagram).map_err(RequestError::Malformed)
}

/// Carries out the request in `datagram`, of the connection `owner`, at `now`.
pub fn answer(manager: &mut Manager, datagram: &[u8], owner: OwnerId, now: Duration) -> Reply {
    carry_out(manager, read(datagram), owner, now)
}

/// Carries out what was [read](read()) from the connection `owner`, at `now`. A VM that is to join is the
/// event loop's matter.
pub fn carry_out(
    manager: &mut Manager,
    request: Result<Request, RequestError>,
    owner: OwnerId,
    now: Duration,
) -> Reply {
    let result = request.and_then(|request| match request {
        Request::Reserve { size, max, time } => reserve(manager, &size, max, time, owner, now),
        request => lasting(manager, request),
    });
    match result {
        Ok(value) => Reply::Ok(value),
        // It says again what was asked, which may be anything.
        Err(error) => Reply::Error(printable(&error.to_string())),
    }
}

/// The datagrams that carry `reply`.
pub fn datagrams(reply: &Reply) -> Vec<Vec<u8>> {
    let json = serde_json::to_vec(reply).expect("replies have string keys only");
    let mut parts: Vec<Vec<u8>> = json
        .chunks(PART_BYTES)
        .map(|part| [&[MORE], part].concat())
        .collect();
    if let Some(last) = parts.last_mut() {
        last[0] = LAST;
    }
    parts
}

/// Puts `request` to the host manager that listens at `path` and waits for the answer.
///
/// # Errors
/// When nobody answers there, or the answer is no.
pub fn call(path: &Path, request: &Request) -> Result<Value, CallError> {
    Connection::ask(path, request)?.reply(Some(REPLY_TIMEOUT))
}

/// As [`call`] with a [`Request::Reserve`]; the lease lives as long as what is returned.
///
/// # Errors
/// As [`call`].
pub fn take_lease(path: &Path, request: &Request) -> Result<TakenLease, CallError> {
    let connection = Connection::ask(path, request)?;
    let lease = connection.reply(Some(REPLY_TIMEOUT))?;
    Ok(TakenLease { lease, connection })
}

/// Registers a VM in this process with the host manager that listens at `path`, to which `theirs` of
/// the VM's link goes. The answer to the VM's hello comes over the other end.
///
/// # Errors
/// As [`call`].
pub fn join(
    path: &Path,
    registration: Registration,
    door: Option<u32>,
    theirs: OwnedFd,
) -> Result<(), CallError> {
    let request = Request::Join { registration, door };
    let connection = Connection::ask_with(path, &request, Some(theirs.as_fd()))?;
    connection.reply(Some(REPLY_TIMEOUT)).map(drop)
}

/// A client's side of a request.
#[derive(Debug)]
struct Connection {
    fd: OwnedFd,
    path: PathBuf,
}

impl Connection {
    fn ask(path: &Path, request: &Request) -> Result<Connection, CallError> {
        Connection::ask_with(path, request, None)
    }

    fn ask_with(
        path: &Path,
        request: &Request,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Connection, CallError> {
        let handed = fd;
        let fd = socket::connect(path)?;
        let path = path.to_owned();
        let connection = Connection { fd, path };
        let json = serde_json::to_vec(request).expect("requests have string keys only");
        socket::send_datagram(&connection.fd, &json, handed)
            .map_err(|errno| connection.no_answer(&errno.to_string()))?;
        Ok(connection)
    }

    fn no_answer(&self, what: &str) -> CallError {
        CallError::NoAnswer {
            path: self.path.display().to_string(),
            what: what.to_owned(),
        }
    }

    /// One whole reply; `timeout` is for each part of it.
    fn reply(&self, timeout: Option<Duration>) -> Result<Value, CallError> {
        let timeout = timeout.map(|time| Timespec::try_from(time).expect("a few seconds"));
        let mut json = Vec::new();
        let mut buffer = vec![0; PART_BYTES + 1];
        loop {
            match poll(
                &mut [PollFd::new(&self.fd, PollFlags::IN)],
                timeout.as_ref(),
            ) {
                Ok(0) => return Err(self.no_answer("timed out")),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(self.no_answer(&errno.to_string())),
            }
            let bytes = match socket::recv_datagram(&self.fd, &mut buffer, TakeFd::Never) {
                Ok(datagram) => datagram.bytes,
                Err(Errno::AGAIN | Errno::INTR) => continue,
                Err(errno) => return Err(self.no_answer(&errno.to_string())),
            };
            match buffer[..bytes].split_first() {
                None => return Err(self.no_answer("it hung up")),
                Some((&mark, part)) => {
                    json.extend_from_slice(part);
                    if mark == LAST {
                        break;
                    }
                }
            }
        }
        match serde_json::from_slice(&json) {
            Ok(Reply::Ok(value)) => Ok(value),
            Ok(Reply::Error(reason)) => Err(CallError::Refused(reason)),
            Err(error) => Err(self.no_answer(&error.to_string())),
        }
    }
}

fn reserve(
    manager: &mut Manager,
    least: &str,
    most: Option<String>,
    time: Option<String>,
    owner: OwnerId,
    now: Duration,
) -> Result<Value, RequestError> {
    let least = size("size", least)?;
    let most = most.map(|most| size("max", &most)).transpose()?;
    let time = time.map(|time| {
        let wrong = |source: SizeError| RequestError::value("time", &time, source);
        parse_duration(&time).map_err(wrong)
    });
    let expires_at = time
        .transpose()?
        .map_or(Duration::MAX, |time| now.saturating_add(time));
    let (id, token, lease) = manager.reserve(least, most, owner, expires_at)?;
    Ok(json!({
        "lease": id.0,
        "token": token,
        "reservation_bytes": lease.reservation.bytes(),
        "overhead_bytes": lease.overhead.bytes(),
    }))
}

/// What needs no connection that stays.
fn lasting(manager: &mut Manager, request: Request) -> Result<Value, RequestError> {
    match request {
        Request::Ps => Ok(serde_json::to_value(manager.figures())?),
        Request::Reserve { .. } => Err(RequestError::NoConnection),
        Request::Join { .. } => Err(RequestError::NoLink),
        Request::Version => Ok(Value::from(env!("CARGO_PKG_VERSION"))),
        Request::Stop { vm } => {
            let id = find(manager, vm)?;
            manager.stop(id);
            Ok(Value::Null)
        }
        Request::Set { vm, changes } if vm == HOST => set_host(manager, &changes),
        Request::Set { vm, changes } => {
            let id = find(manager, vm)?;
            manager.set(id, &allocation_keys(&changes)?)?;
            Ok(Value::Null)
        }
    }
}

fn find(manager: &Manager, vm: String) -> Result<VmId, RequestError> {
    manager.find(&vm).ok_or_else(|| {
        let live = manager.names().take(NAMES_SAID).map(str::to_owned);
        let live = live.collect();
        RequestError::NoVm { vm, live }
    })
}

/// All changes are read, and judged together, before the first is carried out: a mistake changes nothing.
fn set_host(
    manager: &mut Manager,
    changes: &BTreeMap<String, String>,
) -> Result<Value, RequestError> {
    let mut budget = None;
    let mut policy = None;
    for (key, value) in changes {
        match key.as_str() {
            "memory" => budget = Some(budget_of(value)?),
            "policy" => policy = Some(policy_named(value)?),
            _ => return Err(RequestError::HostKey(key.clone())),
        }
    }
    manager.set_host(budget, policy)?;
    Ok(Value::Null)
}

fn budget_of(value: &str) -> Result<Pages, RequestError> {
    let budget = size("memory", value)?;
    match BUDGETS.contains(&budget) {
        true => Ok(budget),
        false => {
            let problem = format!("must be {BUDGET_FORMS}");
            Err(RequestError::value("memory", value, problem))
        }
    }
}

fn policy_named(name: &str) -> Result<PolicyKind, RequestError> {
    name.parse().map_err(|_| {
        let problem = format!("must be one of {}", PolicyKind::names());
        RequestError::value("policy", name, problem)
    })
}

fn allocation_keys(changes: &BTreeMap<String, String>) -> Result<AllocationKeys, RequestError> {
    let mut keys = AllocationKeys::default();
    for (name, value) in changes {
        match AllocationKey::named(name) {
            Some(key) => keys.write(key, Written::from(value.as_str())),
            None => return Err(RequestError::VmKey(name.clone())),
        }
    }
    Ok(keys)
}

fn size(key: &'static str, value: &str) -> Result<Pages, RequestError> {
    parse_size(value).map_err(|source| RequestError::value(key, value, source))
}

#[cfg(test)]
mod tests;
