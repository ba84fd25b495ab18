//! The share groups of a simulated host: model guests offer no pages, so nobody uses them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;

use crate::host::pool::{self, FrameMemory, FramePool};
use crate::host::share::GroupSource;
use crate::units::{FrameId, PAGE_SIZE, Pages};

/// Groups whose frames lie on the heap, and whose keys are no secret.
#[derive(Debug, Default)]
pub(super) struct Unshared {
    secrets: Cell<u64>,
}

impl GroupSource for Unshared {
    fn secret(&self) -> io::Result<u64> {
        // Nobody guesses here; leases are told apart by them.
        Ok(self.secrets.replace(self.secrets.get() + 1))
    }

    fn pool(&self, budget: Pages) -> Result<FramePool, pool::Error> {
        let memory = Box::new(HeapFrames::default());
        Ok(FramePool::over(memory, budget))
    }
}

/// Frames on the heap, which no process can map.
#[derive(Debug, Default)]
struct HeapFrames {
    frames: BTreeMap<FrameId, Box<[u8; PAGE_SIZE]>>,
}

impl FrameMemory for HeapFrames {
    fn read(&self, frame: FrameId, page: &mut [u8; PAGE_SIZE]) -> Result<(), Errno> {
        match self.frames.get(&frame) {
            Some(stored) => page.copy_from_slice(&stored[..]),
            None => page.fill(0),
        }
        Ok(())
    }

    fn write(&mut self, frame: FrameId, page: &[u8; PAGE_SIZE]) -> Result<(), Errno> {
        self.frames.insert(frame, Box::new(*page));
        Ok(())
    }

    fn punch(&mut self, first: FrameId, frames: usize) {
        let end = FrameId(
            first
                .0
                .saturating_add(u32::try_from(frames).unwrap_or(u32::MAX)),
        );
        self.frames.retain(|frame, _| !(first..end).contains(frame));
    }

    fn taken(&self) -> Pages {
        Pages(self.frames.len() as u64)
    }

    fn reader(&self) -> Result<OwnedFd, Errno> {
        Err(Errno::NOTSUP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::types::VmId;
    use crate::units::Gfn;

    #[test]
    fn a_pool_keeps_its_frames_on_the_heap() {
        let mut pool = Unshared::default().pool(Pages::mib(4)).unwrap();
        let frame = pool.store(VmId(0), Gfn(3), &[7; PAGE_SIZE]).unwrap();
        let frame = frame.unwrap();
        let mut page = [0; PAGE_SIZE];
        pool.read(frame, &mut page).unwrap();
        assert_eq!((page, pool.slack()), ([7; PAGE_SIZE], Pages::ZERO));
        assert!(pool.reader().is_err());
        pool.free(vec![frame]);
        pool.read(frame, &mut page).unwrap();
        assert_eq!((page, pool.in_use()), ([0; PAGE_SIZE], 0));
    }
}
