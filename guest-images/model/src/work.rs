//! Random work on pages whose content is known: what the guest `meter` does in its phase `ops`, and
//! what a process does that is measured beside it. Both carry out the same operations in the same
//! order, and count them alike.

use crate::content::{Identity, Kind};
use crate::meter::Kinds;
use crate::rng::Rng;

/// Versions of common pages: few, so that sister guests meet again.
const COMMON_VERSIONS: u16 = 4;
/// Operations between two looks at the clock.
pub const BATCH: u32 = 16;
/// Time that is counted together, milliseconds.
pub const WINDOW_MS: u64 = 1000;

/// What a page holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    kind: Kind,
    version: u16,
}

impl Page {
    /// Memory that nobody has written yet.
    pub const FRESH: Self = Self {
        kind: Kind::Zero,
        version: 0,
    };
}

/// How the work is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manner {
    /// Which kind of page stands where.
    pub kinds: Kinds,
    /// Different contents that common pages have; 0: one for each index.
    pub common: u32,
    /// Decides the content of unique pages, and which pages are drawn.
    pub seed: u64,
    /// Percent of operations that write.
    pub write_percent: u32,
    /// Percent of writes that draw the page's kind again.
    pub redraw_percent: u32,
}

/// What an operation does to its page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// All of it is compared.
    Compare,
    /// All of it is written.
    Write,
}

/// An operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// Which page.
    pub index: u32,
    /// What it holds, or will.
    pub identity: Identity,
    /// What is done.
    pub access: Access,
}

/// The book about the pages.
#[derive(Debug)]
pub struct Work<'a> {
    pages: &'a mut [Page],
    manner: Manner,
    rng: Rng,
}

impl<'a> Work<'a> {
    /// Work on pages that hold what `pages` says.
    #[must_use]
    pub const fn new(pages: &'a mut [Page], manner: Manner) -> Self {
        let rng = Rng::new(manner.seed);
        Self { pages, manner, rng }
    }

    /// How many pages there are.
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.pages.len() as u32
    }

    /// What the page with this index must hold.
    #[must_use]
    pub const fn identity(&self, index: u32) -> Identity {
        let Page { kind, version } = self.pages[index as usize];
        let index = match kind {
            Kind::Duplicate if self.manner.common > 0 => index % self.manner.common,
            _ => index,
        };
        Identity {
            kind,
            index,
            version,
            seed: self.manner.seed,
        }
    }

    /// Each page gets its kind: [`Work::identity`] says what is to be written then.
    pub fn fill(&mut self) {
        for index in 0..self.count() {
            self.pages[index as usize].kind = self.manner.kinds.at(index);
        }
    }

    /// Draws the next operation, and notes what it writes.
    pub fn draw(&mut self) -> Operation {
        let index = self.rng.below(self.count());
        let access = match self.rng.chance(self.manner.write_percent) {
            true => Access::Write,
            false => Access::Compare,
        };
        if access == Access::Write {
            self.rewrite(index);
        }
        Operation {
            index,
            identity: self.identity(index),
            access,
        }
    }

    fn rewrite(&mut self, index: u32) {
        let page = &mut self.pages[index as usize];
        if self.rng.chance(self.manner.redraw_percent) {
            page.kind = self.manner.kinds.nth(self.rng.below(u32::MAX));
        }
        page.version = match page.kind {
            Kind::Duplicate => (page.version + 1) % COMMON_VERSIONS,
            _ => page.version.wrapping_add(1),
        };
    }
}

/// Operations counted in windows of time, in ticks of any clock.
#[derive(Debug)]
pub struct Windows {
    start: u64,
    end: u64,
    length: u64,
    /// When the present window began.
    from: u64,
    operations: u64,
}

/// A window that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Its number: how many whole windows there were room for since the start.
    pub number: u64,
    /// What was done in it.
    pub operations: u64,
    /// How long it was, ticks.
    pub ticks: u64,
}

impl Windows {
    /// Counts from `start` on for so many ticks, in windows of `length`.
    #[must_use]
    pub const fn new(start: u64, ticks: u64, length: u64) -> Self {
        Self {
            start,
            end: start.saturating_add(ticks),
            length,
            from: start,
            operations: 0,
        }
    }

    const fn number(&self) -> u64 {
        (self.from - self.start) / self.length
    }

    /// So many operations were done by `now`; the window that is over, if one is.
    #[must_use]
    pub const fn count(&mut self, operations: u32, now: u64) -> Option<Window> {
        self.operations += operations as u64;
        let number = self.number();
        if now < self.end && now < self.start + (number + 1) * self.length {
            return None;
        }
        let window = Window {
            number,
            operations: self.operations,
            ticks: now - self.from,
        };
        (self.operations, self.from) = (0, now);
        Some(window)
    }

    /// The next window begins now: what was done since the last one is nobody's time. Whether there
    /// is a next one.
    #[must_use]
    pub const fn go_on(&mut self, now: u64) -> bool {
        let over = self.from >= self.end;
        self.from = now;
        !over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manner(text: &str) -> Manner {
        Manner {
            kinds: Kinds::parse(text, 1).expect("valid"),
            common: 0,
            seed: 7,
            write_percent: 33,
            redraw_percent: 0,
        }
    }

    #[test]
    fn the_same_seed_draws_the_same_operations() {
        let draw = |seed| {
            let mut pages = [Page::FRESH; 100];
            let mut work = Work::new(
                &mut pages,
                Manner {
                    seed,
                    ..manner("u")
                },
            );
            work.fill();
            (0..500).map(|_| work.draw()).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        let writes = draw(1)
            .iter()
            .filter(|one| one.access == Access::Write)
            .count();
        assert!((120..210).contains(&writes), "{writes}");
    }

    #[test]
    fn a_page_holds_what_was_written_last() {
        let mut pages = [Page::FRESH; 30];
        let mut work = Work::new(
            &mut pages,
            Manner {
                redraw_percent: 50,
                ..manner("cuz")
            },
        );
        work.fill();
        let mut held: Vec<Identity> = (0..30).map(|index| work.identity(index)).collect();
        for _ in 0..2000 {
            let Operation {
                index,
                identity,
                access,
            } = work.draw();
            match access {
                Access::Write => held[index as usize] = identity,
                Access::Compare => assert_eq!(held[index as usize], identity),
            }
        }
    }

    #[test]
    fn common_pages_meet() {
        let mut pages = [Page::FRESH; 8];
        let mut work = Work::new(
            &mut pages,
            Manner {
                common: 4,
                ..manner("c")
            },
        );
        assert_ne!(
            work.identity(1),
            work.identity(5),
            "memory of its own before it is filled"
        );
        work.fill();
        assert_eq!(work.identity(1), work.identity(5));
        assert_ne!(work.identity(1), work.identity(2));
    }

    #[test]
    fn windows_end_with_their_time() {
        let mut windows = Windows::new(1000, 250, 100);
        assert_eq!(windows.count(16, 1050), None);
        let window = |number, operations, ticks| {
            Some(Window {
                number,
                operations,
                ticks,
            })
        };
        assert_eq!(windows.count(16, 1101), window(0, 32, 101));
        // Saying so took until 1110.
        assert!(windows.go_on(1110));
        assert_eq!(windows.count(16, 1199), None);
        assert_eq!(windows.count(16, 1205), window(1, 32, 95));
        assert!(windows.go_on(1206));
        assert_eq!(
            windows.count(16, 1251),
            window(2, 16, 45),
            "the end comes first"
        );
        assert!(!windows.go_on(1252));
    }

    #[test]
    fn a_window_that_nothing_was_done_in_is_passed_over() {
        let mut windows = Windows::new(0, 1000, 100);
        assert!(windows.count(16, 100).is_some() && windows.go_on(350));
        let next = windows.count(16, 400).expect("it is over");
        assert_eq!((next.number, next.ticks), (3, 50));
    }
}
