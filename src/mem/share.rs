//! Content-based sharing, the VM's half: finding candidates, and merging with frames.
//!
//! A scan hashes pages while the guest may write them, which is good enough for a key: a key only
//! says where to look. A merge first makes the content stable (the page is taken out of the guest,
//! or write-protected where it lies over a frame already), compares all 4096 bytes with the frame,
//! and only then maps the frame. Frames are the host manager's; each candidate lends this VM one
//! reference, which goes back when the page is not mapped.

use serde_bytes::ByteBuf;

use super::discard::runs;
use super::pager::{Books, Error, Pager};
use crate::link::message::Key;
use crate::page::key::{is_zero, key_of};
use crate::page::state::{PageEvent, PageState};
use crate::sys::pagemap::Backing;
use crate::sys::pool_view::PoolView;
use crate::sys::space::{MapFrames, PageBuf, StageSlot};
use crate::units::{FrameId, Gfn, GfnRange};

/// Pages looked at under one hold of the lock.
const SLICE_PAGES: u32 = 64;
/// Pages merged under one hold of the lock.
const MERGE_PAGES: usize = 32;

/// Walks over the guest's pages.
#[derive(Debug)]
pub struct Scanner {
    cursor: Gfn,
    seed: u64,
}

/// What a part of a scan found.
#[derive(Debug, Default)]
pub struct Scanned {
    /// Pages looked at.
    pub pages: u32,
    /// Keys of pages that are not zero, ascending.
    pub offers: Vec<(Gfn, Key)>,
    /// Pages that were all zero and are discarded now.
    pub zeros: u32,
    /// Whether the end of memory was reached and the next scan starts over.
    pub wrapped: bool,
}

impl Scanner {
    /// Starts at the first page; `seed` is the share group's.
    pub fn new(seed: u64) -> Scanner {
        Scanner {
            cursor: Gfn(0),
            seed,
        }
    }

    /// Looks at up to `pages_max` pages, stopping at the end of memory.
    ///
    /// # Errors
    /// The VM cannot go on.
    pub fn step(&mut self, pager: &Pager, pages_max: u32) -> Result<Scanned, Error> {
        let mut found = Scanned::default();
        while found.pages < pages_max && !found.wrapped {
            let chunk = pager.chunk_of(self.cursor);
            let left = chunk.end().0 - self.cursor.0;
            let slice = GfnRange::new(self.cursor, left.min(SLICE_PAGES));
            self.scan_slice(pager, slice, &mut found)?;
            found.pages += slice.count;
            self.cursor = slice.end();
            if !pager.ram().layout().contains_gfn(self.cursor) {
                let next = pager
                    .ram()
                    .layout()
                    .ranges()
                    .iter()
                    .find(|r| r.start > self.cursor);
                found.wrapped = next.is_none();
                self.cursor = next.map_or(Gfn(0), |range| range.start);
            }
        }
        Ok(found)
    }

    fn scan_slice(&self, pager: &Pager, slice: GfnRange, found: &mut Scanned) -> Result<(), Error> {
        let mut books = pager.books();
        let worth = |state| matches!(state, PageState::Private | PageState::Broken(_));
        if !slice.iter().any(|gfn| worth(books.pmap.state(gfn))) {
            return Ok(());
        }
        let backing = pager.space.backing(slice)?;
        let mut zeros = Vec::new();
        let mut page = PageBuf::ZERO;
        for (gfn, backing) in slice.iter().zip(backing) {
            let state = books.pmap.state(gfn);
            if !worth(state) || backing != Backing::Anonymous {
                continue;
            }
            pager.space.peek(gfn, &mut page);
            if !is_zero(&page.0) {
                found.offers.push((gfn, key_of(&page.0, self.seed)));
            } else if state == PageState::Private {
                zeros.push(gfn);
            }
        }
        found.zeros += discard_zeros(pager, &mut books, &zeros)?;
        Ok(())
    }
}

/// Takes pages that looked all zero; those that are, with nobody writing any more, are dropped.
fn discard_zeros(pager: &Pager, books: &mut Books, gfns: &[Gfn]) -> Result<u32, Error> {
    let mut dropped = 0;
    let mut page = PageBuf::ZERO;
    for run in runs(gfns) {
        let taken = pager.space.take(run, StageSlot(0))?;
        for (slot, gfn) in (0u16..).zip(GfnRange::new(run.start, taken).iter()) {
            books.pmap.apply(gfn, PageEvent::Take(u32::from(slot)));
            pager.space.read_staged(StageSlot(slot), &mut page);
            if is_zero(&page.0) {
                books.pmap.apply(gfn, PageEvent::Discard);
                books.pmap.set_zero(gfn, true);
                dropped += 1;
            } else {
                pager.space.give_back(GfnRange::one(gfn), StageSlot(slot))?;
                books.pmap.apply(gfn, PageEvent::GiveBack);
            }
        }
        if taken > 0 {
            pager.space.drop_staged(StageSlot(0), taken)?;
        }
    }
    Ok(dropped)
}

impl Pager {
    /// Copies of those of `gfns` that take memory of their own, for the host manager to make frames
    /// of. A copy may be torn where the guest writes it meanwhile: the merge will find out.
    ///
    /// # Errors
    /// The VM cannot go on.
    pub fn copies(&self, gfns: &[Gfn]) -> Result<Vec<(Gfn, ByteBuf)>, Error> {
        let mut copies = Vec::new();
        let mut page = PageBuf::ZERO;
        for part in gfns.chunks(SLICE_PAGES as usize) {
            let books = self.books();
            for &gfn in part
                .iter()
                .filter(|gfn| self.ram().layout().contains_gfn(**gfn))
            {
                let state = books.pmap.state(gfn);
                let own = matches!(state, PageState::Private | PageState::Broken(_));
                if own && self.space.backing(GfnRange::one(gfn))?[0] == Backing::Anonymous {
                    self.space.peek(gfn, &mut page);
                    copies.push((gfn, ByteBuf::from(&page.0[..])));
                }
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
    mappings_max: u64,
) -> Result<Merged, Error> {
    let mut merged = Merged::default();
    candidates.sort_unstable();
    // Two frames for one page: the second one finds the page shared and is rejected.
    let mut rest = &candidates[..];
    while !rest.is_empty() {
        let mut books = pager.books();
        let mut budget = MERGE_PAGES;
        while budget > 0 && !rest.is_empty() {
            let run = candidate_run(rest, budget);
            let (batch, others) = rest.split_at(run);
            rest = others;
            budget -= run;
            merge_run(pager, &mut books, pool, batch, mappings_max, &mut merged)?;
        }
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

fn merge_run(
    pager: &Pager,
    books: &mut Books,
    pool: &PoolView,
    batch: &[(Gfn, FrameId)],
    mappings_max: u64,
    merged: &mut Merged,
) -> Result<(), Error> {
    // Only pages that take memory of their own are worth it, and only inside RAM.
    let mut rest = batch;
    while let [(gfn, frame), others @ ..] = rest {
        let (gfn, frame) = (*gfn, *frame);
        let known = pager.ram().layout().contains_gfn(gfn) && pool.contains(frame, 1);
        let state = known.then(|| books.pmap.state(gfn));
        if matches!(state, Some(PageState::Private)) {
            let count = private_run(pager, books, rest)?;
            if count > 0 {
                let (run, others) = rest.split_at(count);
                merge_private(pager, books, pool, run, mappings_max, merged)?;
                rest = others;
                continue;
            }
        } else if matches!(state, Some(PageState::Broken(_))) {
            let added = books.pmap.mappings_added(gfn, frame).max(0).unsigned_abs();
            if books.pmap.mappings() + added <= mappings_max {
                merge_broken(pager, books, pool, gfn, frame, merged)?;
                rest = others;
                continue;
            }
            merged.mappings_full = true;
        }
        merged.rejected.push(frame);
        rest = others;
    }
    Ok(())
}

/// How many pages from the front of a run are private and backed.
fn private_run(pager: &Pager, books: &Books, run: &[(Gfn, FrameId)]) -> Result<usize, Error> {
    let ram = pager.ram().layout();
    let private = run
        .iter()
        .take_while(|(gfn, _)| {
            ram.contains_gfn(*gfn) && books.pmap.state(*gfn) == PageState::Private
        })
        .count();
    let range = GfnRange::new(run[0].0, u32::try_from(private).expect("at most a slice"));
    let backing = pager.space.backing(range)?;
    Ok(backing
        .iter()
        .take_while(|backing| **backing == Backing::Anonymous)
        .count())
}

/// Merges a run of private pages: taken out, compared, mapped over where equal, given back where
/// not.
fn merge_private(
    pager: &Pager,
    books: &mut Books,
    pool: &PoolView,
    run: &[(Gfn, FrameId)],
    mappings_max: u64,
    merged: &mut Merged,
) -> Result<(), Error> {
    let count = u32::try_from(run.len()).expect("at most a slice");
    let range = GfnRange::new(run[0].0, count);
    let taken = pager.space.take(range, StageSlot(0))?;
    let (run, beyond) = run.split_at(taken as usize);
    merged
        .rejected
        .extend(beyond.iter().map(|(_, frame)| *frame));
    let mut page = PageBuf::ZERO;
    let mut equal = Vec::with_capacity(run.len());
    for (slot, (gfn, frame)) in (0u16..).zip(run) {
        books.pmap.apply(*gfn, PageEvent::Take(u32::from(slot)));
        pager.space.read_staged(StageSlot(slot), &mut page);
        equal.push(pool.contains(*frame, 1) && pool.equals(*frame, &page));
    }
    let mut index = 0;
    while index < run.len() {
        let len = equal[index..]
            .iter()
            .take_while(|same| **same == equal[index])
            .count();
        let part = &run[index..index + len];
        let slot = StageSlot(u16::try_from(index).expect("at most a slice"));
        let mapped = equal[index] && map_run(pager, books, pool, part, mappings_max, merged)?;
        if !mapped {
            let range = GfnRange::new(part[0].0, u32::try_from(len).expect("at most a slice"));
            pager.space.give_back(range, slot)?;
            for (gfn, frame) in part {
                books.pmap.apply(*gfn, PageEvent::GiveBack);
                merged.rejected.push(*frame);
            }
        }
        index += len;
    }
    if taken > 0 {
        pager.space.drop_staged(StageSlot(0), taken)?;
    }
    Ok(())
}

/// Maps the frames of a run over its staged pages; false where that takes too many mappings.
fn map_run(
    pager: &Pager,
    books: &mut Books,
    pool: &PoolView,
    run: &[(Gfn, FrameId)],
    mappings_max: u64,
    merged: &mut Merged,
) -> Result<bool, Error> {
    let (gfn, frame) = run[0];
    let range = GfnRange::new(gfn, u32::try_from(run.len()).expect("at most a slice"));
    // A run adds at most the mapping of its first page and one behind it.
    let added = books.pmap.mappings_added(gfn, frame).max(0).unsigned_abs() + 1;
    if books.pmap.mappings() + added > mappings_max
        || pager.space.map_frames(range, pool, frame)? == MapFrames::NoMappings
    {
        merged.mappings_full = true;
        return Ok(false);
    }
    for (gfn, frame) in run {
        books.pmap.apply(*gfn, PageEvent::Share(*frame));
    }
    books.counters.shares += u64::from(range.count);
    merged.pages += range.count;
    Ok(true)
}

/// Merges a page that was broken off a frame and may equal one again: compared where it lies.
fn merge_broken(
    pager: &Pager,
    books: &mut Books,
    pool: &PoolView,
    gfn: Gfn,
    frame: FrameId,
    merged: &mut Merged,
) -> Result<(), Error> {
    let mut page = PageBuf::ZERO;
    pager.space.freeze_broken(gfn)?;
    pager.space.peek(gfn, &mut page);
    let range = GfnRange::one(gfn);
    if pool.equals(frame, &page) && pager.space.map_frames(range, pool, frame)? == MapFrames::Done {
        books.pmap.apply(gfn, PageEvent::Share(frame));
        books.counters.shares += 1;
        merged.pages += 1;
    } else {
        pager.space.thaw_broken(gfn)?;
        merged.rejected.push(frame);
    }
    Ok(())
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
