//! Prints what it costs to start a built-in guest: milliseconds from the start of `main` to the
//! first KVM_RUN and to the first console byte, and the anonymous memory of the process
//! beside the guest's RAM.
//!
//!     cargo run --release --example start_time [GUEST] [MIB]

use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemark::boot::{builtin, image::Image};
use tidemark::devices::console::Console;
use tidemark::devices::sink::BalloonSink;
use tidemark::machine::{Machine, MachineSpec};
use tidemark::sys::ram::{GuestRam, Layout};
use tidemark::units::{Gfn, GfnRange, Pages};

struct Ignore;

impl BalloonSink for Ignore {
    fn inflate(&self, _: &[Gfn]) {}
    fn deflate(&self, _: &[Gfn]) {}
    fn report_free(&self, _: GfnRange) {}
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let start = Instant::now();
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_else(|| "idle".into());
    let mib = arguments.next().map_or(Ok(256), |mib| mib.parse())?;
    let kernel = builtin::find(&name).ok_or("no such guest")?;
    let ram = GuestRam::new(Layout::new(Pages::mib(mib)))?;
    let console = Arc::new(Console::new("guest: ", Box::new(std::io::sink())));
    let spec = MachineSpec {
        kernel: Image::Builtin(kernel),
        initrd: None,
        cmdline: String::new(),
        disks: Vec::new(),
        balloon: true,
        cpus: 1,
    };
    let mut machine = Machine::new(spec, ram, Arc::new(Ignore), console)?;
    let built = start.elapsed();
    machine.start()?;
    machine.wait(Duration::from_secs(1));
    let since = |at: Option<Instant>| at.map(|at| at.duration_since(start));
    println!("built        {built:?}");
    println!("first run    {:?}", since(machine.first_run()));
    println!("first byte   {:?}", since(machine.console().first_byte()));
    println!("exit         {:?}", machine.exit());
    // The guest's RAM is the largest mapping; everything else is the VMM's.
    let maps = std::fs::read_to_string("/proc/self/smaps")?;
    let (mut private, mut largest, mut mapping) = (0u64, (0u64, 0u64), (0u64, 0u64));
    let mut finish = |mapping: (u64, u64)| {
        private += mapping.1;
        largest = largest.max(mapping);
    };
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (key, value) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        match key {
            "Size:" => {
                finish(mapping);
                mapping = (value.parse()?, 0);
            }
            // Not "Private": the program's text, which a fleet's processes share, would count.
            "Anonymous:" => mapping.1 += value.parse::<u64>()?,
            _ => {}
        }
    }
    finish(mapping);
    println!("guest RAM    {} KiB anonymous", largest.1);
    println!("VMM          {} KiB anonymous", private - largest.1);
    Ok(())
}
