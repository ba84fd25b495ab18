//! A running guest: its options, memory, balloon and figures, and the work every behaviour does.

use tidemark_guest_model::cmdline::{Amount, OptionError, Options};
use tidemark_guest_model::content::{Identity, Kind, Mismatch};
use tidemark_guest_model::layout::Mix;
use tidemark_guest_protocol::{KEY_CORRUPT, KEY_VERIFIED, REPORT_PREFIX};

use crate::balloon::{Balloon, Reporting};
use crate::boot::BootInfo;
use crate::clock::{self, Clock};
use crate::memory::{Arena, Filling, Memory};
use crate::page::Frame;
use crate::{port, println};

/// Options that every behaviour has.
pub const COMMON_KEYS: &[&str] = &["fill", "seed", "report", "tsc_khz"];
/// Exit code for options that are unknown or wrong.
pub const USAGE_CODE: u32 = 2;
/// How often the balloon's configuration is read.
const SERVICE_MS: u64 = 10;
/// How often figures are reported.
const REPORT_MS: u64 = 1000;
/// Cache pages refilled at one service, so that the cache comes back gradually: 4 MiB.
const REFILL_PER_SERVICE: u32 = 1024;
/// Longest sleep at a time.
const IDLE_MS_MAX: u32 = 100;
/// Pages between two looks at the clock, where pages are handled in a loop.
const BATCH: u32 = 16;
/// Lines about corrupt pages; further ones are only counted.
const CORRUPT_LINES_MAX: u32 = 32;
/// Common versions that duplicate pages go through, few so that sister guests meet again.
const COMMON_VERSIONS: u16 = 4;

/// Whether the guest serves its balloon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cooperation {
    /// It does as it is asked.
    Prompt,
    /// The driver starts and never answers.
    Stuck,
}

/// What happened at a visit to a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visit {
    /// The page holds what it must.
    Intact,
    /// It did not; it was reported and rewritten.
    Corrupt,
    /// The page was absent and has been filled.
    Filled,
    /// The page is absent and there is no memory for it, or none to spare.
    Absent,
}

/// The guest.
#[derive(Debug)]
pub struct Guest {
    /// Its pages and frames.
    pub memory: Memory,
    /// Time.
    pub clock: Clock,
    balloon: Option<Balloon>,
    cooperation: Cooperation,
    seed: u64,
    verified: u64,
    corrupt: u64,
    next_service: u64,
    next_report: u64,
}

/// Parses the command line against the common keys and those of the behaviour; a wrong one ends the
/// guest with [`USAGE_CODE`].
#[must_use]
pub fn options(boot: &BootInfo, keys: &[&str]) -> Options<'static> {
    usage(Options::parse(boot.command_line, &[COMMON_KEYS, keys]))
}

/// The value of an option; a wrong one ends the guest with [`USAGE_CODE`].
pub fn usage<T>(parsed: Result<T, OptionError<'_>>) -> T {
    match parsed {
        Ok(value) => value,
        Err(error) => {
            println!("{error}");
            port::exit(USAGE_CODE)
        }
    }
}

impl Guest {
    /// Sets memory and balloon up: `fill` of the options, or `default_fill`, for pages of this mix.
    #[must_use]
    pub fn new(
        boot: &BootInfo,
        options: &Options<'static>,
        default_fill: Amount,
        mix: Mix,
        hot_percent: u32,
    ) -> Self {
        let pages = usage(options.amount("fill", default_fill)).pages(boot.ram_pages());
        let clock = usage(Clock::new(options));
        let seed = match options.get("seed") {
            Some(_) => usage(options.number("seed", 0, u64::MAX)),
            None => {
                let seed = clock::now();
                println!("seed={seed}");
                seed
            }
        };
        let reporting = match usage(options.number("report", 0, 1)) {
            0 => Reporting::Unwanted,
            _ => Reporting::Wanted,
        };
        let mut arena = Arena::new(boot);
        let balloon = Balloon::find(options.devices(), &mut arena, clock, reporting)
            .unwrap_or_else(|error| {
                println!("balloon not usable: {error:?}");
                None
            });
        Self {
            memory: Memory::new(
                arena,
                Filling {
                    pages,
                    mix,
                    hot_percent,
                },
            ),
            clock,
            balloon,
            cooperation: Cooperation::Prompt,
            seed,
            verified: 0,
            corrupt: 0,
            next_service: 0,
            next_report: 0,
        }
    }

    /// Stops serving the balloon from now on.
    pub fn get_stuck(&mut self) {
        self.cooperation = Cooperation::Stuck;
    }

    /// Whether a balloon device was found.
    #[must_use]
    pub fn has_balloon(&self) -> bool {
        self.balloon.is_some()
    }

    /// Pages that differed so far.
    #[must_use]
    pub const fn corrupt(&self) -> u64 {
        self.corrupt
    }

    /// What a page must hold.
    #[must_use]
    pub fn identity(&self, index: u32) -> Identity {
        let page = self.memory.page(index);
        Identity {
            kind: page.kind,
            index,
            version: page.version,
            seed: self.seed,
        }
    }

    /// Fills all pages, as far as memory goes.
    pub fn fill(&mut self) {
        for index in 0..self.memory.pages() {
            self.tick_at(index);
            // The balloon's service may have refilled a cache page already.
            if self.memory.frame_of(index).is_none() {
                self.fill_page(index);
            }
        }
    }

    /// Gives an absent page a frame and its content. Data may take memory out of the balloon.
    fn fill_page(&mut self, index: u32) -> Visit {
        let frame = self.memory.populate(index).or_else(|| {
            let balloon = self.balloon.as_mut()?;
            let may = self.cooperation == Cooperation::Prompt
                && self.memory.page(index).kind != Kind::Cache;
            (may && balloon.relieve(&mut self.memory)).then_some(())?;
            self.memory.populate(index)
        });
        let Some(frame) = frame else {
            return Visit::Absent;
        };
        frame.write(self.identity(index));
        Visit::Filled
    }

    /// Compares a page with what it must hold; fills an absent one if it is data.
    pub fn visit(&mut self, index: u32) -> Visit {
        let Some(frame) = self.memory.frame_of(index) else {
            return match self.memory.page(index).kind {
                Kind::Cache => Visit::Absent,
                _ => self.fill_page(index),
            };
        };
        self.verified += 1;
        match frame.compare(self.identity(index)) {
            Ok(()) => Visit::Intact,
            Err(mismatch) => {
                self.note_corrupt(index, frame, mismatch);
                frame.write(self.identity(index));
                Visit::Corrupt
            }
        }
    }

    /// Visits every page once, ticking on the way.
    pub fn visit_all(&mut self) {
        for index in 0..self.memory.pages() {
            self.visit(index);
            self.tick_at(index);
        }
        self.tick();
    }

    /// Gives up a page: its frame becomes free and its content is forgotten.
    pub fn drop_page(&mut self, index: u32) {
        self.memory.release(index);
        self.memory.set_version(index, 0);
    }

    /// Counts a corrupt page and prints a line about it.
    pub fn note_corrupt(&mut self, index: u32, frame: Frame, mismatch: Mismatch) {
        self.corrupt += 1;
        if self.corrupt <= u64::from(CORRUPT_LINES_MAX) {
            let page = self.memory.page(index);
            let Mismatch {
                offset,
                expected,
                found,
            } = mismatch;
            println!(
                "corrupt: kind={} index={index} version={} gfn={:#x} offset={offset} \
                 expected={expected:#018x} found={found:#018x}",
                page.kind.name(),
                page.version,
                frame.number(),
            );
        }
    }

    /// Counts pages compared by other means than [`Guest::visit`].
    pub fn note_verified(&mut self, pages: u64) {
        self.verified += pages;
    }

    /// Writes the next version of a page that is present: new unique data, the next common version
    /// of duplicate data, or a passing word into a page of zeros. Cache pages keep their content.
    pub fn rewrite(&mut self, index: u32) {
        let Some(frame) = self.memory.frame_of(index) else {
            return;
        };
        let page = self.memory.page(index);
        let version = match page.kind {
            Kind::Cache => return,
            Kind::Zero => {
                let word = index as usize;
                frame.set_word(word, !0);
                if frame.word(word) != !0 {
                    let mismatch = Mismatch {
                        offset: word % 512 * 8,
                        expected: !0,
                        found: 0,
                    };
                    self.note_corrupt(index, frame, mismatch);
                }
                frame.set_word(word, 0);
                return;
            }
            Kind::Duplicate => (page.version + 1) % COMMON_VERSIONS,
            Kind::Unique => page.version.wrapping_add(1),
        };
        self.memory.set_version(index, version);
        frame.write(self.identity(index));
    }

    /// Serves the balloon and reports figures when it is time to.
    pub fn tick(&mut self) {
        let now = clock::now();
        if now >= self.next_service {
            let more = self.service();
            self.next_service = if more {
                now
            } else {
                now + self.clock.ms(SERVICE_MS)
            };
        }
        if now >= self.next_report {
            self.next_report = now + self.clock.ms(REPORT_MS);
            self.report();
        }
    }

    /// [`Guest::tick`] in a loop over pages, at every few of them.
    pub fn tick_at(&mut self, index: u32) {
        if index.is_multiple_of(BATCH) {
            self.tick();
        }
    }

    fn service(&mut self) -> bool {
        if self.cooperation == Cooperation::Stuck {
            return false;
        }
        let more = self
            .balloon
            .as_mut()
            .is_some_and(|balloon| balloon.service(&mut self.memory));
        if !more {
            self.refill();
        }
        more
    }

    /// Fills some of the cache pages that were dropped.
    fn refill(&mut self) {
        for _ in 0..REFILL_PER_SERVICE {
            let Some(index) = self.memory.next_refill() else {
                break;
            };
            self.fill_page(index);
        }
    }

    /// Prints the figures.
    pub fn report(&self) {
        println!(
            "{REPORT_PREFIX}{KEY_VERIFIED}={} {KEY_CORRUPT}={} pages_present={} pages_ballooned={}",
            self.verified,
            self.corrupt,
            self.memory.counts().present,
            self.memory.ballooned(),
        );
    }

    /// Lets the vCPU sleep for some time, still serving the balloon.
    pub fn idle_ms(&mut self, milliseconds: u64) {
        let end = clock::now() + self.clock.ms(milliseconds);
        loop {
            self.tick();
            let now = clock::now();
            if now >= end {
                return;
            }
            let left = (end - now) / self.clock.ms(1);
            port::sleep_at_most_ms(
                u32::try_from(left)
                    .unwrap_or(u32::MAX)
                    .clamp(1, IDLE_MS_MAX),
            );
            // Either the time is over or the configuration has changed: look at it.
            self.next_service = 0;
            // Where nobody listens on the port this is the sleep.
            while clock::now() - now < self.clock.ms(1) {
                core::hint::spin_loop();
            }
        }
    }

    /// Reports a last time and gives the exit code: 0, or 1 if a page was corrupt.
    #[must_use]
    pub fn finish(&self) -> u32 {
        self.report();
        u32::from(self.corrupt > 0)
    }
}
