//! What a VM process tells the host manager about itself.

use std::time::Instant;

use super::active::Active;
use crate::machine::Machine;
use crate::mem::{self, Pager};
use crate::words::Report;

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
    let size = pager.ram().layout().size();
    let in_pools = report.measured.shared + report.holding.orphaned;
    let measured = &mut report.measured;
    measured.take_path = Some(pager.path());
    if let Some(estimate) = active.estimate(size.saturating_sub(in_pools)) {
        measured.active = Some(estimate.active);
        measured.active_error = estimate.error;
    }
    if let Some(machine) = machine {
        let balloon = machine.balloon();
        measured.balloon_driver = balloon.driver_up();
        measured.balloon_actual = balloon.actual();
        measured.guest_memory = balloon.stats();
        measured.guest = machine.console().report();
        measured.start_us = machine
            .first_run()
            .and_then(|at| at.duration_since(started).as_micros().try_into().ok());
    }
    Ok(report)
}
