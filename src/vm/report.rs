//! What a VM process tells the host manager about itself: what it does not know yet, ten times a second
//! at most, and while the VM is still seldom.

use std::time::{Duration, Instant};

use super::active::Active;
use crate::machine::Machine;
use crate::mem::tasks::Rest;
use crate::mem::{self, Pager};
use crate::words::Report;

/// From one look whether there is something to report to the next.
const PERIOD: Duration = Duration::from_millis(100);
/// The same in a VM that is still, at most.
const STILL_MAX: Duration = Duration::from_secs(4);

/// When to report, and what the host manager knows.
#[derive(Debug)]
pub(super) struct Reports {
    /// When it was looked last.
    looked: Instant,
    rest: Rest,
    last: Option<Report>,
}

impl Reports {
    /// Nothing was reported yet; the first look is in a period.
    pub fn new(now: Instant) -> Reports {
        Reports {
            looked: now,
            rest: Rest::default(),
            last: None,
        }
    }

    /// For how long the VM has been still.
    pub fn set_still(&mut self, still: Duration) {
        self.rest.set_still(still);
    }

    /// When to look next.
    pub fn due(&self) -> Instant {
        self.looked + self.rest.period(PERIOD, STILL_MAX)
    }

    /// This is a look.
    pub fn look(&mut self, now: Instant) {
        self.looked = now;
        self.rest.looked();
    }

    /// The report, if the host manager does not know all of it.
    pub fn news(&mut self, report: Report) -> Option<Report> {
        if self.last.as_ref() == Some(&report) {
            return None;
        }
        self.last = Some(report.clone());
        Some(report)
    }

    /// The host manager knows nothing: it is another one.
    pub fn forget(&mut self) {
        self.last = None;
    }
}

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
        measured.counters.hinted_pages = balloon.hinted().0;
        measured.guest = machine.console().report();
        measured.start_us = machine
            .first_run()
            .and_then(|at| at.duration_since(started).as_micros().try_into().ok());
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Pages;

    #[test]
    fn only_news_are_told() {
        let report = |pages| Report {
            overhead: Pages(pages),
            ..Report::default()
        };
        let mut reports = Reports::new(Instant::now());
        assert_eq!(reports.news(report(1)), Some(report(1)));
        assert_eq!(reports.news(report(1)), None);
        assert_eq!(reports.news(report(2)), Some(report(2)));
        reports.forget();
        assert_eq!(reports.news(report(2)), Some(report(2)));
    }

    #[test]
    fn a_vm_that_stirs_looks_at_once_whether_there_are_news() {
        let start = Instant::now();
        let ms = Duration::from_millis;
        let mut reports = Reports::new(start);
        assert_eq!(reports.due(), start + PERIOD);
        reports.set_still(ms(60_000));
        reports.look(start);
        assert_eq!(reports.due(), start + STILL_MAX);
        reports.set_still(ms(0));
        assert_eq!(reports.due(), start + PERIOD);
    }
}
