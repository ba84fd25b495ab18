//! Memory that the guest comes back to.
//!
//! A guest that was swapped out and wakes up touches what it works with page by page, in an order
//! that nobody knows, and each touch waits for the disk. So where some swapped pages of one chunk
//! were touched within a second, the rest of the chunk is *wanted*: the worker reads it, in long
//! reads, beside the faults. A chunk of which the guest wants little costs nothing but those faults.
//!
//! Only while memory is plenty (`Returns::allow`). The order in which pages were swapped out says
//! nothing here, since victims are drawn at random.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::units::{Gfn, GfnRange};

/// Touches of a chunk, within [`WITHIN`], that make it wanted. Chosen: one page in 64 of it, and more
/// than one read ahead that has found its pace leaves over.
const TOUCHES: u32 = 8;
/// See [`TOUCHES`].
const WITHIN: Duration = Duration::from_secs(1);
/// Chunks that are remembered with their touches; beyond that all are forgotten.
const CHUNKS_MAX: usize = 1024;

/// Whether what a guest comes back to may be read before it is touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Prefetch {
    /// Memory is plenty.
    Allowed,
    /// Nothing is read that nobody touches, but for what lies around a touch.
    #[default]
    Forbidden,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Returns {
    allowed: Prefetch,
    /// Touches of each chunk, by its first frame, and since when they are counted.
    touches: HashMap<Gfn, (u32, Instant)>,
    /// What is left of the wanted chunks.
    wanted: VecDeque<GfnRange>,
}

impl Returns {
    /// What is wanted is forgotten where it is forbidden.
    pub fn allow(&mut self, allowed: Prefetch) {
        self.allowed = allowed;
        if allowed == Prefetch::Forbidden {
            self.touches.clear();
            self.wanted.clear();
        }
    }

    /// A swapped page of this chunk is touched. Whether the chunk is wanted from now on.
    pub fn touched(&mut self, chunk: GfnRange, now: Instant) -> bool {
        if self.allowed == Prefetch::Forbidden {
            return false;
        }
        if self.touches.len() >= CHUNKS_MAX {
            self.touches.clear();
        }
        let (count, since) = self.touches.entry(chunk.start).or_insert((0, now));
        if now.saturating_duration_since(*since) > WITHIN {
            (*count, *since) = (0, now);
        }
        *count += 1;
        if *count < TOUCHES {
            return false;
        }
        self.touches.remove(&chunk.start);
        let known = self.wanted.iter().any(|rest| chunk.contains(rest.start));
        if !known {
            self.wanted.push_back(chunk);
        }
        !known
    }

    /// Whether anything is wanted.
    pub fn any(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// What is left of the chunk that was wanted first.
    pub fn rest(&self) -> Option<GfnRange> {
        self.wanted.front().copied()
    }

    /// That chunk is done up to `gfn`.
    pub fn done_to(&mut self, gfn: Gfn) {
        let Some(rest) = self.wanted.front_mut() else {
            return;
        };
        *rest = GfnRange::new(gfn, rest.end().0.saturating_sub(gfn.0));
        if rest.count == 0 {
            self.wanted.pop_front();
        }
    }

    /// There is no credit for what is wanted.
    pub fn give_up(&mut self) {
        self.wanted.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: GfnRange = GfnRange {
        start: Gfn(512),
        count: 512,
    };

    fn returns() -> Returns {
        let mut returns = Returns::default();
        returns.allow(Prefetch::Allowed);
        returns
    }

    fn touch(returns: &mut Returns, times: u32, now: Instant) -> u32 {
        let wanted = (0..times).map(|_| u32::from(returns.touched(CHUNK, now)));
        wanted.sum()
    }

    #[test]
    fn a_chunk_is_wanted_once_by_touches_that_come_together() {
        let mut returns = returns();
        let now = Instant::now();
        assert_eq!(touch(&mut returns, TOUCHES - 1, now), 0);
        let later = now + 2 * WITHIN;
        assert_eq!(touch(&mut returns, TOUCHES - 1, later), 0);
        assert!(!returns.any());
        assert_eq!(touch(&mut returns, 3 * TOUCHES, later), 1);
        assert_eq!(returns.rest(), Some(CHUNK));
        returns.done_to(Gfn(1000));
        assert_eq!(returns.rest(), Some(GfnRange::new(Gfn(1000), 24)));
        assert_eq!(touch(&mut returns, TOUCHES, later), 0, "it is under way");
        returns.done_to(CHUNK.end());
        assert!(!returns.any());
        assert_eq!(touch(&mut returns, TOUCHES, later), 1, "swapped again");
    }

    #[test]
    fn nothing_is_wanted_where_it_is_forbidden() {
        let mut returns = returns();
        let now = Instant::now();
        assert_eq!(touch(&mut returns, TOUCHES, now), 1);
        returns.allow(Prefetch::Forbidden);
        assert!(!returns.any());
        assert_eq!(touch(&mut returns, 2 * TOUCHES, now), 0);
        returns.allow(Prefetch::Allowed);
        assert_eq!(touch(&mut returns, TOUCHES - 1, now), 0);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut returns = returns();
        let now = Instant::now();
        for n in 0..10_000 {
            returns.touched(GfnRange::new(Gfn(512 * n), 512), now);
            assert!(returns.touches.len() <= CHUNKS_MAX);
        }
    }
}
