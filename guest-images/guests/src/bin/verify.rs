//! Fills most of its memory with pages of every kind and keeps comparing all their bytes.
#![no_std]
#![no_main]

use tidemark_guest_model::cmdline::{Amount, Options};
use tidemark_guest_model::content::Kind;
use tidemark_guest_model::layout::Mix;
use tidemark_guest_model::rng::Rng;
use tidemark_guest_runtime::guest::{Guest, USAGE_CODE, Visit, options, usage};
use tidemark_guest_runtime::{BootInfo, println};

tidemark_guest_runtime::guest!(main);

const KEYS: &[&str] = &[
    "zero",
    "dup",
    "cache",
    "hot",
    "hot_visits",
    "rewrite",
    "passes",
    "pause_ms",
];
/// Pages of the sweep between two pauses.
const BATCH: u32 = 16;
/// Duplicate and zero pages are rewritten this many times more rarely than unique ones.
const RARELY: u32 = 8;

/// Pages looked through for the next hot one, so that a guest without any still gets on.
const HOT_SEARCH_MAX: u32 = 4096;

/// How the visits are spread.
struct Habits {
    hot_visits: u64,
    rewrite_percent: u32,
    pause_ms: u64,
}

fn main(boot: BootInfo) -> u32 {
    let options = options(&boot, KEYS);
    let mix = mix(&options);
    let hot_percent = usage(options.percent("hot", 10));
    let passes = usage(options.number("passes", 0, u64::MAX));
    let habits = Habits {
        hot_visits: match hot_percent {
            0 => 0,
            _ => usage(options.number("hot_visits", 4, 1000)),
        },
        rewrite_percent: usage(options.percent("rewrite", 10)),
        pause_ms: usage(options.number("pause_ms", 0, 60_000)),
    };
    let mut guest = Guest::new(&boot, &options, Amount::Percent(85), mix, hot_percent);
    guest.fill();
    let mut rng = Rng::new(1);
    let mut hot_cursor = 0;
    let mut pass = 0;
    while passes == 0 || pass < passes {
        sweep(&mut guest, &habits, &mut rng, &mut hot_cursor);
        pass += 1;
    }
    guest.finish()
}

fn mix(options: &Options<'_>) -> Mix {
    let mix = Mix {
        zero: usage(options.percent("zero", 10)),
        duplicate: usage(options.percent("dup", 15)),
        cache: usage(options.percent("cache", 20)),
    };
    if !mix.is_valid() {
        println!("zero, dup and cache are more than 100 percent");
        tidemark_guest_runtime::port::exit(USAGE_CODE);
    }
    mix
}

/// Visits every page once, and hot pages in between.
fn sweep(guest: &mut Guest, habits: &Habits, rng: &mut Rng, hot_cursor: &mut u32) {
    for index in 0..guest.memory.pages() {
        visit(guest, habits, rng, index);
        for _ in 0..habits.hot_visits {
            let Some(hot) = next_hot(guest, hot_cursor) else {
                break;
            };
            visit(guest, habits, rng, hot);
        }
        guest.tick_at(index);
        if habits.pause_ms > 0 && index.is_multiple_of(BATCH) {
            guest.idle_ms(habits.pause_ms);
        }
    }
    guest.tick();
}

fn visit(guest: &mut Guest, habits: &Habits, rng: &mut Rng, index: u32) {
    if guest.visit(index) == Visit::Absent || !rng.chance(habits.rewrite_percent) {
        return;
    }
    if guest.memory.page(index).kind == Kind::Unique || rng.below(RARELY) == 0 {
        guest.rewrite(index);
    }
}

/// The next hot page after the cursor; `None` if there is none nearby.
fn next_hot(guest: &Guest, cursor: &mut u32) -> Option<u32> {
    let pages = guest.memory.pages();
    for _ in 0..pages.min(HOT_SEARCH_MAX) {
        *cursor = (*cursor + 1) % pages;
        if guest.memory.page(*cursor).hot {
            return Some(*cursor);
        }
    }
    None
}
