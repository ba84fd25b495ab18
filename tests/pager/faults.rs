//! The fault threads of a VM process, without the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tidemark::mem::{Error, Pager};

/// How often a thread looks whether it shall end.
const PERIOD: Duration = Duration::from_millis(10);
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
    pub fn finish(mut self) -> Result<(), String> {
        self.end.store(true, Ordering::Relaxed);
        let results = self.threads.drain(..).map(|thread| thread.join().unwrap());
        results.collect::<Vec<_>>().into_iter().collect()
    }
}

impl Drop for FaultThreads {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let fine = thread.join().is_ok() || std::thread::panicking();
            assert!(fine, "a fault thread panicked");
        }
    }
}
