//! What the host's kernel does with a VM's memory on its own account changes no guest byte:
//! compaction, which moves pages while nobody looks.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
mod pager;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::Capability;
use pager::interleave::{self, Plan};
use pager::pool::Pool;
use pager::rig::{Rig, merge_all};
use pager::{both_paths, os, seed, stamped};
use tidemark::units::{FrameId, Gfn};
use tidemark::words::TakePath;

/// Guest pages that map frames: 64 MiB.
const FRAMES: u32 = 64 << 8;
/// Memory that is in use while the frames are made and free afterwards: compaction moves them there,
/// bytes.
const BALLAST_BYTES: usize = 256 << 20;
/// Rounds of frames.
const ROUNDS: u32 = 3;
/// How long censuses are taken beside compaction, in each round.
const CENSUSES: Duration = Duration::from_millis(1200);
const COMPACT: &str = "/proc/sys/vm/compact_memory";

/// The file that starts compaction, or a visible skip.
fn compaction() -> Option<File> {
    let file = OpenOptions::new().write(true).open(COMPACT);
    file.inspect_err(|error| common::skip(&format!("cannot write {COMPACT}: {error}")))
        .ok()
}

/// Compacts memory over and over.
fn compact_until(end: &AtomicBool, mut file: &File) {
    while !end.load(Ordering::Relaxed) {
        file.write_all(b"1").expect("it was opened");
    }
}

/// Memory in use until it is dropped.
fn ballast() -> File {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = File::from(rustix::fs::memfd_create("ballast", flags).unwrap());
    let part = vec![1; 1 << 20];
    for at in (0..BALLAST_BYTES).step_by(part.len()) {
        file.write_all_at(&part, at as u64).unwrap();
    }
    file
}

/// Says whether anything was moved: else the test has shown nothing.
fn note_moves(before: u64) {
    let moved = os::vmstat("pgmigrate_success") - before;
    if moved == 0 {
        common::note("compaction moved no page: nothing was shown");
    } else {
        println!("compaction moved {moved} pages");
    }
}

#[test]
fn frames_that_are_moved_are_no_writes() {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    let Some(file) = compaction() else { return };
    let before = os::vmstat("pgmigrate_success");
    for _ in 0..ROUNDS {
        take_censuses_beside_compaction(&file);
    }
    note_moves(before);
}

/// A guest all of whose pages map a frame, and the pool.
fn all_shared() -> (Rig, Pool) {
    let rig = Rig::unlimited(TakePath::Copy, FRAMES);
    let mut pool = Pool::new(FRAMES);
    for gfn in 0..FRAMES {
        rig.write(Gfn(gfn), &stamped(gfn));
        let frame = pool.lend(&stamped(gfn));
        assert_eq!(frame, Some(FrameId(gfn)));
    }
    let candidates: Vec<_> = (0..FRAMES).map(|n| (Gfn(n), FrameId(n))).collect();
    merge_all(&rig.pager, &pool.view(), &candidates);
    (rig, pool)
}

fn take_censuses_beside_compaction(file: &File) {
    let ballast = ballast();
    let (rig, mut pool) = all_shared();
    let check = |when| {
        for gfn in 0..FRAMES {
            assert!(rig.read(Gfn(gfn)) == stamped(gfn), "page {gfn} {when}");
        }
    };
    // Only what is present in the page tables is moved as a mapping.
    check("before");
    drop(ballast);
    let end = AtomicBool::new(false);
    let censuses = std::thread::scope(|scope| {
        scope.spawn(|| compact_until(&end, file));
        let deadline = Instant::now() + CENSUSES;
        let mut censuses = 0;
        let mut result = Ok(());
        while Instant::now() < deadline && result.is_ok() {
            result = rig.pager.census().map(drop);
            // What was released is gone at once, as in a host manager.
            pool.release(&rig.pager.take_released());
            censuses += 1;
        }
        end.store(true, Ordering::Relaxed);
        result.unwrap();
        censuses
    });
    let breaks = rig.pager.report().unwrap().measured.counters.cow_breaks;
    assert_eq!(breaks, 0, "nobody wrote; {censuses} censuses");
    check("after");
    rig.pager.audit().unwrap();
    rig.finish().unwrap();
}

#[test]
fn every_byte_survives_compaction() {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    let seed = seed();
    both_paths(|path| {
        let Some(file) = compaction() else { return };
        let ballast = ballast();
        let before = os::vmstat("pgmigrate_success");
        let plan = Plan {
            path,
            seed,
            operations: 600,
            encrypted: false,
        };
        drop(ballast);
        interleave::run(plan, move |_, end| compact_until(end, &file));
        note_moves(before);
    });
}
