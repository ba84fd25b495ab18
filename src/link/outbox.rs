//! What a VM process has to say while the host manager does not read.
//!
//! A host manager that is stopped, debugged or short of memory reads nothing for a while, and goes on
//! later as if nothing had been. Until then the VM process says as little as it can. Of reports only
//! the newest is kept, and no offer: both are said again anyway. Everything else is kept in its order,
//! up to [`QUEUE_MESSAGES_MAX`] messages. Whoever has much to say asks [`Outbox::is_behind`] first and
//! keeps it to itself meanwhile, so that the bound is never met.

use std::collections::VecDeque;

use rustix::io::Errno;

use super::codec;
use super::message::ToHost;
use super::socket::{Error, os};

/// Messages that wait for the host manager to read, at most.
pub const QUEUE_MESSAGES_MAX: usize = 64;

/// The queue of one link. It owns no socket: whoever has one passes a function that sends a datagram.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// Oldest first.
    queue: VecDeque<ToHost>,
    behind: bool,
}

impl Outbox {
    /// Whether the socket was full at the last attempt.
    pub fn is_behind(&self) -> bool {
        self.behind
    }

    /// Messages that wait.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Sends `message` behind everything that waits; keeps or drops it while the peer is behind.
    ///
    /// # Errors
    /// As [`Outbox::flush`]; also when the message breaks a bound, or too many wait already.
    pub fn send(
        &mut self,
        message: &ToHost,
        datagram: impl FnMut(&[u8]) -> Result<(), Errno>,
    ) -> Result<(), Error> {
        message.check().map_err(codec::Error::from)?;
        if matches!(message, ToHost::Report(_)) {
            self.queue.retain(|kept| !matches!(kept, ToHost::Report(_)));
        }
        if self.queue.len() >= QUEUE_MESSAGES_MAX {
            return Err(Error::Backlog {
                messages: self.queue.len(),
            });
        }
        self.queue.push_back(message.clone());
        let sent = match self.behind {
            true => Ok(()),
            false => self.flush(datagram),
        };
        self.queue
            .retain(|kept| !matches!(kept, ToHost::Offer { .. }));
        sent
    }

    /// Drops what nobody will miss when the VM has ended.
    pub fn drop_contents(&mut self) {
        self.queue
            .retain(|kept| !matches!(kept, ToHost::Content { .. }));
    }

    /// Sends what waits, as far as the socket has room.
    ///
    /// # Errors
    /// [`Error::Closed`] when the peer is gone, with the queue; else the message at the front cannot
    /// be sent and is dropped.
    pub fn flush(
        &mut self,
        mut datagram: impl FnMut(&[u8]) -> Result<(), Errno>,
    ) -> Result<(), Error> {
        self.behind = false;
        while let Some(front) = self.queue.pop_front() {
            let bytes = codec::encode(&front)?;
            match datagram(&bytes) {
                Ok(()) => {}
                Err(Errno::INTR) => self.queue.push_front(front),
                // The kernel is short of memory: that passes as well.
                Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM) => {
                    self.queue.push_front(front);
                    self.behind = true;
                    break;
                }
                Err(Errno::MSGSIZE) => {
                    let Some((first, second)) = halves(front) else {
                        return Err(os("send on")(Errno::MSGSIZE));
                    };
                    self.queue.push_front(second);
                    self.queue.push_front(first);
                }
                Err(Errno::PIPE | Errno::CONNRESET | Errno::CONNREFUSED | Errno::NOTCONN) => {
                    self.queue.clear();
                    return Err(Error::Closed);
                }
                Err(source) => return Err(os("send on")(source)),
            }
        }
        Ok(())
    }
}

/// Two messages that say the same as one that is longer than the socket's buffer, in its order.
fn halves(message: ToHost) -> Option<(ToHost, ToHost)> {
    fn split<T>(list: &mut Vec<T>) -> Option<Vec<T>> {
        (list.len() > 1).then(|| list.split_off(list.len() / 2))
    }
    Some(match message {
        ToHost::Content { mut pages } => {
            let rest = split(&mut pages)?;
            (ToHost::Content { pages }, ToHost::Content { pages: rest })
        }
        ToHost::Offer { mut pages } => {
            let rest = split(&mut pages)?;
            (ToHost::Offer { pages }, ToHost::Offer { pages: rest })
        }
        ToHost::Release { mut frames } => {
            let rest = split(&mut frames)?;
            (ToHost::Release { frames }, ToHost::Release { frames: rest })
        }
        ToHost::Claim { mut frames } => {
            let rest = split(&mut frames)?;
            (ToHost::Claim { frames }, ToHost::Claim { frames: rest })
        }
        _ => return None,
    })
}
