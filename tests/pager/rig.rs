//! The pager with threads that serve its faults until the end, and no VM around it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tidemark::mem::Pager;
use tidemark::mem::credit::CreditBook;
use tidemark::mem::encrypted::Encrypted;
use tidemark::mem::observe::Observer;
use tidemark::mem::pager::Settings;
use tidemark::mem::share::{self, Merged};
use tidemark::mem::swapfile::SwapStore;
use tidemark::sys::pool_view::PoolView;
use tidemark::sys::ram::{GuestRam, Layout};
use tidemark::units::{FrameId, Gfn, PAGE_SIZE, Pages};
use tidemark::words::TakePath;
use vm_memory::{Bytes, GuestAddress};

use super::faults::{FaultThreads, READERS};
use super::replay::Replay;
use super::store::MemoryStore;
use super::unique;
use crate::common;

/// Mappings that the kernel allows a process unless told otherwise.
pub const MAPPINGS_DEFAULT: u64 = 65_530;
/// Mappings that merging may come to: some are left for others, as the VM process does.
const MAPPINGS_MAX: u64 = MAPPINGS_DEFAULT - 2000;

/// How often what a moment's business of the kernel may prevent is tried.
const TRIES: usize = 5;

/// The first error of a fault thread.
#[derive(Debug, Clone)]
pub struct Failure {
    pub reason: String,
    pub at: Instant,
}

/// A pager and its fault threads.
#[derive(Debug)]
pub struct Rig {
    pub pager: Arc<Pager>,
    pub store: MemoryStore,
    failure: Arc<Mutex<Option<Failure>>>,
    faults: FaultThreads,
}

impl Rig {
    /// Arms `ram`.
    pub fn over(ram: Arc<GuestRam>, path: TakePath, credit: CreditBook) -> Rig {
        let store = MemoryStore::default();
        Rig::swapping_to(store.clone(), Box::new(store), ram, path, credit, None)
    }

    /// Arms `ram`; what is swapped goes to `swap`, which has `store` behind it.
    fn swapping_to(
        store: MemoryStore,
        swap: Box<dyn SwapStore>,
        ram: Arc<GuestRam>,
        path: TakePath,
        credit: CreditBook,
        observer: Option<Arc<dyn Observer>>,
    ) -> Rig {
        let settings = Settings {
            path,
            swap,
            readers: READERS,
            credit,
            large_pages: true,
            mappings_max: MAPPINGS_MAX,
            observer,
        };
        let pager = Arc::new(Pager::new(ram, settings).expect("userfaultfd was asked for"));
        let failure: Arc<Mutex<Option<Failure>>> = Arc::default();
        let failed = failure.clone();
        let faults = FaultThreads::start(&pager, move |error| {
            failed.lock().unwrap().get_or_insert_with(|| Failure {
                reason: error.to_string(),
                at: Instant::now(),
            });
        });
        Rig {
            pager,
            store,
            failure,
            faults,
        }
    }

    /// A guest of `pages` with this credit.
    pub fn new(path: TakePath, pages: u32, credit: CreditBook) -> Rig {
        Rig::over(ram(pages), path, credit)
    }

    /// A guest of `pages` without a limit, whose swap store may be encrypted, and what an observer makes
    /// of it.
    pub fn replayed(path: TakePath, pages: u32, encrypted: bool) -> (Rig, Arc<Replay>) {
        let replay = Arc::new(Replay::new(pages));
        let observer: Arc<dyn Observer> = replay.clone();
        let store = MemoryStore::default();
        let swap: Box<dyn SwapStore> = match encrypted {
            true => Box::new(Encrypted::new(store.clone()).unwrap()),
            false => Box::new(store.clone()),
        };
        let credit = CreditBook::unlimited();
        let rig = Rig::swapping_to(store, swap, ram(pages), path, credit, Some(observer));
        (rig, replay)
    }

    /// A guest of `pages` without a limit.
    pub fn unlimited(path: TakePath, pages: u32) -> Rig {
        Rig::new(path, pages, CreditBook::unlimited())
    }

    /// Writes a page as a vCPU would.
    pub fn write(&self, gfn: Gfn, page: &[u8; PAGE_SIZE]) {
        let at = GuestAddress(gfn.gpa());
        self.pager.ram().memory().write_slice(page, at).unwrap();
    }

    /// Reads a page as a vCPU would.
    pub fn read(&self, gfn: Gfn) -> [u8; PAGE_SIZE] {
        let mut page = [0; PAGE_SIZE];
        let at = GuestAddress(gfn.gpa());
        self.pager.ram().memory().read_slice(&mut page, at).unwrap();
        page
    }

    /// The reason why a fault thread gave up, if one did.
    pub fn failure(&self) -> Option<Failure> {
        self.failure.lock().unwrap().clone()
    }

    /// Waits until a fault thread has given up.
    pub fn wait_failure(&self, limit: Duration) -> Failure {
        common::wait_for("a fault thread to give up", limit, || {
            self.failure().is_some()
        });
        self.failure().expect("waited for")
    }

    /// Ends the fault threads; their result.
    pub fn finish(mut self) -> Result<(), String> {
        self.faults.finish()
    }

    /// The pager, served until the process ends.
    pub fn detach(self) -> Arc<Pager> {
        let pager = self.pager.clone();
        std::mem::forget(self);
        pager
    }

    /// Gives each page content of its own and takes six batches of 32 of them. What each batch took
    /// is the answer: 0 stands for less than 32 in each of some tries, so that something stands in the
    /// way for good.
    pub fn six_batches(&self, seed: u64) -> [u32; 6] {
        self.store.fail_writes(false);
        self.pager.end_sample().unwrap();
        let ranges = self.pager.ram().layout().ranges().to_vec();
        let gfns = || ranges.iter().flat_map(|range| range.iter());
        gfns().for_each(|gfn| self.write(gfn, &unique(seed ^ u64::from(gfn.0)).0));
        // Finds the shared pages that were written.
        self.pager.census().unwrap();
        let mut reclaimer = tidemark::mem::reclaim::Reclaimer::new(seed);
        let mut batch = || reclaimer.step(&self.pager, 32).unwrap().pages;
        let taken = [(); 6].map(|()| (0..TRIES).map(|_| batch()).find(|n| *n == 32).unwrap_or(0));
        for gfn in gfns() {
            let expected = unique(seed ^ u64::from(gfn.0)).0;
            assert!(self.read(gfn) == expected, "seed {seed}: {gfn} is corrupt");
        }
        taken
    }
}

fn ram(pages: u32) -> Arc<GuestRam> {
    GuestRam::new(Layout::new(Pages(u64::from(pages)))).expect("guest memory")
}

/// Merges as the VM process does, in one place.
pub fn merge(pager: &Pager, pool: &PoolView, candidates: &mut [(Gfn, FrameId)]) -> Merged {
    share::merge(pager, pool, candidates).unwrap()
}

/// Merges each of `candidates`, whose frames differ, with its frame. The kernel may be at work on a
/// page, which is then refused: it is tried again.
///
/// # Panics
/// When a page cannot be merged.
pub fn merge_all(pager: &Pager, pool: &PoolView, candidates: &[(Gfn, FrameId)]) {
    let mut left = candidates.to_vec();
    for _ in 0..TRIES {
        let rejected = merge(pager, pool, &mut left).rejected;
        left.retain(|(_, frame)| rejected.contains(frame));
        if left.is_empty() {
            return;
        }
    }
    panic!("{} pages cannot be merged: {:?} ..", left.len(), left[0]);
}
