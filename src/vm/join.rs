//! The first messages of a link, and its last.

use std::time::Duration;

use super::Error;
use crate::link::message::{ToHost, ToVm, Welcome};
use crate::link::socket::{self, Link, Received};
use crate::sys::pool_view::PoolView;

/// How long the host manager may take to admit a VM.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a VM that has ended waits for the host manager to hear how.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(1);

/// Says hello over `link`, as the VM that its launcher registers.
///
/// # Errors
/// When nobody is at the other end.
pub fn say_hello(link: &Link) -> Result<(), socket::Error> {
    link.send(&ToHost::Hello)
}

/// Waits for the answer to [`say_hello`].
///
/// # Errors
/// When the VM is not admitted.
pub(super) fn join(link: &Link) -> Result<(Welcome, PoolView), Error> {
    terms(link.recv(Some(WELCOME_TIMEOUT))?)
}

/// The terms in the answer to a hello.
///
/// # Errors
/// When the VM is not admitted.
pub(super) fn terms(answer: Received) -> Result<(Welcome, PoolView), Error> {
    match answer {
        Received::Message(ToVm::Welcome(welcome), Some(pool)) => {
            let view = PoolView::new(pool, welcome.pool_frames);
            Ok((welcome, view))
        }
        Received::Message(ToVm::Welcome(_), None) => Err(Error::Protocol("sent no frame pool")),
        Received::Message(ToVm::Refused { reason }, _) => Err(Error::Refused(reason)),
        Received::Message(..) => Err(Error::Protocol("did not answer the VM's hello")),
        Received::Closed => Err(Error::Link(socket::Error::Closed)),
        Received::TimedOut => Err(Error::Protocol("did not answer in time")),
    }
}
