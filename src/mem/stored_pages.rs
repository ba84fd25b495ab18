//! Steps on pages whose content is stored: in the compressed store, or in the swap file.
//!
//! A page goes there out of the staging area. It comes back when it is touched, and brings others
//! with it, within the *window* that `read_ahead` opens around it: what is compressed at once, under
//! the lock; what is swapped is *busy* until it was read, without the lock (`swap_in`).
//!
//! **A page that comes back gives up its slot**, and is written when it goes again, changed or not. The
//! other way was built for a measurement: a page that a read brought back went in write-protected and
//! kept its slot until its first write, and without one was dropped. With a guest of 64 MiB in half of
//! its memory, on a disk that reads a page in 84 us and writes a batch in 106 us:
//!
//! | measured | slots given up | slots kept |
//! |---|---|---|
//! | written in 3 s, one access of three writes | 120 MiB | 94 MiB |
//! | operations beside another such guest that gives them up | 0.96 (0.96-1.01) of its | 0.92 (0.89-0.95) |
//! | written in 4 s, no access writes and protection is spared | 115 MiB | 60 MiB |
//! | operations in those | 11.5-11.7 k/s | 11.8-12 k/s |
//! | four of those on one disk | 31-36 k/s | 28-31 k/s |
//!
//! So the writes cost little, being one batch for some 30 touches; and the first write to a protected page
//! wakes a fault thread and then the vCPU, some 50 us each. A guest that draws its pages at random meets
//! no more of them either if they wait longer in the staging area: that is memory as well.

use std::time::Instant;

use super::memory::Memory;
use super::pager::Error;
use super::read_ahead::WINDOW_MAX;
use super::returns::Prefetch;
use super::stage::{Occupant, Taken};
use super::store::Compressed;
use super::swap_in::{DECOMPRESSED_MAX, ReadPage, SwapRead};
use crate::page::state::{PageEvent, PageState};
use crate::sys::space::{GuestSpace, PageBuf};
use crate::units::{Gfn, GfnRange, Pages, SwapSlot};

/// A run of swap slots that is being written.
#[derive(Debug)]
#[must_use = "slots that are neither recorded nor freed are lost"]
pub(super) struct SlotRun {
    /// The first slot.
    pub first: SwapSlot,
    /// How many.
    pub count: u32,
}

impl SlotRun {
    /// The slots.
    pub fn iter(&self) -> impl Iterator<Item = SwapSlot> + use<> {
        (self.first.0..self.first.0 + self.count).map(SwapSlot)
    }
}

/// Going there.
impl Memory<'_> {
    /// Staged to compressed. False when the store is full or the guest has the page back already.
    pub fn store(&mut self, taken: &Taken, page: Compressed) -> bool {
        if !self.is_staged(taken) {
            return false;
        }
        let Some(slot) = self.books.store.insert(page) else {
            return false;
        };
        self.apply(taken.gfn(), PageEvent::Compress(slot));
        self.books.stage.becomes(taken.slot(), Occupant::Gone);
        self.books.counters.swap_out_pages += 1;
        true
    }

    /// Compressed to staged, to be written to the swap file; its content is in `page` then. `None`
    /// when no stage slot is free.
    ///
    /// # Errors
    /// When the page does not decompress.
    ///
    /// # Panics
    /// When the page is not compressed.
    pub fn unstore(&mut self, gfn: Gfn, page: &mut PageBuf) -> Result<Option<Taken>, Error> {
        let PageState::Compressed(stored) = self.state(gfn) else {
            panic!("{gfn} is {:?}, not compressed", self.state(gfn));
        };
        let Some((slot, _)) = self.books.stage.find(GuestSpace::slots_for_copies(), 1) else {
            return Ok(None);
        };
        self.books.store.read(stored, page)?;
        self.space.stage(page, slot);
        self.apply(gfn, PageEvent::Begin);
        self.apply(gfn, PageEvent::Take(u32::from(slot.0)));
        self.books.store.remove(stored);
        Ok(Some(self.books.stage.hand_out(
            gfn,
            slot,
            Occupant::Waiting,
            self.cause,
        )))
    }

    /// Whether the compressed store takes more than it may.
    pub fn is_store_over(&self) -> bool {
        self.books.store.is_over()
    }

    /// The VM may use at most `most`: bounds the compressed store by it.
    pub fn bound_store(&mut self, most: Option<Pages>) {
        self.books.store.bound(most);
    }

    /// Up to `wanted` neighbouring slots of the swap file, to be written and then recorded or freed.
    pub fn slots_to_write(&mut self, wanted: u32) -> Option<SlotRun> {
        let (first, count) = self.books.swapmap.take_run(wanted)?;
        Some(SlotRun { first, count })
    }

    /// Staged to swapped, for a page whose content was written to `slot`. False, and the slot is
    /// free again, when the guest has the page back already.
    pub fn swap_out(&mut self, taken: &Taken, slot: SwapSlot, checksum: u64) -> bool {
        if !self.is_staged(taken) {
            self.books.swapmap.free(slot);
            return false;
        }
        self.books.swapmap.set_checksum(slot, checksum);
        self.apply(taken.gfn(), PageEvent::SwapOut(slot));
        self.books.stage.becomes(taken.slot(), Occupant::Gone);
        self.books.counters.swap_out_pages += 1;
        true
    }

    /// The write to these slots failed: they are free, and the next ones are tried elsewhere.
    pub fn free_slots(&mut self, slots: &SlotRun) {
        slots.iter().for_each(|slot| self.books.swapmap.free(slot));
        self.books.swapmap.ends_before(slots.first);
    }
}

/// Coming back.
impl Memory<'_> {
    /// The page is touched: the pages of its `chunk` around it that may come back with it, `most`
    /// in all. Never more than half of what the credit leaves, and none while another fault waits
    /// for credit, so that the faults that follow find some.
    pub fn window(&mut self, gfn: Gfn, chunk: GfnRange, most: u32) -> GfnRange {
        let pages_max = self.spare().saturating_add(1).min(most);
        let window = self.books.read_ahead.around(gfn, pages_max);
        let end = window.end().min(chunk.end());
        GfnRange::new(window.start, end.0 - window.start.0)
    }

    /// Pages that may come back untouched.
    fn spare(&mut self) -> u32 {
        let spare = match self.starving() {
            0 => self.credit().headroom().0.saturating_sub(1) / 2,
            _ => 0,
        };
        u32::try_from(spare).unwrap_or(u32::MAX)
    }

    /// No more than so many pages come back at a time; 1: none ahead.
    pub fn bound_read_ahead(&mut self, pages_max: u32) {
        self.books.read_ahead.bound(pages_max);
    }

    /// Pages that were read ahead could not be.
    pub fn fail_read_ahead(&mut self) {
        self.books.read_ahead.fails();
    }

    /// A page that is out counts in a sample when it comes back: until the sample ends it comes back
    /// by a touch of its own alone.
    pub fn watch(&mut self, gfn: Gfn) {
        self.books.watched.insert(gfn);
    }

    /// The sample has ended.
    pub fn unwatch_all(&mut self) {
        self.books.watched.clear();
    }

    fn is_watched(&self, gfn: Gfn) -> bool {
        self.books.watched.contains(&gfn)
    }

    /// Compressed to private, for the page of `window` that is touched, if one is, and those that are
    /// compressed too.
    ///
    /// # Errors
    /// When the page that is touched does not decompress, or the kernel refuses.
    pub fn decompress(&mut self, touched: Option<Gfn>, window: GfnRange) -> Result<(), Error> {
        let mut content = vec![PageBuf::ZERO; window.count as usize];
        let mut there: Vec<(Gfn, u32)> = Vec::with_capacity(content.len());
        for gfn in window.iter() {
            let PageState::Compressed(slot) = self.state(gfn) else {
                continue;
            };
            let is_touched = touched == Some(gfn);
            if !is_touched && self.is_watched(gfn) {
                continue;
            }
            match self.books.store.read(slot, &mut content[there.len()]) {
                Err(error) if is_touched => return Err(error.into()),
                Err(_) => {}
                Ok(()) => there.push((gfn, slot)),
            }
        }
        self.books.credit.mapped(Pages(there.len() as u64));
        // Whoever goes on from page to page is woken once: when all are there.
        let mut content = &content[..];
        for run in there.chunk_by(|(gfn, _), (next, _)| gfn.0 + 1 == next.0) {
            for (gfn, slot) in run {
                self.apply(*gfn, PageEvent::Begin);
                self.books.store.remove(*slot);
            }
            let (pages, rest) = content.split_at(run.len());
            self.install(run[0].0, pages)?;
            content = rest;
        }
        if touched.is_some() {
            self.books.read_ahead.reads(window);
        }
        Ok(())
    }

    /// Swapped to busy, for a page that is touched and those of `window` whose slots run with its
    /// slot as their frame numbers do. The caller reads them.
    pub fn begin_swap_in(&mut self, gfn: Gfn, slot: SwapSlot, window: GfnRange) -> SwapRead {
        let run = self.run_of_slots(gfn, slot, window);
        let read = self.begin_read(run, Some(gfn));
        self.books.read_ahead.reads(read.span());
        read
    }

    /// A swapped or compressed page of this chunk is touched. Whether that makes the chunk wanted.
    pub fn note_return(&mut self, chunk: GfnRange) -> bool {
        self.books.returns.touched(chunk, Instant::now())
    }

    /// Whether the guest comes back to memory that [`Memory::begin_prefetch`] would bring back.
    pub fn wants_prefetch(&self) -> bool {
        self.books.returns.any()
    }

    /// Whether the guest may have what it comes back to before it touches it.
    pub fn allow_prefetch(&mut self, allowed: Prefetch) {
        self.books.returns.allow(allowed);
    }

    /// Swapped to busy, for the next pages of a chunk that the guest comes back to, which the caller
    /// reads. Compressed ones come back at once: then, and where nothing is left or the credit does
    /// not reach, there is none to be read.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn begin_prefetch(&mut self) -> Result<Option<SwapRead>, Error> {
        let Some(rest) = self.books.returns.rest() else {
            return Ok(None);
        };
        if self.spare() < 2 * WINDOW_MAX {
            self.books.returns.give_up();
            return Ok(None);
        }
        let out = |gfn: &Gfn| {
            let stored = matches!(
                self.state(*gfn),
                PageState::Swapped(_) | PageState::Compressed(_)
            );
            stored && !self.is_watched(*gfn)
        };
        let Some(first) = rest.iter().find(out) else {
            self.books.returns.done_to(rest.end());
            return Ok(None);
        };
        let part = |most: u32| GfnRange::new(first, most.min(rest.end().0 - first.0));
        let (read, done_to) = match self.state(first) {
            PageState::Swapped(slot) => {
                let run = self.run_of_slots(first, slot, part(WINDOW_MAX));
                let read = self.begin_read(run, None);
                let done_to = read.span().end();
                (Some(read), done_to)
            }
            _ => {
                let part = part(DECOMPRESSED_MAX);
                self.decompress(None, part)?;
                (None, part.end())
            }
        };
        self.books.returns.done_to(done_to);
        Ok(read)
    }

    fn begin_read(&mut self, run: Vec<(Gfn, SwapSlot)>, touched: Option<Gfn>) -> SwapRead {
        self.books.credit.mapped(Pages(run.len() as u64));
        let place = |touched: Gfn| run.iter().position(|(gfn, _)| *gfn == touched);
        let place = touched.and_then(place);
        let begin = |(gfn, slot): (Gfn, SwapSlot)| {
            match Some(gfn) == touched {
                true => self.books.under_way.begin_touched(),
                false => self.books.under_way.begin_ahead(gfn),
            }
            self.apply(gfn, PageEvent::Begin);
            let checksum = self.books.swapmap.checksum(slot);
            ReadPage {
                gfn,
                slot,
                checksum,
            }
        };
        let pages = run.into_iter().map(begin).collect();
        SwapRead {
            pages,
            touched: place,
        }
    }

    /// `gfn` and the swapped pages of `window` whose slots run with its slot as the pages run, in
    /// that order: no further apart, so that one read finds them. Those between need not be swapped.
    fn run_of_slots(&self, gfn: Gfn, slot: SwapSlot, window: GfnRange) -> Vec<(Gfn, SwapSlot)> {
        let mut run = Vec::with_capacity(window.count as usize);
        let mut next = (gfn, slot);
        let before = GfnRange::new(window.start, gfn.0 - window.start.0);
        for before in before.iter().rev() {
            let PageState::Swapped(slot) = self.state(before) else {
                continue;
            };
            if !follows((before, slot), next) {
                break;
            }
            if !self.is_watched(before) {
                next = (before, slot);
                run.push(next);
            }
        }
        run.reverse();
        run.push((gfn, slot));
        let mut last = (gfn, slot);
        let after = GfnRange::new(Gfn(gfn.0 + 1), window.end().0 - gfn.0 - 1);
        for after in after.iter() {
            let PageState::Swapped(slot) = self.state(after) else {
                continue;
            };
            if !follows(last, (after, slot)) {
                break;
            }
            if !self.is_watched(after) {
                last = (after, slot);
                run.push(last);
            }
        }
        run
    }

    /// The content of a page that is being read ahead is dead: it is dropped when it was read.
    /// False where the page is busy for another reason.
    pub fn forget_ahead(&mut self, gfn: Gfn) -> bool {
        self.books.under_way.dies(gfn)
    }

    /// Busy to private, for those pages of a read whose content is `right`; their slots are free
    /// then. A page that is not goes back to swapped, and one that died meanwhile is unbacked. Wakes
    /// whoever waits for any of them.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn end_swap_in(
        &mut self,
        read: &SwapRead,
        content: &[PageBuf],
        right: &[bool],
    ) -> Result<(), Error> {
        let mut install: Vec<&ReadPage> = Vec::with_capacity(read.pages.len());
        for (page, right) in read.pages.iter().zip(right) {
            let &ReadPage { gfn, slot, .. } = page;
            match (self.books.under_way.end(gfn), right) {
                (true, true) => install.push(page),
                (true, false) => {
                    self.apply(gfn, PageEvent::KeepSwapped(slot));
                    self.wake(gfn)?;
                }
                (false, _) => {
                    self.apply(gfn, PageEvent::Discard);
                    self.books.swapmap.free(slot);
                    self.books.pmap.set_zero(gfn, false);
                    self.wake(gfn)?;
                }
            }
        }
        // Neighbours whose contents are neighbours go back together.
        let next_to = |one: &&ReadPage, next: &&ReadPage| {
            one.gfn.0 + 1 == next.gfn.0 && one.slot.0 + 1 == next.slot.0
        };
        for run in install.chunk_by(next_to) {
            let first = read.place(run[0]);
            self.install(run[0].gfn, &content[first..first + run.len()])?;
            run.iter()
                .for_each(|page| self.books.swapmap.free(page.slot));
        }
        Ok(())
    }

    /// Busy to private, for neighbours.
    fn install(&mut self, first: Gfn, pages: &[PageBuf]) -> Result<(), Error> {
        self.space.install_run(first, pages)?;
        for gfn in (first.0..).map(Gfn).take(pages.len()) {
            self.apply(gfn, PageEvent::Install);
        }
        self.books.counters.swap_in_pages += pages.len() as u64;
        Ok(())
    }
}

/// Whether the second page's slot lies behind the first one's, and no further than the page does.
fn follows((gfn, slot): (Gfn, SwapSlot), (next, next_slot): (Gfn, SwapSlot)) -> bool {
    let apart = next_slot.0.checked_sub(slot.0);
    apart.is_some_and(|apart| (1..=next.0 - gfn.0).contains(&apart))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_run_as_their_pages_do() {
        let runs =
            |gfn, slot, next| follows((Gfn(5), SwapSlot(50)), (Gfn(gfn), SwapSlot(slot))) == next;
        assert!(runs(6, 51, true) && runs(8, 51, true) && runs(8, 53, true));
        assert!(runs(6, 52, false) && runs(6, 49, false) && runs(9, 90, false));
    }
}
