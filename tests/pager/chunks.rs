//! Chunks that the worker itself owns: freed whole, filled in order, so that they become large pages,
//! and compared, beside all else that is done to them.

use std::collections::HashMap;

use tidemark::units::{CHUNK_PAGES, Gfn, GfnRange, PAGE_SIZE};

use super::interleave::content;
use super::rig::Rig;

/// How many there are.
pub const CHUNKS: u32 = 4;

/// See the module documentation.
#[derive(Debug)]
pub struct Chunks {
    first: u32,
    rng: fastrand::Rng,
    expected: HashMap<u32, [u8; PAGE_SIZE]>,
}

impl Chunks {
    /// The chunks from the page `first` on; what is done follows from `seed`.
    pub fn new(first: u32, seed: u64) -> Chunks {
        Chunks {
            first,
            rng: fastrand::Rng::with_seed(seed),
            expected: HashMap::new(),
        }
    }

    fn chunk(&self, number: u32) -> GfnRange {
        GfnRange::new(Gfn(self.first + number * CHUNK_PAGES), CHUNK_PAGES)
    }

    /// Does one thing with them.
    pub fn step(&mut self, rig: &Rig) {
        let number = self.rng.u32(0..CHUNKS);
        match self.rng.u32(0..6) {
            0 => self.free(rig, self.chunk(number)),
            1 => {
                // A part, as a balloon or a guest with small needs frees it.
                let start = self.rng.u32(0..CHUNK_PAGES);
                let count = self.rng.u32(1..=CHUNK_PAGES - start);
                let chunk = self.chunk(number);
                self.free(rig, GfnRange::new(Gfn(chunk.start.0 + start), count));
            }
            2 => {
                // As on kernels before Linux 6.14, and as after.
                let space = rig.pager.space();
                space.assume_tables_stay(self.rng.bool());
                (number..CHUNKS).for_each(|number| self.free(rig, self.chunk(number)));
                (number..CHUNKS).for_each(|number| self.fill(rig, number));
            }
            _ => self.check(rig, number),
        }
    }

    fn free(&mut self, rig: &Rig, range: GfnRange) {
        for gfn in range.iter() {
            self.expected.remove(&gfn.0);
        }
        match self.rng.bool() {
            true => rig.pager.report_free(range).unwrap(),
            false => {
                let gfns: Vec<Gfn> = range.iter().collect();
                rig.pager.inflate(&gfns).unwrap();
                rig.pager.deflate(&gfns);
            }
        }
    }

    /// Writes to every page of a chunk, in order. Most pages differ from all others.
    fn fill(&mut self, rig: &Rig, number: u32) {
        for gfn in self.chunk(number).iter() {
            let page = match self.rng.u32(0..8) {
                0 => content(&mut self.rng),
                _ => super::unique(self.rng.u64(..)).0,
            };
            rig.write(gfn, &page);
            self.expected.insert(gfn.0, page);
        }
    }

    fn check(&mut self, rig: &Rig, number: u32) {
        for _ in 0..32 {
            let chunk = self.chunk(number);
            let gfn = Gfn(chunk.start.0 + self.rng.u32(0..CHUNK_PAGES));
            if let Some(page) = self.expected.get(&gfn.0) {
                assert!(rig.read(gfn) == *page, "{gfn} is corrupt");
            }
        }
    }

    /// Compares all that is known.
    pub fn check_all(&self, rig: &Rig) {
        for (gfn, page) in &self.expected {
            assert!(rig.read(Gfn(*gfn)) == *page, "gfn {gfn} is corrupt");
        }
    }
}
