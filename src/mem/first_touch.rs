//! First touches: what a guest gets where it was never before.
//!
//! | touch | memory is | the guest gets |
//! |---|---|---|
//! | read | | the zero page, over as much of the 2 MiB chunk as is unbacked and the credit covers |
//! | write | scarce | the same |
//! | write | plenty | zeroed pages of its own, a run of them |
//! | write, in an unbacked chunk behind one that is backed | plenty | a large page ([`super::large`]) |
//! | any, of a ballooned page | | the zero page for it alone |
//!
//! The zero page takes no memory and serves a chunk at once, but each page that is written then costs
//! the guest a second fault. A page of its own costs none, and memory that the guest may never use. So
//! the run is as long as the guest's touches promise: as what it has in the chunk already, or
//! directly before the touch, whichever is more. A guest that fills memory in order has a fault for
//! every 128 pages after four of them; one that touches a page here and there takes 16 pages each
//! time, and what it leaves zero the scan finds.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::faults::Touch;
use super::memory::{Fill, Memory};
use super::pager::{Error, Pager};
use crate::page::state::PageState;
use crate::sys::space::POPULATE_MAX;
use crate::units::{CHUNK_PAGES, Gfn, GfnRange};

/// Pages of the shortest run. Chosen: the fault itself costs as much as some ten pages.
const RUN_MIN: u32 = 16;
/// Backed pages of a chunk that was filled. Chosen: three quarters; a few are always elsewhere.
const BACKED_MIN: usize = 384;

impl Pager {
    /// Serves a first touch. See the module documentation.
    ///
    /// # Errors
    /// The VM cannot go on: the kernel refuses.
    pub(super) fn first_touch(
        &self,
        memory: &mut Memory<'_>,
        gfn: Gfn,
        touch: Touch,
    ) -> Result<(), Error> {
        if self.starves(memory, gfn) {
            return Ok(());
        }
        if memory.is_ballooned(gfn) {
            memory.set_ballooned(gfn, false);
            return memory.fill(GfnRange::one(gfn), Fill::ZeroPage);
        }
        let chunk = self.ram().layout().chunk_of(gfn);
        let mut run = memory.unbacked_run(gfn, chunk);
        if touch == Touch::Write && memory.is_plenty() && in_order(memory, chunk, run) {
            memory.stock().want(Instant::now());
            self.wants_stock.store(true, Ordering::Relaxed);
            memory.fill_large(chunk)?;
            if is_backed(memory, gfn) {
                return Ok(());
            }
            run = memory.unbacked_run(gfn, chunk);
        }
        let (most, fill) = if touch == Touch::Write && memory.is_plenty() {
            let in_chunk = match run.count {
                CHUNK_PAGES => 0,
                _ => backed(memory, chunk),
            };
            let length = run_length(backed_before(memory, run), in_chunk);
            (memory.credit().headroom().0.min(length.into()), Fill::Pages)
        } else {
            (memory.credit().stride().0, Fill::ZeroPage)
        };
        let most = u32::try_from(most).unwrap_or(u32::MAX);
        memory.fill(shrink_around(run, gfn, most), fill)
    }
}

/// Whether a guest that fills its memory in order has come to this chunk, of which `run` is unbacked:
/// nothing of it is backed, and of the one before most is.
fn in_order(memory: &Memory<'_>, chunk: GfnRange, run: GfnRange) -> bool {
    let Some(before) = chunk.start.0.checked_sub(CHUNK_PAGES) else {
        return false;
    };
    if run.count < CHUNK_PAGES {
        return false;
    }
    let before = GfnRange::new(Gfn(before), CHUNK_PAGES);
    let backed = before.iter().filter(|gfn| is_backed(memory, *gfn)).count();
    backed >= BACKED_MIN
}

/// Pages to be mapped for a touch of a page that follows `before` backed ones directly, in a chunk in
/// which `in_chunk` are backed.
fn run_length(before: u32, in_chunk: u32) -> u32 {
    before.max(in_chunk).clamp(RUN_MIN, POPULATE_MAX)
}

fn is_backed(memory: &Memory<'_>, gfn: Gfn) -> bool {
    memory.state(gfn) != PageState::Unbacked
}

/// Backed pages of a chunk, as far as they matter.
fn backed(memory: &Memory<'_>, chunk: GfnRange) -> u32 {
    let backed = chunk.iter().filter(|gfn| is_backed(memory, *gfn));
    let count = backed.take(POPULATE_MAX as usize).count();
    u32::try_from(count).expect("at most a run")
}

/// Backed pages directly before a run, as far as they matter.
fn backed_before(memory: &Memory<'_>, run: GfnRange) -> u32 {
    let first = run.start.0.saturating_sub(POPULATE_MAX);
    let before = (first..run.start.0).rev().map(Gfn);
    let backed = before.take_while(|gfn| is_backed(memory, *gfn)).count();
    u32::try_from(backed).expect("at most a run")
}

/// The part of `run` around `gfn` that is at most `pages_max` long, forward first.
fn shrink_around(run: GfnRange, gfn: Gfn, pages_max: u32) -> GfnRange {
    let count = run.count.min(pages_max);
    let start = gfn.0.min(run.end().0 - count);
    GfnRange::new(Gfn(start), count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_credit_fills_around_the_fault() {
        let run = GfnRange::new(Gfn(100), 50);
        assert_eq!(shrink_around(run, Gfn(120), 512), run);
        assert_eq!(
            shrink_around(run, Gfn(120), 10),
            GfnRange::new(Gfn(120), 10)
        );
        assert_eq!(
            shrink_around(run, Gfn(148), 10),
            GfnRange::new(Gfn(140), 10)
        );
        assert_eq!(shrink_around(run, Gfn(149), 1), GfnRange::new(Gfn(149), 1));
    }

    #[test]
    fn runs_grow_with_what_is_backed() {
        assert_eq!(run_length(0, 0), RUN_MIN);
        assert_eq!(run_length(17, 3), 17);
        assert_eq!(run_length(3, 100), 100);
        assert_eq!(run_length(128, 511), POPULATE_MAX);
    }
}
