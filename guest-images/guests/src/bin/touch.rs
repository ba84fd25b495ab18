//! Touches a working set of known size, which may change once: for working-set estimates and the
//! idle-memory tax. A touch reads one word of a page and compares it, and writes one if asked to.
#![no_std]
#![no_main]

use tidemark_guest_model::cmdline::{Amount, Options};
use tidemark_guest_model::content::Mismatch;
use tidemark_guest_model::layout::Mix;
use tidemark_guest_runtime::BootInfo;
use tidemark_guest_runtime::clock;
use tidemark_guest_runtime::guest::{Guest, options, usage};

tidemark_guest_runtime::guest!(main);

const KEYS: &[&str] = &["set", "then", "after", "write", "rate", "passes", "free"];
/// The word of a page that touches use; the rest of the page keeps its first content.
const TOUCHED: usize = 0;

/// What the options say.
struct Plan {
    /// Pages of the working set.
    set: u32,
    /// Pages of the working set from `after_seconds` on.
    then: Option<u32>,
    after_seconds: u64,
    write: bool,
    /// Pages per second; 0 for no limit.
    rate: u64,
    passes: u64,
    /// Whether pages outside a shrunken set are freed; else they stay, idle.
    free: bool,
}

impl Plan {
    fn new(boot: &BootInfo, options: &Options<'static>) -> Self {
        let pages = |amount: Amount| amount.pages(boot.ram_pages());
        let flag = |key| usage(options.number(key, 0, 1)) == 1;
        Self {
            set: pages(usage(options.amount("set", Amount::Percent(25)))),
            then: options
                .get("then")
                .map(|_| pages(usage(options.amount("then", Amount::Percent(0))))),
            after_seconds: usage(options.number("after", 10, u64::from(u32::MAX))),
            write: flag("write"),
            rate: usage(options.number("rate", 0, u64::from(u32::MAX))),
            passes: usage(options.number("passes", 0, u64::MAX)),
            free: flag("free"),
        }
    }
}

fn main(boot: BootInfo) -> u32 {
    let options = options(&boot, KEYS);
    let plan = Plan::new(&boot, &options);
    let largest = plan.set.max(plan.then.unwrap_or(0));
    let fill = Amount::Bytes(u64::from(largest) * 4096);
    let mut guest = Guest::new(&boot, &options, fill, Mix::UNIQUE, 0);
    guest.fill();
    guest.report();
    let start = clock::now();
    let change = start + guest.clock.ms(1000 * plan.after_seconds);
    let mut pass = 0;
    let mut set = plan.set;
    while plan.passes == 0 || pass < plan.passes {
        if let Some(then) = plan.then
            && clock::now() >= change
            && set != then
        {
            set = then;
            if plan.free {
                (set..guest.memory.pages()).for_each(|index| guest.drop_page(index));
            }
        }
        touch_all(&mut guest, &plan, set);
        pass += 1;
    }
    guest.finish()
}

/// Touches the whole set once, at the wanted rate.
fn touch_all(guest: &mut Guest, plan: &Plan, set: u32) {
    let start = clock::now();
    for index in 0..set.min(guest.memory.pages()) {
        touch(guest, plan, index);
        guest.tick_at(index);
        if plan.rate > 0 && index.is_multiple_of(16) {
            let due = start + guest.clock.ms(u64::from(index) * 1000 / plan.rate);
            let early = due.saturating_sub(clock::now()) / guest.clock.ms(1);
            if early > 0 {
                guest.idle_ms(early);
            }
        }
    }
    if set == 0 {
        guest.idle_ms(100);
    }
    guest.tick();
}

fn touch(guest: &mut Guest, plan: &Plan, index: u32) {
    let Some(frame) = guest.memory.frame_of(index) else {
        guest.visit(index);
        return;
    };
    // The version of the page's first word alone: the rest keeps version 0.
    let expected = guest.identity(index).first_word();
    let found = frame.word(TOUCHED);
    guest.note_verified(1);
    if found != expected {
        guest.note_corrupt(
            index,
            frame,
            Mismatch {
                offset: 8 * TOUCHED,
                expected,
                found,
            },
        );
        frame.set_word(TOUCHED, expected);
    }
    if plan.write {
        let version = guest.memory.page(index).version.wrapping_add(1);
        guest.memory.set_version(index, version);
        frame.set_word(TOUCHED, guest.identity(index).first_word());
    }
}
