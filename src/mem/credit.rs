//! The account of what a VM may hold: credit from the host manager against what it uses.
//!
//! The host manager hands out credit in pages, and the sum of all credits never exceeds the budget.
//! A VM that has used up its credit holds faults back until it gets more, so that the budget is
//! enforced, not hoped for.
//!
//! What a guest uses is *measured* a hundred times a second at most. Between two measurements every
//! page that the pager maps is added at once; but writes to pages that read as zero, and to shared
//! pages, are served by the kernel alone and are seen only at the next measurement. The unused
//! credit that a VM keeps (`batch`) is there to cover them; where a guest is faster, the VM is
//! *over* its credit: it stops its vCPUs until the account is balanced again.

use crate::units::Pages;

/// The account of one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreditBook {
    granted: Pages,
    batch: Pages,
    measured: Pages,
    mapped_since: Pages,
    /// By how much a measurement was more than the one before: the most of late.
    grown: Pages,
    requested: Pages,
    plenty: bool,
}

/// What the account asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CreditMove {
    /// Ask the host manager for this much.
    Request(Pages),
    /// Give this much back.
    Return(Pages),
}

impl CreditBook {
    /// An account with `granted` credit that asks for `batch` at a time.
    pub fn new(granted: Pages, batch: Pages) -> CreditBook {
        let zero = Pages::ZERO;
        CreditBook {
            granted,
            batch,
            measured: zero,
            mapped_since: zero,
            grown: zero,
            requested: zero,
            plenty: false,
        }
    }

    /// Without a host manager nobody limits the VM.
    pub fn unlimited() -> CreditBook {
        CreditBook::new(UNLIMITED, Pages::mib(4))
    }

    /// Credit in hand.
    pub fn granted(&self) -> Pages {
        self.granted
    }

    /// Whether memory is plenty, so that more may be asked for and mapped than is needed at once.
    pub fn is_plenty(&self) -> bool {
        self.plenty
    }

    /// Notes whether memory is plenty; returns whether it was.
    pub fn set_plenty(&mut self, plenty: bool) -> bool {
        std::mem::replace(&mut self.plenty, plenty)
    }

    /// Pages in use, as last measured plus what was mapped since.
    pub fn used(&self) -> Pages {
        self.measured + self.mapped_since
    }

    /// Pages that may be mapped now.
    pub fn headroom(&self) -> Pages {
        self.granted.saturating_sub(self.used())
    }

    /// Pages that may be mapped in one go: what is mapped and not yet written at a measurement is
    /// free again in the account, and has to be covered by the spare credit.
    pub fn stride(&self) -> Pages {
        Pages((self.batch.0 / 2).max(16)).min(self.headroom())
    }

    /// Whether more is used than was granted.
    pub fn is_over(&self) -> bool {
        self.measured > self.granted
    }

    /// Pages were mapped that the guest may fill.
    pub fn mapped(&mut self, pages: Pages) {
        self.mapped_since += pages;
    }

    /// Pages that were [`CreditBook::mapped`] are not there after all. Where they were measured since,
    /// the next measurement tells.
    pub fn unmapped(&mut self, pages: Pages) {
        self.mapped_since = self.mapped_since.saturating_sub(pages);
    }

    /// A new measurement replaces all earlier knowledge.
    pub fn measured(&mut self, pages: Pages) {
        // One that follows at once, because a fault waited, says nothing of how fast the guest is.
        let of_late = Pages(self.grown.0 - self.grown.0.div_ceil(GROWN_FADES));
        self.grown = pages.saturating_sub(self.measured).max(of_late);
        self.measured = pages;
        self.mapped_since = Pages::ZERO;
    }

    /// The host manager granted more.
    pub fn grant(&mut self, pages: Pages) {
        self.granted += pages;
        self.requested = self.requested.saturating_sub(pages);
    }

    /// A new host manager: whatever was granted before is void.
    pub fn restart(&mut self, granted: Pages, batch: Pages) {
        *self = CreditBook {
            granted,
            batch,
            requested: Pages::ZERO,
            ..self.clone()
        };
    }

    /// The host manager is gone: whatever was granted before, the guest goes on.
    pub fn unlimit(&mut self) {
        self.restart(UNLIMITED, self.batch);
    }

    /// Pages to be taken out of memory so that at most `most` are used, with what counts `beside` the
    /// account: room for a fault that waits, and frames.
    pub fn excess(&self, most: Pages, beside: Pages) -> Pages {
        (self.used() + beside).saturating_sub(most)
    }

    /// What to tell the host manager now, recorded as told: ask when less than one batch is left
    /// (so that a fault seldom waits), give back what exceeds two. While memory is plenty a VM that grows
    /// fast keeps twice what it grew by between two measurements, so that it seldom is over. A VM under orders to use at most
    /// `most` asks for nothing beyond that and keeps next to nothing to spare.
    pub fn settle(&mut self, most: Option<Pages>) -> Option<CreditMove> {
        let (used, headroom) = (self.used(), self.headroom());
        let ahead = match most {
            Some(most) => most.saturating_sub(used).min(self.batch),
            None if self.plenty => {
                let most = Pages(self.batch.0.saturating_mul(AHEAD_BATCHES));
                (self.grown + self.grown).clamp(self.batch, most)
            }
            None => self.batch,
        };
        let wanted = used.saturating_sub(self.granted) + ahead;
        if headroom < wanted && self.requested < wanted {
            let ask = wanted - self.requested;
            self.requested += ask;
            return Some(CreditMove::Request(ask));
        }
        // In smaller steps this would be a message a page.
        let step = Pages(ahead.0.max(self.batch.0 / 4).max(1));
        let spare = headroom.saturating_sub(step.max(Pages(2 * ahead.0)));
        if spare >= step {
            self.granted -= spare;
            return Some(CreditMove::Return(spare));
        }
        None
    }
}

/// Credit that a fast growing VM keeps to spare while memory is plenty, in batches at most. Chosen: a
/// sixty-fourth of the host's budget at most, since a batch is one part in 512 of it.
const AHEAD_BATCHES: u64 = 8;
/// Growth counts one part in so many less from measurement to measurement. Chosen: a VM that has grown
/// fast and stopped gives back what it kept within a second.
const GROWN_FADES: u64 = 8;

/// Far more than any guest can use, and far from overflow.
const UNLIMITED: Pages = Pages(u64::MAX >> 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_before_it_runs_dry_and_only_once() {
        let mut book = CreditBook::new(Pages(100), Pages(50));
        book.mapped(Pages(40));
        assert_eq!(book.settle(None), None);
        book.mapped(Pages(20));
        assert_eq!(book.settle(None), Some(CreditMove::Request(Pages(50))));
        assert_eq!(book.settle(None), None);
        book.grant(Pages(50));
        assert_eq!(book.headroom(), Pages(90));
    }

    #[test]
    fn gives_back_what_it_does_not_need() {
        let mut book = CreditBook::new(Pages(1000), Pages(50));
        book.measured(Pages(300));
        assert_eq!(book.settle(None), Some(CreditMove::Return(Pages(600))));
        assert_eq!(book.granted(), Pages(400));
        assert_eq!(book.settle(None), None);
    }

    #[test]
    fn a_guest_faster_than_the_measurement_is_over() {
        let mut book = CreditBook::new(Pages(100), Pages(10));
        book.measured(Pages(130));
        assert!(book.is_over());
        assert_eq!(book.settle(None), Some(CreditMove::Request(Pages(40))));
        book.grant(Pages(40));
        assert!(!book.is_over());
    }

    #[test]
    fn a_fast_guest_gets_credit_ahead_while_memory_is_plenty() {
        let rests =
            |book: &mut CreditBook, pages| (0..40).for_each(|_| book.measured(Pages(pages)));
        let fast = |plenty| {
            let mut book = CreditBook::new(Pages(1000), Pages(10));
            book.set_plenty(plenty);
            rests(&mut book, 970);
            book.measured(Pages(1000));
            book
        };
        let asks = |pages| Some(CreditMove::Request(Pages(pages)));
        assert_eq!(fast(true).settle(None), asks(60));
        assert_eq!(fast(false).settle(None), asks(10));
        // A measurement that follows at once changes little.
        let mut book = fast(true);
        book.settle(None);
        book.grant(Pages(60));
        book.measured(Pages(1000));
        assert_eq!(book.settle(None), None);
        // When it does not grow any more, it keeps no more than any other.
        rests(&mut book, 1000);
        assert_eq!(book.settle(None), Some(CreditMove::Return(Pages(40))));
        // And never more than eight batches.
        let mut book = fast(true);
        book.measured(Pages(2000));
        assert_eq!(book.settle(None), asks(1000 + 80));
    }

    #[test]
    fn a_shrinking_vm_keeps_nothing_to_spare() {
        let mut book = CreditBook::new(Pages(400), Pages(40));
        book.measured(Pages(300));
        let most = Some(Pages(280));
        assert_eq!(book.settle(most), Some(CreditMove::Return(Pages(90))));
        assert_eq!(book.settle(most), None);
        book.mapped(Pages(30));
        assert_eq!(book.settle(most), Some(CreditMove::Request(Pages(20))));
        assert_eq!(book.settle(most), None);
    }

    #[test]
    fn a_bound_is_on_all_that_is_used() {
        let mut book = CreditBook::new(Pages(3000), Pages(64));
        book.measured(Pages(3000));
        assert_eq!(book.excess(Pages(2800), Pages::ZERO), Pages(200));
        assert_eq!(book.excess(Pages(2800), Pages(32)), Pages(232));
        assert_eq!(book.excess(Pages(3100), Pages(32)), Pages::ZERO);
    }

    #[test]
    fn a_capped_vm_asks_up_to_its_cap() {
        let mut book = CreditBook::new(Pages(300), Pages(40));
        book.measured(Pages(300));
        let most = Some(Pages(330));
        assert_eq!(book.settle(most), Some(CreditMove::Request(Pages(30))));
        assert_eq!(book.settle(most), None);
        book.grant(Pages(30));
        assert_eq!(book.settle(most), None);
        book.mapped(Pages(30));
        assert_eq!(book.settle(most), None);
        // Far below the cap, the cap is not felt.
        let mut book = CreditBook::new(Pages(300), Pages(40));
        book.measured(Pages(270));
        let request = Some(CreditMove::Request(Pages(40)));
        assert_eq!(book.settle(Some(Pages(3000))), request);
    }
}
