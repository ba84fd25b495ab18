//! How a thread of a VM process gives up what it does not need, before anything of the guest is read.
//!
//! Everything that a VM needs is open by then. What closes the way back, in each thread:
//!
//! - **System calls**: a list of those that its row needs, with their arguments (`threads::calls`).
//!   Any other ends the process.
//! - **Landlock** (`sys::landlock`): no path can be opened, no TCP port reached, and, where the
//!   kernel has scopes, no abstract socket and no process outside.
//! - **Capabilities**: none, and no new privileges.
//!
//! And for the process as a whole: no core dump, neither now nor by an administrator's program, and
//! nobody without privileges reads its memory by way of /proc.

use std::fs;

use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capability_is_in_bounding_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};
use seccompiler::BpfProgram;

use super::Thread;
use super::bpf;
use super::calls;
use crate::sys::landlock;

/// The kernel refused a part of the sandbox.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter.
    #[error("cannot install the system call filter")]
    Filter(#[from] seccompiler::Error),
    /// Anything else.
    #[error("cannot {what}")]
    Os {
        /// What was to be done.
        what: &'static str,
        /// The kernel's answer.
        source: Errno,
    },
}

fn os(what: &'static str) -> impl FnOnce(Errno) -> Error {
    move |source| Error::Os { what, source }
}

/// The filter that the row of `thread` asks for.
fn filter(thread: &Thread) -> BpfProgram {
    bpf::compile(&calls::rules(thread.needs))
}

/// Confines the calling thread, and those that it starts from now on, to the row of `thread`.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn confine(thread: &Thread) -> Result<(), Error> {
    set_no_new_privs(true).map_err(os("give up new privileges"))?;
    landlock::enter().map_err(os("enter a Landlock domain without any path"))?;
    give_up_capabilities().map_err(os("give up capabilities"))?;
    Ok(seccompiler::apply_filter(&filter(thread))?)
}

/// What concerns the whole process, before it has anything of a guest's. Called by its main thread.
///
/// # Errors
/// When the kernel refuses.
pub fn begin() -> Result<(), Error> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none).map_err(os("forbid core dumps"))?;
    // A program that takes core dumps is not bound by the limit. No mapping is for it: guest RAM,
    // what is staged, compressed or read from swap. There is no such file where there are no dumps.
    if let Err(error) = fs::write("/proc/self/coredump_filter", "0") {
        log::debug!("core dumps are not filtered: {error}");
    }
    bar_capabilities();
    Ok(())
}

/// All of the calling thread's.
fn give_up_capabilities() -> Result<(), Errno> {
    // Of a thread that was started before `begin`, nobody else did that.
    if capability_is_in_bounding_set(CapabilitySet::CHOWN)? {
        bar_capabilities();
    }
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none)
}

/// No program gives any back to the calling thread, or to those that it starts. Whoever may not do
/// this has none.
fn bar_capabilities() {
    let bar =
        |bit| remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1u64 << bit));
    // Behind the last that the kernel knows comes an error.
    let _ = (0..u64::BITS).try_for_each(bar);
}

/// Confines the process and its main thread, which has the row `main`: all others are confined since they
/// were started.
///
/// # Errors
/// When the kernel refuses.
pub fn enter(main: &Thread) -> Result<(), Error> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(os("keep others from reading the process's memory"))?;
    confine(main)
}
