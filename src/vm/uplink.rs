//! The link to the host manager, over its end: a VM joins again when another comes to its door.
//!
//! Nothing here waits for the host manager. One that is stopped has neither ended nor refused, and is
//! waited for as long as it takes while the guest goes on. A VM in its sandbox connects to nobody: it
//! lets in who comes, and talks to who knows its token.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::event::PollFlags;

use super::join::terms;
use crate::link::door::Door;
use crate::link::message::{ToHost, ToVm, Welcome};
use crate::link::socket::{Error as LinkError, Link, Received};
use crate::sys::pool_view::PoolView;
use crate::units::Pages;
use crate::words::Token;

/// Visitors that have said nothing yet, at most: for one more the first makes way.
const VISITORS_MAX: usize = 8;

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
    /// Where another host manager finds the VM, and the secret by which they know each other.
    door: Option<(Door, Token)>,
    /// Who has come to the door and has not said what it knows.
    visitors: VecDeque<Link>,
    /// A new link, over which the VM has answered.
    rejoining: Option<Link>,
    /// Why the VM was refused last.
    refused: Option<String>,
}

impl Uplink {
    /// A link over which the VM `name` was welcomed, with that token if it has a door.
    pub fn new(name: &str, link: Link, door: Option<Door>, token: Option<Token>) -> Uplink {
        Uplink {
            name: name.to_owned(),
            link,
            joined: true,
            door: door.zip(token),
            visitors: VecDeque::new(),
            rejoining: None,
            refused: None,
        }
    }

    /// Whether there is a host manager.
    pub fn is_joined(&self) -> bool {
        self.joined
    }

    /// Whether a host manager that has gone may come back.
    pub fn may_return(&self) -> bool {
        self.door.is_some()
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

    /// One step towards a host manager, if there is none: who comes and knows the token is told what
    /// the VM has `held` so far and handed the VM's `pool`; its terms are the answer.
    pub fn rejoin(
        &mut self,
        held: impl FnOnce() -> Pages,
        pool: &PoolView,
    ) -> Option<(Welcome, PoolView)> {
        if self.joined {
            return None;
        }
        let Some(link) = self.rejoining.take() else {
            let (link, token) = self.let_in()?;
            let held = held();
            match link.send_first(&ToHost::Again { token, held }, pool.as_fd()) {
                Ok(()) => self.rejoining = Some(link),
                Err(error) => log::debug!("{}: cannot join again: {error}", self.name),
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
                self.visitors.clear();
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

    /// Who has come and knows the VM's token. Who does not is sent away.
    fn let_in(&mut self) -> Option<(Link, Token)> {
        let (door, token) = self.door.as_ref()?;
        while let Some(fd) = door.accept() {
            if self.visitors.len() == VISITORS_MAX {
                self.visitors.pop_front();
            }
            self.visitors.extend(Link::new(fd).ok());
        }
        for _ in 0..self.visitors.len() {
            let link = self.visitors.pop_front()?;
            match link.recv(Some(Duration::ZERO)) {
                Ok(Received::TimedOut) => self.visitors.push_back(link),
                Ok(Received::Message(ToVm::Knock { token: theirs }, _)) if theirs == *token => {
                    return Some((link, *token));
                }
                Ok(Received::Closed) => {}
                Ok(Received::Message(..)) | Err(_) => {
                    log::warn!(
                        "{}: sent somebody away who does not know its token",
                        self.name
                    );
                }
            }
        }
        None
    }

    /// What to wait for.
    pub fn fds(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let flags = match self.link.is_behind() {
            true => PollFlags::IN | PollFlags::OUT,
            false => PollFlags::IN,
        };
        let link = self.joined.then(|| (self.link.as_fd(), flags));
        // While one is answered, the others wait.
        let lets_in = !self.joined && self.rejoining.is_none();
        let door = self.door.as_ref().map(|(door, _)| door.as_fd());
        let visitors = self.visitors.iter().map(AsFd::as_fd);
        let others = door.into_iter().chain(visitors).filter(move |_| lets_in);
        let rejoining = self.rejoining.as_ref().map(AsFd::as_fd);
        let heard = others.chain(rejoining).map(|fd| (fd, PollFlags::IN));
        link.into_iter().chain(heard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::door;
    use crate::link::socket::{self, TakeFd};
    use rustix::event::{PollFd, Timespec, poll};

    fn visit(host: &std::path::Path, number: u32, token: Option<Token>) -> Link {
        let visitor = Link::new(socket::connect_now(&door::path(host, number)).unwrap()).unwrap();
        if let Some(token) = token {
            let knock = crate::link::codec::encode(&ToVm::Knock { token }).unwrap();
            socket::send_datagram(&visitor, &knock, None).unwrap();
        }
        visitor
    }

    fn is_sent_away(visitor: &Link) -> bool {
        let ended = Timespec::default();
        let mut polled = [PollFd::new(visitor, PollFlags::IN)];
        poll(&mut polled, Some(&ended)).unwrap();
        polled[0].revents().contains(PollFlags::HUP)
    }

    #[test]
    fn who_does_not_know_the_token_is_sent_away() {
        let folder = tempfile::tempdir().unwrap();
        let host = folder.path().join("host.sock");
        let door = Door::open(&host).unwrap();
        let number = door.number();
        let token = Token::of([1, 2]);
        let (old, ours) = socket::pair().unwrap();
        let link = Link::new(ours).unwrap();
        let mut uplink = Uplink::new("a", link, Some(door), Some(token));
        let pool = PoolView::new(tempfile::tempfile().unwrap().into(), 1);
        let silent = visit(&host, number, None);
        let wrong = visit(&host, number, Some(Token::of([1, 3])));
        let rude = visit(&host, number, None);
        socket::send_datagram(&rude, b"{}", None).unwrap();
        let right = visit(&host, number, Some(token));
        // Nobody is let in while there is a host manager.
        assert!(uplink.rejoin(|| Pages(7), &pool).is_none() && !is_sent_away(&wrong));
        drop(old);
        assert!(matches!(uplink.hear(), Heard::Lost(_)));
        for _ in 0..2 {
            assert!(uplink.rejoin(|| Pages(7), &pool).is_none());
        }
        assert!(is_sent_away(&wrong) && is_sent_away(&rude));
        assert!(!is_sent_away(&silent) && !is_sent_away(&right));
        let mut buffer = vec![0; 256];
        let said = socket::recv_datagram(&right, &mut buffer, TakeFd::One).unwrap();
        let again: ToHost = crate::link::codec::decode(&buffer[..said.bytes]).unwrap();
        let held = Pages(7);
        assert_eq!(again, ToHost::Again { token, held });
        assert!(said.fd.is_some(), "its pool");
        // Whoever says nothing is in nobody's way, however many there are.
        drop(right);
        assert!(uplink.rejoin(|| held, &pool).is_none());
        let silent: Vec<Link> = (0..2 * VISITORS_MAX)
            .map(|_| visit(&host, number, None))
            .collect();
        let right = visit(&host, number, Some(token));
        assert!(uplink.rejoin(|| held, &pool).is_none());
        assert!(uplink.rejoining.is_some() && is_sent_away(&silent[0]));
        assert!(!is_sent_away(&right) && uplink.visitors.len() <= VISITORS_MAX);
    }
}
