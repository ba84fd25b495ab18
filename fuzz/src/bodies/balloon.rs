//! The balloon behind its registers: a driver that mostly does what it should, in any order, and
//! hostile steps between. The sink must hear of what was listed, sorted, once, and of nothing else.

use std::sync::{Arc, Mutex, PoisonError};

use tidemark::devices::idle::IdlePort;
use tidemark::devices::interrupt::NoInterrupt;
use tidemark::devices::sink::BalloonSink;
use tidemark::devices::virtio::balloon::Balloon;
use tidemark::sys::ram::{GuestRam, HIGH_RAM_START, LOW_RAM_END, Layout};
use tidemark::units::{Gfn, GfnRange, PAGE_SIZE, Pages};

use super::driver::{CONFIG, DATA, Driver, VERSION_1, WRITE};
use super::input::Input;

/// The queue of pages that go into the balloon; the next one is of those that come out.
const INFLATE: usize = 0;
const MUST_TELL: u64 = 1 << 0;
const STATS: u64 = 1 << 1;
const ON_OOM: u64 = 1 << 2;
const HINTS: u64 = 1 << 3;
const REPORTING: u64 = 1 << 5;
const QUEUES: usize = 5;

/// Steps of one input, at most.
const STEPS_MAX: usize = 64;
/// Bytes that the driver has for its lists: a page a step, and some.
const HEAP_BYTES: u64 = 0x10_0000;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Call {
    Inflate(Vec<Gfn>),
    Deflate(Vec<Gfn>),
    Free(GfnRange),
}

/// Notes what the device says, and checks what must be true of all of it.
struct Witness {
    layout: Layout,
    calls: Mutex<Vec<Call>>,
}

impl Witness {
    fn note(&self, call: Call) {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.push(call);
    }

    fn take(&self) -> Vec<Call> {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut calls)
    }

    fn check(&self, gfns: &[Gfn]) {
        assert!(!gfns.is_empty(), "a call about no page");
        assert!(gfns.is_sorted_by(|low, high| low < high), "{gfns:?}");
        for gfn in gfns {
            assert!(self.layout.contains_gfn(*gfn), "{gfn} is not RAM");
        }
    }
}

impl BalloonSink for Witness {
    fn inflate(&self, gfns: &[Gfn]) {
        self.check(gfns);
        self.note(Call::Inflate(gfns.to_vec()));
    }

    fn deflate(&self, gfns: &[Gfn]) {
        self.check(gfns);
        self.note(Call::Deflate(gfns.to_vec()));
    }

    fn report_free(&self, range: GfnRange) {
        assert!(range.count > 0, "a report of no page");
        assert!(self.layout.contains(range), "{range:?} is not RAM");
        self.note(Call::Free(range));
    }
}

/// The guest with its driver.
struct Guest<'a> {
    driver: Driver<'a>,
    balloon: &'a Balloon,
    witness: &'a Witness,
    features: u64,
    /// Where the next list goes.
    heap: u64,
    /// What the sink must hear of when the queue is served.
    due: [Vec<Call>; 2],
    /// Descriptors of lists that were not announced yet.
    unannounced: [u16; 2],
    calls: u64,
}

/// Whether the sink was called.
pub fn body(data: &[u8]) -> bool {
    let mut input = Input::new(data);
    let first = input.u8();
    // The larger one has the hole below 4 GiB.
    let size = match first & 3 {
        0 => Pages::in_bytes(LOW_RAM_END) + Pages::mib(8),
        _ => Pages::mib(4),
    };
    let ram = GuestRam::new(Layout::new(size)).expect("address space suffices");
    let witness = Arc::new(Witness {
        layout: ram.layout().clone(),
        calls: Mutex::default(),
    });
    let (line, idle) = (Arc::new(NoInterrupt), Arc::new(IdlePort::default()));
    let balloon = Balloon::new(ram.clone(), witness.clone(), line, idle);
    let registers = balloon.bus_device();
    let mut guest = Guest {
        driver: Driver::new(&*registers, &ram, QUEUES, 128 >> (first >> 5)),
        balloon: &balloon,
        witness: &witness,
        features: VERSION_1 | MUST_TELL | STATS | ON_OOM | HINTS | REPORTING,
        heap: DATA,
        due: Default::default(),
        unannounced: [0; 2],
        calls: 0,
    };
    guest.start();
    let mut steps = 0;
    while !input.is_empty() && steps < STEPS_MAX {
        guest.step(&mut input);
        steps += 1;
    }
    guest.calls + guest.witness.take().len() as u64 > 0
}

impl Guest<'_> {
    fn start(&mut self) {
        self.driver.start(self.features);
        self.due = Default::default();
        self.unannounced = [0; 2];
    }

    /// A driver whose device has failed starts it again.
    fn recover(&mut self) {
        if !self.driver.is_up() {
            self.start();
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(32) {
            0..=13 => self.list(input),
            14..=17 => self.report(input),
            18 | 19 => self.statistics(input),
            20..=22 => self.hint(input),
            23 => self.host_side(input),
            24 => {
                let all = MUST_TELL | STATS | ON_OOM | HINTS | REPORTING;
                self.features = VERSION_1 | u64::from(input.u8()) & all;
                self.start();
            }
            25 => self.announce(usize::from(input.below(2))),
            _ => self.driver.disturb(input),
        }
    }

    /// The queue of a feature: those of refused ones do not exist.
    fn queue_of(&self, feature: u64) -> Option<usize> {
        let there = [STATS, HINTS, REPORTING];
        let mut there = there.iter().filter(|of| self.features & **of != 0);
        there.position(|of| *of == feature).map(|place| place + 2)
    }

    /// Room for so many bytes.
    fn allocate(&mut self, bytes: u64) -> u64 {
        if self.heap + bytes > DATA + HEAP_BYTES {
            self.heap = DATA;
        }
        let gpa = self.heap;
        self.heap += bytes;
        gpa
    }

    /// A list of pages in one to three buffers.
    fn list(&mut self, input: &mut Input<'_>) {
        self.recover();
        let kind = input.u8();
        let queue = usize::from(kind & 1);
        let count = 1 + usize::from(kind >> 1) % 12;
        let pfns: Vec<u32> = (0..count).map(|_| self.pfn(input)).collect();
        let parts = count.min(1 + usize::from(kind >> 5) % 3);
        let parts = parts.min(self.driver.size().into());
        let used = u16::try_from(parts).expect("three at most");
        if self.unannounced[queue] + used > self.driver.size() {
            self.announce(queue);
            self.recover();
        }
        let mut buffers = Vec::new();
        for part in pfns.chunks(count.div_ceil(parts)) {
            let bytes: Vec<u8> = part.iter().flat_map(|pfn| pfn.to_le_bytes()).collect();
            let gpa = self.allocate(bytes.len() as u64);
            self.driver.put(gpa, &bytes);
            buffers.push((gpa, u32::try_from(bytes.len()).expect("a short list"), 0));
        }
        self.driver.add(queue, &buffers);
        self.unannounced[queue] += used;
        let layout = &self.witness.layout;
        let mut gfns: Vec<Gfn> = pfns.into_iter().map(Gfn).collect();
        gfns.retain(|gfn| layout.contains_gfn(*gfn));
        gfns.sort_unstable();
        gfns.dedup();
        if !gfns.is_empty() {
            self.due[queue].push(match queue {
                INFLATE => Call::Inflate(gfns),
                _ => Call::Deflate(gfns),
            });
        }
        if kind < 0xe0 {
            self.announce(queue);
        }
    }

    /// A page number: mostly a page, at times none.
    fn pfn(&self, input: &mut Input<'_>) -> u32 {
        let layout = &self.witness.layout;
        let kind = input.u8();
        let last = layout.size().0 - 1;
        match kind {
            0..=159 => layout.nth(u64::from(input.u8()) * 4).0,
            160..=219 => layout.nth(u64::from(input.u32()) % (last + 1)).0,
            220..=239 => {
                let end = Gfn::containing(LOW_RAM_END).expect("it has a number").0;
                let high = Gfn::containing(HIGH_RAM_START).expect("it has a number").0;
                let end_of_all = layout.end().0;
                let near = input.pick(&[end, high, end_of_all, layout.nth(last).0]);
                near.wrapping_add_signed(i32::from(input.below(3)) - 1)
            }
            _ => input.u32(),
        }
    }

    /// Announces what is in the queue of lists; the sink hears of all of that, in order.
    fn announce(&mut self, queue: usize) {
        self.calls += self.witness.take().len() as u64;
        self.driver.notify(queue);
        let due = std::mem::take(&mut self.due[queue]);
        self.unannounced[queue] = 0;
        if self.driver.correct {
            self.expect(&due);
        }
    }

    fn expect(&mut self, due: &[Call]) {
        let calls = self.witness.take();
        assert_eq!(calls, due, "what the sink heard");
        assert!(!self.driver.has_failed(), "a correct driver's device stops");
        self.calls += calls.len() as u64;
    }

    /// Free page reporting: ranges that are RAM, whole pages or not.
    fn report(&mut self, input: &mut Input<'_>) {
        self.recover();
        let Some(queue) = self.queue_of(REPORTING) else {
            return;
        };
        let (mut buffers, mut due) = (Vec::new(), Vec::new());
        let most = self.driver.size().min(1 + u16::from(input.below(3)));
        for _ in 0..most {
            let page = self.witness.layout.nth(u64::from(input.u8()) * 2);
            let (cut, length) = (u32::from(input.u8()) * 16, input.u16());
            let gpa = page.gpa() + u64::from(cut);
            let length = u32::from(length);
            buffers.push((gpa, length, WRITE));
            let first = gpa.div_ceil(PAGE_SIZE as u64);
            let end = (gpa + u64::from(length)) / PAGE_SIZE as u64;
            if let Some(count) = end.checked_sub(first).filter(|count| *count > 0) {
                let count = u32::try_from(count).expect("16 pages at most");
                let start = Gfn::containing(first * PAGE_SIZE as u64).expect("it is RAM");
                due.push(Call::Free(GfnRange::new(start, count)));
            }
        }
        self.calls += self.witness.take().len() as u64;
        self.driver.add(queue, &buffers);
        self.driver.notify(queue);
        if self.driver.correct {
            self.expect(&due);
        }
    }

    fn statistics(&mut self, input: &mut Input<'_>) {
        self.recover();
        let Some(queue) = self.queue_of(STATS) else {
            return;
        };
        let length = usize::from(input.u8());
        let bytes = input.bytes(length);
        let gpa = self.allocate(256);
        self.driver.put(gpa, bytes);
        let length = u32::try_from(bytes.len()).expect("255 at most");
        self.driver.add(queue, &[(gpa, length, 0)]);
        self.driver.notify(queue);
        assert!(!self.driver.correct || !self.driver.has_failed());
        if input.bool() {
            self.balloon.request_stats();
        }
    }

    /// Free page hinting: a round, or a part of one.
    fn hint(&mut self, input: &mut Input<'_>) {
        self.recover();
        let Some(queue) = self.queue_of(HINTS) else {
            return;
        };
        let kind = input.u8();
        if kind & 1 == 0 {
            self.balloon.begin_hints();
        }
        let round = match kind & 6 {
            0 => input.u32(),
            _ => self.driver.read(CONFIG + 8),
        };
        let gpa = self.allocate(8);
        self.driver.put(gpa, &round.to_le_bytes());
        self.driver.add(queue, &[(gpa, 4, 0)]);
        let small = self.driver.size() <= 2;
        if kind & 8 == 0 || small {
            self.driver.notify(queue);
        }
        if !small {
            let page = self.witness.layout.nth(u64::from(input.u8()));
            let length = 0x1000 * u32::from(input.below(128));
            self.driver.add(queue, &[(page.gpa(), length, WRITE)]);
            self.driver.notify(queue);
        }
        if kind & 16 == 0 {
            self.driver.put(gpa, &[0; 4]);
            self.driver.add(queue, &[(gpa, 4, 0)]);
        }
        self.driver.notify(queue);
        assert!(!self.driver.correct || !self.driver.has_failed());
    }

    /// What the VM process does to its balloon.
    fn host_side(&mut self, input: &mut Input<'_>) {
        match input.below(4) {
            0 => self.balloon.set_target(Pages(input.number(1024))),
            1 => self.balloon.request_stats(),
            2 => self.balloon.begin_hints(),
            _ => self.driver.write(CONFIG + 4, input.u32()),
        }
        let balloon = self.balloon;
        assert!(balloon.actual() <= Pages(u32::MAX.into()));
        assert_eq!(balloon.driver_up(), self.driver.is_up());
    }
}
