//! What the scan remembers of a VM's pages, and which chunk it looks at next. Without a clock: the
//! present comes in as the time since the scan began.
//!
//! Of each page that was looked at, 16 bits of its key are kept, so that a page is recognised at the
//! next look. That is 1 KiB for a chunk in which pages have memory of their own, two bytes a page; it
//! goes when the chunk has none any more. The rest is 40 bytes a chunk, and 16 a chunk in the agenda.
//! A remembered part may be of content that is long gone, and one in 65,534 pages that changed looks
//! as if it had not: what is remembered decides when a page is offered, and nothing else. The pages
//! themselves are compared when they are merged, and a zero page when it is dropped.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::pace::{GAP, Pace, TURNS, Tally};
use crate::mem::stirred::Stir;
use crate::sys::ram::Layout;
use crate::units::{CHUNK_PAGES, Gfn, GfnRange};
use crate::words::Key;

/// Pages looked at under one hold of the lock.
pub(super) const SLICE_PAGES: u32 = 64;
/// Pages that are looked at together where not all are, in turn. Chosen: what the guest writes at a time
/// is often a few neighbours, and each run costs a hold of the lock.
const RUN_PAGES: u32 = SLICE_PAGES / TURNS as u32;
/// Pages filled in a calm chunk that are worth a look soon: a quarter of it. Fewer come and go all the
/// time where zero pages are dropped and read again.
const FILLED_PAGES: u32 = CHUNK_PAGES / 4;

/// What is remembered of a page's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part(u16);

impl Part {
    /// Nothing is known.
    const NONE: Part = Part(0);
    /// The page was all zero.
    pub const ZERO: Part = Part(1);
    const FIRST: u16 = 2;

    /// Of a page that is not all zero.
    pub fn of(key: Key) -> Part {
        let [low, high, ..] = key.0.to_le_bytes();
        Part(u16::from_le_bytes([low, high]).max(Part::FIRST))
    }
}

/// Which pages of a chunk a look is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// All.
    All,
    /// Of each [`SLICE_PAGES`] pages the run with this number.
    Turn(u8),
}

impl Which {
    /// What is looked at of a slice that [`slice`] gave, if there is anything.
    pub fn of(self, slice: GfnRange) -> Option<GfnRange> {
        let Which::Turn(number) = self else {
            return Some(slice);
        };
        let before = u32::from(number) * RUN_PAGES;
        let count = slice.count.checked_sub(before)?.min(RUN_PAGES);
        (count > 0).then(|| GfnRange::new(Gfn(slice.start.0 + before), count))
    }
}

/// A page beside what was remembered of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// It was not looked at before.
    New,
    /// It is, as far as can be told, what it was.
    Same,
    /// It is not.
    Changed,
}

/// How soon a chunk is worth a look, whatever its pace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Again {
    #[default]
    AsEver,
    /// Much of it was filled.
    Soon,
    /// Much of a large page could be shared.
    Now,
}

impl Again {
    fn of(stir: Stir, pace: Pace) -> Again {
        let calm = pace.is_calm();
        match (stir.ripe, calm && stir.filled >= FILLED_PAGES) {
            (true, _) => Again::Now,
            (false, true) => Again::Soon,
            (false, false) => Again::AsEver,
        }
    }

    /// From now to the next look at most.
    fn within(self, gap: Duration) -> Duration {
        match self {
            Again::AsEver => gap,
            Again::Soon => gap.min(GAP),
            Again::Now => Duration::ZERO,
        }
    }
}

#[derive(Debug)]
struct Chunk {
    pace: Pace,
    /// When it is looked at next; `None` while it is looked at, and where there is no RAM.
    due: Option<Duration>,
    /// What happened while it was looked at.
    again: Again,
    /// Whose turn it is where not all is looked at.
    turn: u8,
    /// The next look is at all of it, whatever its pace.
    all_next: bool,
    parts: Option<Box<[Part; CHUNK_PAGES as usize]>>,
}

impl Chunk {
    /// Which of its pages the look that begins is at.
    fn begin(&mut self) -> Which {
        self.due = None;
        let all = std::mem::take(&mut self.all_next);
        if all || self.parts.is_none() || !self.pace.takes_turns() {
            return Which::All;
        }
        let turn = self.turn;
        self.turn = (turn + 1) % TURNS;
        Which::Turn(turn)
    }
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Chunks {
    of_chunk: Vec<Chunk>,
    /// Chunks that are not calm.
    settling: usize,
    /// By time. An entry whose time is not its chunk's any more is void.
    agenda: BinaryHeap<Reverse<(Duration, u32)>>,
}

impl Chunks {
    /// Nothing was looked at yet, and everything is due.
    pub fn new(layout: &Layout) -> Chunks {
        let count = layout.end().0.div_ceil(CHUNK_PAGES);
        let chunk = |_| Chunk {
            pace: Pace::NEW,
            due: None,
            again: Again::AsEver,
            turn: 0,
            all_next: false,
            parts: None,
        };
        let mut chunks = Chunks {
            of_chunk: (0..count).map(chunk).collect(),
            settling: 0,
            agenda: BinaryHeap::new(),
        };
        for ram in layout.ranges() {
            for chunk in ram.start.0 / CHUNK_PAGES..ram.end().0.div_ceil(CHUNK_PAGES) {
                chunks.plan(chunk, Duration::ZERO);
                chunks.settling += 1;
            }
        }
        chunks
    }

    fn plan(&mut self, chunk: u32, due: Duration) {
        self.of_chunk[chunk as usize].due = Some(due);
        self.agenda.push(Reverse((due, chunk)));
    }

    /// Whether all that could be found was, in every chunk.
    pub fn are_calm(&self) -> bool {
        self.settling == 0
    }

    fn set_pace(&mut self, number: u32, pace: Pace) {
        let chunk = &mut self.of_chunk[number as usize];
        match (chunk.pace.is_calm(), pace.is_calm()) {
            (true, false) => self.settling += 1,
            (false, true) => self.settling -= 1,
            _ => {}
        }
        chunk.pace = pace;
    }

    /// When the next chunk is due; `None` while all are looked at.
    pub fn next_due(&mut self) -> Option<Duration> {
        while let Some(&Reverse((due, chunk))) = self.agenda.peek() {
            if self.of_chunk[chunk as usize].due == Some(due) {
                return Some(due);
            }
            self.agenda.pop();
        }
        None
    }

    /// Begins a look at the chunk that has been due longest: its first page, and which of its pages.
    /// `None` when none is due.
    pub fn begin(&mut self, now: Duration) -> Option<(Gfn, Which)> {
        if self.next_due()? > now {
            return None;
        }
        let Reverse((_, chunk)) = self.agenda.pop()?;
        let which = self.of_chunk[chunk as usize].begin();
        Some((Gfn(chunk * CHUNK_PAGES), which))
    }

    /// Notes what a page of the chunk that is looked at holds, beside what it held.
    pub fn note(&mut self, gfn: Gfn, part: Part) -> Seen {
        let chunk = &mut self.of_chunk[(gfn.0 / CHUNK_PAGES) as usize];
        let parts = chunk
            .parts
            .get_or_insert_with(|| Box::new([Part::NONE; CHUNK_PAGES as usize]));
        let before = std::mem::replace(&mut parts[(gfn.0 % CHUNK_PAGES) as usize], part);
        match before {
            Part::NONE => Seen::New,
            before if before == part => Seen::Same,
            _ => Seen::Changed,
        }
    }

    /// Ends the look at the chunk that starts at `first`.
    pub fn end(&mut self, first: Gfn, which: Which, found: Tally, now: Duration) {
        let number = first.0 / CHUNK_PAGES;
        let before = self.of_chunk[number as usize].pace;
        let pace = match which {
            Which::All => before.looked(found),
            Which::Turn(_) => before.glanced(found),
        };
        self.set_pace(number, pace);
        let chunk = &mut self.of_chunk[number as usize];
        match which {
            Which::All if found.own == 0 => chunk.parts = None,
            Which::All => {}
            // What has changed is to be looked at twice, and what is gone may be all.
            Which::Turn(_) => {
                chunk.all_next |= found.new + found.changed > 0 || found.own == 0;
            }
        }
        let again = std::mem::take(&mut chunk.again);
        let gap = again.within(chunk.pace.gap());
        self.plan(number, now + gap);
    }

    /// Something happened in a chunk: it may be due at another time.
    pub fn stir(&mut self, stir: Stir, now: Duration) {
        let number = stir.chunk.0 / CHUNK_PAGES;
        let before = self.of_chunk[number as usize].pace;
        self.set_pace(number, before.broke(stir.broken));
        let chunk = &mut self.of_chunk[number as usize];
        let again = Again::of(stir, chunk.pace);
        chunk.all_next |= again > Again::AsEver;
        let Some(due) = chunk.due else {
            chunk.again = chunk.again.max(again);
            return;
        };
        let other = match again {
            Again::AsEver if chunk.pace != before => now + chunk.pace.gap(),
            Again::AsEver => due,
            soon => due.min(now + soon.within(GAP)),
        };
        if other != due {
            self.plan(number, other);
        }
    }
}

/// The part of `chunk` from `next` on, of at most [`SLICE_PAGES`].
pub(super) fn slice(chunk: GfnRange, next: Gfn) -> GfnRange {
    GfnRange::new(next, SLICE_PAGES.min(chunk.end().0 - next.0))
}

#[cfg(test)]
mod tests;
