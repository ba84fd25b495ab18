//! A swap store in memory that fails or lies when told to.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use tidemark::mem::swapfile::SwapStore;
use tidemark::sys::space::PageBuf;
use tidemark::units::{PAGE_SIZE, SwapSlot};

/// A read that is held longer is the test's mistake.
const HELD_MAX: Duration = Duration::from_secs(60);

/// A handle of the store; clones are of the same store.
#[derive(Debug, Default, Clone)]
pub struct MemoryStore(Arc<Inner>);

/// Calls of one kind, and which of them fail.
#[derive(Debug, Default)]
struct Calls {
    count: AtomicU64,
    /// Whether all fail.
    all_fail: AtomicBool,
    /// The one that fails, counted from 1; 0 is none.
    nth_fails: AtomicU64,
}

impl Calls {
    /// Counts a call; its number, from 1.
    fn count(&self) -> u64 {
        self.count.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Whether the call with this number shall fail.
    fn fails(&self, number: u64) -> bool {
        self.all_fail.load(Ordering::Relaxed) || self.nth_fails.load(Ordering::Relaxed) == number
    }
}

#[derive(Debug, Default)]
struct Inner {
    slots: Mutex<HashMap<u32, Box<[u8; PAGE_SIZE]>>>,
    writes: Calls,
    reads: Calls,
    /// Pages that were read together with others.
    run_pages: AtomicU64,
    /// Whether the slot of the read that fails does so from then on.
    stays_bad: AtomicBool,
    bad_slot: Mutex<Option<u32>>,
    flip_bit: AtomicBool,
    /// The read that returns another page, counted from 1; 0 is none.
    nth_lies: AtomicU64,
    /// Whether reads wait.
    held: Mutex<bool>,
    released: Condvar,
    held_reads: AtomicUsize,
    failed_at: Mutex<Option<Instant>>,
}

impl MemoryStore {
    /// Whether all writes fail from now on.
    pub fn fail_writes(&self, fail: bool) {
        self.0.writes.all_fail.store(fail, Ordering::Relaxed);
    }

    /// Whether all reads fail from now on.
    pub fn fail_reads(&self, fail: bool) {
        self.0.reads.all_fail.store(fail, Ordering::Relaxed);
    }

    /// The `nth` write of the store's life fails.
    pub fn fail_write(&self, nth: u64) {
        self.0.writes.nth_fails.store(nth, Ordering::Relaxed);
    }

    /// The `nth` read of the store's life fails.
    pub fn fail_read(&self, nth: u64) {
        self.0.reads.nth_fails.store(nth, Ordering::Relaxed);
    }

    /// The `nth` read of the store's life fails, and so does every later read of its slot.
    pub fn lose_slot_at(&self, nth: u64) {
        self.0.stays_bad.store(true, Ordering::Relaxed);
        self.fail_read(nth);
    }

    /// The `nth` read of the store's life returns another page than was written.
    pub fn lie_at(&self, nth: u64) {
        self.0.nth_lies.store(nth, Ordering::Relaxed);
    }

    /// Reads so far, each page for itself.
    pub fn reads(&self) -> u64 {
        self.0.reads.count.load(Ordering::Relaxed)
    }

    /// Pages that were read together with others.
    pub fn run_pages(&self) -> u64 {
        self.0.run_pages.load(Ordering::Relaxed)
    }

    /// Whether reads wait from now on.
    pub fn hold_reads(&self, hold: bool) {
        *self.0.held.lock().unwrap() = hold;
        self.0.released.notify_all();
    }

    /// Reads that have waited, or wait.
    pub fn held_reads(&self) -> usize {
        self.0.held_reads.load(Ordering::Relaxed)
    }

    fn wait_until_released(&self) {
        let held = self.0.held.lock().unwrap();
        if *held {
            self.0.held_reads.fetch_add(1, Ordering::Relaxed);
            let waited = self
                .0
                .released
                .wait_timeout_while(held, HELD_MAX, |held| *held);
            assert!(!*waited.unwrap().0, "nobody lets a read go on");
        }
    }

    /// Whether reads return another page than was written.
    pub fn flip_bit(&self, flip: bool) {
        self.0.flip_bit.store(flip, Ordering::Relaxed);
    }

    /// When a call failed last.
    pub fn failed_at(&self) -> Option<Instant> {
        *self.0.failed_at.lock().unwrap()
    }

    fn failed(&self) {
        *self.0.failed_at.lock().unwrap() = Some(Instant::now());
    }
}

impl SwapStore for MemoryStore {
    fn write(&self, first: SwapSlot, pages: &[PageBuf]) -> io::Result<()> {
        let fails = self.0.writes.fails(self.0.writes.count());
        // A write that fails leaves a part behind.
        let written = if fails { pages.len() / 2 } else { pages.len() };
        let mut slots = self.0.slots.lock().unwrap();
        for (slot, page) in (first.0..).zip(&pages[..written]) {
            slots.insert(slot, Box::new(page.0));
        }
        if fails {
            self.failed();
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        Ok(())
    }

    fn read(&self, slot: SwapSlot, page: &mut PageBuf) -> io::Result<()> {
        self.wait_until_released();
        let number = self.0.reads.count();
        let fails = self.0.reads.fails(number);
        let lies = self.0.nth_lies.load(Ordering::Relaxed) == number;
        let mut bad_slot = self.0.bad_slot.lock().unwrap();
        if fails && self.0.stays_bad.load(Ordering::Relaxed) {
            *bad_slot = Some(slot.0);
        }
        if fails || *bad_slot == Some(slot.0) {
            self.failed();
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let slots = self.0.slots.lock().unwrap();
        page.0 = **slots.get(&slot.0).expect("a slot that was written");
        if lies || self.0.flip_bit.load(Ordering::Relaxed) {
            page.0[100] ^= 4;
        }
        Ok(())
    }

    fn read_run(&self, first: SwapSlot, pages: &mut [PageBuf]) -> io::Result<()> {
        let count = pages.len() as u64;
        self.0.run_pages.fetch_add(count, Ordering::Relaxed);
        let mut slots = (first.0..).map(SwapSlot).zip(pages);
        slots.try_for_each(|(slot, page)| {
            // Between slots that hold pages may lie one that was never written.
            let holds = self.0.slots.lock().unwrap().contains_key(&slot.0);
            match holds {
                true => self.read(slot, page),
                false => Ok(()),
            }
        })
    }
}
