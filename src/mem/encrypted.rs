//! A swap store whose content means nothing without a key that only this process has.
//!
//! AES-256 in Galois/counter mode (NIST SP 800-38D) under a key of the VM process's own, which is made
//! when the store is, lies in memory that is never swapped, and is gone with the process. A nonce
//! is a slot and how often it was written, so none comes twice. The tag of what was written last
//! stays in memory, 16 bytes a slot with the count: what is on the disk can be neither read, nor
//! changed, nor be put back from earlier without being noticed.
//!
//! Pages in memory are not encrypted, and the host's own swap is not covered.

use std::io;
use std::sync::{Mutex, MutexGuard};

use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::aes::Aes256;
use aes_gcm::aes::cipher::consts::U12;
use aes_gcm::{AeadInOut, AesGcm, Key, KeyInit, Nonce, Tag};
use rustix::rand::{GetRandomFlags, getrandom};

use super::swapfile::SwapStore;
use crate::sys::pinned::Pinned;
use crate::sys::space::PageBuf;
use crate::units::SwapSlot;

/// Pages that are encrypted and written at a time: what the ciphertext takes for good. Chosen.
const WRITE_PAGES: usize = 32;

/// Tags are of 96 bits, the shortest length that SP 800-38D allows for any use (5.2.1.2).
type Cipher = AesGcm<Aes256, U12, U12>;
type CipherTag = Tag<U12>;

/// Encrypts what goes to the store behind it.
#[derive(Debug)]
pub struct Encrypted<S> {
    store: S,
    cipher: Pinned<Cipher>,
    seals: Mutex<Vec<Seal>>,
    /// Taken before the seals; who reads takes those alone.
    ciphertext: Mutex<Vec<PageBuf>>,
}

/// What was written to a slot last.
#[derive(Debug, Clone, Copy, Default)]
struct Seal {
    /// Times that the slot was written; 0: it holds nothing.
    writes: u32,
    tag: [u8; 12],
}

/// What is on the disk is not what was written there.
#[derive(Debug, thiserror::Error)]
#[error("its content was changed on the disk")]
struct Changed;

impl<S: SwapStore> Encrypted<S> {
    /// Encrypts what `store` holds from now on, with a new key.
    ///
    /// # Errors
    /// When the kernel has no randomness, or locks no page in memory for the key.
    pub fn new(store: S) -> io::Result<Encrypted<S>> {
        let mut key = Pinned::new([0_u8; 32])?;
        // So few bytes come whole, or not at all.
        getrandom(&mut *key, GetRandomFlags::empty())?;
        let key: &Key<Cipher> = (&*key).into();
        Ok(Encrypted {
            store,
            cipher: Pinned::new(Cipher::new(key))?,
            seals: Mutex::default(),
            ciphertext: Mutex::default(),
        })
    }

    fn seals(&self) -> MutexGuard<'_, Vec<Seal>> {
        self.seals.lock().expect("nothing panics under this lock")
    }

    /// Counts a write of each slot from `first`, and returns the counts.
    fn begin(&self, first: SwapSlot, count: usize) -> io::Result<Vec<u32>> {
        let slots = first.0 as usize..first.0 as usize + count;
        let mut seals = self.seals();
        if seals.len() < slots.end {
            seals.resize(slots.end, Seal::default());
        }
        let counted = seals[slots].iter_mut().map(|seal| {
            // A count that came again would be a nonce that came again.
            let worn = || io::Error::other("the slot was written too often for its key");
            seal.writes = seal.writes.checked_add(1).ok_or_else(worn)?;
            Ok(seal.writes)
        });
        counted.collect()
    }

    fn seal(&self, slot: SwapSlot) -> Seal {
        let seals = self.seals();
        seals.get(slot.0 as usize).copied().unwrap_or_default()
    }

    fn decrypt(&self, slot: SwapSlot, seal: Seal, page: &mut PageBuf) -> Result<(), Changed> {
        let nonce = nonce(slot, seal.writes);
        let buffer = InOutBuf::from(&mut page.0[..]);
        let tag = CipherTag::from(seal.tag);
        let done = self
            .cipher
            .decrypt_inout_detached(&nonce, &[], buffer, &tag);
        done.map_err(|_| Changed)
    }
}

/// The nonce of a slot's `writes`-th content.
fn nonce(slot: SwapSlot, writes: u32) -> Nonce<U12> {
    let mut nonce = [0; 12];
    nonce[..4].copy_from_slice(&slot.0.to_le_bytes());
    nonce[4..8].copy_from_slice(&writes.to_le_bytes());
    nonce.into()
}

impl<S: SwapStore> SwapStore for Encrypted<S> {
    fn write(&self, first: SwapSlot, pages: &[PageBuf]) -> io::Result<()> {
        let ciphertext = self.ciphertext.lock();
        let mut ciphertext = ciphertext.expect("nothing panics under this lock");
        let mut first = first;
        for pages in pages.chunks(WRITE_PAGES) {
            if ciphertext.len() < pages.len() {
                ciphertext.resize(pages.len(), PageBuf::ZERO);
            }
            let written = self.begin(first, pages.len())?;
            let mut tags = Vec::with_capacity(pages.len());
            let slots = (first.0..).map(SwapSlot).zip(written);
            for ((slot, writes), (page, out)) in slots.zip(pages.iter().zip(&mut *ciphertext)) {
                let buffer = InOutBuf::new(&page.0, &mut out.0).expect("both are a page");
                let nonce = nonce(slot, writes);
                let tag = self.cipher.encrypt_inout_detached(&nonce, &[], buffer);
                tags.push(tag.expect("a page is far below the mode's limit"));
            }
            let mut seals = self.seals();
            for (seal, tag) in seals.iter_mut().skip(first.0 as usize).zip(tags) {
                seal.tag = tag.into();
            }
            drop(seals);
            self.store.write(first, &ciphertext[..pages.len()])?;
            first.0 += u32::try_from(pages.len()).expect("it is WRITE_PAGES at most");
        }
        Ok(())
    }

    fn read(&self, slot: SwapSlot, page: &mut PageBuf) -> io::Result<()> {
        let seal = self.seal(slot);
        self.store.read(slot, page)?;
        let decrypted = self.decrypt(slot, seal, page);
        decrypted.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Between the slots that are wanted may lie others, of which nobody waits for the content to be
    /// written: a page that cannot be decrypted is made all zero, which no swapped page is, and its
    /// reader's checksum is wrong.
    fn read_run(&self, first: SwapSlot, pages: &mut [PageBuf]) -> io::Result<()> {
        let slots = (first.0..).map(SwapSlot).take(pages.len());
        let seals: Vec<_> = slots.map(|slot| (slot, self.seal(slot))).collect();
        self.store.read_run(first, pages)?;
        for ((slot, seal), page) in seals.into_iter().zip(pages) {
            if seal.writes == 0 || self.decrypt(slot, seal, page).is_err() {
                *page = PageBuf::ZERO;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::PAGE_SIZE;

    /// What somebody who has the disk sees of it and does to it.
    #[derive(Debug, Default)]
    struct Disk(Mutex<Vec<PageBuf>>);

    impl Disk {
        fn pages(&self) -> MutexGuard<'_, Vec<PageBuf>> {
            self.0.lock().unwrap()
        }
    }

    impl SwapStore for &Disk {
        fn write(&self, first: SwapSlot, pages: &[PageBuf]) -> io::Result<()> {
            let mut all = self.pages();
            let slots = first.0 as usize..first.0 as usize + pages.len();
            let len = all.len().max(slots.end);
            all.resize(len, PageBuf::ZERO);
            all[slots].clone_from_slice(pages);
            Ok(())
        }

        fn read(&self, slot: SwapSlot, page: &mut PageBuf) -> io::Result<()> {
            page.clone_from(&self.pages()[slot.0 as usize]);
            Ok(())
        }
    }

    fn page(byte: u8) -> PageBuf {
        PageBuf([byte; PAGE_SIZE])
    }

    #[test]
    fn batches_of_any_length_come_back() {
        let disk = Disk::default();
        let store = Encrypted::new(&disk).unwrap();
        let pages: Vec<_> = (1..=100).map(page).collect();
        store.write(SwapSlot(7), &pages).unwrap();
        let mut back = PageBuf::ZERO;
        for (slot, page) in (7..).zip(&pages) {
            store.read(SwapSlot(slot), &mut back).unwrap();
            assert_eq!(back.0, page.0);
        }
        let mut run = vec![PageBuf::ZERO; 100];
        store.read_run(SwapSlot(7), &mut run).unwrap();
        assert!(run.iter().zip(&pages).all(|(back, page)| back.0 == page.0));
    }

    #[test]
    fn the_disk_shows_neither_content_nor_what_is_equal() {
        let disk = Disk::default();
        let store = Encrypted::new(&disk).unwrap();
        store.write(SwapSlot(0), &[page(1), page(1)]).unwrap();
        let first = disk.pages().clone();
        store.write(SwapSlot(0), &[page(1), page(1)]).unwrap();
        let again = disk.pages().clone();
        let other = Disk::default();
        let other_store = Encrypted::new(&other).unwrap();
        other_store.write(SwapSlot(0), &[page(1)]).unwrap();
        let mut seen: Vec<_> = [first, again, other.pages().clone()].concat();
        seen.push(page(1));
        for (index, page) in seen.iter().enumerate() {
            // Blocks of the cipher, which any pair of equal ones would show.
            let blocks = |page: &PageBuf| page.0.chunks(16).map(<[u8]>::to_vec).collect();
            let blocks: std::collections::HashSet<Vec<u8>> = blocks(page);
            assert!(index == 5 || blocks.len() == PAGE_SIZE / 16);
            let others = seen[..index].iter().flat_map(|other| other.0.chunks(16));
            assert!(others.into_iter().all(|block| !blocks.contains(block)));
        }
    }

    #[test]
    fn what_was_changed_moved_or_put_back_is_noticed() {
        let disk = Disk::default();
        let store = Encrypted::new(&disk).unwrap();
        store.write(SwapSlot(0), &[page(1), page(2)]).unwrap();
        let before = disk.pages().clone();
        store.write(SwapSlot(0), &[page(3)]).unwrap();
        let good = disk.pages().clone();
        let mut back = PageBuf::ZERO;
        let mut refused = |change: &dyn Fn(&mut Vec<PageBuf>)| {
            disk.pages().clone_from(&good);
            change(&mut disk.pages());
            let error = store.read(SwapSlot(0), &mut back).unwrap_err();
            assert!(error.to_string().contains("changed on the disk"), "{error}");
            let mut run = vec![page(9); 2];
            store.read_run(SwapSlot(0), &mut run).unwrap();
            assert!(run[0].0 == [0; PAGE_SIZE] && run[1].0 != [9; PAGE_SIZE]);
        };
        for bit in [0, 5, PAGE_SIZE * 8 - 1] {
            refused(&|pages| pages[0].0[bit / 8] ^= 1 << (bit % 8));
        }
        refused(&|pages| pages.swap(0, 1));
        refused(&|pages| pages[0] = before[0].clone());
        refused(&|pages| pages[0] = page(3));
        disk.pages().clone_from(&good);
        store.read(SwapSlot(0), &mut back).unwrap();
        assert_eq!(back.0, [3; PAGE_SIZE]);
    }

    #[test]
    fn what_was_never_written_is_read_as_zero_between_others() {
        let disk = Disk::default();
        let store = Encrypted::new(&disk).unwrap();
        store.write(SwapSlot(0), &[page(1)]).unwrap();
        store.write(SwapSlot(2), &[page(2)]).unwrap();
        let mut run = vec![page(9); 3];
        store.read_run(SwapSlot(0), &mut run).unwrap();
        assert!(run.iter().map(|page| page.0[7]).eq([1, 0, 2]));
        assert!(store.read(SwapSlot(1), &mut run[0]).is_err());
    }
}
