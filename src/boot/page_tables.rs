//! Page tables that map the first 4 GiB at their own addresses, with large pages.

use super::{Error, put};
use crate::sys::ram::GuestRam;

/// Bytes of a large page.
pub const LARGE_PAGE: u64 = 2 << 20;
/// Bytes that one page directory maps.
pub const GIB: u64 = 1 << 30;

/// Where the tables are, guest-physical, and the flags of their entries.
pub struct PageTables {
    /// The root.
    pub pml4: u64,
    /// The only page directory pointer table.
    pub pdpt: u64,
    /// Four page directories, one behind the other.
    pub directories: u64,
    /// Flags of an entry that names a table.
    pub table: u64,
    /// Flags of an entry that names a large page.
    pub large: u64,
}

impl PageTables {
    /// Writes them; `mapped` says which large pages are there. A directory without any is left out.
    ///
    /// # Errors
    /// When the guest is too small.
    pub fn write(&self, ram: &GuestRam, mapped: impl Fn(u64) -> bool) -> Result<(), Error> {
        put(ram, self.pml4, &(self.pdpt | self.table).to_le_bytes())?;
        for gib in 0..4 {
            let pages = (gib * GIB..(gib + 1) * GIB).step_by(2 << 20);
            let entry = |page| if mapped(page) { page | self.large } else { 0 };
            let entries: Vec<u64> = pages.map(entry).collect();
            if entries.iter().all(|entry| *entry == 0) {
                continue;
            }
            let directory = self.directories + gib * 0x1000;
            put(
                ram,
                self.pdpt + gib * 8,
                &(directory | self.table).to_le_bytes(),
            )?;
            let bytes: Vec<u8> = entries
                .iter()
                .flat_map(|entry| entry.to_le_bytes())
                .collect();
            put(ram, directory, &bytes)?;
        }
        Ok(())
    }
}
