//! What becomes of the process when one of its threads panics.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::thread;

use super::terminal;
use crate::out::{self, Out};

/// A broken invariant in any thread stops the VM: the others would wait for that thread for ever,
/// or go on with tables that are wrong.
pub(super) fn stop_on_panic(out: Out) {
    std::panic::set_hook(Box::new(move |panic| {
        terminal::restore();
        let backtrace = Backtrace::capture();
        let thread = thread::current();
        let name = thread.name().unwrap_or("unnamed");
        // Directly, it could wait for whoever should read it.
        out.line(&format!("tidemark: thread {name}: {panic}"));
        if backtrace.status() == BacktraceStatus::Captured {
            out.line(&backtrace.to_string());
        }
        let _ = out.finish(out::FINISH);
        std::process::abort();
    }));
}
