//! The tap: whoever wants to know what happens to a VM's pages hears of every step, in order.
//!
//! Every transition passes through one place (`memory`), and each hold of the lock has a
//! cause. With nobody listening a step costs one look at an empty option.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use crate::page::state::PageEvent;
use crate::units::{Gfn, GfnRange};

/// Hears of the steps that pages take.
pub trait Observer: Debug + Send + Sync {
    /// Pages have taken a step. The caller holds the VM's memory: this must neither wait nor call the
    /// pager.
    fn step(&self, step: &Step);
}

/// Neighbouring pages took the same step, in one hold of the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// The pages.
    pub pages: GfnRange,
    /// The step, with the slot or frame of the first of them.
    pub event: PageEvent,
    /// On whose account.
    pub cause: Cause,
    /// Since the lock was taken, or since the step before under the same hold.
    pub took: Duration,
}

/// On whose account somebody holds a VM's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// A page fault.
    Fault,
    /// The guest: its balloon, or its report of free pages.
    Guest,
    /// The scan for pages worth sharing.
    Scan,
    /// A merge with a frame.
    Merge,
    /// Swapping, and the search for what to swap.
    Swap,
    /// The sample of the working set.
    Sample,
    /// A count or measurement.
    Census,
    /// The credit account and what the host manager is told.
    Account,
}

/// What one hold of the lock has to tell.
#[derive(Debug)]
pub(super) struct Watch<'a> {
    observer: &'a dyn Observer,
    cause: Cause,
    since: Instant,
    run: Option<(GfnRange, PageEvent)>,
}

impl<'a> Watch<'a> {
    /// The lock was taken.
    pub fn begin(observer: &'a dyn Observer, cause: Cause) -> Watch<'a> {
        Watch {
            observer,
            cause,
            since: Instant::now(),
            run: None,
        }
    }

    /// A page takes a step.
    pub fn saw(&mut self, gfn: Gfn, event: PageEvent) {
        let same = |old: PageEvent| std::mem::discriminant(&old) == std::mem::discriminant(&event);
        match &mut self.run {
            Some((run, old)) if run.end() == gfn && same(*old) => run.count += 1,
            _ => {
                self.tell();
                self.run = Some((GfnRange::one(gfn), event));
            }
        }
    }

    fn tell(&mut self) {
        let Some((pages, event)) = self.run.take() else {
            return;
        };
        let now = Instant::now();
        self.observer.step(&Step {
            pages,
            event,
            cause: self.cause,
            took: now - self.since,
        });
        self.since = now;
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.tell();
    }
}
