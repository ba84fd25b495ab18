//! The guest's memory: frames that are free, hold pages, or are in the balloon.
//!
//! A *page* is something the guest wants to keep, named by its index; a *frame* is memory, counted
//! from [`Memory::first`]. A page is present (has a frame) or absent. Cache pages become absent when
//! the balloon wants memory; others only ever start absent, when memory was short at the start.
//!
//! | a frame is | owner |
//! |---|---|
//! | free, its content unreported | `fresh` |
//! | free, and the host was told so | `reported` |
//! | on its way to be reported | the balloon's reporting queue |
//! | in the balloon | `ballooned`, or the deflate queue on its way back |
//! | a page's | that page |

use tidemark_guest_model::content::Kind;
use tidemark_guest_model::frames::{FrameSet, Run};
use tidemark_guest_model::layout::{Layout, Mix};
use tidemark_guest_model::rng::mix;

use crate::boot::BootInfo;
use crate::page::{self, Frame};

/// Bytes of a large page.
const LARGE_BYTES: u64 = 2 << 20;
/// Frame of an absent page.
const ABSENT: u32 = u32::MAX;

/// What the guest wants to keep in memory.
#[derive(Debug, Clone, Copy)]
pub struct Filling {
    /// Number of pages.
    pub pages: u32,
    /// Their kinds.
    pub mix: Mix,
    /// Percent of the unique pages that are hot.
    pub hot_percent: u32,
}

/// An entry of the page table of the guest's own book-keeping.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    frame: u32,
    /// How often it was rewritten.
    pub version: u16,
    /// What it is for.
    pub kind: Kind,
    /// Whether it is visited far more often than others.
    pub hot: bool,
}

/// Counts for statistics and reports.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Pages that have a frame.
    pub present: u32,
    /// Cache pages that have a frame.
    pub cached: u32,
    /// Times a page got a frame.
    pub populated: u64,
    /// Times a dropped cache page got a frame again.
    pub refilled: u64,
}

/// All memory after the image, and the pages in it.
#[derive(Debug)]
pub struct Memory {
    first: u32,
    frames: u32,
    fresh: FrameSet<'static>,
    reported: FrameSet<'static>,
    ballooned: FrameSet<'static>,
    pages: &'static mut [Page],
    counts: Counts,
    drop_cursor: u32,
    refill_cursor: u32,
    floor: u32,
}

/// Hands out the first memory after the image, before the rest is divided into frames.
#[derive(Debug)]
pub struct Arena {
    next: u64,
    end: u64,
}

impl Arena {
    /// The memory after the image. Only one arena may exist.
    #[must_use]
    pub fn new(boot: &BootInfo) -> Self {
        Self {
            next: boot.free_start,
            end: boot.ram_end,
        }
    }

    /// `count` objects, all equal to `value`, for ever.
    ///
    /// **Panics** if memory is too small.
    pub fn slice<T: Copy>(&mut self, count: usize, value: T) -> &'static mut [T] {
        let start = self.next.next_multiple_of(align_of::<T>() as u64);
        self.next = start + (size_of::<T>() * count) as u64;
        assert!(
            self.next <= self.end,
            "{count} objects do not fit into memory"
        );
        let first = start as *mut T;
        for index in 0..count {
            // SAFETY: aligned memory after the image that nothing else uses: `next` only grows.
            unsafe { first.add(index).write(value) };
        }
        // SAFETY: as above, and every object was written just now.
        unsafe { core::slice::from_raw_parts_mut(first, count) }
    }

    /// The rest of memory from the next large page on, as far as `count` frames, untouched.
    pub fn rest(&mut self, count: u32) -> Frames {
        self.next = self.next.next_multiple_of(LARGE_BYTES).min(self.end);
        let first = (self.next / page::BYTES) as u32;
        let left = ((self.end - self.next) / page::BYTES) as u32;
        let count = count.min(left);
        self.next += u64::from(count) * page::BYTES;
        Frames { first, count }
    }

    /// A frame of zeros of its own.
    pub fn frame(&mut self) -> Frame {
        self.next = self.next.next_multiple_of(page::BYTES);
        // SAFETY: memory after the image that nothing else uses; advanced past it below.
        let frame = unsafe { Frame::new((self.next / page::BYTES) as u32) };
        self.next += page::BYTES;
        assert!(self.next <= self.end, "a frame does not fit into memory");
        (0..tidemark_guest_model::content::WORDS).for_each(|word| frame.set_word(word, 0));
        frame
    }
}

/// Neighbouring frames that an arena handed out.
#[derive(Debug)]
pub struct Frames {
    first: u32,
    count: u32,
}

impl Frames {
    /// How many there are.
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// The frame with this index.
    ///
    /// **Panics** if there are not so many.
    #[must_use]
    pub fn get(&self, index: u32) -> Frame {
        assert!(index < self.count, "frame {index} of {}", self.count);
        // SAFETY: memory after the image that the arena gave to nobody else.
        unsafe { Frame::new(self.first + index) }
    }
}

impl Memory {
    /// Divides what the arena has left into frames, with all pages still absent.
    ///
    /// Keeps some frames free if `filling` asks for more pages than there are.
    #[must_use]
    pub fn new(mut arena: Arena, filling: Filling) -> Self {
        let pages = arena.slice(
            filling.pages as usize,
            Page {
                frame: ABSENT,
                version: 0,
                kind: Kind::Unique,
                hot: false,
            },
        );
        let all = (arena.end / page::BYTES) as u32;
        let words = FrameSet::words_for(all);
        let [fresh, reported, ballooned] = [(); 3].map(|()| arena.slice(words, 0));
        let first = arena.next.div_ceil(page::BYTES) as u32;
        let frames = all.saturating_sub(first);
        let floor = (frames / 128).clamp(32, 512);
        let wanted = (pages.len() as u32).min(frames.saturating_sub(floor));
        let pages = &mut pages[..wanted as usize];
        let mut layout = Layout::new(filling.mix);
        for (index, page) in pages.iter_mut().enumerate() {
            page.kind = layout.next();
            // Groups of 16 neighbours are hot or cold together.
            page.hot = page.kind == Kind::Unique
                && mix(index as u64 / 16) % 100 < u64::from(filling.hot_percent);
        }
        let mut fresh = FrameSet::new(fresh, frames);
        fresh.insert_all();
        Self {
            first,
            frames,
            fresh,
            reported: FrameSet::new(reported, frames),
            ballooned: FrameSet::new(ballooned, frames),
            pages,
            counts: Counts::default(),
            drop_cursor: 0,
            refill_cursor: 0,
            floor,
        }
    }

    /// Number of pages, present or not.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.pages.len() as u32
    }

    /// Number of frames, whatever they are used for.
    #[must_use]
    pub const fn frames(&self) -> u32 {
        self.frames
    }

    /// Number of free frames.
    #[must_use]
    pub const fn free(&self) -> u32 {
        self.fresh.count() + self.reported.count()
    }

    /// Number of frames in the balloon.
    #[must_use]
    pub const fn ballooned(&self) -> u32 {
        self.ballooned.count()
    }

    /// The counts.
    #[must_use]
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// The first frame that can hold a page.
    #[must_use]
    pub const fn first(&self) -> u32 {
        self.first
    }

    /// A page's entry.
    #[must_use]
    pub fn page(&self, index: u32) -> Page {
        self.pages[index as usize]
    }

    /// Notes that a page was rewritten.
    pub fn set_version(&mut self, index: u32, version: u16) {
        self.pages[index as usize].version = version;
    }

    /// The frame a page is in.
    #[must_use]
    pub fn frame_of(&self, index: u32) -> Option<Frame> {
        let frame = self.pages[index as usize].frame;
        (frame != ABSENT).then(|| self.frame(frame))
    }

    fn frame(&self, frame: u32) -> Frame {
        // SAFETY: frames of the sets and pages lie between the arena's last object and the end of
        // memory, which `new` divided into frames and nothing else uses.
        unsafe { Frame::new(self.first + frame) }
    }

    fn local(&self, frame: Frame) -> u32 {
        frame.number() - self.first
    }

    /// Gives an absent page a frame, whose content is then anything: a free one, or for a page that
    /// is not cache itself a cache page's. `None` if there is none.
    ///
    /// **Panics** if the page is present: its frame would be lost.
    pub fn populate(&mut self, index: u32) -> Option<Frame> {
        let frame = self
            .fresh
            .take_up()
            .or_else(|| self.reported.take_up())
            .or_else(|| {
                let is_data = self.pages[index as usize].kind != Kind::Cache;
                is_data.then(|| self.drop_cache()).flatten()
            })?;
        let page = &mut self.pages[index as usize];
        assert_eq!(page.frame, ABSENT, "page {index} is present");
        page.frame = frame;
        self.counts.present += 1;
        self.counts.populated += 1;
        if page.kind == Kind::Cache {
            self.counts.cached += 1;
        }
        Some(self.frame(frame))
    }

    /// Makes a page absent and its frame free.
    pub fn release(&mut self, index: u32) {
        if let Some(frame) = self.detach(index) {
            self.fresh.insert(frame);
        }
    }

    fn detach(&mut self, index: u32) -> Option<u32> {
        let page = &mut self.pages[index as usize];
        let frame = core::mem::replace(&mut page.frame, ABSENT);
        (frame != ABSENT).then(|| {
            self.counts.present -= 1;
            if page.kind == Kind::Cache {
                self.counts.cached -= 1;
            }
            frame
        })
    }

    /// An absent cache page that is next to be refilled, if free memory is plentiful.
    pub fn next_refill(&mut self) -> Option<u32> {
        if self.free() <= 2 * self.floor {
            return None;
        }
        for _ in 0..self.pages() {
            let index = self.refill_cursor;
            self.refill_cursor = (index + 1) % self.pages();
            let page = self.pages[index as usize];
            if page.kind == Kind::Cache && page.frame == ABSENT {
                self.counts.refilled += 1;
                return Some(index);
            }
        }
        None
    }

    /// Takes a frame for the balloon: a free one, else a cache page's; never data, and never the
    /// last free ones.
    pub fn take_for_balloon(&mut self) -> Option<Frame> {
        let frame = if self.free() > self.floor {
            self.fresh.take_top().or_else(|| self.reported.take_top())
        } else {
            self.drop_cache()
        }?;
        self.ballooned.insert(frame);
        Some(self.frame(frame))
    }

    fn drop_cache(&mut self) -> Option<u32> {
        if self.counts.cached == 0 {
            return None;
        }
        for _ in 0..self.pages() {
            let index = self.drop_cursor;
            self.drop_cursor = (index + 1) % self.pages();
            if self.pages[index as usize].kind == Kind::Cache
                && let Some(frame) = self.detach(index)
            {
                return Some(frame);
            }
        }
        None
    }

    /// Takes a frame out of the balloon; give it to [`Memory::give_back`] once the host knows.
    pub fn take_from_balloon(&mut self) -> Option<Frame> {
        let frame = self.ballooned.take_up()?;
        Some(self.frame(frame))
    }

    /// A frame that left the balloon becomes free.
    pub fn give_back(&mut self, frame: Frame) {
        self.fresh.insert(self.local(frame));
    }

    /// Takes a run of free frames that the host was not told of, to tell it.
    pub fn take_unreported(&mut self, min: u32, max: u32) -> Option<Run> {
        self.fresh.take_run(min, max)
    }

    /// The host was told of these frames: they are free again.
    pub fn give_back_reported(&mut self, run: Run) {
        (run.first..run.first + run.count).for_each(|frame| self.reported.insert(frame));
    }

    /// Address of the first frame of a run.
    #[must_use]
    pub fn address(&self, run: Run) -> u64 {
        self.frame(run.first).address()
    }
}
