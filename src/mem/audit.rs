//! Whether the books are right, for the tests.

use super::observe::Cause;
use super::pager::{Error, Pager};
use crate::page::state::PageState;
use crate::sys::pagemap::Backing;
use crate::units::GfnRange;

impl Pager {
    /// Compares the books with themselves and with the page tables.
    ///
    /// # Errors
    /// When the page tables cannot be read.
    ///
    /// # Panics
    /// When they disagree. No other thread may be at work on the memory but for faults.
    pub fn audit(&self) -> Result<(), Error> {
        let memory = self.memory(Cause::Census);
        memory.books.pmap.audit();
        assert_eq!(
            memory.books.stage.waiting() as u64 + memory.books.large.sampled_pages(),
            memory.counts().staged,
            "pages in the staging area"
        );
        // A sample lasts; whatever else takes pages out is done with them when it returns.
        for cause in [Cause::Scan, Cause::Merge, Cause::Swap] {
            let tokens = memory.books.stage.tokens_of(cause);
            assert_eq!(tokens, 0, "stage slots of {cause:?}");
        }
        for range in self.ram().layout().ranges() {
            for gfn in range.iter() {
                let state = memory.state(gfn);
                let backing = self.space().backing(GfnRange::one(gfn))?[0];
                assert!(
                    agree(state, backing),
                    "{gfn} is {state:?} in the books and {backing:?} in the page tables"
                );
            }
        }
        Ok(())
    }
}

fn agree(state: PageState, backing: Backing) -> bool {
    match state {
        PageState::Unbacked
        | PageState::Staged(_)
        | PageState::Compressed(_)
        | PageState::Swapped(_) => backing == Backing::Nothing,
        PageState::Private | PageState::Busy => backing != Backing::File,
        // KSM may have merged it, the kernel may migrate it or have swapped it.
        PageState::Broken(_) => !matches!(backing, Backing::File | Backing::Nothing),
        PageState::Shared(_) => true,
    }
}
