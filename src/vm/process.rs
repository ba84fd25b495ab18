//! STAND-IN until the VM process is merged: joins the host manager, reports nothing but its
//! existence, and ends when it is told to. It boots no guest.

use std::time::Duration;

use crate::config::VmSpec;
use crate::link::message::{Exit, ExitReason, Hello, ToHost, ToVm};
use crate::link::socket::{Error, Link, Received};
use crate::units::Pages;

/// Runs the VM of `spec` until it ends; the host manager is at the other end of `link`.
///
/// # Errors
/// When the host manager cannot be reached or refuses the VM.
pub fn run(spec: &VmSpec, link: &Link) -> Result<Exit, Error> {
    link.send(&ToHost::Hello(Hello {
        name: spec.name.clone(),
        size: spec.memory,
        reservation: spec.reservation,
        limit: spec.limit,
        shares: spec.shares,
        dynamic_min: spec.dynamic_min,
        dynamic_max: spec.dynamic_max,
        share_group: spec.share_group.clone(),
        held: Pages::ZERO,
    }))?;
    let end = |reason, message| {
        let exit = Exit {
            reason,
            code: 0,
            message,
        };
        link.send(&ToHost::Exited(exit.clone()))?;
        Ok(exit)
    };
    loop {
        match link.recv(Some(Duration::from_millis(100)))? {
            Received::TimedOut => link.send(&ToHost::Report(Box::default()))?,
            Received::Message(ToVm::Stop, _) => return end(ExitReason::Stopped, None),
            Received::Message(ToVm::Refused { reason }, _) => {
                return Ok(Exit {
                    reason: ExitReason::Error,
                    code: 0,
                    message: Some(reason),
                });
            }
            Received::Message(..) => {}
            Received::Closed => return Err(Error::Closed),
        }
    }
}
