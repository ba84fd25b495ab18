//! Finds out by the clock which of its pages another guest has too.
//!
//! Half of its guesses are pages of a guest `duplicate`, the others are nobody's; a coin says which is
//! which. It waits until pages that it has twice itself were merged, as far as their writes tell, and
//! some time more. Then it times one touch of each guess, at random, and prints what it took.
#![no_std]
#![no_main]

use core::fmt::Write as _;
use core::sync::atomic::{Ordering, fence};

use tidemark_guest_model::cmdline::{OptionError, Options};
use tidemark_guest_model::content::{Identity, Kind};
use tidemark_guest_model::order::{Order, Visits};
use tidemark_guest_model::rng::mix;
use tidemark_guest_runtime::clock::{self, Clock};
use tidemark_guest_runtime::console::Console;
use tidemark_guest_runtime::guest::usage;
use tidemark_guest_runtime::memory::{Arena, Frames};
use tidemark_guest_runtime::{BootInfo, println};

tidemark_guest_runtime::guest!(main);

const KEYS: &[&str] = &["guesses", "rounds", "touch", "settle_ms", "seed", "tsc_khz"];
/// Pages that are there twice, before the guesses.
const CANARIES: u32 = 64;
/// Time between two looks at the canaries.
const LOOK_MS: u64 = 250;
/// Canaries looked at each time.
const LOOK_PAGES: u32 = 4;
/// A write that took so many times as long as the next one to the same page broke a shared page.
const SLOWER: u64 = 64;
/// Looks in a row at which all canaries were slow.
const LOOKS: u32 = 2;
/// After that it waits no longer.
const WAIT_MS_MAX: u64 = 40_000;
/// From one write to the next, where the second is timed: a frame that nobody has any more has gone.
const AGAIN_MS: u64 = 4000;
/// Touches printed in a line.
const LINE: usize = 16;

/// How a guess is touched.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Touch {
    Write,
    Read,
    /// Written, and after some time written again, which is timed.
    Again,
}

struct Spy {
    set: Frames,
    guesses: u32,
    /// That the touch of each guess took.
    ticks: &'static mut [u64],
    seed: u64,
    clock: Clock,
}

fn main(boot: BootInfo) -> u32 {
    let options = usage(Options::parse(boot.command_line, &[KEYS]));
    let guesses = usage(options.number("guesses", 1024, 1 << 16)) as u32;
    let rounds = usage(options.number("rounds", 1, u64::from(u16::MAX))) as u16;
    let settle_ms = usage(options.number("settle_ms", 2000, 600_000));
    let seed = usage(options.number("seed", 1, u64::MAX));
    let touch = match options.get("touch") {
        None | Some("write") => Touch::Write,
        Some("read") => Touch::Read,
        Some("again") => Touch::Again,
        Some(value) => usage(Err(OptionError::Invalid {
            key: "touch",
            value,
            wanted: "write, read or again",
        })),
    };
    let clock = usage(Clock::new(&options));
    let mut arena = Arena::new(&boot);
    let ticks = arena.slice(guesses as usize, 0);
    let set = arena.rest(guesses + CANARIES);
    let mut spy = Spy {
        guesses: set.count().saturating_sub(CANARIES),
        set,
        ticks,
        seed,
        clock,
    };
    for round in 0..rounds {
        let begin = clock::now();
        spy.write_guesses(round);
        let seen = spy.wait(round);
        spy.pass(settle_ms);
        println!(
            "spy: round={round} guesses={} merged={} ms={}",
            spy.guesses,
            u32::from(seen),
            spy.ms_since(begin)
        );
        if touch == Touch::Again {
            spy.touch(round, Touch::Write);
            spy.pass(settle_ms.max(AGAIN_MS));
        }
        spy.touch(round, touch);
        spy.print(round);
        println!("spy: round={round} end ms={}", spy.ms_since(begin));
    }
    println!("spy: end");
    0
}

impl Spy {
    /// Whether the victim has a page like this guess: a coin.
    fn is_equal(&self, round: u16, guess: u32) -> bool {
        let place = u64::from(round) << 32 | u64::from(guess);
        mix(self.seed ^ mix(place)) & 1 == 1
    }

    /// What a page of the set holds: canaries, their twins, guesses.
    fn identity(&self, round: u16, index: u32) -> Identity {
        let own = |index| Identity {
            kind: Kind::Unique,
            index,
            version: round,
            seed: self.seed,
        };
        match index.checked_sub(CANARIES) {
            None => own(index % (CANARIES / 2)),
            Some(guess) if self.is_equal(round, guess) => Identity {
                kind: Kind::Duplicate,
                index: u32::from(round) * self.guesses + guess,
                version: 0,
                seed: 0,
            },
            Some(_) => own(index),
        }
    }

    fn write_guesses(&self, round: u16) {
        // Memory that is not filled in order gets no large pages, of which few pages are shared.
        for index in Visits::new(Order::Random, self.set.count(), self.seed) {
            self.set.get(index).write(self.identity(round, index));
        }
    }

    /// Ticks that a touch takes.
    fn time(&self, index: u32, round: u16, touch: Touch) -> u64 {
        let frame = self.set.get(index);
        let word = self.identity(round, index).first_word();
        fence(Ordering::SeqCst);
        let before = clock::now();
        match touch {
            // The first word again: a write like any other, and the content stays.
            Touch::Write | Touch::Again => frame.set_word(0, word),
            Touch::Read => {
                core::hint::black_box(frame.word(0));
            }
        }
        fence(Ordering::SeqCst);
        clock::now() - before
    }

    /// Waits until the canaries were merged, for some time at most. Whether they were.
    fn wait(&self, round: u16) -> bool {
        let begin = clock::now();
        let (mut next, mut looks) = (0, 0);
        while self.ms_since(begin) < WAIT_MS_MAX {
            self.pass(LOOK_MS);
            let mut slow = 0;
            for _ in 0..LOOK_PAGES {
                let canary = next % CANARIES;
                next += 1;
                let first = self.time(canary, round, Touch::Write);
                let second = self.time(canary, round, Touch::Write);
                slow += u32::from(first > second * SLOWER);
            }
            looks = if slow == LOOK_PAGES { looks + 1 } else { 0 };
            if looks == LOOKS {
                return true;
            }
        }
        false
    }

    /// Touches each guess once.
    fn touch(&mut self, round: u16, touch: Touch) {
        for guess in Visits::new(Order::Random, self.guesses, self.seed ^ u64::from(round)) {
            self.ticks[guess as usize] = self.time(guess + CANARIES, round, touch);
        }
    }

    /// Prints what each guess is, and how many ticks its last touch took.
    fn print(&self, round: u16) {
        for first in (0..self.guesses).step_by(LINE) {
            // The console never fails.
            let _ = write!(Console, "spy: ticks");
            for guess in (first..self.guesses).take(LINE) {
                let equal = u32::from(self.is_equal(round, guess));
                let _ = write!(Console, " {equal}:{}", self.ticks[guess as usize]);
            }
            println!();
        }
    }

    fn ms_since(&self, begin: u64) -> u64 {
        self.clock.ns(clock::now() - begin) / 1_000_000
    }

    /// Lets time pass, awake: the pages of a guest that sleeps are seldom looked at.
    fn pass(&self, ms: u64) {
        let end = clock::now() + self.clock.ms(ms);
        while clock::now() < end {
            core::hint::spin_loop();
        }
    }
}
