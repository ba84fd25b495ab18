//! Takes memory as fast as it can, and keeps rewriting all of it with data no other guest has.
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
    let pause_ms = usage(options.number("pause_ms", 0, 600_000));
    let mut guest = Guest::new(&boot, &options, Amount::Percent(95), Mix::UNIQUE, 0);
    guest.fill();
    let mut pass = 0;
    while passes == 0 || pass < passes {
        for index in 0..guest.memory.pages() {
            guest.visit(index);
            guest.rewrite(index);
            guest.tick_at(index);
        }
        guest.tick();
        if pause_ms > 0 {
            guest.idle_ms(pause_ms);
        }
        pass += 1;
    }
    guest.visit_all();
    guest.finish()
}
