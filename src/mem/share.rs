//! Content-based sharing, the VM's half: finding candidates, and merging with frames.
//!
//! A scan ([`Scanner`]) hashes pages while the guest may write them, which is good enough for a key: a
//! key only says where to look. A merge first makes the content stable (the page is taken out of the guest,
//! or write-protected where it lies over a frame already), compares all 4096 bytes with the frame,
//! and only then maps the frame. Frames are the host manager's; each candidate lends this VM one
//! reference, which goes back when the page is not mapped.
//!
//! Worth looking at is what takes memory of its own: a private page, one that was broken off its
//! frame, and one that maps a frame of a pool whose owner is gone, which nobody else accounts for.

mod chunks;
mod pace;
mod scanner;

use serde_bytes::ByteBuf;

pub use super::large::WORTH_PAGES;
pub use scanner::{Scanned, Scanner};

use super::memory::Memory;
use super::observe::Cause;
use super::pager::{Error, Pager};
use super::stage::Taken;
use crate::page::state::PageState;
use crate::sys::pagemap::Backing;
use crate::sys::pool_view::PoolView;
use crate::sys::space::{Mapping, PageBuf};
use crate::units::{FrameId, Gfn, GfnRange};

/// Pages merged under one hold of the lock.
const MERGE_PAGES: usize = 32;

impl Pager {
    /// Copies of those of `gfns` that take memory of their own, for the host manager to make frames
    /// of. A copy may be torn where the guest writes it meanwhile: the merge will find out.
    ///
    /// # Errors
    /// The VM cannot go on.
    pub fn copies(&self, gfns: &[Gfn]) -> Result<Vec<(Gfn, ByteBuf)>, Error> {
        let mut copies = Vec::new();
        let mut page = PageBuf::ZERO;
        let layout = self.ram().layout();
        for &gfn in gfns.iter().filter(|gfn| layout.contains_gfn(**gfn)) {
            let mut memory = self.memory(Cause::Scan);
            if memory.read_sampled(gfn, &mut page) {
                copies.push((gfn, ByteBuf::from(&page.0[..])));
                continue;
            }
            let there = memory.is_own(gfn) && {
                let backing = memory.backing(GfnRange::one(gfn))?[0];
                memory.is_own_backing(gfn, backing)
            };
            if there {
                memory.peek(gfn, &mut page);
                copies.push((gfn, ByteBuf::from(&page.0[..])));
            }
        }
        Ok(copies)
    }
}

/// Result of a merge.
#[derive(Debug, Default)]
pub struct Merged {
    /// Pages that map their frame now.
    pub pages: u32,
    /// References to give back: the pages differ, or cannot be mapped.
    pub rejected: Vec<FrameId>,
    /// Whether a frame was refused because the process has too many mappings.
    pub mappings_full: bool,
}

/// Merges pages with frames that probably have the same content.
///
/// # Errors
/// The VM cannot go on.
pub fn merge(
    pager: &Pager,
    pool: &PoolView,
    candidates: &mut [(Gfn, FrameId)],
) -> Result<Merged, Error> {
    let mut merged = Merged::default();
    candidates.sort_unstable();
    // Two frames for one page: the second one finds the page shared and is rejected.
    let mut rest = &candidates[..];
    while !rest.is_empty() {
        let run = candidate_run(rest, MERGE_PAGES);
        let done = merge_front(pager, pool, &rest[..run], &mut merged)?;
        rest = &rest[done..];
    }
    Ok(merged)
}

/// Length of the run at the front in which both gfns and frames are consecutive, at least one.
fn candidate_run(candidates: &[(Gfn, FrameId)], max: usize) -> usize {
    let follows = |pair: &[(Gfn, FrameId)]| {
        pair[0].0.0 + 1 == pair[1].0.0 && pair[0].1.0.checked_add(1) == Some(pair[1].1.0)
    };
    let len = 1 + candidates
        .windows(2)
        .take_while(|pair| follows(pair))
        .count();
    len.min(max)
}

/// Merges the front of a run, as far as its pages are alike; returns how many are done.
fn merge_front(
    pager: &Pager,
    pool: &PoolView,
    run: &[(Gfn, FrameId)],
    merged: &mut Merged,
) -> Result<usize, Error> {
    let mut memory = pager.memory(Cause::Merge);
    let (gfn, frame) = run[0];
    // Only pages that take memory of their own are worth it, and only inside RAM.
    let known = pager.ram().layout().contains_gfn(gfn) && pool.contains(frame, 1);
    if known {
        memory.note_worth(gfn, true);
        if memory.keeps_large(gfn) {
            merged.rejected.push(frame);
            return Ok(1);
        }
        memory.unsample(gfn)?;
    }
    if known && memory.is_own(gfn) {
        if memory.state(gfn) == PageState::Private {
            let count = private_run(pager, &mut memory, run)?;
            if count > 0 {
                return merge_private(&mut memory, pool, &run[..count], merged);
            }
        } else {
            match memory.remap(gfn, pool, frame)? {
                Some(Mapping::Done) => {
                    merged.pages += 1;
                    return Ok(1);
                }
                Some(Mapping::Full) => merged.mappings_full = true,
                None => {}
            }
        }
    }
    merged.rejected.push(frame);
    Ok(1)
}

/// How many pages from the front of a run are private and backed.
fn private_run(
    pager: &Pager,
    memory: &mut Memory<'_>,
    run: &[(Gfn, FrameId)],
) -> Result<usize, Error> {
    let ram = pager.ram().layout();
    let private = |(gfn, _): &&(Gfn, FrameId)| {
        ram.contains_gfn(*gfn) && memory.state(*gfn) == PageState::Private
    };
    let count = run.iter().take_while(private).count();
    let range = GfnRange::new(run[0].0, u32::try_from(count).expect("at most a hold"));
    let backing = memory.backing(range)?;
    let own = |backing: &&Backing| **backing == Backing::Anonymous;
    Ok(backing.iter().take_while(own).count())
}

/// Takes a run of private pages out, compares each with its frame, and maps the equal ones; the
/// others go back. Returns how many are done.
fn merge_private(
    memory: &mut Memory<'_>,
    pool: &PoolView,
    run: &[(Gfn, FrameId)],
    merged: &mut Merged,
) -> Result<usize, Error> {
    let count = u32::try_from(run.len()).expect("at most a hold");
    let taken = memory.take(GfnRange::new(run[0].0, count))?;
    let mut page = PageBuf::ZERO;
    let mut pages: Vec<(Taken, FrameId)> = Vec::with_capacity(taken.len());
    let mut tokens = taken.into_iter().peekable();
    for &(gfn, frame) in run {
        // The kernel did not let go of the others.
        match tokens.next_if(|taken| taken.gfn() == gfn) {
            Some(taken)
                if memory.read_staged(&taken, &mut page)
                    && pool.contains(frame, 1)
                    && pool.equals(frame, &page) =>
            {
                pages.push((taken, frame));
            }
            _ => merged.rejected.push(frame),
        }
    }
    let mut rest = pages;
    while !rest.is_empty() {
        let known: Vec<(Gfn, FrameId)> = rest
            .iter()
            .map(|(taken, frame)| (taken.gfn(), *frame))
            .collect();
        let others = rest.split_off(candidate_run(&known, known.len()));
        let (equal, frames): (Vec<Taken>, Vec<FrameId>) = rest.into_iter().unzip();
        match memory.share(&equal, pool, frames[0])? {
            Mapping::Done => merged.pages += u32::try_from(equal.len()).expect("at most a hold"),
            Mapping::Full => {
                merged.mappings_full = true;
                merged.rejected.extend(frames);
            }
        }
        rest = others;
    }
    memory.settle_stage()?;
    Ok(run.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_need_consecutive_frames_too() {
        let pairs = |list: &[(u32, u32)]| -> Vec<(Gfn, FrameId)> {
            list.iter()
                .map(|(gfn, frame)| (Gfn(*gfn), FrameId(*frame)))
                .collect()
        };
        assert_eq!(
            candidate_run(&pairs(&[(1, 5), (2, 6), (3, 7), (4, 9)]), 64),
            3
        );
        assert_eq!(candidate_run(&pairs(&[(1, 5), (3, 6)]), 64), 1);
        assert_eq!(candidate_run(&pairs(&[(1, 5), (1, 6)]), 64), 1);
        assert_eq!(candidate_run(&pairs(&[(1, 5), (2, 6), (3, 7)]), 2), 2);
    }
}
