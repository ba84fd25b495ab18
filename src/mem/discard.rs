//! Dropping content that the guest declared dead: ballooned pages and reported free pages.

use super::large::Whether;
use super::memory::HOLD_PAGES;
use super::observe::Cause;
use super::pager::{Error, Pager};
use super::runs::runs;
use crate::page::state::PageState;
use crate::units::{Gfn, GfnRange};

/// Why content is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dead {
    /// The balloon holds the page.
    Ballooned,
    /// The guest has the page on its free list.
    Free,
}

impl Pager {
    /// The balloon took these pages.
    ///
    /// # Errors
    /// The VM cannot go on.
    pub fn inflate(&self, gfns: &[Gfn]) -> Result<(), Error> {
        gfns.chunks(HOLD_PAGES as usize)
            .try_for_each(|part| self.drop_dead(part, Dead::Ballooned))
    }

    /// The balloon gave these pages back. They are unbacked; the next touch fills them.
    pub fn deflate(&self, gfns: &[Gfn]) {
        let mut memory = self.memory_first(Cause::Guest);
        for gfn in gfns {
            memory.set_ballooned(*gfn, false);
        }
    }

    /// The guest does not need the content of these pages any more.
    ///
    /// # Errors
    /// The VM cannot go on.
    pub fn report_free(&self, range: GfnRange) -> Result<(), Error> {
        let gfns: Vec<Gfn> = range.iter().collect();
        gfns.chunks(HOLD_PAGES as usize)
            .try_for_each(|part| self.drop_dead(part, Dead::Free))
    }

    fn drop_dead(&self, gfns: &[Gfn], why: Dead) -> Result<(), Error> {
        let ballooned = why == Dead::Ballooned;
        let mut memory = self.memory_first(Cause::Guest);
        let mut mapped = Vec::new();
        let mut in_pool = Vec::new();
        for &gfn in gfns {
            if let Some(sampled) = memory.sample_of(gfn) {
                memory.return_large(sampled, Whether::Touched)?;
            }
            let held = match memory.state(gfn) {
                PageState::Unbacked => true,
                PageState::Private => {
                    mapped.push(gfn);
                    true
                }
                PageState::Staged(_) | PageState::Compressed(_) | PageState::Swapped(_) => {
                    memory.forget(gfn)?;
                    true
                }
                // Without a mapping to spare the page stays. One that maps a frame costs nothing;
                // one of its own is memory that the balloon does not give.
                state @ (PageState::Shared(_) | PageState::Broken(_)) => {
                    let dropping = memory.begin_drop(gfn);
                    let gone = dropping.is_some() || matches!(state, PageState::Shared(_));
                    in_pool.extend(dropping);
                    gone
                }
                // Another thread works on the page at this moment. One that is only read ahead is
                // dropped when it was read. Else the guest touched what it calls dead, or the page is
                // being swapped: keeping content is always right.
                PageState::Busy => memory.forget_ahead(gfn),
            };
            if ballooned && held {
                memory.set_ballooned(gfn, true);
            }
        }
        for run in runs(&mapped) {
            memory.discard(run)?;
        }
        drop(memory);
        let kept = self.drop_from_pool(&in_pool)?;
        if ballooned && !kept.is_empty() {
            let mut memory = self.memory_first(Cause::Guest);
            for gfn in kept {
                if matches!(memory.state(gfn), PageState::Broken(_)) {
                    memory.set_ballooned(gfn, false);
                }
            }
        }
        Ok(())
    }
}
