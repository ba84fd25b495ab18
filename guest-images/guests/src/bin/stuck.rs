//! Keeps data as `verify` does, but its balloon driver starts and then never answers.
#![no_std]
#![no_main]

use tidemark_guest_model::cmdline::Amount;
use tidemark_guest_model::layout::Mix;
use tidemark_guest_runtime::guest::{Guest, options, usage};
use tidemark_guest_runtime::{BootInfo, println};

tidemark_guest_runtime::guest!(main);

fn main(boot: BootInfo) -> u32 {
    let options = options(&boot, &["passes", "pause_ms"]);
    let passes = usage(options.number("passes", 0, u64::MAX));
    let pause_ms = usage(options.number("pause_ms", 100, 60_000));
    let mut guest = Guest::new(&boot, &options, Amount::Percent(50), Mix::UNIQUE, 0);
    guest.get_stuck();
    println!(
        "balloon driver {}",
        if guest.has_balloon() {
            "started, stuck"
        } else {
            "not found"
        }
    );
    guest.fill();
    let mut pass = 0;
    while passes == 0 || pass < passes {
        guest.visit_all();
        guest.idle_ms(pause_ms);
        pass += 1;
    }
    guest.finish()
}
