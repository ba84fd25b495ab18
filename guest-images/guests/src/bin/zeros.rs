//! Writes zeros over most of its memory, so that its pages are its own and yet all zero, and keeps
//! checking that they stay zero.
#![no_std]
#![no_main]

use tidemark_guest_model::cmdline::Amount;
use tidemark_guest_model::layout::Mix;
use tidemark_guest_runtime::BootInfo;
use tidemark_guest_runtime::guest::{Guest, options, usage};

tidemark_guest_runtime::guest!(main);

fn main(boot: BootInfo) -> u32 {
    let options = options(&boot, &["passes", "pause_ms"]);
    let passes = usage(options.number("passes", 0, u64::MAX));
    let pause_ms = usage(options.number("pause_ms", 1000, 60_000));
    let zeros = Mix {
        zero: 100,
        duplicate: 0,
        cache: 0,
    };
    let mut guest = Guest::new(&boot, &options, Amount::Percent(80), zeros, 0);
    guest.fill();
    let mut pass = 0;
    while passes == 0 || pass < passes {
        guest.idle_ms(pause_ms);
        guest.visit_all();
        pass += 1;
    }
    guest.finish()
}
