//! Fills most of its memory with what every other such guest has, and keeps comparing it. Optionally
//! rewrites some pages in each pass with the next of a few common versions.
#![no_std]
#![no_main]

use tidemark_guest_model::cmdline::Amount;
use tidemark_guest_model::layout::Mix;
use tidemark_guest_model::rng::Rng;
use tidemark_guest_runtime::BootInfo;
use tidemark_guest_runtime::guest::{Guest, options, usage};

tidemark_guest_runtime::guest!(main);

fn main(boot: BootInfo) -> u32 {
    let options = options(&boot, &["passes", "pause_ms", "write"]);
    let passes = usage(options.number("passes", 0, u64::MAX));
    let pause_ms = usage(options.number("pause_ms", 1000, 60_000));
    let write_percent = usage(options.percent("write", 0));
    let common = Mix {
        zero: 0,
        duplicate: 100,
        cache: 0,
    };
    let mut guest = Guest::new(&boot, &options, Amount::Percent(80), common, 0);
    guest.fill();
    // The same choice of pages in every guest, so that what is rewritten is again common.
    let mut rng = Rng::new(0);
    let mut pass = 0;
    while passes == 0 || pass < passes {
        guest.idle_ms(pause_ms);
        guest.visit_all();
        if write_percent > 0 {
            for index in 0..guest.memory.pages() {
                if rng.chance(write_percent) {
                    guest.rewrite(index);
                }
                guest.tick_at(index);
            }
        }
        pass += 1;
    }
    guest.finish()
}
