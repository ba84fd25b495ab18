//! The control API: `ps`, `set`, `stop`, `reserve`, `version` as JSON over the host manager's socket.
//!
//! One request a connection; that of a lease stays open as long as the lease lives, and a second
//! reply says how it ended. A request is one datagram that starts with `{` (a VM's first datagram
//! starts with the link's version byte instead). The reply is JSON cut into datagrams; the first
//! byte of each says whether more follow ([`MORE`]) or not ([`LAST`]). Only processes of the same
//! user or of root are listened to at all; the event loop checks that.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::manager::{Change, LeaseEnd, Manager};
use crate::config::size::{DURATION_FORMS, SIZE_FORMS, parse_duration, parse_size};
use crate::link::socket::{self, TakeFd};
use crate::policy::PolicyKind;
use crate::policy::lease::OwnerId;
use crate::units::Pages;

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
/// The name that stands for the host in `set`.
pub const HOST: &str = "host";
/// Keys of a VM that `set` takes.
const VM_KEYS: &str = "shares, reservation, limit, dynamic_min, dynamic_max";

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
    /// Takes a lease, which lives as long as the connection: see [`hold`].
    Reserve {
        /// How much, as the user wrote it.
        size: String,
        /// As much up to this as can be promised.
        max: Option<String>,
        /// For how long; until the connection closes when not said.
        time: Option<String>,
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
pub struct Held {
    /// `lease`, `reservation_bytes`, `overhead_bytes`.
    pub lease: Value,
    connection: Connection,
}

impl Held {
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

/// Carries out the request in `datagram`, of the connection `owner`, at `now`.
pub fn answer(manager: &mut Manager, datagram: &[u8], owner: OwnerId, now: Duration) -> Reply {
    let result = match serde_json::from_slice(datagram) {
        Ok(Request::Reserve { size, max, time }) => reserve(manager, &size, max, time, owner, now),
        Ok(request) => carry_out(manager, request),
        Err(error) => Err(format!("not a request: {error}")),
    };
    match result {
        Ok(value) => Reply::Ok(value),
        Err(reason) => Reply::Error(reason),
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
pub fn hold(path: &Path, request: &Request) -> Result<Held, CallError> {
    let connection = Connection::ask(path, request)?;
    let lease = connection.reply(Some(REPLY_TIMEOUT))?;
    Ok(Held { lease, connection })
}

/// A client's side of a request.
#[derive(Debug)]
struct Connection {
    fd: OwnedFd,
    path: PathBuf,
}

impl Connection {
    fn ask(path: &Path, request: &Request) -> Result<Connection, CallError> {
        let fd = socket::connect(path)?;
        let path = path.to_owned();
        let connection = Connection { fd, path };
        let json = serde_json::to_vec(request).expect("requests have string keys only");
        socket::send_datagram(&connection.fd, &json, None)
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
) -> Result<Value, String> {
    let least = size("size", least)?;
    let most = most.map(|most| size("max", &most)).transpose()?;
    let time = time.map(|time| {
        let wrong = |_| format!("time = {time:?}: allowed is {DURATION_FORMS}");
        parse_duration(&time).map_err(wrong)
    });
    let expires_at = time
        .transpose()?
        .map_or(Duration::MAX, |time| now.saturating_add(time));
    let (id, lease) = manager.reserve(least, most, owner, expires_at)?;
    Ok(json!({
        "lease": id.0,
        "reservation_bytes": lease.reservation.bytes(),
        "overhead_bytes": lease.overhead.bytes(),
    }))
}

fn carry_out(manager: &mut Manager, request: Request) -> Result<Value, String> {
    match request {
        Request::Ps => serde_json::to_value(manager.figures()).map_err(|error| error.to_string()),
        Request::Reserve { .. } => Err("a lease needs a connection".to_owned()),
        Request::Version => Ok(Value::from(env!("CARGO_PKG_VERSION"))),
        Request::Stop { vm } => {
            let id = manager.find(&vm).ok_or_else(|| unknown(manager, &vm))?;
            manager.stop(id);
            Ok(Value::Null)
        }
        Request::Set { vm, changes } if vm == HOST => set_host(manager, &changes),
        Request::Set { vm, changes } => {
            let id = manager.find(&vm).ok_or_else(|| unknown(manager, &vm))?;
            let size = manager.size(id).expect("found above");
            manager.set(id, change(&changes, size)?)?;
            Ok(Value::Null)
        }
    }
}

fn unknown(manager: &Manager, vm: &str) -> String {
    let names: Vec<&str> = manager.names().take(20).collect();
    match names.is_empty() {
        true => format!("no VM {vm:?}: none runs"),
        false => format!("no VM {vm:?}: there are {}", names.join(", ")),
    }
}

fn set_host(manager: &mut Manager, changes: &BTreeMap<String, String>) -> Result<Value, String> {
    // All are parsed before the first is carried out: a mistake changes nothing.
    let mut budget = None;
    let mut policy = None;
    for (key, value) in changes {
        match key.as_str() {
            "memory" => budget = Some(size(key, value)?),
            "policy" => policy = Some(policy_named(value)?),
            _ => {
                return Err(format!(
                    "{key}: not a setting of the host; memory and policy are"
                ));
            }
        }
    }
    if let Some(budget) = budget {
        manager.set_budget(budget)?;
    }
    if let Some(policy) = policy {
        manager.set_policy(policy)?;
    }
    Ok(Value::Null)
}

fn policy_named(name: &str) -> Result<PolicyKind, String> {
    name.parse().map_err(|_| {
        let names: Vec<&str> = PolicyKind::ALL.iter().map(|kind| kind.name()).collect();
        format!("policy = {name:?}: allowed are {}", names.join(", "))
    })
}

fn change(changes: &BTreeMap<String, String>, memory: Pages) -> Result<Change, String> {
    let mut change = Change::default();
    for (key, value) in changes {
        match key.as_str() {
            "shares" => change.shares = Some(shares(value, memory)?),
            "reservation" => change.reservation = Some(size(key, value)?),
            "limit" => change.limit = Some(size(key, value)?),
            "dynamic_min" => change.dynamic_min = Some(size(key, value)?),
            "dynamic_max" => change.dynamic_max = Some(size(key, value)?),
            _ => return Err(format!("{key}: not a setting of a VM; {VM_KEYS} are")),
        }
    }
    Ok(change)
}

fn size(key: &str, value: &str) -> Result<Pages, String> {
    parse_size(value).map_err(|_| format!("{key} = {value:?}: allowed is {SIZE_FORMS}"))
}

/// The presets weigh a VM by its memory, as in the fleet file.
fn shares(value: &str, memory: Pages) -> Result<u64, String> {
    let mib = (memory.bytes() >> 20).max(1);
    match value {
        "high" => Ok(20 * mib),
        "normal" => Ok(10 * mib),
        "low" => Ok(5 * mib),
        number => number
            .parse()
            .map_err(|_| format!("shares = {value:?}: allowed is high, normal, low or a number")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_replies_come_in_parts_with_one_end() {
        let reply = Reply::Ok(Value::from("x".repeat(3 * PART_BYTES)));
        let parts = datagrams(&reply);
        assert_eq!(parts.len(), 4);
        let marks: Vec<u8> = parts.iter().map(|part| part[0]).collect();
        assert_eq!(marks, [MORE, MORE, MORE, LAST]);
        let json: Vec<u8> = parts.iter().flat_map(|part| part[1..].to_vec()).collect();
        assert_eq!(serde_json::from_slice::<Reply>(&json).unwrap(), reply);
    }

    #[test]
    fn settings_say_what_is_allowed() {
        let one = |key: &str, value: &str| {
            let changes = BTreeMap::from([(key.to_owned(), value.to_owned())]);
            change(&changes, Pages::mib(256))
        };
        assert_eq!(one("shares", "high").unwrap().shares, Some(5120));
        assert_eq!(one("limit", "64M").unwrap().limit, Some(Pages::mib(64)));
        assert!(one("limit", "lots").unwrap_err().contains("512M"));
        assert!(one("colour", "red").unwrap_err().contains("dynamic_max"));
        assert!(policy_named("magic").unwrap_err().contains("esx"));
    }
}
