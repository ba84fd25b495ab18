//! The phase `ops` of the guest `meter` as an ordinary process, for memory that the kernel manages and
//! no KVM maps: the peer where a limit of the kernel's cannot reach a guest's pages.
//!
//! It is this same program, started again; it fills as many pages with the same content, carries out
//! the same operations in the same order, compares what it reads, and prints what the guest prints.

use std::io;
use std::time::Instant;

use clap::Args;
use tidemark_guest_model::content::{Identity, Mismatch, WORDS};
use tidemark_guest_model::meter::Kinds;
use tidemark_guest_model::work::{Access, BATCH, Manner, Page, WINDOW_MS, Windows, Work};
use vm_memory::{
    GuestAddress, GuestMemoryBackend, VolatileArrayRef, VolatileMemory, VolatileSlice,
};

use super::Error;
use crate::sys::ram::{GuestRam, Layout};
use crate::words::Advice;

/// Bytes of a page.
const PAGE_BYTES: usize = WORDS * 8;

/// What the process is told.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Flags {
    /// Memory that it works on, bytes
    #[arg(long)]
    pub set: u64,
    /// Milliseconds of random operations
    #[arg(long)]
    pub ms: u64,
    /// Percent of operations that write
    #[arg(long)]
    pub write: u32,
    /// Decides which pages are drawn
    #[arg(long)]
    pub seed: u64,
}

impl Flags {
    /// The command line that says this.
    pub fn command_line(&self) -> Vec<String> {
        let Flags {
            set,
            ms,
            write,
            seed,
        } = self;
        let line = format!("bench process --set={set} --ms={ms} --write={write} --seed={seed}");
        line.split(' ').map(str::to_owned).collect()
    }
}

/// Fills and works, and says so on standard output.
///
/// # Errors
/// When there is no memory, or a page did not hold what it must.
pub(super) fn work(flags: Flags) -> Result<(), Error> {
    let count = u32::try_from(flags.set / PAGE_BYTES as u64).unwrap_or(u32::MAX);
    let ram = GuestRam::advised(Layout::of_bytes(flags.set), Some(Advice::NoHugePage));
    let ram = ram.map_err(|error| super::io("map the set")(io::Error::other(error)))?;
    let set = ram
        .memory()
        .get_slice(GuestAddress(0), count as usize * PAGE_BYTES);
    let memory = Memory(set.map_err(|error| super::io("use the set")(io::Error::other(error)))?);
    let mut table = vec![Page::FRESH; count as usize];
    let manner = Manner {
        kinds: Kinds::UNIQUE,
        common: 0,
        seed: flags.seed,
        write_percent: flags.write,
        redraw_percent: 0,
    };
    let mut work = Work::new(&mut table, manner);
    let clock = Instant::now();
    let now = || u64::try_from(clock.elapsed().as_nanos()).unwrap_or(u64::MAX);
    println!("meter: phase=0 begin=fill");
    work.fill();
    for index in 0..count {
        memory.write(index, work.identity(index));
    }
    println!("meter: phase=0 fill pages={count} ns={}", now());
    println!("meter: phase=1 begin=ops");
    let mut windows = Windows::new(now(), flags.ms * 1_000_000, WINDOW_MS * 1_000_000);
    let mut corrupt = 0;
    loop {
        for _ in 0..BATCH {
            let operation = work.draw();
            let (index, identity) = (operation.index, operation.identity);
            match operation.access {
                Access::Write => memory.write(index, identity),
                Access::Compare => corrupt += u64::from(memory.compare(index, identity).is_err()),
            }
        }
        if let Some(window) = windows.count(BATCH, now()) {
            let (ops, number, ns) = (window.operations, window.number, window.ticks);
            println!("meter: phase=1 ops={ops} window={number} ns={ns}");
            if !windows.go_on(now()) {
                break;
            }
        }
    }
    println!("meter: end");
    match corrupt {
        0 => Ok(()),
        pages => Err(Error::Corrupt {
            guest: "the process".to_owned(),
            pages,
        }),
    }
}

/// The set: what the guest has as frames.
struct Memory<'a>(VolatileSlice<'a>);

impl Memory<'_> {
    fn words(&self, index: u32) -> VolatileArrayRef<'_, u64> {
        let start = index as usize * PAGE_BYTES;
        let words = self.0.get_array_ref(start, WORDS);
        words.expect("the set has this page")
    }

    fn write(&self, index: u32, identity: Identity) {
        let words = self.words(index);
        identity.write(|at, word| words.store(at, word));
    }

    fn compare(&self, index: u32, identity: Identity) -> Result<(), Mismatch> {
        let words = self.words(index);
        identity.compare(|at| words.load(at))
    }
}
