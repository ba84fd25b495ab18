//! Fills a small part of its memory once and idles, serving its balloon.
#![no_std]
#![no_main]

use tidemark_guest_model::cmdline::Amount;
use tidemark_guest_model::layout::Mix;
use tidemark_guest_runtime::BootInfo;
use tidemark_guest_runtime::guest::{Guest, options, usage};

tidemark_guest_runtime::guest!(main);

fn main(boot: BootInfo) -> u32 {
    let options = options(&boot, &["passes"]);
    let passes = usage(options.number("passes", 0, u64::MAX));
    let mut guest = Guest::new(&boot, &options, Amount::Percent(10), Mix::UNIQUE, 0);
    guest.fill();
    guest.report();
    let mut seconds = 0;
    while passes == 0 || seconds < passes {
        guest.idle_ms(1000);
        seconds += 1;
    }
    guest.visit_all();
    guest.finish()
}
