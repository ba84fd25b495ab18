//! The threads of a VM process: which there are, what each may wait for, what each may ask of the
//! kernel.
//!
//! [`table`] is that list as data. Nobody starts a thread but [`Thread::spawn`], which reads the
//! thread's row: its name, its stack, and the system calls that [`sandbox`] leaves it. The thread
//! confines itself before it does anything else, so that no moment exists at which a thread of the
//! table runs without its filter. The main thread, which nobody spawns, does so by
//! [`sandbox::enter`] before the first byte of the guest's files is read.
//!
//! A thread inherits the filter of the thread that starts it, and adds its own: it may do what both
//! rows allow.

mod bpf;
mod calls;
pub mod jail;
pub mod sandbox;
pub mod table;

use std::error::Error;
use std::io;
use std::thread::{Builder, JoinHandle};

pub use self::table::{
    BUILDER, CONSOLE, FAULTS, INSPECTOR, KEYS, LOG, MAIN, STATISTICS, TABLE, VCPU,
};

/// A row of the table: one thread, or several alike.
#[derive(Debug)]
pub struct Thread {
    /// Its name, as `ps -L` shows it. Where there are several alike a number follows.
    pub name: &'static str,
    /// Its stack. Only touched pages cost memory.
    pub stack: Stack,
    /// All that it may wait for, but for a lock that nobody holds while waiting.
    pub waits_for: &'static [Wait],
    /// What it may ask of the kernel, beside what every thread may.
    pub needs: &'static [Need],
}

/// The memory of a thread's stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stack {
    /// The one that the kernel gave the process.
    Process,
    /// One of so many bytes.
    Bytes(usize),
}

/// What a thread may have to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// A guest page that is not there, and the credit for it.
    Page,
    /// A device's transport. A vCPU may sit in it for as long as a page takes.
    Transport,
    /// The gate that holds the vCPUs.
    Gate,
    /// The idle port: an interrupt, or the time that the guest set.
    Idle,
    /// The reading of userfaultfd events, while a mapping moves.
    Events,
    /// The swap file, or the guest's disk.
    Disk,
    /// The terminal, pipe or file behind an [`Out`](crate::out::Out), or a person's keys.
    Terminal,
    /// The time of its next work.
    Clock,
}

impl Wait {
    /// The threads without which the wait does not end. None: the kernel, a person or the time
    /// ends it.
    pub fn ended_by(self) -> &'static [&'static Thread] {
        match self {
            Wait::Page => const { &[&FAULTS, &MAIN] },
            Wait::Transport => const { &[&VCPU, &STATISTICS] },
            Wait::Gate => const { &[&MAIN] },
            Wait::Events => const { &[&FAULTS] },
            Wait::Idle | Wait::Disk | Wait::Terminal | Wait::Clock => &[],
        }
    }
}

/// What a thread does that takes system calls which not every thread may make. Any other call ends the
/// process: see [`sandbox`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Reading what the guest boots from, which is open.
    Image,
    /// Making a KVM machine.
    Build,
    /// Starting a thread of this process.
    Spawn,
    /// Taking guest pages out and giving them back: userfaultfd, page tables, frames of the pool.
    Memory,
    /// The swap file.
    Swap,
    /// The guest's disk.
    Disk,
    /// Running a vCPU.
    Vcpu,
    /// Reading a person's keys.
    Keys,
    /// The link to the host manager, and signals.
    Link,
    /// Letting in a host manager that was started anew. No thread connects to anybody.
    Door,
    /// Alarms of the vCPUs' CPU time.
    Alarms,
}

impl Thread {
    /// Starts the one thread of this row, which does `work` once it is confined.
    ///
    /// # Errors
    /// When the kernel refuses the thread. A filter that it refuses is a panic of the thread, which
    /// stops a VM process.
    pub fn spawn(
        &'static self,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        self.spawn_named(self.name.to_owned(), work)
    }

    /// Starts thread `number` of this row.
    ///
    /// # Errors
    /// As [`Thread::spawn`].
    pub fn spawn_nth(
        &'static self,
        number: usize,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        self.spawn_named(format!("{}{number}", self.name), work)
    }

    #[cfg_attr(
        not(test),
        expect(
            clippy::disallowed_methods,
            reason = "the one place where threads are started"
        )
    )]
    fn spawn_named(
        &'static self,
        name: String,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let mut builder = Builder::new().name(name);
        if let Stack::Bytes(bytes) = self.stack {
            builder = builder.stack_size(bytes);
        }
        builder.spawn(move || {
            // Nobody waits for this: it takes as long as starting the thread.
            if let Err(error) = sandbox::confine(self) {
                panic!("{error}: {:?}", error.source());
            }
            work();
        })
    }
}

#[cfg(test)]
mod tests;
