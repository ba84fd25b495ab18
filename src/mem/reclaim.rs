//! Host swapping: random victims, compressed or written in batches.
//!
//! Victims are chosen at random, as ESX does, so that the choice never works together with the
//! guest's own replacement to its harm (a page that both consider oldest is read only to be swapped
//! again by the guest). The seed is printed at start and can be set.
//!
//! A batch goes through four steps; the books are locked in the first, third and last:
//!
//! 1. choose victims, take them out of the guest (*staged*), copy their content;
//! 2. compress what can be compressed;
//! 3. put the compressed pages into the store, take swap slots for the others;
//! 4. write, then record as swapped what is still staged. A page that the guest touched meanwhile
//!    was given back, and its slot is free again.

use std::io;

use super::discard::runs;
use super::pager::{Books, Error, Pager, stage_slot};
use super::store::{Compressed, compress};
use crate::page::key::is_zero;
use crate::page::state::{PageEvent, PageState};
use crate::sys::pagemap::Backing;
use crate::sys::space::{PageBuf, StageSlot, TAKE_SLOTS};
use crate::units::{Gfn, GfnRange, SwapSlot};

/// Pages of one batch: 128 KiB a write.
pub const BATCH_PAGES: usize = 32;
/// Random draws for each victim wanted, before the tables are searched in order.
const DRAWS_PER_VICTIM: usize = 32;

/// What a batch achieved.
#[derive(Debug, Default)]
pub struct Reclaimed {
    /// Pages that no longer take memory (a compressed page takes a part).
    pub pages: u32,
    /// Why pages stayed in memory, if some did: the swap file failed or is full.
    pub failure: Option<io::Error>,
}

/// Chooses and removes victims. Owned by the worker thread, which alone takes pages.
#[derive(Debug)]
pub struct Reclaimer {
    rng: fastrand::Rng,
    /// Content of the batch; allocated at the first use, since most VMs never swap.
    content: Vec<PageBuf>,
}

/// A page of the batch.
#[derive(Debug, Clone, Copy)]
struct Victim {
    gfn: Gfn,
    slot: StageSlot,
}

impl Reclaimer {
    /// A reclaimer whose choices follow from `seed`.
    pub fn new(seed: u64) -> Reclaimer {
        Reclaimer {
            rng: fastrand::Rng::with_seed(seed),
            content: Vec::new(),
        }
    }

    /// Takes up to `pages_max` pages (at most one batch) out of memory.
    ///
    /// # Errors
    /// The VM cannot go on. A swap file that fails is no such error: the pages stay in memory.
    pub fn step(&mut self, pager: &Pager, pages_max: usize) -> Result<Reclaimed, Error> {
        let victims = self.take_victims(pager, pages_max.min(BATCH_PAGES))?;
        if victims.is_empty() {
            return Ok(Reclaimed::default());
        }
        let compressed = self.compress(victims.len());
        let result = self.store(pager, &victims, compressed);
        for run in slot_runs(&victims) {
            pager.space.drop_staged(run.0, run.1)?;
        }
        result
    }

    fn take_victims(&mut self, pager: &Pager, wanted: usize) -> Result<Vec<Victim>, Error> {
        let mut books = pager.books();
        let (private, broken) = self.choose(pager, &books, wanted)?;
        let mut victims = Vec::with_capacity(private.len() + broken.len());
        let mut next = StageSlot(0);
        for run in runs(&private) {
            let taken = pager.space.take(run, next)?;
            for gfn in GfnRange::new(run.start, taken).iter() {
                books.pmap.apply(gfn, PageEvent::Take(u32::from(next.0)));
                victims.push(Victim { gfn, slot: next });
                next = StageSlot(next.0 + 1);
            }
        }
        if !broken.is_empty() {
            for (slot, &gfn) in (TAKE_SLOTS..).zip(&broken) {
                let slot = StageSlot(slot);
                pager.space.freeze_broken(gfn)?;
                pager.space.copy_frozen(gfn, slot);
                books.pmap.apply(gfn, PageEvent::Begin);
                victims.push(Victim { gfn, slot });
            }
            drop(books);
            for run in runs(&broken) {
                pager.space.rearm(run)?;
            }
            books = pager.books();
            for victim in victims.iter().filter(|victim| victim.slot.0 >= TAKE_SLOTS) {
                books
                    .pmap
                    .apply(victim.gfn, PageEvent::Take(u32::from(victim.slot.0)));
                pager.space.wake(GfnRange::one(victim.gfn))?;
            }
            // While the books were free the guest may have touched a page taken above.
            victims.retain(|victim| is_staged(&books, *victim));
        }
        // Copied under the lock: afterwards a touch may move a page back at any time.
        self.content
            .resize(self.content.len().max(victims.len()), PageBuf::ZERO);
        let mut zeros = Vec::new();
        victims.retain(|victim| {
            let page = &mut self.content[0];
            pager.space.read_staged(victim.slot, page);
            let zero = is_zero(&page.0);
            if zero {
                zeros.push(*victim);
            }
            !zero
        });
        for zero in &zeros {
            books.pmap.apply(zero.gfn, PageEvent::Discard);
            books.pmap.set_zero(zero.gfn, true);
        }
        for (victim, page) in victims.iter().zip(&mut self.content) {
            pager.space.read_staged(victim.slot, page);
        }
        drop(books);
        for run in slot_runs(&zeros) {
            pager.space.drop_staged(run.0, run.1)?;
        }
        Ok(victims)
    }

    /// Up to `wanted` random pages that take memory, in ascending order: (private, broken).
    fn choose(
        &mut self,
        pager: &Pager,
        books: &Books,
        wanted: usize,
    ) -> Result<(Vec<Gfn>, Vec<Gfn>), Error> {
        let layout = pager.ram().layout();
        let size = layout.size().0;
        let nth = |index: u64| {
            let mut left = u32::try_from(index).expect("a guest has fewer than 2^32 pages");
            for range in layout.ranges() {
                if left < range.count {
                    return Gfn(range.start.0 + left);
                }
                left -= range.count;
            }
            unreachable!("the index is below the size")
        };
        let mut chosen = Vec::new();
        let consider = |gfn: Gfn, chosen: &mut Vec<Gfn>| -> Result<(), Error> {
            let candidate = matches!(
                books.pmap.state(gfn),
                PageState::Private | PageState::Broken(_)
            );
            if candidate
                && !chosen.contains(&gfn)
                && pager.space.backing(GfnRange::one(gfn))?[0] == Backing::Anonymous
            {
                chosen.push(gfn);
            }
            Ok(())
        };
        for _ in 0..wanted * DRAWS_PER_VICTIM {
            if chosen.len() == wanted {
                break;
            }
            consider(nth(self.rng.u64(0..size)), &mut chosen)?;
        }
        // Few pages are left: search the whole table once, from a random place.
        let start = self.rng.u64(0..size);
        for step in 0..size {
            if chosen.len() == wanted {
                break;
            }
            consider(nth((start + step) % size), &mut chosen)?;
        }
        chosen.sort_unstable();
        Ok(chosen
            .into_iter()
            .partition(|gfn| matches!(books.pmap.state(*gfn), PageState::Private)))
    }

    fn compress(&self, count: usize) -> Vec<Option<Compressed>> {
        self.content[..count].iter().map(compress).collect()
    }

    /// Steps 3 and 4.
    fn store(
        &mut self,
        pager: &Pager,
        victims: &[Victim],
        compressed: Vec<Option<Compressed>>,
    ) -> Result<Reclaimed, Error> {
        let mut reclaimed = Reclaimed::default();
        let mut books = pager.books();
        let mut to_write = Vec::new();
        for (index, (victim, compressed)) in victims.iter().zip(compressed).enumerate() {
            if !is_staged(&books, *victim) {
                continue;
            }
            match compressed.and_then(|page| books.store.insert(page)) {
                Some(slot) => {
                    books.pmap.apply(victim.gfn, PageEvent::Compress(slot));
                    books.counters.swap_out_pages += 1;
                    reclaimed.pages += 1;
                }
                None => {
                    // Pages to write stand at the front of the content, in the order of victims.
                    self.content.swap(to_write.len(), index);
                    to_write.push(*victim);
                }
            }
        }
        let mut rest = &to_write[..];
        let mut content = &self.content[..to_write.len()];
        while !rest.is_empty() {
            let wanted = u32::try_from(rest.len()).expect("at most a batch");
            let Some((first, count)) = books.swapmap.take_run(wanted) else {
                reclaimed.failure = Some(io::Error::from(io::ErrorKind::StorageFull));
                give_back(pager, &mut books, rest)?;
                break;
            };
            let (batch, pages) = (&rest[..count as usize], &content[..count as usize]);
            (rest, content) = (&rest[count as usize..], &content[count as usize..]);
            drop(books);
            let written = pager.swap.write(first, pages);
            let checksums: Vec<u64> = pages.iter().map(|page| pager.checksum(page)).collect();
            books = pager.books();
            let slots = (first.0..first.0 + count).map(SwapSlot);
            if let Err(error) = written {
                slots.for_each(|slot| books.swapmap.free(slot));
                books.swapmap.start_over();
                give_back(pager, &mut books, batch)?;
                reclaimed.failure = Some(error);
                continue;
            }
            for ((victim, slot), checksum) in batch.iter().zip(slots).zip(checksums) {
                if is_staged(&books, *victim) {
                    books.swapmap.set_checksum(slot, checksum);
                    books.pmap.apply(victim.gfn, PageEvent::SwapOut(slot));
                    books.counters.swap_out_pages += 1;
                    reclaimed.pages += 1;
                } else {
                    books.swapmap.free(slot);
                }
            }
        }
        Ok(reclaimed)
    }
}

fn is_staged(books: &Books, victim: Victim) -> bool {
    books.pmap.state(victim.gfn) == PageState::Staged(u32::from(victim.slot.0))
}

/// Puts pages that could not be stored back where they were.
fn give_back(pager: &Pager, books: &mut Books, victims: &[Victim]) -> Result<(), Error> {
    for victim in victims {
        if let PageState::Staged(slot) = books.pmap.state(victim.gfn) {
            pager
                .space
                .give_back(GfnRange::one(victim.gfn), stage_slot(slot))?;
            books.pmap.apply(victim.gfn, PageEvent::GiveBack);
            books.counters.swap_errors += 1;
        }
    }
    Ok(())
}

/// Runs of stage slots, for dropping them in few calls.
fn slot_runs(victims: &[Victim]) -> Vec<(StageSlot, u32)> {
    let mut runs: Vec<(StageSlot, u32)> = Vec::new();
    for victim in victims {
        match runs.last_mut() {
            Some((first, count))
                if u32::from(first.0) + *count == u32::from(victim.slot.0)
                    && victim.slot.0 != TAKE_SLOTS =>
            {
                *count += 1;
            }
            _ => runs.push((victim.slot, 1)),
        }
    }
    runs
}
