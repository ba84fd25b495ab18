//! A frame pool takes what its frames take, whatever the host's administrator thinks of large pages.
#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers are tests too: a panic is their way to fail"
)]

mod common;

use std::fs;
use std::os::unix::fs::FileExt;

use rustix::fs::{FlockOperation, flock};
use tidemark::host::pool::FramePool;
use tidemark::policy::types::VmId;
use tidemark::units::{CHUNK_PAGES, Gfn, PAGE_SIZE, Pages};

const KNOB: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

/// The knob as it was, put back however the test ends. Its file is locked meanwhile, so that two of
/// these tests never take each other's setting for the administrator's.
struct Knob {
    old: String,
    _lock: fs::File,
}

impl Knob {
    fn find() -> Result<Knob, String> {
        let lock = fs::File::open(KNOB).map_err(|error| format!("{KNOB}: {error}"))?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|error| format!("{KNOB}: {error}"))?;
        let text = fs::read_to_string(KNOB).map_err(|error| format!("{KNOB}: {error}"))?;
        let chosen = text
            .split_once('[')
            .and_then(|(_, rest)| rest.split_once(']'));
        let old = chosen.ok_or_else(|| format!("{KNOB} says {text:?}"))?.0;
        // Writing what it is: shows whether we may.
        fs::write(KNOB, old).map_err(|error| format!("{KNOB}: {error}"))?;
        Ok(Knob {
            old: old.to_owned(),
            _lock: lock,
        })
    }
}

impl Drop for Knob {
    fn drop(&mut self) {
        if let Err(error) = fs::write(KNOB, &self.old) {
            common::note(&format!(
                "{KNOB} could not be set to {} again: {error}",
                self.old
            ));
        }
    }
}

fn page(fill: u32) -> [u8; PAGE_SIZE] {
    [u8::try_from(fill % 251).unwrap() + 1; PAGE_SIZE]
}

#[test]
fn a_pool_takes_what_its_frames_take_with_large_pages_on() {
    let knob = match Knob::find() {
        Ok(knob) => knob,
        Err(why) => return common::skip(&why),
    };
    for mode in ["always", "within_size", "force", "never"] {
        fs::write(KNOB, mode).unwrap();
        let mut pool = FramePool::new(Pages::mib(64)).unwrap();
        let reader = fs::File::from(pool.reader().unwrap());
        let mut frames = Vec::new();
        // One page here and there in many windows, then runs, then neighbours of both.
        let gfns = (0..20).map(|n| n * CHUNK_PAGES + 7 * n);
        for gfn in gfns
            .chain(100..180)
            .chain(20 * CHUNK_PAGES + 1..20 * CHUNK_PAGES + 9)
        {
            let stored = pool.store(VmId(1), Gfn(gfn), &page(gfn)).unwrap();
            frames.push((stored.unwrap(), gfn));
            assert_eq!(
                pool.slack(),
                Pages::ZERO,
                "{mode}: after {} frames",
                frames.len()
            );
        }
        for &(frame, gfn) in &frames {
            let mut seen = [0; PAGE_SIZE];
            reader.read_exact_at(&mut seen, frame.offset()).unwrap();
            assert_eq!(seen, page(gfn), "{mode}: {frame:?}");
        }
        let (first, rest) = frames.split_at(60);
        pool.free(first.iter().map(|&(frame, _)| frame).collect());
        assert_eq!(pool.slack(), Pages::ZERO, "{mode}: after freeing");
        for &(frame, gfn) in rest {
            let mut seen = [0; PAGE_SIZE];
            reader.read_exact_at(&mut seen, frame.offset()).unwrap();
            assert_eq!(seen, page(gfn), "{mode}: {frame:?} after freeing others");
        }
        pool.free(rest.iter().map(|&(frame, _)| frame).collect());
        assert_eq!(pool.slack(), Pages::ZERO, "{mode}: empty");
    }
    drop(knob);
}
