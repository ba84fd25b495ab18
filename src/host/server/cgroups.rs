//! A memory cgroup for each VM that this host manager starts, where it may make some.
//!
//! To move a process the kernel waits until every CPU has passed a quiet state, 11 to 27 ms on Linux
//! 6.1 and 6.12, and 0.2 to 0.5 ms for those that follow at once. So a thread of its own makes the
//! cgroups, bounds them and moves the processes, while these start; no VM and no decision waits for
//! it. What a process has touched by then, its program and some of its guest's first pages, stays
//! charged elsewhere: /proc shows it, and what is measured is the more of the two.
//!
//! VMs that join by themselves live longer than their host manager, which cgroups of its own need not:
//! they stay where their launcher put them.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crate::sys::cgroup::{Cgroup, Home};
use crate::units::Pages;

/// Between two attempts to remove a cgroup whose process is about to be gone.
const AGAIN: Duration = Duration::from_millis(20);
/// At the end it is tried for no longer than this.
const FINISH: Duration = Duration::from_secs(1);

/// Memory of the thread's stack, bytes.
const STACK_BYTES: usize = 64 << 10;

/// Of the process with that number.
type Made = (i32, Cgroup);

#[derive(Debug)]
enum Job {
    /// A process is to have a cgroup with that bound.
    Take(i32, Pages),
    /// Its process has ended.
    Remove(Cgroup),
}

/// The thread, and what it has made.
#[derive(Debug)]
pub(super) struct Keeper {
    jobs: Option<Sender<Job>>,
    made: Arc<Mutex<Vec<Made>>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Keeps cgroups in `home` from now on.
    ///
    /// # Errors
    /// When the kernel refuses the thread.
    #[expect(
        clippy::disallowed_methods,
        reason = "the table has the threads of VM processes, and this is none"
    )]
    pub fn start(home: Home) -> io::Result<Keeper> {
        let (jobs, coming) = channel();
        let made = Arc::default();
        let mut worker = Worker {
            home,
            aside: None,
            divided: false,
            unbound: Vec::new(),
            all: Vec::new(),
            over: Vec::new(),
            made: Arc::clone(&made),
        };
        let thread = Builder::new()
            .name("cgroups".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || worker.work(&coming))?;
        Ok(Keeper {
            jobs: Some(jobs),
            made,
            thread: Some(thread),
        })
    }

    /// A process of ours gets one, bounded to `most`.
    pub fn take(&self, pid: i32, most: Pages) {
        self.give(Job::Take(pid, most));
    }

    /// The process of one has ended.
    pub fn remove(&self, cgroup: Cgroup) {
        self.give(Job::Remove(cgroup));
    }

    /// What has been made since the last call.
    pub fn made(&self) -> Vec<Made> {
        std::mem::take(&mut *self.made.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn give(&self, job: Job) {
        let jobs = self.jobs.as_ref().expect("it ends with the keeper");
        // A worker that is gone has said why.
        let _ = jobs.send(job);
    }
}

impl Drop for Keeper {
    /// Waits until those are removed whose processes have ended.
    fn drop(&mut self) {
        self.jobs = None;
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

struct Worker {
    home: Home,
    /// Where this process is meanwhile.
    aside: Option<Cgroup>,
    /// Whether the home's children have memory charged.
    divided: bool,
    /// Those that cannot be bounded before that.
    unbound: Vec<(Cgroup, Pages)>,
    /// Every one that was made and not removed.
    all: Vec<Cgroup>,
    /// Of these, the ones whose processes have ended.
    over: Vec<Cgroup>,
    made: Arc<Mutex<Vec<Made>>>,
}

impl Worker {
    fn work(&mut self, jobs: &Receiver<Job>) {
        match self.home.step_aside() {
            Ok(aside) => self.aside = aside,
            Err(error) => return self.complain(&error),
        }
        loop {
            let job = match self.over.is_empty() {
                true => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
                false => jobs.recv_timeout(AGAIN),
            };
            match job {
                Ok(Job::Take(pid, most)) => {
                    if let Err(error) = self.take(pid, most) {
                        self.complain(&error);
                    }
                }
                Ok(Job::Remove(cgroup)) => self.over.push(cgroup),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.finish(),
            }
            self.over.retain(|cgroup| cgroup.remove().is_err());
            self.all.retain(|cgroup| cgroup.folder().exists());
        }
    }

    fn take(&mut self, pid: i32, most: Pages) -> io::Result<()> {
        let cgroup = self.home.make(pid)?;
        self.all.push(cgroup.clone());
        // Of version 2 the first comes before it can be bounded: nobody may be in the home for that.
        if self.divided {
            cgroup.limit(most)?;
        } else {
            self.unbound.push((cgroup.clone(), most));
        }
        cgroup.take_in(pid)?;
        if !self.divided && self.home.divide().is_ok() {
            self.divided = true;
            for (cgroup, most) in std::mem::take(&mut self.unbound) {
                cgroup.limit(most)?;
            }
        }
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.push((pid, cgroup));
        Ok(())
    }

    fn complain(&self, error: &io::Error) {
        let folder = self.home.cgroup().folder().display();
        log::warn!("VM processes have no memory cgroups of their own in {folder}: {error}");
    }

    fn finish(&mut self) {
        let end = Instant::now() + FINISH;
        loop {
            self.all.retain(|cgroup| cgroup.remove().is_err());
            if self.all.is_empty() || Instant::now() >= end {
                break;
            }
            std::thread::sleep(AGAIN);
        }
        if let (Some(aside), true) = (self.aside.take(), self.all.is_empty())
            && let Err(error) = self.home.step_back(&aside)
        {
            log::info!("{} is left: {error}", aside.folder().display());
        }
    }
}
