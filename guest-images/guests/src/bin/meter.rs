//! Measures, from the inside, what its memory costs it: first touches, reads, writes, at random or
//! in order. Says what it finds in lines of `key=value` behind `meter: `, times in nanoseconds.
//!
//! It has no balloon driver: what happens to its memory happens under it.
#![no_std]
#![no_main]

use tidemark_guest_model::cmdline::{Amount, OptionError, Options};
use tidemark_guest_model::content::{Identity, Kind};
use tidemark_guest_model::histogram::{BUCKETS, Histogram};
use tidemark_guest_model::meter::{Kinds, Phase, phases};
use tidemark_guest_model::order::{Order, Visits};
use tidemark_guest_model::rng::Rng;
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
/// Time that [`Phase::Operations`] counts together.
const WINDOW_MS: u64 = 1000;
/// Operations between two looks at the clock.
const BATCH: u32 = 16;
/// Versions of common pages: few, so that sister guests meet again.
const COMMON_VERSIONS: u16 = 4;
/// What touches write: no zero, or the page would look untouched.
const TOUCH: u64 = 0x746f_7563_6864_7421;
/// Longest sleep at a time.
const SLEEP_MS_MAX: u64 = 1000;

/// What a page holds.
#[derive(Debug, Clone, Copy)]
struct Page {
    kind: Kind,
    version: u16,
}

struct Meter {
    set: Frames,
    pages: &'static mut [Page],
    kinds: Kinds,
    /// Different contents that common pages have; 0: one for each index.
    common: u32,
    histogram: Histogram<'static>,
    clock: Clock,
    rng: Rng,
    seed: u64,
    write_percent: u32,
    redraw_percent: u32,
    verified: u64,
    corrupt: u64,
}

fn main(boot: BootInfo) -> u32 {
    let options = usage(Options::parse(boot.command_line, &[KEYS]));
    let list = options.get("do").unwrap_or("page");
    let (phases, count) = usage(phases(list).ok_or(OptionError::Invalid {
        key: "do",
        value: list,
        wanted: "fill before what needs content, no touch after it; up to 16 of word, page, fill, sleep:MS, ops:MS, write, write_seq, read, read_seq, verify",
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
        let fresh = Page {
            kind: Kind::Zero,
            version: 0,
        };
        let pages = arena.slice(wanted as usize, fresh);
        let histogram = Histogram::new(arena.slice(BUCKETS, 0));
        let set = arena.rest(wanted);
        let pages = &mut pages[..set.count() as usize];
        Self {
            set,
            pages,
            kinds,
            common: usage(options.number("common", 0, u64::from(u32::MAX))) as u32,
            histogram,
            clock: usage(Clock::new(options)),
            rng: Rng::new(seed),
            seed,
            write_percent: usage(options.percent("write", 0)),
            redraw_percent: usage(options.percent("redraw", 0)),
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
                for index in 0..self.set.count() {
                    self.pages[index as usize].kind = self.kinds.at(index);
                }
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
                (0..self.set.count()).for_each(|index| self.compare(index));
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
            let identity = self.identity(index);
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
        let start = clock::now();
        let end = start + self.clock.ms(ms);
        let (mut from, mut operations, mut window) = (start, 0u64, 0u64);
        loop {
            for _ in 0..BATCH {
                self.operation();
            }
            operations += u64::from(BATCH);
            let now = clock::now();
            if now < end && now < start + self.clock.ms((window + 1) * WINDOW_MS) {
                continue;
            }
            let ns = self.clock.ns(now - from);
            println!("meter: phase={number} ops={operations} window={window} ns={ns}");
            if now >= end {
                return;
            }
            self.report();
            // What was printed took time that is nobody's.
            from = clock::now();
            operations = 0;
            window = (from - start) / self.clock.ms(WINDOW_MS);
        }
    }

    fn operation(&mut self) {
        let index = self.rng.below(self.set.count());
        if !self.rng.chance(self.write_percent) {
            return self.compare(index);
        }
        let page = &mut self.pages[index as usize];
        if self.rng.chance(self.redraw_percent) {
            page.kind = self.kinds.nth(self.rng.below(u32::MAX));
        }
        page.version = match page.kind {
            Kind::Duplicate => (page.version + 1) % COMMON_VERSIONS,
            _ => page.version.wrapping_add(1),
        };
        self.set.get(index).write(self.identity(index));
    }

    fn identity(&self, index: u32) -> Identity {
        let page = self.pages[index as usize];
        let index = match page.kind {
            Kind::Duplicate if self.common > 0 => index % self.common,
            _ => index,
        };
        Identity {
            kind: page.kind,
            index,
            version: page.version,
            seed: self.seed,
        }
    }

    fn compare(&mut self, index: u32) {
        self.verified += 1;
        if let Err(mismatch) = self.set.get(index).compare(self.identity(index)) {
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
