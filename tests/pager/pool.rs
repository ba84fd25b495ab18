//! The host manager's half of sharing, as small as it can be. A frame without references is punched
//! out of the pool at once and is the next to be used, so that a reference that was given back too
//! early shows as a corrupt page.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use rustix::fs::FallocateFlags;
use tidemark::page::key::key_of;
use tidemark::sys::pool_view::PoolView;
use tidemark::units::{FrameId, PAGE_SIZE};
use tidemark::words::Key;

/// Seed of the keys.
pub const KEY_SEED: u64 = 99;

/// A frame in use.
#[derive(Debug)]
struct Frame {
    key: Key,
    references: u64,
}

/// The pool of one share group.
#[derive(Debug)]
pub struct Pool {
    file: File,
    frames_max: u32,
    /// Frames from here on were never used.
    unused: u32,
    /// Frames that were punched, the last one on top.
    free: Vec<FrameId>,
    index: HashMap<Key, FrameId>,
    frames: HashMap<FrameId, Frame>,
}

impl Pool {
    /// An empty pool.
    pub fn new(frames_max: u32) -> Pool {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = File::from(rustix::fs::memfd_create("pool", flags).expect("a memfd"));
        file.set_len(u64::from(frames_max) * PAGE_SIZE as u64)
            .expect("a size");
        Pool {
            file,
            frames_max,
            unused: 0,
            free: Vec::new(),
            index: HashMap::new(),
            frames: HashMap::new(),
        }
    }

    /// What a VM gets: a descriptor that cannot write.
    pub fn view(&self) -> PoolView {
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let file = File::open(path).expect("our own descriptor");
        PoolView::new(file.into(), self.frames_max)
    }

    /// A frame with this content, one reference lent.
    pub fn lend(&mut self, page: &[u8; PAGE_SIZE]) -> Option<FrameId> {
        let key = key_of(page, KEY_SEED);
        if let Some(frame) = self.index.get(&key) {
            let known = self.frames.get_mut(frame).expect("an indexed frame");
            known.references += 1;
            return Some(*frame);
        }
        let frame = match self.free.pop() {
            Some(frame) => frame,
            None if self.unused == self.frames_max => return None,
            None => {
                self.unused += 1;
                FrameId(self.unused - 1)
            }
        };
        self.file
            .write_all_at(page, frame.offset())
            .expect("memory for the pool");
        self.index.insert(key, frame);
        let known = Frame { key, references: 1 };
        self.frames.insert(frame, known);
        Some(frame)
    }

    /// Takes references back; punches the frames that have none left.
    pub fn release(&mut self, frames: &[FrameId]) {
        for frame in frames {
            let known = self.frames.get_mut(frame).expect("a frame that was lent");
            known.references -= 1;
            if known.references == 0 {
                self.punch(*frame);
            }
        }
    }

    /// The references are these and no others; punches the frames that have none.
    pub fn replace(&mut self, references: &HashMap<FrameId, u64>) {
        let known: Vec<FrameId> = self.frames.keys().copied().collect();
        for frame in known {
            let count = references.get(&frame).copied().unwrap_or(0);
            match self.frames.get_mut(&frame) {
                Some(known) if count > 0 => known.references = count,
                _ => self.punch(frame),
            }
        }
        let unknown = |frame: &&FrameId| !self.frames.contains_key(*frame);
        let held = references.iter().filter(|(_, count)| **count > 0);
        let unknown = held.map(|(frame, _)| frame).find(unknown);
        assert_eq!(unknown, None, "a frame is mapped that was free");
    }

    fn punch(&mut self, frame: FrameId) {
        let known = self.frames.remove(&frame).expect("a frame in use");
        self.index.remove(&known.key);
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&self.file, flags, frame.offset(), PAGE_SIZE as u64)
            .expect("a memfd can be punched");
        self.free.push(frame);
    }

    /// References out.
    pub fn lent(&self) -> u64 {
        self.frames.values().map(|frame| frame.references).sum()
    }
}
