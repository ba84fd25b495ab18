//! What a VM process tells the host manager about itself.

use std::time::Instant;

use super::active::Active;
use crate::link::message::Report;
use crate::machine::Machine;
use crate::mem::{self, Pager};

/// The figures of this moment; the time to the guest's first instruction counts from `started`.
///
/// # Errors
/// When /proc does not answer.
pub(super) fn report(
    pager: &Pager,
    active: &Active,
    machine: Option<&Machine>,
    started: Instant,
) -> Result<Report, mem::Error> {
    let mut report = pager.report()?;
    report.take_path = Some(pager.path());
    let size = pager.ram().layout().size();
    let can_be_sampled = size.saturating_sub(report.shared + report.orphaned);
    if let Some(estimate) = active.estimate(can_be_sampled) {
        report.active = Some(estimate.active);
        report.active_error = estimate.error;
    }
    if let Some(machine) = machine {
        let balloon = machine.balloon();
        report.balloon_driver = balloon.driver_up();
        report.balloon_actual = balloon.actual();
        report.guest_memory = balloon.stats();
        report.guest = machine.console().report();
        report.start_us = machine
            .first_run()
            .and_then(|at| at.duration_since(started).as_micros().try_into().ok());
    }
    Ok(report)
}
