//! How much of its memory the VM uses: joins the pager's sampling with the estimate.
//!
//! The VM's clocks ([`VmClock`]) come from the scheduler's account of its vCPUs. *Free* time is wall
//! time less what the first vCPU waited for a CPU of the host, and less what the VM was held at the
//! gate. *Busy* time is what all vCPUs had a CPU, including what the VM process did for the guest on
//! the vCPU's thread. So a VM that gets no CPU does not look idle, and a VM that has nothing to do
//! does. Where the kernel keeps no account a VM never counts as asleep.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use crate::mem::{self, Pager, sample};
use crate::policy::sampling::{Estimate, Sampler, VmClock};
use crate::units::Pages;
use crate::words::Sampling;

/// How long a thread of that name may take to appear.
const APPEARS: Duration = Duration::from_millis(100);

/// The scheduler's accounts of this process's `count` vCPUs, whose threads were just started, in
/// order; none where the kernel keeps none.
pub(super) fn accounts(count: u8) -> Vec<File> {
    let accounts = (0..count).map(|vcpu| account_of(&format!("vcpu{vcpu}")));
    accounts.collect::<Option<_>>().unwrap_or_default()
}

fn account_of(name: &str) -> Option<File> {
    let deadline = Instant::now() + APPEARS;
    loop {
        let found = std::fs::read_dir("/proc/self/task")
            .ok()?
            .flatten()
            .find(|task| {
                std::fs::read_to_string(task.path().join("comm"))
                    .is_ok_and(|comm| comm.trim() == name)
            });
        if let Some(task) = found {
            return File::open(task.path().join("schedstat")).ok();
        }
        if Instant::now() > deadline {
            return None;
        }
        std::thread::yield_now();
    }
}

/// Estimates one VM's working set.
#[derive(Debug)]
pub(super) struct Active {
    sampler: Option<Sampler>,
    started: Instant,
    /// `/proc/self/task/N/schedstat` of each vCPU: time on a CPU, time waiting for one (ns).
    accounts: Vec<File>,
    held: Duration,
    held_since: Option<Instant>,
    counted: u32,
}

impl Active {
    pub fn new(sampling: Sampling, seed: u64) -> Active {
        let pages = sampling.pages.min(u32::from(sample::SAMPLE_MAX));
        Active {
            sampler: (pages > 0).then(|| Sampler::new(pages, sampling.period, seed)),
            started: Instant::now(),
            accounts: Vec::new(),
            held: Duration::ZERO,
            held_since: None,
            counted: 0,
        }
    }

    /// The guest runs from now on; `accounts` are those of its vCPUs.
    pub fn start(&mut self, accounts: Vec<File>) {
        self.started = Instant::now();
        self.accounts = accounts;
    }

    /// The gate was closed or opened.
    pub fn hold(&mut self, held: bool) {
        match (self.held_since, held) {
            (None, true) => self.held_since = Some(Instant::now()),
            (Some(since), false) => {
                self.held += since.elapsed();
                self.held_since = None;
            }
            _ => {}
        }
    }

    fn clock(&self) -> VmClock {
        let held = self
            .held_since
            .map_or(Duration::ZERO, |since| since.elapsed());
        let elapsed = self.started.elapsed();
        let accounts: Option<Vec<_>> = self.accounts.iter().map(account).collect();
        let accounts = accounts.unwrap_or_default();
        let waited = accounts
            .first()
            .map_or(Duration::ZERO, |(_, waited)| *waited);
        let free = elapsed
            .saturating_sub(waited)
            .saturating_sub(self.held + held);
        let busy = if accounts.is_empty() {
            free
        } else {
            accounts.iter().map(|(busy, _)| *busy).sum()
        };
        VmClock { free, busy }
    }

    /// Counts touches, and begins a new sample when the period is over.
    ///
    /// # Errors
    /// The VM cannot go on.
    pub fn turn(&mut self, pager: &Pager) -> Result<(), mem::Error> {
        let clock = self.clock();
        let Some(sampler) = &mut self.sampler else {
            return Ok(());
        };
        let touched = pager.touched_in_sample()?;
        for _ in self.counted..touched {
            sampler.touch();
        }
        self.counted = self.counted.max(touched);
        if sampler.is_due(clock) {
            let frames = Pages(u64::from(pager.ram().layout().end().0));
            let drawn = sampler.begin(clock, frames, |gfn| pager.can_sample(gfn));
            let sampled = pager.begin_sample(&drawn)?;
            // What could not be taken after all is as if it had not been drawn.
            for _ in usize::try_from(sampled).unwrap_or(usize::MAX)..drawn.len() {
                sampler.withdraw();
            }
            self.counted = 0;
        }
        Ok(())
    }

    /// What is known; `size` is the memory that can be sampled.
    pub fn estimate(&self, size: Pages) -> Option<Estimate> {
        self.sampler.as_ref()?.estimate(size)
    }
}

/// Time that a vCPU had a CPU, and time that it was ready and had none; `None` where the kernel does
/// not tell.
fn account(file: &File) -> Option<(Duration, Duration)> {
    let mut buffer = [0u8; 96];
    let len = file.read_at(&mut buffer, 0).ok()?;
    let text = std::str::from_utf8(buffer.get(..len)?).ok()?;
    let mut fields = text.split_ascii_whitespace().map(str::parse);
    let mut next = || Some(Duration::from_nanos(fields.next()?.ok()?));
    Some((next()?, next()?))
}
