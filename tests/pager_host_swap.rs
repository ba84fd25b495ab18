//! The host's own swapping, at work on guest RAM, stages and mappings of the pool, loses nothing. It
//! is a setting of the whole host, and works on the whole process: hence a file of its own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
mod pager;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::Capability;
use pager::interleave::{self, GUEST_PAGES, Plan};
use pager::os::{self, HostSwap};
use pager::rig::Rig;
use pager::{both_paths, seed};
use tidemark::units::{Gfn, PAGE_SIZE};

const SWAP_BYTES: u64 = 64 << 20;
/// Smallest mapping that is swapped beside guest RAM: the stages are larger.
const MAPPING_BYTES_MIN: usize = 1 << 20;

/// Bytes of this process that are swapped out.
fn swapped_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmSwap:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.trim().parse::<u64>().ok())
        .map_or(0, |kib| kib << 10)
}

fn page_out(rig: &Rig) {
    let ram = rig.pager.ram();
    // Refused where a part is no memory, or a mapping just went: the next round sees.
    let _ = os::page_out(ram.hva(Gfn(0)), GUEST_PAGES as usize * PAGE_SIZE);
    for (start, bytes) in os::anonymous_mappings(MAPPING_BYTES_MIN) {
        let _ = os::page_out(start, bytes);
    }
}

#[test]
fn every_byte_survives_the_hosts_own_swapping() {
    let Some(_host) = common::require(&[Capability::Uffd]) else {
        return;
    };
    let swap = match HostSwap::on(Path::new(env!("CARGO_TARGET_TMPDIR")), SWAP_BYTES) {
        Ok(swap) => swap,
        Err(error) => return common::skip(&format!("the host cannot swap to a file: {error}")),
    };
    let seed = seed();
    both_paths(|path| {
        let plan = Plan {
            path,
            seed,
            operations: 400,
            encrypted: false,
        };
        let most = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
        let seen = most.clone();
        interleave::run(plan, move |rig: &Rig, end: &AtomicBool| {
            // At times so far apart that pages are present long enough to be merged.
            let mut rng = fastrand::Rng::with_seed(seed);
            while !end.load(Ordering::Relaxed) {
                page_out(rig);
                seen.fetch_max(swapped_bytes(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(rng.u64(1..=30)));
            }
        });
        match most.load(Ordering::Relaxed) {
            0 => common::note("the host swapped nothing: nothing was shown"),
            bytes => println!("{} KiB were swapped at a time", bytes >> 10),
        }
    });
    drop(swap);
}
