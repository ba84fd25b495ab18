//! How much of its memory the VM uses: joins the pager's sampling with the estimate.
//!
//! The period is measured in the VM's own run time, here: the time in which its first vCPU could
//! have run, whether it did or waited for an event; time in which it waited for a CPU of the host,
//! or was held at the gate, is none. A VM that gets no CPU does not look idle, and a VM that has
//! nothing to do does.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use crate::mem::{self, Pager, sample};
use crate::policy::sampling::{Estimate, Sampler, Sampling};
use crate::units::Pages;

/// How long a thread of that name may take to appear.
const APPEARS: Duration = Duration::from_millis(100);

/// The scheduler's account of this process's thread of that name, which was just started; `None`
/// where the kernel keeps none.
pub(super) fn waits_of(name: &str) -> Option<File> {
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
    /// `/proc/self/task/N/schedstat` of the first vCPU: time on a CPU, time waiting for one (ns).
    waits: Option<File>,
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
            waits: None,
            held: Duration::ZERO,
            held_since: None,
            counted: 0,
        }
    }

    /// The guest runs from now on; `waits` tells how long its first vCPU waited for a CPU.
    pub fn start(&mut self, waits: Option<File>) {
        self.started = Instant::now();
        self.waits = waits;
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

    fn run_time(&self) -> Duration {
        let held = self.held
            + self
                .held_since
                .map_or(Duration::ZERO, |since| since.elapsed());
        self.started
            .elapsed()
            .saturating_sub(self.waited())
            .saturating_sub(held)
    }

    /// Time that the vCPU was ready and had no CPU; zero where the kernel does not tell.
    fn waited(&self) -> Duration {
        let mut buffer = [0u8; 96];
        let len = self
            .waits
            .as_ref()
            .and_then(|file| file.read_at(&mut buffer, 0).ok());
        let text = len.and_then(|len| std::str::from_utf8(&buffer[..len]).ok());
        let nanoseconds = text
            .and_then(|text| text.split_ascii_whitespace().nth(1))
            .and_then(|field| field.parse().ok());
        Duration::from_nanos(nanoseconds.unwrap_or(0))
    }

    /// Counts touches, and begins a new sample when the period is over.
    ///
    /// # Errors
    /// The VM cannot go on.
    pub fn turn(&mut self, pager: &Pager) -> Result<(), mem::Error> {
        let run_time = self.run_time();
        let Some(sampler) = &mut self.sampler else {
            return Ok(());
        };
        let touched = pager.touched_in_sample()?;
        for _ in self.counted..touched {
            sampler.touch();
        }
        self.counted = self.counted.max(touched);
        if sampler.is_due(run_time) {
            let frames = Pages(u64::from(pager.ram().layout().end().0));
            let drawn = sampler.begin(run_time, frames, |gfn| pager.can_sample(gfn));
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
