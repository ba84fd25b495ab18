//! The compressed store: pages chosen for swapping that LZ4 brings to half a page or less stay in
//! memory, where they are some fifty times quicker to get back than from a disk.
//!
//! As ESX does it: only pages already chosen for swapping, kept when they fit half a page, at most
//! 10 % of the VM's memory (`Mem.MemZipMaxPct`). A page that fits a quarter is charged a quarter.

use std::collections::HashMap;

use crate::page::state::SmallSlot;
use crate::sys::space::PageBuf;
use crate::units::{PAGE_SIZE, Pages};

/// Compressed pages larger than this go to the swap file instead, bytes.
pub const COMPRESSED_BYTES_MAX: usize = PAGE_SIZE / 2;
/// Charge unit, bytes: a quarter of a page.
const QUANTUM: usize = PAGE_SIZE / 4;
const QUANTA_A_PAGE: u64 = (PAGE_SIZE / QUANTUM) as u64;
/// Of what a VM may use, the store takes one part in so many at most. Chosen: a guest that is held
/// to little needs room for the pages that it works on more than quick ones that it does not.
const BOUND_PART: u64 = 4;
/// Share of the VM's memory that the store may take, percent.
pub const STORE_PERCENT_MAX: u64 = 10;

/// A stored page cannot be had back: our own memory is broken.
#[derive(Debug, thiserror::Error)]
#[error("a compressed page does not decompress")]
pub struct Corrupt;

/// The store of one VM.
#[derive(Debug, Default)]
pub struct CompressedStore {
    pages: HashMap<SmallSlot, Box<[u8]>>,
    next: SmallSlot,
    quanta: u64,
    /// Of the VM's size.
    quanta_max: u64,
    /// Of what the VM may use now, if that is less.
    quanta_bound: u64,
}

/// A page in compressed form, not stored yet.
#[derive(Debug)]
pub struct Compressed(Box<[u8]>);

/// Compresses a page; `None` when it does not shrink enough.
pub fn compress(page: &PageBuf) -> Option<Compressed> {
    let mut buffer = [0u8; lz4_flex::block::get_maximum_output_size(PAGE_SIZE)];
    let len = lz4_flex::block::compress_into(&page.0, &mut buffer).ok()?;
    (len <= COMPRESSED_BYTES_MAX).then(|| Compressed(buffer[..len].into()))
}

/// Which pages are worth trying. To find that a page does not shrink costs as much as to write it, and
/// a guest whose pages did not shrink has more of that kind. So after a batch of which next to nothing
/// shrank only one page in some is tried, until some of those shrink.
#[derive(Debug, Default)]
pub struct Trial {
    sparse: bool,
}

impl Trial {
    /// One page in so many is tried while nothing shrinks. Chosen.
    const SPARSE: usize = 8;
    /// So many of the pages that were tried must have shrunk: one in this. Chosen.
    const WORTH: usize = 16;

    /// Compresses the pages of a batch that are tried.
    pub fn compress(&mut self, pages: &[PageBuf]) -> Vec<Option<Compressed>> {
        let step = if self.sparse { Trial::SPARSE } else { 1 };
        let tries = pages.iter().enumerate();
        let compressed: Vec<_> = tries
            .map(|(index, page)| (index % step == 0).then(|| compress(page)).flatten())
            .collect();
        let tried = pages.len().div_ceil(step);
        let shrunk = compressed.iter().flatten().count();
        if tried > 0 {
            self.sparse = shrunk * Trial::WORTH < tried;
        }
        compressed
    }
}

fn quanta(bytes: &[u8]) -> u64 {
    bytes.len().div_ceil(QUANTUM) as u64
}

impl CompressedStore {
    /// An empty store for a VM with `size` of memory.
    pub fn new(size: Pages) -> CompressedStore {
        let pages_max = size.0 * STORE_PERCENT_MAX / 100;
        let quanta_max = pages_max * QUANTA_A_PAGE;
        CompressedStore {
            quanta_max,
            quanta_bound: u64::MAX,
            ..CompressedStore::default()
        }
    }

    /// The VM may use at most `most` now: the store takes a part of that, the rest must hold what
    /// the guest works on.
    pub fn bound(&mut self, most: Option<Pages>) {
        let quanta = |most: Pages| most.0.saturating_mul(QUANTA_A_PAGE) / BOUND_PART;
        self.quanta_bound = most.map_or(u64::MAX, quanta);
    }

    /// Whether the store takes more than it may now.
    pub fn is_over(&self) -> bool {
        self.quanta > self.quanta_max.min(self.quanta_bound)
    }

    /// Memory charged.
    pub fn used(&self) -> Pages {
        Pages::holding_bytes(self.quanta * QUANTUM as u64)
    }

    /// Stores a page; `None` when the store is full.
    pub fn insert(&mut self, page: Compressed) -> Option<SmallSlot> {
        let charge = quanta(&page.0);
        if self.quanta + charge > self.quanta_max.min(self.quanta_bound) {
            return None;
        }
        // Slots are used round about; the map holds far fewer than there are numbers.
        while self.pages.contains_key(&self.next) {
            self.next = self.next_after();
        }
        let slot = self.next;
        self.next = self.next_after();
        self.quanta += charge;
        self.pages.insert(slot, page.0);
        Some(slot)
    }

    fn next_after(&self) -> SmallSlot {
        (self.next + 1) % (1 << 27)
    }

    /// Decompresses a page; it stays stored.
    ///
    /// # Errors
    /// When the stored bytes do not give a page.
    pub fn read(&self, slot: SmallSlot, page: &mut PageBuf) -> Result<(), Corrupt> {
        let bytes = self.pages.get(&slot).ok_or(Corrupt)?;
        match lz4_flex::block::decompress_into(bytes, &mut page.0) {
            Ok(PAGE_SIZE) => Ok(()),
            _ => Err(Corrupt),
        }
    }

    /// Forgets a page.
    ///
    /// # Panics
    /// When the slot is free.
    pub fn remove(&mut self, slot: SmallSlot) {
        let bytes = self.pages.remove(&slot);
        let bytes = bytes.unwrap_or_else(|| panic!("compressed slot {slot} is freed twice"));
        self.quanta -= quanta(&bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn half_random() -> PageBuf {
        let mut page = PageBuf::ZERO;
        fastrand::Rng::with_seed(1).fill(&mut page.0[..1500]);
        page
    }

    #[test]
    fn pages_come_back_and_are_charged_in_quarters() {
        let mut store = CompressedStore::new(Pages(100));
        let slot = store.insert(compress(&half_random()).unwrap()).unwrap();
        assert_eq!(store.quanta, 2);
        let mut back = PageBuf::ZERO;
        store.read(slot, &mut back).unwrap();
        assert_eq!(back.0, half_random().0);
        store.remove(slot);
        assert_eq!(store.used(), Pages(0));
        assert!(store.read(slot, &mut back).is_err());
    }

    #[test]
    fn what_does_not_shrink_is_refused() {
        let mut page = PageBuf::ZERO;
        fastrand::Rng::with_seed(1).fill(&mut page.0);
        assert!(compress(&page).is_none());
    }

    #[test]
    fn pages_are_tried_seldom_while_none_shrinks() {
        let mut random = PageBuf::ZERO;
        fastrand::Rng::with_seed(1).fill(&mut random.0);
        let shrunk = |trial: &mut Trial, page: &PageBuf| {
            let compressed = trial.compress(&vec![page.clone(); 32]);
            compressed.iter().flatten().count()
        };
        let mut trial = Trial::default();
        assert_eq!(shrunk(&mut trial, &random), 0);
        assert_eq!(shrunk(&mut trial, &half_random()), 4, "one in eight");
        assert_eq!(shrunk(&mut trial, &half_random()), 32);
        assert!(trial.compress(&[]).is_empty());
        assert_eq!(shrunk(&mut trial, &half_random()), 32);
    }

    #[test]
    fn a_store_takes_a_part_of_what_the_vm_may_use() {
        let mut store = CompressedStore::new(Pages(100));
        for _ in 0..4 {
            store.insert(compress(&half_random()).unwrap()).unwrap();
        }
        assert!(!store.is_over());
        store.bound(Some(Pages(6)));
        assert!(store.is_over());
        assert!(store.insert(compress(&half_random()).unwrap()).is_none());
        store.bound(None);
        assert!(!store.is_over());
    }

    #[test]
    fn a_full_store_refuses() {
        let mut store = CompressedStore::new(Pages(10));
        assert!(store.insert(compress(&half_random()).unwrap()).is_some());
        assert!(store.insert(compress(&half_random()).unwrap()).is_some());
        assert!(store.insert(compress(&half_random()).unwrap()).is_none());
    }
}
