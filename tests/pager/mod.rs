//! What the tests and benches of the pager share: the pager with its fault thread ([`rig`]), the two
//! ends that it works with ([`store`], [`pool`]), an observer ([`replay`]), and the random
//! interleaving ([`interleave`]).
#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(
    clippy::allow_attributes,
    reason = "an `expect` fails where all of it is used"
)]
#![allow(clippy::unwrap_used, reason = "a test's helper may fail the test")]

pub mod chunks;
pub mod faults;
pub mod interleave;
pub mod os;
pub mod pool;
pub mod replay;
pub mod rig;
pub mod store;

use tidemark::sys::space::PageBuf;
use tidemark::units::PAGE_SIZE;
use tidemark::words::TakePath;

use crate::common;

/// The take paths that this kernel has.
pub fn take_paths() -> Vec<TakePath> {
    let features = tidemark::sys::uffd::probe().expect("userfaultfd was asked for");
    let mut paths = vec![TakePath::Copy];
    if TakePath::choose(features, None) == Ok(TakePath::Move) {
        paths.push(TakePath::Move);
    } else {
        common::note("UFFDIO_MOVE is not offered: only the copying path is tested");
    }
    paths
}

/// Runs `test` on each take path that this kernel has.
pub fn both_paths(test: impl FnMut(TakePath)) {
    take_paths().into_iter().for_each(test);
}

/// The seed of a random test, printed: what a test prints is shown when it fails.
pub fn seed() -> u64 {
    let seed = common::seed();
    println!("TIDEMARK_SEED={seed}");
    seed
}

/// A page of random bytes; the same for the same number.
pub fn unique(number: u64) -> PageBuf {
    let mut page = PageBuf::ZERO;
    fastrand::Rng::with_seed(number).fill(&mut page.0);
    page
}

/// A page that names `number` in each of its words, and is cheap to make; never zero.
pub fn stamped(number: u32) -> [u8; PAGE_SIZE] {
    let mut page = [0; PAGE_SIZE];
    for word in page.chunks_exact_mut(8) {
        word.copy_from_slice(&(u64::from(number) << 8 | 0xa5).to_le_bytes());
    }
    page
}
