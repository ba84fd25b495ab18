//! A frame pool: one memory file whose pages VM processes map copy-on-write.
//!
//! Owned by a share group of the host manager: only the group's VMs get it, so that a VM process that
//! its guest has taken over reads no frame of another group. The file is sparse and the tables grow
//! with what is used, so that a pool for each VM costs next to nothing.
//!
//! The host manager alone writes it, with `pwrite` into frames that nobody maps yet.
//! VM processes get a descriptor that was opened read-only. The file's mode is 0400, so a VM process
//! of another uid cannot open it for writing through `/proc`; for one of the same uid, or root, the
//! VM process's own sandbox closes that hole. The file is sealed, so that nobody at all changes its
//! length. (Sealing it with F_SEAL_FUTURE_WRITE besides would be simpler, but also forbids the hole
//! punching by which freed frames return to the host.)
//!
//! **Large pages.** Where the host's administrator lets memory files have large pages
//! (`/sys/kernel/mm/transparent_hugepage/shmem_enabled` = always, within_size or force), one written
//! frame allocates the 2 MiB around it, which the ledger does not know of. A write that allocated more
//! than its frame is followed by punching out what is no frame, which splits the large page.
//! What the kernel joins behind our back later is measured ([`FramePool::slack`]) and charged.
//!
//! **Runs.** Each frame that is mapped alone costs the VM a mapping, a run of frames only one. So a
//! frame's place follows from the gfn it was first seen at: a 2 MiB chunk of a VM's pages gets a
//! window of 512 frames, and each gfn the frame at its own offset therein, whatever the order in
//! which the contents arrive. When no window is left, any free frame will do.
//!
//! **A pool outlives its host manager** in the VM processes that map it. The next host manager gets a
//! descriptor back from one of them, knows the file by its inode ([`PoolId`], from its own record), and
//! opens it again for writing, as only its owner can. Frames in use are those that the file has.

mod memory;
mod reserve;

use std::collections::{BTreeSet, HashMap};
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use memory::FrameFile;
pub use memory::FrameMemory;
use reserve::Reserve;

use crate::policy::types::VmId;
use crate::units::{CHUNK_PAGES, FrameId, Gfn, PAGE_SIZE, PAGES_MAX, Pages};

/// The pool cannot do what it was asked to.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} the frame pool")]
pub struct Error {
    /// What failed.
    pub operation: &'static str,
    /// The kernel's answer.
    pub source: Errno,
}

fn error(operation: &'static str) -> impl FnOnce(Errno) -> Error {
    move |source| Error { operation, source }
}

/// Which file a pool is, for as long as anybody has it open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PoolId {
    /// Device of the file.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
    /// Its length in frames.
    pub frames: u32,
}

impl PoolId {
    /// Whether `fd` is this file, and the memory of this user.
    pub fn is(&self, fd: &OwnedFd) -> bool {
        rustix::fs::fstat(fd).is_ok_and(|stat| {
            stat.st_dev == self.device
                && stat.st_ino == self.inode
                && u64::try_from(stat.st_size) == Ok(FrameId(self.frames).offset())
                && stat.st_uid == rustix::process::geteuid().as_raw()
                && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        })
    }

    /// A pool that no file is.
    pub const UNKNOWN: PoolId = PoolId {
        device: 0,
        inode: 0,
        frames: CHUNK_PAGES,
    };

    /// Whether a pool can have this length.
    pub fn is_sound(&self) -> bool {
        self.frames > 0
            && self.frames.is_multiple_of(CHUNK_PAGES)
            && u64::from(self.frames) <= PAGES_MAX
    }

    fn of(stat: &Stat, frames: u32) -> PoolId {
        PoolId {
            device: stat.st_dev,
            inode: stat.st_ino,
            frames,
        }
    }
}

/// Frames given back in one go: a millisecond where they are neighbours (Linux 6.18).
const GIVE_BACK_FRAMES_MAX: usize = CHUNK_PAGES as usize;

/// A part of a VM's memory that has a window: (VM, first gfn of the chunk).
type Chunk = (VmId, Gfn);

/// The pool and which of its frames are in use.
#[derive(Debug)]
pub struct FramePool {
    memory: Box<dyn FrameMemory>,
    id: PoolId,
    /// Length of the file in windows of [`CHUNK_PAGES`] frames.
    length: u32,
    /// For each frame of the windows below.
    used: Vec<bool>,
    /// For each window ever used: frames in use, and the chunk it was given to.
    windows: Vec<(u32, Option<Chunk>)>,
    window_of: HashMap<Chunk, u32>,
    in_use: u32,
    /// Frames in use that nobody may map any more: their memory is still to be given back, neighbours
    /// together. Each hole stops the vCPUs of all VMs for a moment whose mappings lie over it.
    retired: BTreeSet<FrameId>,
    /// Where the search for any free frame goes on.
    next: u32,
    /// Frames for the contents to come, where chance says which.
    reserve: Option<Reserve>,
}

impl FramePool {
    /// A pool of as many frames as the budget has pages (whole windows of 2 MiB), at most
    /// [`PAGES_MAX`], in a memory file.
    ///
    /// # Errors
    /// When the kernel refuses the memory file.
    pub fn new(budget: Pages) -> Result<FramePool, Error> {
        let windows = windows_for(budget);
        let file = FrameFile::new(windows * CHUNK_PAGES)?;
        let id = PoolId::of(&file.stat()?, windows * CHUNK_PAGES);
        Ok(FramePool::empty(Box::new(file), id))
    }

    /// The same in other memory, which nobody can hand back to a later host manager.
    pub fn over(memory: Box<dyn FrameMemory>, budget: Pages) -> FramePool {
        let id = PoolId {
            frames: windows_for(budget) * CHUNK_PAGES,
            ..PoolId::UNKNOWN
        };
        FramePool::empty(memory, id)
    }

    fn empty(memory: Box<dyn FrameMemory>, id: PoolId) -> FramePool {
        FramePool {
            memory,
            id,
            length: id.frames / CHUNK_PAGES,
            used: Vec::new(),
            windows: Vec::new(),
            window_of: HashMap::new(),
            in_use: 0,
            retired: BTreeSet::new(),
            next: 0,
            reserve: None,
        }
    }

    /// Takes over the pool of an earlier host manager, of which `handed` is a read-only descriptor.
    /// The frames in use are those that the file has memory for, in ascending order.
    ///
    /// # Errors
    /// When it is another file than `id` says, or the kernel refuses it to us.
    pub fn adopt(handed: &OwnedFd, id: PoolId) -> Result<(FramePool, Vec<FrameId>), Error> {
        if !id.is(handed) || !id.is_sound() {
            return Err(error("recognise")(Errno::INVAL));
        }
        let file = FrameFile::reopen(handed)?;
        let used = file.frames(id.frames)?;
        let mut pool = FramePool::empty(Box::new(file), id);
        if let Some(last) = used.last() {
            let windows = window(*last) + 1;
            pool.windows.resize(windows, (0, None));
            pool.used.resize(windows * CHUNK_PAGES as usize, false);
        }
        for frame in &used {
            pool.used[frame.index()] = true;
            pool.windows[window(*frame)].0 += 1;
            pool.in_use += 1;
        }
        Ok((pool, used))
    }

    /// Which file it is.
    pub fn id(&self) -> PoolId {
        self.id
    }

    /// The content of a frame, for its key.
    ///
    /// # Errors
    /// When it cannot be read whole.
    pub fn read(&self, frame: FrameId, page: &mut [u8; PAGE_SIZE]) -> Result<(), Error> {
        self.memory.read(frame, page).map_err(error("read"))
    }

    /// Length in frames.
    pub fn frames(&self) -> u32 {
        self.length * CHUNK_PAGES
    }

    /// Frames in use, retired ones included.
    pub fn in_use(&self) -> u32 {
        self.in_use
    }

    /// Memory that the file takes beside its frames: large pages that the kernel made.
    pub fn slack(&self) -> Pages {
        let frames = Pages(u64::from(self.in_use));
        self.memory.taken().saturating_sub(frames)
    }

    /// A read-only descriptor for a VM process.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn reader(&self) -> Result<OwnedFd, Error> {
        self.memory.reader().map_err(error("reopen"))
    }

    /// Copies a page into a free frame, near those of the page's neighbours. `None` when all are in
    /// use.
    ///
    /// # Errors
    /// When the kernel has no memory for it.
    pub fn store(
        &mut self,
        owner: VmId,
        gfn: Gfn,
        content: &[u8; PAGE_SIZE],
    ) -> Result<Option<FrameId>, Error> {
        if self.reserve.is_some() {
            return self.store_drawn(content);
        }
        let Some(frame) = self.place(owner, gfn) else {
            return Ok(None);
        };
        self.take(frame, content)?;
        self.in_use += 1;
        Ok(Some(frame))
    }

    /// Gives a frame that is not in use its memory, with that content.
    fn take(&mut self, frame: FrameId, content: &[u8; PAGE_SIZE]) -> Result<(), Error> {
        let before = self.memory.taken();
        if let Err(source) = self.memory.write(frame, content) {
            self.forget_if_empty(window(frame));
            return Err(error("write to")(source));
        }
        self.used[frame.index()] = true;
        self.windows[window(frame)].0 += 1;
        if self.memory.taken() > before + Pages(1) {
            self.trim(window(frame));
        }
        Ok(())
    }

    /// Nobody maps these frames any more, and nobody may: their memory goes back to the host by and
    /// by ([`FramePool::give_back`]), since a hole for each of many takes long.
    pub fn retire(&mut self, frames: Vec<FrameId>) {
        self.retired.extend(frames);
    }

    /// Frames that are retired.
    pub fn retired(&self) -> usize {
        self.retired.len()
    }

    /// Gives the memory of retired frames back to the host, with at most so many `holes`, and returns of
    /// how many.
    pub fn give_back(&mut self, holes: usize) -> Pages {
        let mut frames: Vec<FrameId> = Vec::new();
        let mut left = holes;
        while let Some(&frame) = self.retired.first() {
            let goes_on = frames.last().is_some_and(|last| last.0 + 1 == frame.0);
            if !goes_on && left == 0 || frames.len() == GIVE_BACK_FRAMES_MAX {
                break;
            }
            left -= usize::from(!goes_on);
            frames.extend(self.retired.pop_first());
        }
        let count = Pages(frames.len() as u64);
        self.free(frames);
        count
    }

    /// Gives frames back to the host. Nobody may map them any more.
    ///
    /// # Panics
    /// When one is not in use: a page could still be mapped somewhere.
    pub fn free(&mut self, mut frames: Vec<FrameId>) {
        for &frame in &frames {
            assert!(self.is_used(frame), "{frame:?} is not in use");
            self.in_use -= 1;
        }
        if let Some(reserve) = &mut self.reserve {
            frames = reserve.exchange(frames);
        }
        frames.sort_unstable();
        for run in frames.chunk_by(|a, b| a.0 + 1 == b.0) {
            for &frame in run {
                self.used[frame.index()] = false;
                self.windows[window(frame)].0 -= 1;
                self.forget_if_empty(window(frame));
            }
            self.memory.punch(run[0], run.len());
        }
    }

    /// Gives back the memory of a window that is no frame's.
    fn trim(&mut self, window: usize) {
        let first = window * CHUNK_PAGES as usize;
        let used = &self.used[first..first + CHUNK_PAGES as usize];
        let mut start = first;
        for run in used.chunk_by(|a, b| a == b) {
            if !run[0] {
                let frame = u32::try_from(start).expect("frames are counted in u32");
                self.memory.punch(FrameId(frame), run.len());
            }
            start += run.len();
        }
    }

    /// A window without frames can be given to another chunk.
    fn forget_if_empty(&mut self, window: usize) {
        let (count, chunk) = &mut self.windows[window];
        if *count == 0
            && let Some(chunk) = chunk.take()
        {
            self.window_of.remove(&chunk);
        }
    }

    fn is_used(&self, frame: FrameId) -> bool {
        self.used.get(frame.index()).copied().unwrap_or(false)
    }

    /// A window that was given to nobody and has no frame.
    fn free_window(&mut self) -> Option<u32> {
        let free = |(count, chunk): &(u32, Option<Chunk>)| *count == 0 && chunk.is_none();
        let window = match self.windows.iter().position(free) {
            Some(window) => window,
            None if self.windows.len() == self.length as usize => return None,
            None => {
                self.windows.push((0, None));
                let frames = self.windows.len() * CHUNK_PAGES as usize;
                self.used.resize(frames, false);
                self.windows.len() - 1
            }
        };
        Some(u32::try_from(window).expect("windows are counted in u32"))
    }

    fn place(&mut self, owner: VmId, gfn: Gfn) -> Option<FrameId> {
        let chunk = (owner, gfn.chunk_start());
        let window = match self.window_of.get(&chunk) {
            Some(&window) => Some(window),
            None => self.free_window().inspect(|&window| {
                self.windows[window as usize].1 = Some(chunk);
                self.window_of.insert(chunk, window);
            }),
        };
        let own = window.map(|window| FrameId(window * CHUNK_PAGES + (gfn.0 - chunk.1.0)));
        own.filter(|&frame| !self.is_used(frame))
            .or_else(|| self.any_free())
    }

    fn any_free(&mut self) -> Option<FrameId> {
        let reserved = self.reserve.as_ref().map_or(0, Reserve::len);
        if self.in_use as usize + reserved == self.used.len() {
            // A window that the tables do not have yet, if the file has one.
            return self
                .free_window()
                .map(|window| FrameId(window * CHUNK_PAGES));
        }
        let frames = u32::try_from(self.used.len()).expect("the length is a u32");
        let found = (self.next..frames)
            .chain(0..self.next)
            .find(|&frame| !self.used[frame as usize])?;
        self.next = (found + 1) % frames;
        Some(FrameId(found))
    }
}

/// Windows of a pool as long as the budget.
fn windows_for(budget: Pages) -> u32 {
    let pages = budget.0.clamp(1, PAGES_MAX);
    u32::try_from(pages.div_ceil(u64::from(CHUNK_PAGES))).expect("the bound fits a frame number")
}

fn window(frame: FrameId) -> usize {
    (frame.0 / CHUNK_PAGES) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    use rustix::fs::FallocateFlags;

    fn page(fill: u8) -> [u8; PAGE_SIZE] {
        [fill; PAGE_SIZE]
    }

    fn pool(mib: u64) -> FramePool {
        FramePool::new(Pages::mib(mib)).unwrap()
    }

    #[test]
    fn neighbours_get_neighbouring_frames_in_any_order() {
        let mut pool = pool(8);
        let at = |pool: &mut FramePool, vm, gfn| {
            pool.store(VmId(vm), Gfn(gfn), &page(1)).unwrap().unwrap().0
        };
        let c = at(&mut pool, 1, 1002);
        let other = at(&mut pool, 2, 1001);
        let a = at(&mut pool, 1, 1000);
        let b = at(&mut pool, 1, 1001);
        assert_eq!((b, c), (a + 1, a + 2));
        assert_ne!(other / CHUNK_PAGES, a / CHUNK_PAGES);
        // A second frame for the same page goes elsewhere.
        assert_ne!(at(&mut pool, 1, 1001), b);
    }

    #[test]
    fn every_frame_is_used_before_the_pool_is_full_and_freed_ones_come_back() {
        let mut pool = pool(4);
        let mut frames = Vec::new();
        for gfn in 0..pool.frames() {
            // One page a chunk: windows run out at once.
            let stored = pool
                .store(VmId(1), Gfn(gfn * CHUNK_PAGES), &page(2))
                .unwrap();
            frames.push(stored.unwrap());
        }
        frames.sort_unstable();
        frames.dedup();
        assert_eq!(frames.len(), pool.frames() as usize);
        assert!(pool.store(VmId(1), Gfn(3), &page(2)).unwrap().is_none());
        assert!(pool.memory.taken() > Pages::ZERO);
        pool.free(frames);
        assert_eq!((pool.in_use(), pool.memory.taken()), (0, Pages::ZERO));
        assert!(pool.store(VmId(1), Gfn(3), &page(2)).unwrap().is_some());
    }

    #[test]
    fn retired_neighbours_make_one_hole() {
        let mut pool = pool(8);
        let frames = [0, 1, 2, 3, 5, 7, 600].map(|gfn| {
            let stored = pool.store(VmId(1), Gfn(gfn), &page(3)).unwrap();
            stored.unwrap()
        });
        let [a, b, c, d, e, f, g] = frames;
        for some in [vec![g, c, a], vec![f, b, e, d]] {
            pool.retire(some);
        }
        assert_eq!(pool.give_back(2), Pages(5), "0 to 3, and 5");
        assert_eq!((pool.in_use(), pool.retired()), (2, 2));
        assert_eq!(pool.give_back(9), Pages(2));
        assert_eq!(pool.give_back(9), Pages::ZERO);
        assert_eq!(pool.memory.taken(), Pages::ZERO);
    }

    #[test]
    fn readers_read_and_cannot_write() {
        let mut pool = pool(2);
        let frame = pool.store(VmId(1), Gfn(7), &page(9)).unwrap().unwrap();
        let reader = std::fs::File::from(pool.reader().unwrap());
        let mut seen = [0; PAGE_SIZE];
        reader.read_exact_at(&mut seen, frame.offset()).unwrap();
        assert_eq!(seen, page(9));
        assert!(reader.write_at(&[1], frame.offset()).is_err());
        assert!(reader.set_len(1).is_err());
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        assert!(rustix::fs::fallocate(&reader, punch, 0, 4096).is_err());
    }

    fn blocks(file: &OwnedFd) -> i64 {
        rustix::fs::fstat(file).unwrap().st_blocks
    }

    #[test]
    fn the_next_owner_finds_every_frame_and_writes_the_same_file() {
        let mut first = pool(8);
        let mut frames = Vec::new();
        for gfn in [0, 1, 2, 9, 700, 1300, 1301] {
            frames.push(first.store(VmId(1), Gfn(gfn), &page(3)).unwrap().unwrap());
        }
        first.free(vec![frames.remove(1)]);
        let (id, handed) = (first.id(), first.reader().unwrap());
        drop(first);
        let (mut next, found) = FramePool::adopt(&handed, id).unwrap();
        frames.sort_unstable();
        assert_eq!(found, frames);
        assert_eq!((next.id(), next.in_use()), (id, 6));
        let mode = rustix::fs::fstat(&handed).unwrap().st_mode;
        assert_eq!(mode & 0o777, 0o400);
        // New frames go where none is, and old ones return to the host.
        let new = next.store(VmId(2), Gfn(5), &page(4)).unwrap().unwrap();
        assert!(!found.contains(&new));
        let before = blocks(&handed);
        next.free(found);
        assert!(blocks(&handed) < before);
        next.free(vec![new]);
        assert_eq!(blocks(&handed), 0);
    }

    #[test]
    fn another_file_is_not_adopted() {
        let first = pool(8);
        let id = first.id();
        let other = pool(8).reader().unwrap();
        assert!(FramePool::adopt(&other, id).is_err());
        let handed = first.reader().unwrap();
        let longer = PoolId {
            frames: id.frames + CHUNK_PAGES,
            ..id
        };
        assert!(FramePool::adopt(&handed, longer).is_err());
        let pipe = rustix::pipe::pipe().unwrap().0;
        assert!(FramePool::adopt(&pipe, id).is_err());
        assert!(FramePool::adopt(&handed, id).is_ok());
    }

    #[test]
    #[should_panic(expected = "not in use")]
    fn freeing_a_free_frame_is_a_bug() {
        pool(2).free(vec![FrameId(1)]);
    }
}
