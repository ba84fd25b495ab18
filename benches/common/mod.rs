//! What the benches share: capability checks of the tests, page contents, a pager and its server.
#![allow(dead_code, unused_imports, reason = "each bench uses its own part")]
#![allow(
    clippy::allow_attributes,
    reason = "an `expect` fails where all of it is used"
)]

#[path = "../../tests/common/mod.rs"]
mod tests;

#[path = "../../tests/pager/mod.rs"]
pub mod pager;

use std::sync::Arc;
use std::time::Duration;

use criterion::Criterion;
use tidemark::mem::Pager;
use tidemark::mem::credit::CreditBook;
use tidemark::sys::pool_view::PoolView;
use tidemark::sys::ram::{GuestRam, Layout};
use tidemark::sys::space::{GuestSpace, PageBuf};
use tidemark::units::{Gfn, PAGE_SIZE, Pages};
use tidemark::words::TakePath;
use vm_memory::{Bytes, GuestAddress};

pub use pager::take_paths;
pub use tests::{Capability, note, require, seed, wait_for};

/// Seed of all contents.
pub const SEED: u64 = 20_261_121;

/// Short enough that all benches together stay under two minutes.
pub fn criterion() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1200))
        .sample_size(30)
        .without_plots()
        .configure_from_args()
}

/// A page of random bytes; the same for the same number.
pub fn unique(number: u64) -> PageBuf {
    pager::unique(SEED ^ number)
}

/// Guest RAM of `pages`, not armed yet.
pub fn ram(pages: u32) -> Arc<GuestRam> {
    GuestRam::new(Layout::new(Pages(u64::from(pages)))).expect("guest memory")
}

/// Armed RAM without a pager; its owner may only touch what it installed.
pub fn space(pages: u32, path: TakePath) -> GuestSpace {
    GuestSpace::new(ram(pages), path, false).expect("userfaultfd was asked for")
}

/// A pool of `frames` frames, each with content of its own.
pub fn pool(frames: u32) -> PoolView {
    let mut pool = pager::pool::Pool::new(frames);
    for frame in 0..frames {
        pool.lend(&unique(u64::from(frame)).0)
            .expect("there are as many frames as contents");
    }
    pool.view()
}

/// A pager over `ram` without a limit, and a thread that serves its faults until the process ends.
pub fn pager(ram: Arc<GuestRam>, path: TakePath) -> Arc<Pager> {
    pager::rig::Rig::over(ram, path, CreditBook::unlimited()).detach()
}

/// Reads one byte of a page.
pub fn touch(ram: &GuestRam, gfn: Gfn) {
    let byte: u8 = ram
        .memory()
        .read_obj(GuestAddress(gfn.gpa()))
        .expect("a page of RAM");
    std::hint::black_box(byte);
}

/// Writes one byte of a page.
pub fn dirty(ram: &GuestRam, gfn: Gfn) {
    ram.memory()
        .write_obj(1u8, GuestAddress(gfn.gpa()))
        .expect("a page of RAM");
}
