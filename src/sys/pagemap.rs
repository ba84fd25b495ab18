//! /proc/self/pagemap and /proc/self/statm: what really backs an address, and how much of it.
//!
//! Source: `Documentation/admin-guide/mm/pagemap.rst`. Frame numbers are hidden from unprivileged
//! readers; the flags used here are not.
#![expect(unsafe_code)]
// UNSAFETY: ioctl(2) with structures that the kernel fills in.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use super::proc;
use crate::units::{CHUNK_BYTES, PAGE_SHIFT, PAGE_SIZE, Pages};

const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const FILE_OR_SHARED: u64 = 1 << 61;
const WRITE_PROTECTED: u64 = 1 << 57;
const EXCLUSIVE: u64 = 1 << 56;
/// Of an entry that is not present: any of these says that there is something.
const NOT_PRESENT_BITS: u64 = SWAPPED | FILE_OR_SHARED | WRITE_PROTECTED | EXCLUSIVE;

/// `struct pm_scan_arg` of the request PAGEMAP_SCAN (Linux 6.7 and later), `include/uapi/linux/fs.h`.
#[repr(C)]
#[derive(Default)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region`: a run of pages of the same categories.
#[repr(C)]
#[derive(Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

const _: () = {
    assert!(size_of::<Scan>() == 96);
    assert!(size_of::<Region>() == 24);
};

/// `_IOWR('f', 16, struct pm_scan_arg)`.
pub const PAGEMAP_SCAN: u64 = (3 << 30) | (96 << 16) | ((b'f' as u64) << 8) | 16;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_HUGE: u64 = 1 << 6;

/// What backs one page of our address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// No page table entry.
    Nothing,
    /// An entry that is not present: the kernel migrates the page at this moment, has swapped it
    /// out, or left a marker. It says nothing about whose page it is: a page of a file and a page of
    /// our own look alike while they are migrated. Look again later.
    Unsettled,
    /// A present page that is neither a file's nor our own alone: the kernel's zero page, which is
    /// readable and costs nothing, or a page that KSM has merged, which may hold anything.
    Common,
    /// A present anonymous page of our own.
    Anonymous,
    /// A present page of a file: here, a frame of the pool.
    File,
}

impl Backing {
    /// Decodes one pagemap entry. Only what is present proves anything: an entry under migration
    /// has the swapped bit whatever the page is.
    fn of(entry: u64) -> Backing {
        let present = entry & PRESENT != 0;
        let file = entry & FILE_OR_SHARED != 0;
        let exclusive = entry & EXCLUSIVE != 0;
        match (present, file, exclusive) {
            (true, true, _) => Backing::File,
            (true, false, true) => Backing::Anonymous,
            (true, false, false) => Backing::Common,
            (false, ..) if entry & NOT_PRESENT_BITS != 0 => Backing::Unsettled,
            (false, ..) => Backing::Nothing,
        }
    }
}

/// Reads this process's page tables. The files stay open, so that a sandbox may forbid opening.
#[derive(Debug)]
pub struct PageTables {
    pagemap: File,
    statm: File,
    status: File,
}

impl PageTables {
    /// Opens the files.
    ///
    /// # Errors
    /// When /proc is not there.
    pub fn open() -> std::io::Result<PageTables> {
        Ok(PageTables {
            pagemap: File::open("/proc/self/pagemap")?,
            statm: File::open("/proc/self/statm")?,
            status: File::open("/proc/self/status")?,
        })
    }

    /// What backs the `out.len()` pages from `hva`.
    ///
    /// # Errors
    /// When the kernel does not answer in full.
    pub fn read(&self, hva: usize, out: &mut [Backing]) -> std::io::Result<()> {
        const AT_ONCE: usize = 512;
        let mut buffer = [0u8; AT_ONCE * 8];
        let mut page = (hva >> PAGE_SHIFT) as u64;
        for part in out.chunks_mut(AT_ONCE) {
            let bytes = &mut buffer[..part.len() * 8];
            self.pagemap.read_exact_at(bytes, page * 8)?;
            for (entry, backing) in bytes.chunks_exact(8).zip(part.iter_mut()) {
                let entry = entry.try_into().expect("chunks of eight bytes");
                *backing = Backing::of(u64::from_ne_bytes(entry));
            }
            page += part.len() as u64;
        }
        Ok(())
    }

    /// Of `pages` pages that were to be moved from `from` to `to`, how many at the front have been:
    /// there is something at the destination and nothing at the source.
    ///
    /// # Errors
    /// When the kernel does not answer in full.
    pub fn count_moved(&self, to: usize, from: usize, pages: usize) -> std::io::Result<usize> {
        let (mut there, mut here) = (vec![Backing::Nothing; pages], vec![Backing::Nothing; pages]);
        self.read(to, &mut there)?;
        self.read(from, &mut here)?;
        let gone = |(there, here): &(Backing, Backing)| {
            *there != Backing::Nothing && *here == Backing::Nothing
        };
        Ok(there.into_iter().zip(here).take_while(gone).count())
    }

    /// Whether the chunk at `hva`, a large page's bound, is mapped as one large page; `None` before
    /// Linux 6.7, which does not say.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn is_large(&self, hva: usize) -> std::io::Result<Option<bool>> {
        match self.first_of(hva, PAGE_IS_HUGE) {
            Ok(first) => Ok(Some(first.is_some_and(|(start, end)| {
                start == hva as u64 && end - start == CHUNK_BYTES as u64
            }))),
            Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether there is nothing in the chunk at `hva`, a large page's bound.
    ///
    /// # Errors
    /// When the kernel does not answer: it is older than Linux 6.7.
    pub fn is_empty(&self, hva: usize) -> std::io::Result<bool> {
        Ok(self
            .first_of(hva, PAGE_IS_PRESENT | PAGE_IS_SWAPPED)?
            .is_none())
    }

    /// Where the first run of pages of any of these categories begins and ends in the chunk at `hva`.
    fn first_of(&self, hva: usize, categories: u64) -> std::io::Result<Option<(u64, u64)>> {
        let mut region = Region::default();
        let mut scan = Scan {
            size: size_of::<Scan>() as u64,
            start: hva as u64,
            end: (hva + CHUNK_BYTES) as u64,
            vec: std::ptr::from_mut(&mut region) as u64,
            vec_len: 1,
            category_anyof_mask: categories,
            return_mask: categories,
            ..Scan::default()
        };
        // SAFETY: the request encodes the size of `Scan`; the structure is valid for reads and writes,
        // and its vector is `region`, one element, which outlives the call.
        let found = unsafe { libc::ioctl(self.pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut scan) };
        match found {
            0 => Ok(None),
            1 => Ok(Some((region.start, region.end))),
            _ => Err(std::io::Error::last_os_error()),
        }
    }

    /// Anonymous memory of this process: guest RAM, staged pages and the process's own.
    ///
    /// The kernel keeps this counter per CPU; the answer may be off by some dozen pages a CPU.
    ///
    /// # Errors
    /// When the file does not read as documented in proc(5).
    pub fn anonymous(&self) -> std::io::Result<Pages> {
        let mut buffer = [0u8; 128];
        let len = self.statm.read_at(&mut buffer, 0)?;
        let text = std::str::from_utf8(&buffer[..len]).map_err(std::io::Error::other)?;
        let mut fields = text.split_ascii_whitespace().map(str::parse::<u64>);
        match (fields.next(), fields.next(), fields.next()) {
            (Some(Ok(_)), Some(Ok(resident)), Some(Ok(file))) => {
                Ok(Pages(resident.saturating_sub(file)))
            }
            _ => Err(std::io::Error::other(format!(
                "cannot read statm: {text:?}"
            ))),
        }
    }

    /// Memory of this process's page tables.
    ///
    /// # Errors
    /// When the file does not read as documented in proc(5).
    pub fn tables(&self) -> std::io::Result<Pages> {
        let mut buffer = [0u8; PAGE_SIZE];
        let len = self.status.read_at(&mut buffer, 0)?;
        let text = std::str::from_utf8(&buffer[..len]).map_err(std::io::Error::other)?;
        proc::size(text, "VmPTE")
            .ok_or_else(|| std::io::Error::other("no VmPTE in /proc/self/status"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOFT_DIRTY: u64 = 1 << 55;

    /// Bits 55 to 63 in every combination, against the rule said in words: a page is proved to be
    /// our own by an entry that is present, no file's and exclusive, and by no other.
    #[test]
    fn every_combination_of_flags_decodes() {
        for flags in 0..1u64 << 9 {
            let entry = flags << 55;
            let (present, swapped) = (entry & PRESENT != 0, entry & SWAPPED != 0);
            let (file, exclusive) = (entry & FILE_OR_SHARED != 0, entry & EXCLUSIVE != 0);
            let backing = Backing::of(entry);
            let own = present && !file && exclusive;
            assert_eq!(backing == Backing::Anonymous, own, "{entry:#x}");
            assert_eq!(backing == Backing::File, present && file, "{entry:#x}");
            let common = present && !file && !exclusive;
            assert_eq!(backing == Backing::Common, common, "{entry:#x}");
            if swapped && !present {
                assert_eq!(backing, Backing::Unsettled, "{entry:#x}");
            }
            if backing == Backing::Nothing {
                let harmless = SOFT_DIRTY | 1 << 58 | 1 << 59 | 1 << 60;
                assert_eq!(entry & !harmless, 0, "{entry:#x}");
            }
        }
    }

    /// The two that once lost pages: a pool frame under migration, and one of our own.
    #[test]
    fn a_page_under_migration_proves_nothing() {
        for entry in [SWAPPED, SWAPPED | FILE_OR_SHARED, SWAPPED | EXCLUSIVE] {
            assert_eq!(Backing::of(entry), Backing::Unsettled);
        }
    }

    #[test]
    fn our_own_memory_is_seen() {
        let tables = PageTables::open().unwrap();
        let page = vec![1u8; 3 * PAGE_SIZE];
        let hva = page.as_ptr() as usize;
        let mut backing = [Backing::Nothing; 2];
        tables.read(hva, &mut backing).unwrap();
        assert_eq!(backing, [Backing::Anonymous; 2]);
        assert!(tables.anonymous().unwrap() > Pages(3));
        assert!(tables.tables().unwrap() > Pages(0));
    }
}
