//! What the benches share: capability checks of the tests, page contents, a pager and its server.
#![allow(dead_code, unused_imports, reason = "each bench uses its own part")]
#![allow(
    clippy::allow_attributes,
    reason = "an `expect` fails where all of it is used"
)]

#[path = "../../tests/common/mod.rs"]
mod tests;

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use criterion::Criterion;
use rustix::event::{PollFd, PollFlags, poll};
use tidemark::mem::Pager;
use tidemark::mem::credit::CreditBook;
use tidemark::mem::pager::Settings;
use tidemark::mem::swapfile::SwapStore;
use tidemark::sys::pool_view::PoolView;
use tidemark::sys::ram::{GuestRam, Layout};
use tidemark::sys::space::{GuestSpace, PageBuf, TakePath};
use tidemark::units::{FrameId, Gfn, PAGE_SIZE, Pages, SwapSlot};
use vm_memory::{Bytes, GuestAddress};

pub use tests::{Capability, note, require};

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
    let mut page = PageBuf::ZERO;
    fastrand::Rng::with_seed(SEED ^ number).fill(&mut page.0);
    page
}

/// The take paths that this kernel has.
pub fn take_paths() -> Vec<TakePath> {
    let features = tidemark::sys::uffd::probe().expect("userfaultfd was asked for");
    let mut paths = vec![TakePath::Copy];
    if TakePath::choose(features, None) == Ok(TakePath::Move) {
        paths.push(TakePath::Move);
    } else {
        note("UFFDIO_MOVE is not offered: only the copying path is measured");
    }
    paths
}

/// Guest RAM of `pages`, not armed yet.
pub fn ram(pages: u32) -> Arc<GuestRam> {
    GuestRam::new(Layout::new(Pages(u64::from(pages)))).expect("guest memory")
}

/// Armed RAM without a pager; its owner may only touch what it installed.
pub fn space(pages: u32, path: TakePath) -> GuestSpace {
    GuestSpace::new(ram(pages), path).expect("userfaultfd was asked for")
}

/// A pool of `frames` frames, each with content of its own.
pub fn pool(frames: u32) -> PoolView {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = std::fs::File::from(rustix::fs::memfd_create("pool", flags).expect("a memfd"));
    for frame in (0..frames).map(FrameId) {
        let content = unique(u64::from(frame.0)).0;
        file.write_all_at(&content, frame.offset())
            .expect("memory for the pool");
    }
    PoolView::new(file.into(), frames)
}

/// A swap file that is no disk.
#[derive(Debug, Default)]
struct MemoryStore(Mutex<HashMap<u32, Box<[u8; PAGE_SIZE]>>>);

impl SwapStore for MemoryStore {
    fn write(&self, first: SwapSlot, pages: &[PageBuf]) -> io::Result<()> {
        let mut slots = self.0.lock().expect("nothing panics under this lock");
        for (slot, page) in (first.0..).zip(pages) {
            slots.insert(slot, Box::new(page.0));
        }
        Ok(())
    }

    fn read(&self, slot: SwapSlot, page: &mut PageBuf) -> io::Result<()> {
        let slots = self.0.lock().expect("nothing panics under this lock");
        page.0 = **slots.get(&slot.0).expect("a slot that was written");
        Ok(())
    }
}

/// A pager over `ram` without a limit, and a thread that serves its faults until the process ends.
pub fn pager(ram: Arc<GuestRam>, path: TakePath) -> Arc<Pager> {
    let settings = Settings {
        path,
        swap: Box::new(MemoryStore::default()),
        seed: SEED,
        credit: CreditBook::unlimited(),
        mappings_max: 60_000,
    };
    let pager = Arc::new(Pager::new(ram, settings).expect("userfaultfd was asked for"));
    let server = pager.clone();
    std::thread::spawn(move || {
        loop {
            let fds = server.space().uffd().poll_fds();
            let mut fds = fds.each_ref().map(|fd| PollFd::new(fd, PollFlags::IN));
            poll(&mut fds, None).expect("poll");
            server.serve().expect("faults can be served");
        }
    });
    pager
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
