//! The link between a VM process and the host manager: one Unix SOCK_SEQPACKET socket.
//!
//! [`message`] is the vocabulary, [`codec`] turns it into datagrams, [`socket`] carries them:
//! [`socket::Link`] for the VM side and [`socket::HostLink`] for the host side. Neither waits to send;
//! `outbox` says what becomes of a VM's messages meanwhile.
//!
//! Order of the handshake: the VM sends `Hello`; the host answers `Welcome`, which carries the
//! frame pool's read-only descriptor, or `Refused` and closes. Either side closing ends the link.
//! A new link between the two is made the other way round: the host connects to the VM's [`door`] and
//! sends `Knock`; the VM answers `Again`, and the host `Welcome` or `Refused`.

pub mod codec;
pub mod door;
pub mod message;
mod outbox;
pub mod socket;
