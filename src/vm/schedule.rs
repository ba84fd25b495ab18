//! Which task runs when, and how much of the time all of them take together.
//!
//! Tasks stand in the order of their priority, each with the memory state from which on it is
//! *urgent*: an urgent task runs whenever it is due. The others share what the [`Budget`] leaves, the
//! one that has waited longest first. Urgent work is charged to the budget as well: while the VM
//! swaps, it does not scan. A task that has waited long enough runs once all the same, so that no
//! state lasts for want of a census.

use std::time::{Duration, Instant};

use crate::mem;
use crate::mem::tasks::Task;
use crate::words::MemState;

/// What one run of a task may take, so that messages are heard in between.
const SLICE: Duration = Duration::from_millis(2);
/// A task that is overdue by so much does not wait any longer.
const OVERDUE: Duration = Duration::from_secs(1);

/// A task and the memory state from which on it is urgent, if there is one.
pub(super) type Ranked<'a> = (&'a mut dyn Task, Option<MemState>);

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Schedule {
    budget: Budget,
}

impl Schedule {
    /// All of the budget is there.
    pub fn new(now: Instant) -> Schedule {
        Schedule {
            budget: Budget::new(now),
        }
    }

    /// Runs each task that is due, once, as far as the budget reaches.
    ///
    /// # Errors
    /// The VM cannot go on.
    pub fn turn(
        &mut self,
        tasks: &mut [Ranked<'_>],
        state: MemState,
        now: Instant,
    ) -> Result<(), mem::Error> {
        let mut now = now;
        for urgent in [true, false] {
            let mut of_rank: Vec<&mut Ranked<'_>> = tasks
                .iter_mut()
                .filter(|(_, urgent_from)| is_urgent(*urgent_from, state) == urgent)
                .collect();
            if !urgent {
                of_rank.sort_by_key(|(task, _)| task.due());
            }
            for (task, _) in of_rank {
                self.budget.refill(now);
                let starts = task.due().map(|due| self.start(due, urgent, now));
                if starts.is_some_and(|starts| starts <= now) {
                    let done = task.run(now + SLICE)?;
                    self.budget.spend(done.took);
                    now += done.took;
                }
            }
        }
        Ok(())
    }

    /// When the next task runs; `None` while none has work.
    pub fn next(&self, tasks: &[Ranked<'_>], state: MemState, now: Instant) -> Option<Instant> {
        let start = |(task, urgent_from): &Ranked<'_>| {
            task.due()
                .map(|due| self.start(due, is_urgent(*urgent_from, state), now))
        };
        tasks.iter().filter_map(start).min()
    }

    /// When a task runs that is due at `due`.
    fn start(&self, due: Instant, urgent: bool, now: Instant) -> Instant {
        match urgent {
            true => due,
            false => due.max(self.budget.opens(now).min(due + OVERDUE)),
        }
    }
}

fn is_urgent(from: Option<MemState>, state: MemState) -> bool {
    from.is_some_and(|from| state >= from)
}

/// Time that tasks may take: a bucket that fills as time goes by.
#[derive(Debug)]
struct Budget {
    /// Saved up; `owed` is zero then.
    saved: Duration,
    /// Taken beyond what there was.
    owed: Duration,
    filled: Instant,
}

impl Budget {
    /// One in so many: the guest needs the time too. Chosen: a scan at its full rate takes less on
    /// any machine seen.
    const PART: u32 = 4;
    /// What can be saved up: an idle VM does not scan for seconds on end.
    const SAVED_MAX: Duration = Duration::from_millis(20);
    /// What can be owed: the others wait no longer than four times this, however much is swapped. Chosen:
    /// with twenty times as much a scan never found in the demo what would have ended the swapping.
    const OWED_MAX: Duration = Duration::from_millis(5);

    fn new(now: Instant) -> Budget {
        Budget {
            saved: Budget::SAVED_MAX,
            owed: Duration::ZERO,
            filled: now,
        }
    }

    fn refill(&mut self, now: Instant) {
        let gained = now.saturating_duration_since(self.filled) / Budget::PART;
        let rest = gained.saturating_sub(self.owed);
        self.owed = self.owed.saturating_sub(gained);
        self.saved = (self.saved + rest).min(Budget::SAVED_MAX);
        self.filled = self.filled.max(now);
    }

    fn spend(&mut self, took: Duration) {
        let beyond = took.saturating_sub(self.saved);
        self.saved = self.saved.saturating_sub(took);
        self.owed = (self.owed + beyond).min(Budget::OWED_MAX);
    }

    /// From when on there is something to spend.
    fn opens(&self, now: Instant) -> Instant {
        match self.saved {
            Duration::ZERO => self.filled.max(now) + self.owed * Budget::PART,
            _ => now,
        }
    }
}

#[cfg(test)]
mod tests;
