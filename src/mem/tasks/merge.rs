//! The task that merges pages with the frames that the host manager proposes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::{Done, Task};
use crate::mem::Pager;
use crate::mem::pager::Error;
use crate::mem::share::merge;
use crate::sys::pool_view::PoolView;
use crate::units::{FrameId, Gfn};

/// Candidates sorted together, so that neighbours become one run.
const TOGETHER: usize = 128;

/// See the module documentation.
#[derive(Debug)]
pub struct Merge {
    pager: Arc<Pager>,
    pool: PoolView,
    candidates: VecDeque<(Gfn, FrameId)>,
    /// Since when there are candidates.
    since: Instant,
    paused: bool,
    rejected: Vec<FrameId>,
}

impl Merge {
    /// Merges with the frames of `pool`.
    pub fn new(pager: Arc<Pager>, pool: PoolView) -> Merge {
        Merge {
            pager,
            pool,
            candidates: VecDeque::new(),
            since: Instant::now(),
            paused: false,
            rejected: Vec::new(),
        }
    }

    /// The pool that frames are mapped from.
    pub fn pool(&self) -> &PoolView {
        &self.pool
    }

    /// From now on frames are mapped from another pool.
    pub fn set_pool(&mut self, pool: PoolView) {
        self.forget();
        self.pool = pool;
    }

    /// Whether candidates wait: no page may map a frame while the host manager is being told which
    /// frames are mapped, or it hears of one twice.
    pub fn pause(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// Pages that probably equal a frame; each comes with a reference.
    pub fn propose(&mut self, candidates: impl IntoIterator<Item = (Gfn, FrameId)>) {
        if self.candidates.is_empty() {
            self.since = Instant::now();
        }
        self.candidates.extend(candidates);
    }

    /// References to give back: the pages differ, or cannot be mapped. None is named twice.
    pub fn take_rejected(&mut self) -> Vec<FrameId> {
        std::mem::take(&mut self.rejected)
    }

    /// Whoever lent references for candidates is gone.
    pub fn forget(&mut self) {
        self.candidates.clear();
        self.rejected.clear();
    }
}

impl Task for Merge {
    fn due(&self) -> Option<Instant> {
        (!self.paused && !self.candidates.is_empty()).then_some(self.since)
    }

    fn run(&mut self, until: Instant) -> Result<Done, Error> {
        let start = Instant::now();
        let mut pages = 0;
        while !self.candidates.is_empty() {
            let count = self.candidates.len().min(TOGETHER);
            let mut part: Vec<_> = self.candidates.drain(..count).collect();
            let merged = merge(&self.pager, &self.pool, &mut part)?;
            pages += merged.pages;
            self.rejected.extend(merged.rejected);
            if Instant::now() >= until {
                break;
            }
        }
        // What waits on does so behind others of its urgency.
        self.since = Instant::now();
        Ok(Done::since(start, pages))
    }
}
