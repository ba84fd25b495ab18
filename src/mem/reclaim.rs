//! Host swapping: victims are compressed or written in batches.
//!
//! A batch goes through four steps; the memory is held for short parts of the first, third and last:
//!
//! 1. get hold of victims (`victims`) and copy their content; those that lie in pool
//!    mappings are rearmed. All-zero ones are dropped;
//! 2. compress what can be compressed;
//! 3. put the compressed pages into the store, take swap slots for the others;
//! 4. write, then record as swapped what is still staged. A page that the guest touched meanwhile
//!    was given back, and its slot is free again.
//!
//! Compressed pages are written too, when the store takes more than its part of what the VM may use.

use std::io;

use super::memory::{HOLD_PAGES, Memory};
use super::observe::Cause;
use super::pager::{Error, Pager};
use super::runs::Walk;
use super::stage::Taken;
use super::store::{Compressed, Trial};
use super::victims::{CHUNKS_A_STEP, Search, Victims};
use crate::page::key::is_zero;
use crate::page::state::PageState;
use crate::sys::space::PageBuf;
use crate::units::Gfn;
use crate::words::Key;

/// Pages of one batch: 512 KiB a write.
pub const BATCH_PAGES: usize = 128;

/// What a batch achieved.
#[derive(Debug, Default)]
pub struct Reclaimed {
    /// Pages that no longer take memory (a compressed page takes a part).
    pub pages: u32,
    /// Whether there is nothing to take, until something changes.
    pub barren: bool,
    /// Why pages stayed in memory, if some did: the swap file failed or is full.
    pub failure: Option<io::Error>,
}

/// Chooses and removes victims. Owned by the worker thread.
#[derive(Debug)]
pub struct Reclaimer {
    search: Search,
    trial: Trial,
    /// Where compressed pages are looked for next.
    spill: Walk,
    /// Content of the batch; allocated at the first use, since most VMs never swap.
    content: Vec<PageBuf>,
}

impl Reclaimer {
    /// A reclaimer whose choices follow from `seed`.
    pub fn new(seed: u64) -> Reclaimer {
        Reclaimer {
            search: Search::new(seed),
            trial: Trial::default(),
            spill: Walk::from(Gfn(0)),
            content: Vec::new(),
        }
    }

    /// Pages that map a frame are victims too: see `victims`.
    pub fn take_mapped(&mut self) {
        self.search.take_mapped();
    }

    /// Victims are offered for sharing from now on: see `victims`.
    pub fn offer_with(&mut self, key_seed: Option<u64>) {
        self.search.offer_with(key_seed);
    }

    /// Keys of pages that are to go, since this was asked last.
    pub fn take_offers(&mut self) -> Vec<(Gfn, Key)> {
        self.search.take_offers()
    }

    /// Takes up to `pages_max` pages (at most one batch) out of memory.
    ///
    /// # Errors
    /// The VM cannot go on. A swap file that fails is no such error: the pages stay in memory.
    pub fn step(&mut self, pager: &Pager, pages_max: usize) -> Result<Reclaimed, Error> {
        let mut done = Reclaimed::default();
        let wanted = pages_max.min(BATCH_PAGES);
        if pager.memory(Cause::Swap).is_store_over() {
            let spilled = self.unstore(pager, wanted)?;
            self.write(pager, spilled, &mut done);
        } else {
            let victims = self.search.step(pager, wanted)?;
            let victims = self.read(pager, victims, &mut done)?;
            let compressed = self.trial.compress(&self.content[..victims.len()]);
            let left = self.compress(pager, victims, compressed, &mut done);
            self.write(pager, left, &mut done);
        }
        // The tokens are gone: what could not be stored goes back to the guest.
        let mut memory = pager.memory(Cause::Swap);
        let given_back = memory.settle_stage()?;
        if done.failure.is_some() {
            memory.counters().swap_errors += u64::from(given_back);
        }
        drop(memory);
        done.barren = done.pages == 0 && self.search.is_barren(pager);
        Ok(done)
    }

    /// Takes up to `wanted` pages out of the compressed store, with their content at the front.
    fn unstore(&mut self, pager: &Pager, wanted: usize) -> Result<Vec<Taken>, Error> {
        let layout = pager.ram().layout();
        self.content
            .resize(self.content.len().max(wanted), PageBuf::ZERO);
        let mut taken = Vec::new();
        for _ in 0..CHUNKS_A_STEP {
            let mut memory = pager.memory(Cause::Swap);
            if memory.counts().compressed == 0 {
                break;
            }
            let (part, _) = self.spill.advance(layout, HOLD_PAGES);
            for gfn in part.iter() {
                if taken.len() == wanted {
                    return Ok(taken);
                }
                if matches!(memory.state(gfn), PageState::Compressed(_)) {
                    taken.extend(memory.unstore(gfn, &mut self.content[taken.len()])?);
                }
            }
        }
        Ok(taken)
    }

    /// Copies the victims' content, in their order, and drops those that are zero.
    fn read(
        &mut self,
        pager: &Pager,
        victims: Victims,
        done: &mut Reclaimed,
    ) -> Result<Vec<Taken>, Error> {
        let mut taken = victims.taken;
        if !victims.frozen.is_empty() {
            taken.extend(pager.rearm(victims.frozen)?);
        }
        let room = self.content.len().max(taken.len());
        self.content.resize(room, PageBuf::ZERO);
        let mut kept: Vec<Taken> = Vec::with_capacity(taken.len());
        let mut memory = pager.memory(Cause::Swap);
        for taken in taken {
            let page = &mut self.content[kept.len()];
            if !memory.read_staged(&taken, page) {
                continue;
            }
            if !is_zero(&page.0) {
                kept.push(taken);
            } else if memory.drop_staged_zero(&taken)? {
                done.pages += 1;
            }
        }
        Ok(kept)
    }

    /// Puts into the store what is compressed and fits. The others are returned, with their content
    /// at the front.
    fn compress(
        &mut self,
        pager: &Pager,
        victims: Vec<Taken>,
        compressed: Vec<Option<Compressed>>,
        done: &mut Reclaimed,
    ) -> Vec<Taken> {
        let mut memory = pager.memory(Cause::Swap);
        let mut left = Vec::with_capacity(victims.len());
        for (index, (taken, page)) in victims.into_iter().zip(compressed).enumerate() {
            if page.is_some_and(|page| memory.store(&taken, page)) {
                done.pages += 1;
            } else if memory.is_staged(&taken) {
                self.content.swap(left.len(), index);
                left.push(taken);
            }
        }
        left
    }

    /// Writes pages, whose content stands at the front, and records as swapped what is still staged.
    fn write(&self, pager: &Pager, victims: Vec<Taken>, done: &mut Reclaimed) {
        let mut content = &self.content[..victims.len()];
        let mut rest = &victims[..];
        while !rest.is_empty() {
            let wanted = u32::try_from(rest.len()).expect("at most a batch");
            let Some(slots) = pager.memory(Cause::Swap).slots_to_write(wanted) else {
                done.failure = Some(io::Error::from(io::ErrorKind::StorageFull));
                break;
            };
            let (batch, pages) = (
                &rest[..slots.count as usize],
                &content[..slots.count as usize],
            );
            (rest, content) = (&rest[batch.len()..], &content[batch.len()..]);
            let written = pager.swap.write(slots.first, pages);
            let checksums: Vec<u64> = pages.iter().map(|page| pager.checksum(page)).collect();
            let mut memory: Memory<'_> = pager.memory(Cause::Swap);
            if let Err(error) = written {
                memory.free_slots(&slots);
                done.failure = Some(error);
                continue;
            }
            for ((taken, slot), checksum) in batch.iter().zip(slots.iter()).zip(checksums) {
                if memory.swap_out(taken, slot, checksum) {
                    done.pages += 1;
                }
            }
        }
    }
}
