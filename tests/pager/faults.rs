//! The fault threads of a VM process, without the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tidemark::mem::{Error, Pager};

/// How often a thread looks whether it shall end.
const PERIOD: Duration = Duration::from_millis(10);
/// The result of a thread that did not come to an end.
const PANICKED: &str = "a fault thread panicked";
/// Threads that may read from swap at a time.
pub const READERS: usize = 2;

/// Threads that serve a pager's faults until this is dropped.
#[derive(Debug)]
pub struct FaultThreads {
    end: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<(), String>>>,
}

impl FaultThreads {
    /// Starts [`READERS`] and one that does not read. When a thread cannot go on it tells why.
    pub fn start(
        pager: &Arc<Pager>,
        tell: impl Fn(&Error) + Clone + Send + 'static,
    ) -> FaultThreads {
        let end = Arc::new(AtomicBool::new(false));
        let serve = |_| {
            let (pager, end, tell) = (pager.clone(), end.clone(), tell.clone());
            std::thread::spawn(move || {
                let mut result = Ok(());
                let ended = || end.load(Ordering::Relaxed);
                pager.serve_faults(Some(PERIOD), ended, |error| {
                    result = Err(error.to_string());
                    tell(error);
                });
                result
            })
        };
        let threads = (0..=READERS).map(serve).collect();
        FaultThreads { end, threads }
    }

    /// Ends the threads; the result is the error of one that could not go on.
    pub fn finish(&mut self) -> Result<(), String> {
        self.end.store(true, Ordering::Relaxed);
        let end_of = |thread: JoinHandle<Result<(), String>>| match thread.join() {
            Ok(result) => result,
            Err(_) => Err(PANICKED.to_owned()),
        };
        let results: Vec<_> = self.threads.drain(..).map(end_of).collect();
        results.into_iter().collect()
    }
}

impl Drop for FaultThreads {
    fn drop(&mut self) {
        let panicked = self.finish().is_err_and(|error| error == PANICKED);
        assert!(!panicked || std::thread::panicking(), "{PANICKED}");
    }
}
