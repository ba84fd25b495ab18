//! Who may enter the guest: each vCPU passes the gate before every KVM_RUN.
//!
//! Closing kicks the vCPUs and does not wait: one that sits in an unresolved page fault cannot
//! leave until the pager serves it, and the pager may be who closes the gate. Whoever must know
//! that the guest stands still asks [`Gate::wait_empty`], with a limit.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::sys::kvm::kick;

/// Independent reasons to hold the vCPUs; they run when none is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// The host manager blocks the VM (its memory state is low).
    Blocked = 1,
    /// The VM process itself needs the guest to stand still.
    Paused = 2,
}

/// What a vCPU is told at the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    /// Enter the guest.
    Enter,
    /// The machine has ended: leave the thread.
    End,
}

#[derive(Debug, Default)]
struct State {
    holds: u8,
    ended: bool,
    /// vCPUs between `enter` and `leave`.
    inside: u32,
    /// vCPU threads that have not ended.
    alive: u32,
}

/// The gate of one machine. Its lock is held for a few instructions at a time, never across a call
/// that waits; the thread list has a lock of its own, taken after it.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Gate {
    /// Holds the vCPUs: each stops before its next entry. Returns at once.
    pub fn close(&self, hold: Hold) {
        self.lock().holds |= hold as u8;
        self.kick_all();
    }

    /// Takes that hold away.
    pub fn open(&self, hold: Hold) {
        self.lock().holds &= !(hold as u8);
        self.changed.notify_all();
    }

    /// Waits at most `limit` until no vCPU is in the guest. True only means something while a hold
    /// is in place, and says nothing of devices: a vCPU's thread may still finish the exit it left
    /// with, which for the balloon reads and writes guest memory and calls the sink.
    pub fn wait_empty(&self, limit: Duration) -> bool {
        self.wait(limit, |state| state.inside == 0)
    }

    /// Ends all vCPU threads: each leaves before its next entry. Returns at once.
    pub(super) fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
        self.kick_all();
    }

    /// Adds a vCPU's thread, counted alive by [`Gate::thread_starts`].
    pub(super) fn attach(&self, thread: JoinHandle<()>) {
        self.lock_threads().push(thread);
    }

    pub(super) fn thread_starts(&self) {
        self.lock().alive += 1;
    }

    pub(super) fn thread_ends(&self) {
        self.lock().alive -= 1;
        self.changed.notify_all();
    }

    /// Called by a vCPU before it enters the guest; waits while a hold is in place.
    pub(super) fn enter(&self) -> Pass {
        let mut state = self.lock();
        while state.holds != 0 && !state.ended {
            let wait = self.changed.wait(state);
            state = wait.unwrap_or_else(PoisonError::into_inner);
        }
        if state.ended {
            return Pass::End;
        }
        state.inside += 1;
        Pass::Enter
    }

    /// Called by a vCPU after it left the guest.
    pub(super) fn leave(&self) {
        let mut state = self.lock();
        state.inside -= 1;
        if state.holds != 0 {
            drop(state);
            self.changed.notify_all();
        }
    }

    /// After [`Gate::end`]: waits at most `limit` for the vCPU threads. False when one is stuck in
    /// a page fault that nobody serves; it ends when the process does.
    pub(super) fn join(&self, limit: Duration) -> bool {
        if !self.wait(limit, |state| state.alive == 0) {
            return false;
        }
        for thread in self.lock_threads().drain(..) {
            if thread.join().is_err() {
                log::error!("a vCPU thread panicked");
            }
        }
        true
    }

    fn wait(&self, limit: Duration, done: impl Fn(&State) -> bool) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        while !done(&state) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let wait = self.changed.wait_timeout(state, left);
            state = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    pub(super) fn kick_all(&self) {
        // Joined threads are taken out of the list first, so every handle here is valid.
        self.lock_threads().iter().for_each(kick);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    #[test]
    fn each_hold_must_be_taken_away() {
        let gate = Gate::default();
        assert_eq!(gate.enter(), Pass::Enter);
        gate.close(Hold::Blocked);
        gate.close(Hold::Paused);
        assert!(!gate.wait_empty(Duration::from_millis(1)));
        gate.leave();
        assert!(gate.wait_empty(Duration::ZERO));
        std::thread::scope(|scope| {
            let vcpu = scope.spawn(|| gate.enter());
            gate.open(Hold::Paused);
            assert!(!vcpu.is_finished());
            gate.open(Hold::Blocked);
            assert_eq!(vcpu.join().unwrap(), Pass::Enter);
        });
    }

    #[test]
    fn the_end_opens_a_closed_gate() {
        let gate = Gate::default();
        gate.close(Hold::Blocked);
        std::thread::scope(|scope| {
            let vcpu = scope.spawn(|| gate.enter());
            gate.end();
            assert_eq!(vcpu.join().unwrap(), Pass::End);
        });
        assert!(gate.join(SOON));
    }
}
