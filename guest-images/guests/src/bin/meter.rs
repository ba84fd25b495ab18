//! Measures, from the inside, what its memory costs it: first touches, reads, writes, at random or
//! in order. Says what it finds in lines of `key=value` behind `meter: `, times in nanoseconds.
//!
//! It has no balloon driver: what happens to its memory happens under it.
#![no_std]
#![no_main]

use tidemark_guest_model::cmdline::{Amount, OptionError, Options};
use tidemark_guest_model::content::Identity;
use tidemark_guest_model::histogram::{BUCKETS, Histogram};
use tidemark_guest_model::meter::{Kinds, Phase, phases};
use tidemark_guest_model::order::{Order, Visits};
use tidemark_guest_model::work::{Access, BATCH, Manner, Page, WINDOW_MS, Windows, Work};
use tidemark_guest_protocol::{KEY_CORRUPT, KEY_VERIFIED, REPORT_PREFIX};
use tidemark_guest_runtime::clock::{self, Clock};
use tidemark_guest_runtime::guest::usage;
use tidemark_guest_runtime::memory::{Arena, Frames};
use tidemark_guest_runtime::page::Frame;
use tidemark_guest_runtime::{BootInfo, port, println};

tidemark_guest_runtime::guest!(main);

const KEYS: &[&str] = &[
    "set", "common", "kinds", "run", "do", "write", "redraw", "seed", "tsc_khz",
];
/// What touches write: no zero, or the page would look untouched.
const TOUCH: u64 = 0x746f_7563_6864_7421;
/// Longest sleep at a time.
const SLEEP_MS_MAX: u64 = 60_000;

struct Meter {
    set: Frames,
    work: Work<'static>,
    histogram: Histogram<'static>,
    clock: Clock,
    seed: u64,
    verified: u64,
    corrupt: u64,
}

fn main(boot: BootInfo) -> u32 {
    let options = usage(Options::parse(boot.command_line, &[KEYS]));
    let list = options.get("do").unwrap_or("page");
    let (phases, count) = usage(phases(list).ok_or(OptionError::Invalid {
        key: "do",
        value: list,
        wanted: "fill before what needs content, no touch after it; up to 16 of word, page, fill, sleep:MS, ops:MS, write, write_seq, write_sparse, read, read_seq, read_sparse, verify",
    }));
    let mut meter = Meter::new(&boot, &options);
    println!("meter: set={} khz={}", meter.set.count(), meter.clock.ms(1));
    for (number, phase) in phases[..count].iter().enumerate() {
        println!("meter: phase={number} begin={}", phase.name());
        meter.carry_out(number, *phase);
        meter.report();
    }
    println!("meter: end");
    u32::from(meter.corrupt > 0)
}

impl Meter {
    fn new(boot: &BootInfo, options: &Options<'static>) -> Self {
        let wanted = usage(options.amount("set", Amount::Percent(50))).pages(boot.ram_pages());
        let text = options.get("kinds").unwrap_or("u");
        let run = usage(options.number("run", 16, u64::from(u32::MAX)));
        let kinds = Kinds::parse(text, run as u32).ok_or(OptionError::Invalid {
            key: "kinds",
            value: text,
            wanted: "up to 8 letters of c, u and z, and a run of at least 1",
        });
        let kinds = usage(kinds);
        let seed = usage(options.number("seed", 0, u64::MAX));
        let mut arena = Arena::new(boot);
        let pages = arena.slice(wanted as usize, Page::FRESH);
        let histogram = Histogram::new(arena.slice(BUCKETS, 0));
        let set = arena.rest(wanted);
        let pages = &mut pages[..set.count() as usize];
        let manner = Manner {
            kinds,
            common: usage(options.number("common", 0, u64::from(u32::MAX))) as u32,
            seed,
            write_percent: usage(options.percent("write", 0)),
            redraw_percent: usage(options.percent("redraw", 0)),
        };
        Self {
            set,
            work: Work::new(pages, manner),
            histogram,
            clock: usage(Clock::new(options)),
            seed,
            verified: 0,
            corrupt: 0,
        }
    }

    fn carry_out(&mut self, number: usize, phase: Phase) {
        match phase {
            Phase::TouchWords => {
                let first = |frame: Frame, _| frame.set_word(0, TOUCH);
                self.each_page(number, phase, Order::InOrder, first);
            }
            Phase::TouchPages => {
                let whole = |frame: Frame, _| frame.fill(TOUCH);
                self.each_page(number, phase, Order::InOrder, whole);
            }
            Phase::Fill => {
                self.work.fill();
                let fill = |frame: Frame, identity| frame.write(identity);
                self.each_page(number, phase, Order::InOrder, fill);
            }
            // The first word again: a write like any other, and the content stays.
            Phase::Write(order) => {
                let write = |frame: Frame, identity: Identity| {
                    frame.set_word(0, identity.first_word());
                };
                self.each_page(number, phase, order, write);
            }
            Phase::Read(order) => {
                let read = |frame: Frame, _| {
                    core::hint::black_box(frame.word(0));
                };
                self.each_page(number, phase, order, read);
            }
            Phase::Sleep { ms } => self.sleep(ms),
            Phase::Operations { ms } => self.operate(number, ms),
            Phase::Verify => {
                for index in 0..self.set.count() {
                    self.compare(index, self.work.identity(index));
                }
            }
        }
    }

    /// Does `work` to each page of the set once, timed page by page.
    fn each_page(
        &mut self,
        number: usize,
        phase: Phase,
        order: Order,
        work: impl Fn(Frame, Identity),
    ) {
        self.histogram.clear();
        let start = clock::now();
        for index in Visits::new(order, self.set.count(), self.seed) {
            let frame = self.set.get(index);
            let identity = self.work.identity(index);
            let before = clock::now();
            work(frame, identity);
            self.histogram.add(clock::now() - before);
        }
        let ns = self.clock.ns(clock::now() - start);
        let [p50, p99] =
            [500, 990].map(|permille| self.clock.ns(self.histogram.permille(permille)));
        println!(
            "meter: phase={number} {} pages={} ns={ns} p50={p50} p99={p99} worst={}",
            phase.name(),
            self.histogram.values(),
            self.clock.ns(self.histogram.worst()),
        );
    }

    /// Random operations on pages that were filled, counted in windows.
    fn operate(&mut self, number: usize, ms: u64) {
        let length = self.clock.ms(WINDOW_MS);
        let mut windows = Windows::new(clock::now(), self.clock.ms(ms), length);
        loop {
            for _ in 0..BATCH {
                self.operation();
            }
            let Some(window) = windows.count(BATCH, clock::now()) else {
                continue;
            };
            let ns = self.clock.ns(window.ticks);
            println!(
                "meter: phase={number} ops={} window={} ns={ns}",
                window.operations, window.number
            );
            self.report();
            if !windows.go_on(clock::now()) {
                return;
            }
        }
    }

    fn operation(&mut self) {
        let operation = self.work.draw();
        match operation.access {
            Access::Write => self.set.get(operation.index).write(operation.identity),
            Access::Compare => self.compare(operation.index, operation.identity),
        }
    }

    fn compare(&mut self, index: u32, identity: Identity) {
        self.verified += 1;
        if let Err(mismatch) = self.set.get(index).compare(identity) {
            self.corrupt += 1;
            println!("corrupt: index={index} {mismatch:?}");
        }
    }

    fn sleep(&self, ms: u64) {
        let end = clock::now() + self.clock.ms(ms);
        while clock::now() < end {
            let left = (end - clock::now()) / self.clock.ms(1);
            port::sleep_at_most_ms(left.clamp(1, SLEEP_MS_MAX) as u32);
        }
    }

    fn report(&self) {
        println!(
            "{REPORT_PREFIX}{KEY_VERIFIED}={} {KEY_CORRUPT}={}",
            self.verified, self.corrupt
        );
    }
}
