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

use super::manager::{Kind, LeaseEnd, Manager, Refused};
use crate::link::socket::{self, TakeFd};
use crate::policy::PolicyKind;
use crate::policy::lease::OwnerId;
use crate::policy::types::VmId;
use crate::units::Pages;
use crate::words::budget::{BUDGET_FORMS, BUDGETS};
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
/// The name that stands for the host in `set`.
pub const HOST: &str = "host";
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
            | RequestError::NoConnection => Kind::Invalid,
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
    /// `lease`, `reservation_bytes`, `overhead_bytes`.
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

/// Carries out the request in `datagram`, of the connection `owner`, at `now`.
pub fn answer(manager: &mut Manager, datagram: &[u8], owner: OwnerId, now: Duration) -> Reply {
    let result = match serde_json::from_slice(datagram) {
        Ok(Request::Reserve { size, max, time }) => reserve(manager, &size, max, time, owner, now),
        Ok(request) => carry_out(manager, request),
        Err(error) => Err(RequestError::Malformed(error)),
    };
    match result {
        Ok(value) => Reply::Ok(value),
        Err(error) => Reply::Error(error.to_string()),
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
    let (id, lease) = manager.reserve(least, most, owner, expires_at)?;
    Ok(json!({
        "lease": id.0,
        "reservation_bytes": lease.reservation.bytes(),
        "overhead_bytes": lease.overhead.bytes(),
    }))
}

fn carry_out(manager: &mut Manager, request: Request) -> Result<Value, RequestError> {
    match request {
        Request::Ps => Ok(serde_json::to_value(manager.figures())?),
        Request::Reserve { .. } => Err(RequestError::NoConnection),
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
mod tests {
    use super::super::manager::Settings;
    use super::super::process::ProcessId;
    use super::*;
    use crate::link::message::Hello;
    use crate::policy::settings::PolicySettings;
    use crate::words::{Allocation, Sampling};

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
    fn settings_say_what_they_must_be() {
        let mut manager = manager();
        let set = |vm: &str, key: &str, value: &str| Request::Set {
            vm: vm.to_owned(),
            changes: [(key.to_owned(), value.to_owned())].into(),
        };
        // (request, kind, line)
        let table = [
            (
                set("a", "limit", "lots"),
                Kind::Invalid,
                "`limit = \"lots\"`: not a valid size, e.g. 512M, 512MiB, 2G or a number of bytes",
            ),
            (
                set("a", "limit", "65M"),
                Kind::Invalid,
                "`limit = \"65M\"`: must be at most `memory` (64.0 MiB)",
            ),
            (
                set("a", "colour", "red"),
                Kind::Invalid,
                "`colour` is not a setting of a VM: shares, reservation, limit, dynamic_min, \
                 dynamic_max are",
            ),
            (
                set("b", "limit", "64M"),
                Kind::NotFound,
                "no VM \"b\": there are a",
            ),
            (
                set("a", "reservation", "40M"),
                Kind::Exhausted,
                "cannot admit \"a\": needs 42.0 MiB (reservation 40.0 MiB + overhead 2.0 MiB), but of 32.0 \
                 MiB 0.0 MiB are reserved by 0 VMs and 0.0 MiB are overhead, so 32.0 MiB can be promised \
                 (29.7 MiB is free now)",
            ),
            (
                set(HOST, "memory", "1M"),
                Kind::Invalid,
                "`memory = \"1M\"`: must be 16M to 64T",
            ),
            (
                set(HOST, "policy", "magic"),
                Kind::Invalid,
                "`policy = \"magic\"`: must be one of esx, proportional, self, pref, pressure",
            ),
            (
                set(HOST, "limit", "64M"),
                Kind::Invalid,
                "`limit` is not a setting of the host: memory and policy are",
            ),
        ];
        for (request, kind, line) in table {
            let error = carry_out(&mut manager, request).unwrap_err();
            assert_eq!((error.kind(), error.to_string().as_str()), (kind, line));
        }
    }

    #[test]
    fn a_mistake_in_one_setting_of_the_host_changes_none() {
        let mut manager = manager();
        let set = |memory: &str, policy: &str| Request::Set {
            vm: HOST.to_owned(),
            changes: [("memory", memory), ("policy", policy)]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
        };
        let before = manager.figures().host;
        // The VM's dynamic minimum is 16 MiB, which `proportional` would promise with 2 MiB of overhead.
        for (memory, policy) in [("17M", "proportional"), ("40M", "magic"), ("1", "esx")] {
            assert!(carry_out(&mut manager, set(memory, policy)).is_err());
            let after = manager.figures().host;
            assert_eq!(
                (after.memory_bytes, &after.policy),
                (before.memory_bytes, &before.policy)
            );
        }
        // What would not fit the old budget fits the new one.
        carry_out(&mut manager, set("18M", "proportional")).unwrap();
        let after = manager.figures().host;
        assert_eq!(
            (after.memory_bytes, after.policy.as_str()),
            (18 << 20, "proportional")
        );
    }

    /// A host of 32 MiB with one VM of 64 MiB.
    fn manager() -> Manager {
        let mut manager = Manager::new(Settings {
            budget: Pages::mib(32),
            policy: PolicyKind::Esx,
            policy_settings: PolicySettings::default(),
            sampling: Sampling::default(),
            seed: 1,
        });
        let hello = Hello {
            name: "a".to_owned(),
            allocation: Allocation::of(Pages::mib(64)),
            share_group: None,
            held: Pages::ZERO,
            managed: true,
            lease: None,
        };
        let process = ProcessId { pid: 2, started: 1 };
        manager.admit(hello, process).unwrap();
        manager
    }
}
