//! The link between a VM process and the host manager: one Unix SOCK_SEQPACKET socket.
//!
//! [`message`] is the vocabulary.

pub mod message;
