//! The socket under the link: SOCK_SEQPACKET, one message a datagram, at most one descriptor with it.
//!
//! Neither end waits to send. What a VM does not read is queued, and the queue does not grow with time:
//! of orders only the newest are kept, credits are added up, and whoever lends and asks stops at
//! [`BEHIND_MESSAGES`]. What the host manager does not read waits as [`Link::send`] says, however long
//! that takes: only a closed socket means that the host manager is gone.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    UCred,
};

use super::codec;
use super::message::{MESSAGE_BYTES_MAX, ToHost, ToVm};
use super::outbox::Outbox;

/// A VM with more unread messages than this is *behind*: it is lent nothing and asked for nothing
/// until it has read them, so that only orders and credit are added, which take no further room.
pub const BEHIND_MESSAGES: usize = 64;
/// Messages that wait for a VM, at most. A VM falls behind long before; should the queue get here all
/// the same, the link is closed, and the VM has to join again.
pub const OUT_MESSAGES_MAX: usize = 4096;
/// Room for messages in flight, as the kernel counts it: two of the longest. Where the machine's
/// default is less, one of them may not fit.
const SEND_BUFFER_BYTES: usize = 2 * MESSAGE_BYTES_MAX;

/// What can go wrong on a link.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("cannot {operation} the link")]
    Os {
        /// Which.
        operation: &'static str,
        /// The kernel's answer.
        source: Errno,
    },
    /// Nobody could be reached at a path.
    #[error("cannot connect to {}", path.display())]
    Connect {
        /// Where.
        path: PathBuf,
        /// The kernel's answer.
        source: Errno,
    },
    /// Somebody else listens at a path.
    #[error("user {uid} listens at {}, not this one or root", path.display())]
    Stranger {
        /// Where.
        path: PathBuf,
        /// Who.
        uid: u32,
    },
    /// There can be no [door](super::door) there.
    #[error("cannot listen at {}", path.display())]
    Door {
        /// Where.
        path: PathBuf,
        /// The kernel's answer.
        source: Errno,
    },
    /// The descriptor is no SOCK_SEQPACKET socket.
    #[error("descriptor is not a SOCK_SEQPACKET socket")]
    NotALink,
    /// A datagram is no message, or a message cannot be sent.
    #[error(transparent)]
    Codec(#[from] codec::Error),
    /// The peer does not read.
    #[error("peer left {messages} messages unread")]
    Backlog {
        /// How many wait.
        messages: usize,
    },
    /// The peer did not read in time.
    #[error("peer did not read in time")]
    SendTimeout,
    /// The peer closed the link.
    #[error("peer closed the link")]
    Closed,
}

pub(super) fn os(operation: &'static str) -> impl FnOnce(Errno) -> Error {
    move |source| Error::Os { operation, source }
}

/// Two connected ends, closed on exec.
///
/// # Errors
/// When the kernel has no descriptors left.
pub fn pair() -> Result<(OwnedFd, OwnedFd), Error> {
    net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(os("create"))
}

/// A connection to the host manager that listens at `path`. It is told nothing before it is known
/// to belong to this user or to root: it may ask a VM for its guest's pages.
///
/// # Errors
/// When nobody listens there, another user does, or the path is too long for a socket address.
pub fn connect(path: &Path) -> Result<OwnedFd, Error> {
    connect_with(path, SocketFlags::CLOEXEC)
}

/// The same for a caller that must not wait: the descriptor never blocks.
///
/// # Errors
/// When nobody listens there, or too many wait already to be let in.
pub fn connect_now(path: &Path) -> Result<OwnedFd, Error> {
    connect_with(path, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
}

fn connect_with(path: &Path, flags: SocketFlags) -> Result<OwnedFd, Error> {
    let connect = || {
        let fd = net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        net::connect(&fd, &SocketAddrUnix::new(path)?)?;
        Ok(fd)
    };
    let fd = connect().map_err(|source| Error::Connect {
        path: path.to_owned(),
        source,
    })?;
    let listener = peer(&fd)?;
    match is_ours(&listener) {
        true => Ok(fd),
        false => Err(Error::Stranger {
            path: path.to_owned(),
            uid: listener.uid.as_raw(),
        }),
    }
}

/// Whether a peer runs as this process's user or as root: nobody else is spoken to.
pub fn is_ours(peer: &UCred) -> bool {
    peer.uid == rustix::process::geteuid() || peer.uid.is_root()
}

/// Whether a [`Link`] or a [`HostLink`] can be made of `fd`.
pub fn is_link(fd: impl AsFd) -> bool {
    let unix = net::sockopt::socket_domain(&fd) == Ok(AddressFamily::UNIX);
    unix && net::sockopt::socket_type(&fd) == Ok(SocketType::SEQPACKET)
}

/// Who is at the other end: who connected, or who began to listen, as the kernel saw it then.
///
/// # Errors
/// When `fd` is no Unix socket.
pub fn peer(fd: impl AsFd) -> Result<UCred, Error> {
    net::sockopt::socket_peercred(fd).map_err(os("identify the peer of"))
}

/// Sends one datagram without waiting; `Errno::AGAIN` when the peer's queue is full.
pub(crate) fn send_datagram(
    socket: impl AsFd,
    bytes: &[u8],
    fd: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = fd.as_slice();
    if !fds.is_empty() {
        let fits = control.push(SendAncillaryMessage::ScmRights(fds));
        assert!(fits, "the buffer is sized for one descriptor");
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags).map(|_| ())
}

/// One received datagram.
pub(crate) struct Datagram {
    /// Its length in the buffer; zero when the peer has closed.
    pub bytes: usize,
    /// The descriptor that came with it.
    pub fd: Option<OwnedFd>,
}

/// Which descriptors a receiver takes; the kernel closes those that it does not.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum TakeFd {
    One,
    Never,
}

/// Receives one datagram without waiting; `Errno::AGAIN` when there is none, `Errno::MSGSIZE` when
/// it did not fit.
pub(crate) fn recv_datagram(
    socket: impl AsFd,
    buffer: &mut [u8],
    take: TakeFd,
) -> Result<Datagram, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = match take {
        TakeFd::One => RecvAncillaryBuffer::new(&mut space),
        TakeFd::Never => RecvAncillaryBuffer::new(&mut []),
    };
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags)?;
    let mut fd = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            fd = fds.last();
        }
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(Errno::MSGSIZE);
    }
    Ok(Datagram {
        bytes: received.bytes,
        fd,
    })
}

/// Waits until `fd` is ready for `flags` or `deadline` has passed (`None`: for ever).
fn wait(fd: impl AsFd, flags: PollFlags, deadline: Option<Instant>) -> Result<Ready, Error> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| Timespec::try_from(left).expect("a wait of less than ages"));
        match poll(&mut [PollFd::new(&fd, flags)], timeout.as_ref()) {
            Ok(0) => return Ok(Ready::TimedOut),
            Ok(_) => return Ok(Ready::Now),
            Err(Errno::INTR) => {}
            Err(source) => return Err(os("wait for")(source)),
        }
    }
}

#[derive(PartialEq, Eq)]
enum Ready {
    Now,
    TimedOut,
}

/// What [`Link::recv`] found.
#[derive(Debug)]
pub enum Received {
    /// A message and the descriptor that came with it.
    Message(ToVm, Option<OwnedFd>),
    /// The host manager closed the link or died.
    Closed,
    /// Nothing came in time.
    TimedOut,
}

/// Sees to it that the longest message fits into the socket's buffer, where the machine allows that.
fn make_room(fd: impl AsFd) -> Result<(), Errno> {
    if net::sockopt::socket_send_buffer_size(&fd)? < SEND_BUFFER_BYTES {
        // The kernel takes half of what it counts.
        net::sockopt::set_socket_send_buffer_size(&fd, SEND_BUFFER_BYTES / 2)?;
    }
    Ok(())
}

/// The VM process's end. One thread may send while another receives.
#[derive(Debug)]
pub struct Link {
    fd: OwnedFd,
    buffer: Mutex<Vec<u8>>,
    out: Mutex<Outbox>,
}

impl Link {
    /// Takes over one end of a [`pair`], or a connection that came to a [door](super::door).
    ///
    /// # Errors
    /// When `fd` is something else.
    pub fn new(fd: OwnedFd) -> Result<Link, Error> {
        if !is_link(&fd) {
            return Err(Error::NotALink);
        }
        make_room(&fd).map_err(os("make room on"))?;
        Ok(Link {
            fd,
            buffer: Mutex::new(vec![0; MESSAGE_BYTES_MAX + 1]),
            out: Mutex::default(),
        })
    }

    /// Sends the first message of a link, with a descriptor: there is room for it.
    ///
    /// # Errors
    /// When the message breaks a bound or the host manager is gone.
    pub fn send_first(&self, message: &ToHost, fd: BorrowedFd<'_>) -> Result<(), Error> {
        let bytes = codec::encode(message)?;
        send_datagram(&self.fd, &bytes, Some(fd)).map_err(os("send on"))
    }

    /// Sends one message without waiting. While the host manager is [behind](Link::is_behind), of
    /// reports only the newest is kept and no offer; any other message waits in its order.
    ///
    /// # Errors
    /// [`Error::Closed`] when the host manager is gone. Anything else concerns this message, or one
    /// that waited before it: it is dropped, and the link goes on.
    pub fn send(&self, message: &ToHost) -> Result<(), Error> {
        self.outbox().send(message, |bytes| self.datagram(bytes))
    }

    /// Whether the host manager does not read, as far as is known: the socket is full. A VM that
    /// has something to say that can wait, waits. Once the link's descriptor can be written to,
    /// [`Link::flush`] goes on.
    pub fn is_behind(&self) -> bool {
        self.outbox().is_behind()
    }

    /// Sends what waits, if there is room again.
    ///
    /// # Errors
    /// As [`Link::send`].
    pub fn flush(&self) -> Result<(), Error> {
        if !self.is_behind() || wait(&self.fd, PollFlags::OUT, Some(Instant::now()))? != Ready::Now
        {
            return Ok(());
        }
        self.outbox().flush(|bytes| self.datagram(bytes))
    }

    /// Says the last message of all, and waits at most `limit` for room: the socket takes more than
    /// usual, so that it seldom comes to that.
    ///
    /// # Errors
    /// As [`Link::send`], or when there was no room in time.
    pub fn send_last(&self, message: &ToHost, limit: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + limit;
        self.outbox().drop_contents();
        self.send(message)?;
        if self.is_behind() {
            // Set to what the kernel counts, it counts twice as much.
            net::sockopt::socket_send_buffer_size(&self.fd)
                .and_then(|bytes| net::sockopt::set_socket_send_buffer_size(&self.fd, bytes))
                .map_err(os("make room on"))?;
        }
        loop {
            self.outbox().flush(|bytes| self.datagram(bytes))?;
            if !self.is_behind() {
                return Ok(());
            }
            if wait(&self.fd, PollFlags::OUT, Some(deadline))? == Ready::TimedOut {
                return Err(Error::SendTimeout);
            }
        }
    }

    /// Ends the link for both sides: what comes from the peer makes no sense.
    pub fn close(&self) {
        // It can only have been closed already.
        let _ = net::shutdown(&self.fd, net::Shutdown::Both);
    }

    fn datagram(&self, bytes: &[u8]) -> Result<(), Errno> {
        send_datagram(&self.fd, bytes, None)
    }

    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.out.lock().expect("no holder of the queue panics")
    }

    /// Waits for one message, at most `timeout` (`None`: for ever; zero: only looks).
    ///
    /// # Errors
    /// When a datagram is no message: the link is of no use any more.
    pub fn recv(&self, timeout: Option<Duration>) -> Result<Received, Error> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            if wait(&self.fd, PollFlags::IN, deadline)? == Ready::TimedOut {
                return Ok(Received::TimedOut);
            }
            let mut buffer = self.buffer.lock().expect("no holder of the buffer panics");
            match recv_datagram(&self.fd, &mut buffer, TakeFd::One) {
                Ok(Datagram { bytes: 0, .. }) => return Ok(Received::Closed),
                Ok(Datagram { bytes, fd }) => {
                    return Ok(Received::Message(codec::decode(&buffer[..bytes])?, fd));
                }
                Err(Errno::MSGSIZE) => {
                    let bytes = MESSAGE_BYTES_MAX + 1;
                    return Err(codec::Error::Oversized { bytes }.into());
                }
                // A reset is said once, before what the peer had sent; the end comes behind it.
                Err(Errno::AGAIN | Errno::INTR | Errno::CONNRESET) => {}
                Err(source) => return Err(os("receive from")(source)),
            }
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The host manager's end: never waits.
#[derive(Debug)]
pub struct HostLink {
    fd: OwnedFd,
    /// What the peer has no room for yet, oldest first.
    queue: VecDeque<(ToVm, Option<OwnedFd>)>,
}

impl HostLink {
    /// Takes over one end of a [`pair`] or an accepted connection.
    pub fn new(fd: OwnedFd) -> HostLink {
        // Where it cannot be made, only the longest messages do not fit.
        let _ = make_room(&fd);
        HostLink {
            fd,
            queue: VecDeque::new(),
        }
    }

    /// Sends `message`, or queues it while the peer does not read.
    ///
    /// # Errors
    /// When the message breaks a bound or the queue is full: close the link.
    pub fn send(&mut self, message: ToVm, fd: Option<OwnedFd>) -> Result<(), Error> {
        let Some(message) = self.fold(message) else {
            return self.flush();
        };
        if self.queue.len() >= OUT_MESSAGES_MAX {
            return Err(Error::Backlog {
                messages: self.queue.len(),
            });
        }
        self.queue.push_back((message, fd));
        self.flush()
    }

    /// Folds a message into one of its kind that waits already, where one message says as much as
    /// two; otherwise it comes back.
    fn fold(&mut self, message: ToVm) -> Option<ToVm> {
        for (waiting, _) in &mut self.queue {
            match (waiting, &message) {
                (ToVm::Orders(old), ToVm::Orders(new)) => old.clone_from(new),
                (ToVm::Credit { pages: sum }, ToVm::Credit { pages }) => {
                    sum.0 = sum.0.saturating_add(pages.0);
                }
                (ToVm::Stop, ToVm::Stop) => {}
                _ => continue,
            }
            return None;
        }
        Some(message)
    }

    /// Sends what is queued, as far as the peer has room. That the peer is gone is no error here:
    /// what it said last may still be there to be read, and [`HostLink::recv`] finds the end behind
    /// it.
    ///
    /// # Errors
    /// When the socket fails otherwise.
    pub fn flush(&mut self) -> Result<(), Error> {
        while let Some((message, fd)) = self.queue.front() {
            let bytes = codec::encode(message)?;
            match send_datagram(&self.fd, &bytes, fd.as_ref().map(AsFd::as_fd)) {
                Ok(()) => drop(self.queue.pop_front()),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET | Errno::CONNREFUSED | Errno::NOTCONN) => {
                    self.queue.clear();
                }
                Err(source) => return Err(os("send on")(source)),
            }
        }
        Ok(())
    }

    /// Whether messages wait for the peer to read.
    pub fn is_waiting(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Memory that they take, bytes.
    pub fn unread_bytes(&self) -> u64 {
        let bytes = |(message, _): &(ToVm, _)| {
            let lists = match message {
                ToVm::Candidates { pages } => size_of_val(pages.as_slice()),
                ToVm::Want { gfns } => size_of_val(gfns.as_slice()),
                _ => 0,
            };
            lists + size_of::<(ToVm, Option<OwnedFd>)>()
        };
        self.queue.iter().map(bytes).sum::<usize>() as u64
    }

    /// Whether so many wait that the peer should not be given more to do.
    pub fn is_behind(&self) -> bool {
        self.queue.len() > BEHIND_MESSAGES
    }

    /// Takes one message that is there; `None` when there is none. `buffer` is scratch space of
    /// [`MESSAGE_BYTES_MAX`] bytes. Descriptors that a VM sends after its first word are closed by the
    /// kernel.
    ///
    /// # Errors
    /// [`Error::Closed`] at the end; anything else means that the peer breaks the protocol.
    pub fn recv(&mut self, buffer: &mut [u8]) -> Result<Option<ToHost>, Error> {
        let mut received = recv_datagram(&self.fd, buffer, TakeFd::Never);
        if matches!(received, Err(Errno::CONNRESET)) {
            // The peer left without reading everything. The kernel says so once, before it hands
            // out what the peer had sent, which may be how the VM ended.
            received = recv_datagram(&self.fd, buffer, TakeFd::Never);
        }
        match received {
            Ok(Datagram { bytes: 0, .. }) => Err(Error::Closed),
            Ok(Datagram { bytes, .. }) => Ok(Some(codec::decode(&buffer[..bytes])?)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(Errno::MSGSIZE) => Err(codec::Error::Oversized {
                bytes: buffer.len() + 1,
            }
            .into()),
            Err(source) => Err(os("receive from")(source)),
        }
    }
}

impl AsFd for HostLink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests;
