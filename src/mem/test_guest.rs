//! An armed guest for the tests of this folder.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::credit::CreditBook;
use super::faults;
use super::pager::{Pager, Settings};
use super::swapfile::SwapStore;
use crate::sys::ram::{GuestRam, Layout};
use crate::sys::space::PageBuf;
use crate::sys::uffd;
use crate::units::{Pages, SwapSlot};
use crate::words::TakePath;

/// A swap file that forgets: the test never reads back.
#[derive(Debug)]
struct Nowhere;

impl SwapStore for Nowhere {
    fn write(&self, _first: SwapSlot, _pages: &[PageBuf]) -> io::Result<()> {
        Ok(())
    }

    fn read(&self, _slot: SwapSlot, _page: &mut PageBuf) -> io::Result<()> {
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }
}

/// Runs `work` on an armed guest of `size`; a visible note where there is no userfaultfd.
pub(super) fn with_guest(size: Pages, work: impl FnOnce(&Pager)) {
    with_mappings(size, 60_000, work);
}

/// The same, where the guest's RAM may take so many kernel mappings.
pub(super) fn with_mappings(size: Pages, mappings_max: u64, work: impl FnOnce(&Pager)) {
    if let Err(error) = uffd::probe() {
        assert!(
            std::env::var_os("TIDEMARK_REQUIRE").is_none_or(|value| value != "1"),
            "TIDEMARK_REQUIRE=1 and {error}"
        );
        eprintln!("SKIP: {error}");
        return;
    }
    let settings = Settings {
        path: TakePath::Copy,
        swap: Box::new(Nowhere),
        readers: 1,
        credit: CreditBook::unlimited(),
        large_pages: true,
        mappings_max,
        observer: None,
    };
    let ram = GuestRam::new(Layout::new(size)).expect("guest memory");
    let pager = Arc::new(Pager::new(ram, settings).expect("userfaultfd is there"));
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..faults::threads(1) {
            scope.spawn(|| {
                let tick = Some(Duration::from_millis(10));
                let ended = || end.load(Ordering::Relaxed);
                pager.serve_faults(tick, ended, |error| panic!("{error}"));
            });
        }
        // Also where the test fails: the scope waits for the thread.
        let _guard = End(&end);
        work(&pager);
    });
}

/// Ends the fault threads.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
