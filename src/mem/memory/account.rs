//! What a VM uses of its credit: the faults that wait for some, and the counts that keep the account right.

use super::Memory;
use crate::sys::proc::MAPPING_BYTES;
use crate::units::{Gfn, Pages};

/// Faults that wait for credit.
impl Memory<'_> {
    /// A fault on this page waits.
    pub fn starve(&mut self, gfn: Gfn) {
        if !self.books.starving.contains(&gfn) {
            self.books.starving.push_back(gfn);
        }
        self.books.counters.credit_waits += 1;
    }

    /// The page whose fault has waited longest; it does not wait any more.
    pub fn next_starving(&mut self) -> Option<Gfn> {
        self.books.starving.pop_front()
    }

    /// Faults that wait.
    pub fn starving(&self) -> usize {
        self.books.starving.len()
    }
}

/// The account of memory.
impl Memory<'_> {
    /// Memory of the compressed store.
    pub fn stored(&self) -> Pages {
        self.books.store.used()
    }

    /// Anonymous memory of this process that does not back the guest.
    pub fn own_memory(&self) -> Pages {
        self.books.own_memory
    }

    /// Memory of the kernel that the mappings of the guest's RAM take, of which each run of shared pages
    /// needs its own.
    pub fn mapping_memory(&self) -> Pages {
        Pages::in_bytes(self.books.pmap.mappings() * MAPPING_BYTES)
    }

    /// Enters a measurement: `anonymous` is the whole process's.
    pub fn measured(&mut self, anonymous: Pages) {
        let guest = anonymous.saturating_sub(self.books.own_memory);
        // The guest writes to pages that read as zero, and to shared ones, without anybody being told.
        let unseen = guest.saturating_sub(self.books.credit.used());
        self.books.changes += u64::from(unseen > Pages::ZERO);
        self.books.unseen += unseen;
        self.books.credit.measured(guest);
        // What is being read will take memory that no measurement has seen.
        let under_way = self.books.under_way.pages();
        self.books.credit.mapped(under_way);
    }

    /// Shared pages that the guest may have written since the last exact count, at most.
    pub fn unseen_writes(&self) -> Pages {
        self.books.unseen.min(Pages(self.counts().shared))
    }

    /// An exact count has found all of them.
    pub fn all_seen(&mut self) {
        self.books.unseen = Pages::ZERO;
    }

    /// Enters an exact count: of `total` anonymous pages, `guest` back the guest.
    pub fn counted(&mut self, total: Pages, guest: Pages) {
        // The stock is the guest's, though it is not there yet.
        self.books.own_memory = total.saturating_sub(guest + self.books.stock.pages());
        // Whoever found no page to take out may find these.
        self.books.changes += u64::from(guest > Pages::ZERO);
    }
}
