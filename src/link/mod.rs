//! The link between a VM process and the host manager: one Unix SOCK_SEQPACKET socket.
//!
//! [`message`] is the vocabulary, [`codec`] turns it into datagrams, [`socket`] carries them:
//! [`socket::Link`] for the VM side, which may wait, and [`socket::HostLink`] for the host side,
//! which never does.
//!
//! Order of the handshake: the VM sends `Hello`; the host answers `Welcome`, which carries the
//! frame pool's read-only descriptor, or `Refused` and closes. Either side closing ends the link.

pub mod codec;
pub mod message;
pub mod socket;
