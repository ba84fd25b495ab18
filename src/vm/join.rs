//! The first messages of a link, and its last.

use std::time::Duration;

use super::Error;
use crate::config::VmSpec;
use crate::link::message::{Hello, ToHost, ToVm, Welcome};
use crate::link::socket::{self, Link, Received};
use crate::sys::pool_view::PoolView;
use crate::units::Pages;

/// How long the host manager may take to admit a VM.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a VM that has ended waits for the host manager to hear how.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(1);

/// Joins the host manager at the other end of `link`, and waits for its answer. `lease` is the one
/// that the VM redeems.
///
/// # Errors
/// When the VM is not admitted.
pub(super) fn join(
    spec: &VmSpec,
    link: &Link,
    lease: Option<u64>,
) -> Result<(Welcome, PoolView), Error> {
    link.send(&hello(spec, Pages::ZERO, lease))?;
    terms(link.recv(Some(WELCOME_TIMEOUT))?)
}

/// The first message of a link. `held` is what the VM holds already.
pub(super) fn hello(spec: &VmSpec, held: Pages, lease: Option<u64>) -> ToHost {
    ToHost::Hello(Hello {
        name: spec.name.clone(),
        allocation: spec.allocation,
        managed: spec.management.is_managed(),
        share_group: spec.share_group.clone(),
        held,
        lease,
    })
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
