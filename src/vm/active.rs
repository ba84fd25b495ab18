//! How much of its memory the VM uses: joins the pager's sampling with the estimate.
//!
//! The VM's clocks ([`VmClock`]) come from the scheduler's account of its vCPUs. *Free* time is wall
//! time less what the first vCPU waited for a CPU of the host, and less what the VM was held at the
//! gate. *Busy* time is what all vCPUs had a CPU, including what the VM process did for the guest on
//! the vCPU's thread. So a VM that gets no CPU does not look idle, and a VM that has nothing to do
//! does. Where the kernel keeps no account a VM never counts as asleep.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{Dir, Mode, OFlags, openat};
use rustix::thread::Pid;

use crate::mem::tasks::{Done, Rest, Task};
use crate::mem::{self, Pager, sample};
use crate::policy::sampling::{Estimate, Sampler, VmClock};
use crate::units::Pages;
use crate::words::Sampling;

/// How long a thread of that name may take to appear.
const APPEARS: Duration = Duration::from_millis(100);

/// The thread of a vCPU and the scheduler's account of it, `/proc/self/task/N/schedstat`: time on a
/// CPU, time waiting for one (ns).
#[derive(Debug)]
pub(super) struct Account {
    pub thread: Pid,
    file: File,
}

/// The threads of this process, as /proc shows them: a folder that stays open where no path leads.
#[derive(Debug)]
pub(super) struct Threads(OwnedFd);

impl Threads {
    pub fn open() -> io::Result<Threads> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open("/proc/self/task", flags, Mode::empty())?;
        Ok(Threads(folder))
    }

    /// The accounts of this process's `count` vCPUs, whose threads were just started, in order; none
    /// where the kernel keeps none.
    pub fn accounts(&self, count: u8) -> Vec<Account> {
        let accounts = (0..count).map(|vcpu| self.account_of(&format!("vcpu{vcpu}")));
        accounts.collect::<Option<_>>().unwrap_or_default()
    }

    fn account_of(&self, name: &str) -> Option<Account> {
        let deadline = Instant::now() + APPEARS;
        loop {
            let entries = Dir::read_from(&self.0).ok()?.flatten();
            let mut numbers =
                entries.filter_map(|entry| entry.file_name().to_str().ok()?.parse().ok());
            let is_named = |thread: &i32| {
                let mut comm = String::new();
                let read = self
                    .file(*thread, "comm")
                    .map(|mut file| file.read_to_string(&mut comm));
                read.is_some_and(|read| read.is_ok()) && comm.trim() == name
            };
            if let Some(number) = numbers.find(is_named) {
                return Some(Account {
                    thread: Pid::from_raw(number)?,
                    file: self.file(number, "schedstat")?,
                });
            }
            if Instant::now() > deadline {
                return None;
            }
            std::thread::yield_now();
        }
    }

    fn file(&self, thread: i32, name: &str) -> Option<File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = openat(&self.0, format!("{thread}/{name}"), flags, Mode::empty());
        file.ok().map(File::from)
    }
}

/// Time between two looks at the sample.
const LOOK: Duration = Duration::from_millis(100);
/// The same in a VM that is still, at most. Chosen: what is counted meanwhile is no more than what a guest
/// touches without being noticed to run.
const LOOK_STILL_MAX: Duration = Duration::from_secs(10);

/// Estimates one VM's working set.
#[derive(Debug)]
pub(super) struct Active {
    pager: Arc<Pager>,
    sampler: Option<Sampler>,
    /// When the guest was started.
    started: Option<Instant>,
    /// When it was looked at last.
    looked: Instant,
    /// How long the period lasts on from then, at least.
    left: Duration,
    rest: Rest,
    accounts: Vec<Account>,
    blocked: Duration,
    blocked_since: Option<Instant>,
    counted: u32,
}

impl Active {
    pub fn new(pager: Arc<Pager>, sampling: Sampling, seed: u64) -> Active {
        let pages = sampling.pages.min(u32::from(sample::SAMPLE_MAX));
        Active {
            pager,
            sampler: (pages > 0).then(|| Sampler::new(pages, sampling.period, seed)),
            started: None,
            looked: Instant::now(),
            left: LOOK,
            rest: Rest::default(),
            accounts: Vec::new(),
            blocked: Duration::ZERO,
            blocked_since: None,
            counted: 0,
        }
    }

    /// The guest runs from now on; `accounts` are those of its vCPUs.
    pub fn start(&mut self, accounts: Vec<Account>) {
        let now = Instant::now();
        self.started = Some(now);
        self.looked = now;
        self.accounts = accounts;
    }

    /// For how long the VM has been still.
    pub fn set_still(&mut self, still: Duration) {
        self.rest.set_still(still);
    }

    /// The gate was closed or opened.
    pub fn block(&mut self, blocked: bool) {
        match (self.blocked_since, blocked) {
            (None, true) => self.blocked_since = Some(Instant::now()),
            (Some(since), false) => {
                self.blocked += since.elapsed();
                self.blocked_since = None;
            }
            _ => {}
        }
    }

    fn clock(&self) -> VmClock {
        let running = self
            .blocked_since
            .map_or(Duration::ZERO, |since| since.elapsed());
        let elapsed = self
            .started
            .map_or(Duration::ZERO, |started| started.elapsed());
        let accounts: Option<Vec<_>> = self.accounts.iter().map(account).collect();
        let accounts = accounts.unwrap_or_default();
        let waited = accounts
            .first()
            .map_or(Duration::ZERO, |(_, waited)| *waited);
        let free = elapsed
            .saturating_sub(waited)
            .saturating_sub(self.blocked + running);
        let busy = if accounts.is_empty() {
            free
        } else {
            accounts.iter().map(|(busy, _)| *busy).sum()
        };
        VmClock { free, busy }
    }

    /// What is known; `size` is the memory that can be sampled.
    pub fn estimate(&self, size: Pages) -> Option<Estimate> {
        self.sampler.as_ref()?.estimate(size)
    }
}

impl Task for Active {
    fn due(&self) -> Option<Instant> {
        let period = self.rest.period(LOOK, LOOK_STILL_MAX.min(self.left));
        (self.started.is_some() && self.sampler.is_some()).then(|| self.looked + period)
    }

    /// Counts touches, and begins a new sample when the period is over.
    fn run(&mut self, _until: Instant) -> Result<Done, mem::Error> {
        let start = Instant::now();
        self.looked = start;
        self.rest.looked();
        let clock = self.clock();
        let pager = &self.pager;
        let Some(sampler) = &mut self.sampler else {
            return Ok(Done::default());
        };
        let touched = pager.touched_in_sample()?;
        for _ in self.counted..touched {
            sampler.touch();
        }
        self.counted = self.counted.max(touched);
        let mut sampled = 0;
        if sampler.is_due(clock) {
            let frames = Pages(u64::from(pager.ram().layout().end().0));
            let drawn = sampler.begin(clock, frames, |gfn| pager.can_sample(gfn));
            sampled = pager.begin_sample(&drawn)?;
            // What could not be taken after all is as if it had not been drawn.
            for _ in usize::try_from(sampled).unwrap_or(usize::MAX)..drawn.len() {
                sampler.withdraw();
            }
            self.counted = 0;
        }
        // None is left where nothing could be sampled: that is tried again as if there were.
        self.left = match sampler.left(clock) {
            Duration::ZERO => LOOK_STILL_MAX,
            left => left,
        };
        Ok(Done::since(start, sampled))
    }
}

/// Time that a vCPU had a CPU, and time that it was ready and had none; `None` where the kernel does
/// not tell.
fn account(account: &Account) -> Option<(Duration, Duration)> {
    let mut buffer = [0u8; 96];
    let len = account.file.read_at(&mut buffer, 0).ok()?;
    let text = std::str::from_utf8(buffer.get(..len)?).ok()?;
    let mut fields = text.split_ascii_whitespace().map(str::parse);
    let mut next = || Some(Duration::from_nanos(fields.next()?.ok()?));
    Some((next()?, next()?))
}
