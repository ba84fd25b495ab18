//! The link to the host manager, over its end: a VM joins again where it can.
//!
//! Nothing here waits for the host manager. One that is stopped has neither ended nor refused, and is
//! waited for as long as it takes while the guest goes on.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::join::terms;
use crate::link::message::{ToHost, ToVm, Welcome};
use crate::link::socket::{Error as LinkError, Link, Received};
use crate::sys::pool_view::PoolView;

/// Pause between attempts to join a host manager again.
const REJOIN: Duration = Duration::from_millis(250);

/// What the host manager said.
#[derive(Debug)]
pub(super) enum Heard {
    /// Nothing more for now.
    Nothing,
    /// A message.
    Message(ToVm),
    /// It is gone, for this reason.
    Lost(String),
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Uplink {
    /// Of the VM, for the log.
    name: String,
    link: Link,
    joined: bool,
    /// A new link, over which the VM has said hello.
    rejoining: Option<Link>,
    /// Why the last hello was refused.
    refused: Option<String>,
    /// When to say hello again.
    due: Instant,
}

impl Uplink {
    /// A link over which the VM `name` was welcomed.
    pub fn new(name: &str, link: Link) -> Uplink {
        Uplink {
            name: name.to_owned(),
            link,
            joined: true,
            rejoining: None,
            refused: None,
            due: Instant::now(),
        }
    }

    /// Whether there is a host manager.
    pub fn is_joined(&self) -> bool {
        self.joined
    }

    /// Whether a host manager that has gone may come back.
    pub fn may_return(&self) -> bool {
        self.link.home().is_some()
    }

    /// Whether the host manager takes more than the newest report.
    pub fn has_room(&self) -> bool {
        self.joined && !self.link.is_behind()
    }

    /// Sends, or keeps what waits for the host manager to read; drops it where there is none.
    pub fn send(&self, message: &ToHost) {
        if self.joined {
            self.check(self.link.send(message));
        }
    }

    /// Sends on what has waited, as far as the host manager reads.
    pub fn flush(&mut self) {
        if self.joined {
            let flushed = self.link.flush();
            self.check(flushed);
        }
    }

    /// The last words: waits up to `limit` for them to be heard.
    pub fn send_last(&mut self, message: &ToHost, limit: Duration) {
        if self.joined {
            let sent = self.link.send_last(message, limit);
            self.check(sent);
        }
    }

    fn check(&self, sent: Result<(), LinkError>) {
        match sent {
            // The end is heard behind what the host manager said before it.
            Ok(()) | Err(LinkError::Closed) => {}
            Err(error) => log::error!("{}: a message is lost: {error}", self.name),
        }
    }

    /// The next message.
    pub fn hear(&mut self) -> Heard {
        if !self.joined {
            return Heard::Nothing;
        }
        let why = match self.link.recv(Some(Duration::ZERO)) {
            Ok(Received::TimedOut) => return Heard::Nothing,
            Ok(Received::Message(message, _)) => return Heard::Message(message),
            Ok(Received::Closed) => "closed the link".to_owned(),
            Err(error @ LinkError::Codec(_)) => {
                self.link.close();
                format!("makes no sense: {error}")
            }
            Err(error) => {
                log::warn!("{}: cannot hear: {error}", self.name);
                return Heard::Nothing;
            }
        };
        self.joined = false;
        Heard::Lost(why)
    }

    /// One step towards a host manager, if there is none: `hello` and the VM's `pool` are what it is
    /// told, its terms the answer.
    pub fn rejoin(
        &mut self,
        now: Instant,
        hello: impl FnOnce() -> ToHost,
        pool: &PoolView,
    ) -> Option<(Welcome, PoolView)> {
        if self.joined {
            return None;
        }
        let Some(link) = self.rejoining.take() else {
            if now >= self.due {
                self.due = now + REJOIN;
                self.say_hello(&hello(), pool);
            }
            return None;
        };
        let answer = match link.recv(Some(Duration::ZERO)) {
            Ok(Received::TimedOut) => {
                self.rejoining = Some(link);
                return None;
            }
            // It ended before it let the VM in.
            Ok(Received::Closed) => return None,
            Ok(answer) => terms(answer).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match answer {
            Ok(terms) => {
                self.link = link;
                self.joined = true;
                self.refused = None;
                Some(terms)
            }
            Err(why) => {
                if self.refused.as_ref() != Some(&why) {
                    log::warn!("{}: cannot join again: {why}", self.name);
                    self.refused = Some(why);
                }
                None
            }
        }
    }

    fn say_hello(&mut self, hello: &ToHost, pool: &PoolView) {
        let Some(path) = self.link.home() else {
            return;
        };
        let asked = Link::connect_now(path).and_then(|link| {
            link.send_first(hello, pool.as_fd())?;
            Ok(link)
        });
        match asked {
            Ok(link) => self.rejoining = Some(link),
            Err(error) => log::debug!("{}: cannot join again: {error}", self.name),
        }
    }

    /// When to say hello again; `None` while there is a host manager, or one that has not answered.
    pub fn due(&self) -> Option<Instant> {
        (!self.joined && self.rejoining.is_none()).then_some(self.due)
    }

    /// What to wait for.
    pub fn fds(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let flags = match self.link.is_behind() {
            true => PollFlags::IN | PollFlags::OUT,
            false => PollFlags::IN,
        };
        let link = self.joined.then(|| (self.link.as_fd(), flags));
        let rejoining = self.rejoining.as_ref();
        link.into_iter()
            .chain(rejoining.map(|link| (link.as_fd(), PollFlags::IN)))
    }
}
