//! Which large pages are cold, as far as samples tell.
//!
//! A large page that must be split is best one that the guest does not use. Samples take large pages out
//! whole, so what one sees is of all of the page.

use std::collections::{BTreeMap, BTreeSet};

use crate::mem::memory::Memory;
use crate::units::{Gfn, GfnRange};

/// How warm a large page is: below nothing, in how many samples in a row it was not touched; nothing, when
/// it was in none yet; above, when it was touched in the last.
type Warmth = i16;

const TOUCHED: Warmth = 1;

/// Large pages in the order of their warmth.
#[derive(Debug, Default)]
pub(super) struct Heat {
    warmth: BTreeMap<Gfn, Warmth>,
    coldest: BTreeSet<(Warmth, Gfn)>,
}

impl Heat {
    /// A sample of a large page is over.
    pub fn saw(&mut self, chunk: Gfn, touched: bool) {
        let before = self.warmth.get(&chunk).copied().unwrap_or_default();
        let now = match touched {
            true => TOUCHED,
            false => before.min(0).saturating_sub(1),
        };
        self.set(chunk, now);
    }

    /// A page is large now, and nothing is known of it.
    pub fn add(&mut self, chunk: Gfn) {
        self.set(chunk, 0);
    }

    fn set(&mut self, chunk: Gfn, warmth: Warmth) {
        self.remove(chunk);
        self.warmth.insert(chunk, warmth);
        self.coldest.insert((warmth, chunk));
    }

    /// A page is not large any more.
    pub fn remove(&mut self, chunk: Gfn) {
        if let Some(warmth) = self.warmth.remove(&chunk) {
            self.coldest.remove(&(warmth, chunk));
        }
    }

    /// The coldest large page of those that are not `drawn` yet; `chunk`, when none is colder.
    fn coldest(&self, chunk: Gfn, drawn: impl Fn(Gfn) -> bool) -> Option<Gfn> {
        let own = self.warmth.get(&chunk).copied().unwrap_or_default();
        let coldest = self.coldest.iter().find(|(_, chunk)| !drawn(*chunk));
        match coldest {
            Some((warmth, _)) if *warmth >= own && !drawn(chunk) => Some(chunk),
            coldest => coldest.map(|(_, chunk)| *chunk),
        }
    }
}

impl Memory<'_> {
    /// The large page to be split first where this page, drawn at random, lies in one: the coldest of
    /// those that are not `drawn` yet. `None` when it lies in none, or all are.
    pub fn coldest_large(&self, gfn: Gfn, drawn: impl Fn(Gfn) -> bool) -> Option<GfnRange> {
        let large = &self.books.large;
        let chunk = gfn.chunk_start();
        if !large.chunks.contains_key(&chunk) {
            return None;
        }
        large.heat.coldest(chunk, drawn).map(super::chunk_from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_touched_is_colder_than_what_is_not_known() {
        let coldest = |heat: &Heat, chunk| heat.coldest(chunk, |_| false);
        let [unknown, touched, cold, colder] = [0, 512, 1024, 1536].map(Gfn);
        let mut heat = Heat::default();
        for chunk in [unknown, touched, cold, colder] {
            heat.add(chunk);
        }
        assert_eq!(coldest(&heat, touched), Some(touched), "nothing is known");
        heat.saw(touched, true);
        assert_eq!(coldest(&heat, touched), Some(unknown));
        assert_eq!(coldest(&heat, colder), Some(colder), "as cold as any");
        for (chunk, samples) in [(cold, 1), (colder, 2)] {
            (0..samples).for_each(|_| heat.saw(chunk, false));
        }
        assert_eq!(coldest(&heat, unknown), Some(colder));
        heat.saw(colder, true);
        assert_eq!(coldest(&heat, colder), Some(cold));
        heat.saw(colder, false);
        assert_eq!(coldest(&heat, colder), Some(colder), "it is as cold");
        heat.remove(cold);
        assert_eq!(coldest(&heat, unknown), Some(colder));
        // Those whose turn comes already are passed over.
        assert_eq!(
            heat.coldest(unknown, |chunk| chunk == colder),
            Some(unknown)
        );
        assert_eq!(heat.coldest(colder, |chunk| chunk == colder), Some(unknown));
        assert_eq!(heat.coldest(colder, |_| true), None);
    }
}
