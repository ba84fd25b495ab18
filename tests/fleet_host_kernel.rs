//! What the host's own kernel does with memory is none of the guests' business.
#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers are tests too: a panic is their way to fail"
)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use common::Capability::{Kvm, Uffd};
use common::fleet::{Fleet, MIB, SOON, alone, find_vm, kill, number};
use common::{require, skip};
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};
use rustix::process::Signal;
use serde_json::Value;

/// Moves pages together, those of the frame pool among them.
const COMPACT: &str = "/proc/sys/vm/compact_memory";
const VMS: [&str; 3] = ["verify-0", "verify-1", "verify-2"];
/// Pages of a guest's own program that were equal in all guests for a moment, and are written when
/// it starts to compare.
const STARTUP_BREAKS: u64 = 16;
/// How long pages are moved about.
const MOVING: Duration = Duration::from_secs(10);
/// Size of what is made to be compacted.
const FRAGMENTS: u64 = 64 * MIB;
/// What the guests say of a page that does not hold what they wrote.
const CORRUPT: &str = "corrupt: kind=";

fn each<'a>(figures: &'a Value, key: &'a str) -> impl Iterator<Item = u64> + 'a {
    VMS.iter()
        .filter_map(move |name| find_vm(figures, name).map(|vm| number(vm, key)))
}

/// Guests that only read, and share nearly all that they have.
fn fleet() -> Fleet {
    let toml = r#"
        [host]
        memory = "700M"
        swap_dir = "."
        [[vm]]
        name = "verify"
        count = 3
        memory = "192M"
        guest = "verify"
        cmdline = "fill=85 dup=85 cache=0 rewrite=0"
        share_group = "g"
    "#;
    Fleet::start(toml, &[])
}

/// Memory with a hole at every other page, so that there is something to compact.
fn fragments() -> File {
    let block = vec![1; 1 << 20];
    let file = File::from(memfd_create("fragments", MemfdFlags::CLOEXEC).unwrap());
    for at in (0..FRAGMENTS).step_by(block.len()) {
        file.write_all_at(&block, at).unwrap();
    }
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    for at in (0..FRAGMENTS).step_by(2 * 4096) {
        fallocate(&file, punch, at, 4096).unwrap();
    }
    file
}

#[test]
fn pages_that_the_kernel_moves_stay_shared_and_right() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    if let Err(error) = fs::OpenOptions::new().write(true).open(COMPACT) {
        return skip(&format!("cannot write {COMPACT}: {error}"));
    }
    let _alone = alone();
    let mut fleet = fleet();
    // Three times 85 % of 85 % of 192 MiB is there once.
    let before = fleet.until("sharing", |figures| {
        let all = figures["vms"].as_array().map_or(0, Vec::len) == VMS.len();
        all && each(figures, "saved_bytes").sum::<u64>() >= 260 * MIB
    });
    let broken: u64 = each(&before, "cow_breaks").sum();
    let start = Instant::now();
    while start.elapsed() < MOVING {
        let _held = fragments();
        fs::write(COMPACT, "1").unwrap();
    }
    let verified =
        |figures: &Value| -> Vec<u64> { each(figures, "guest.pages_verified").collect() };
    let moved = fleet.folder.ps().unwrap();
    let seen = verified(&moved);
    let after = fleet.until("another pass over everything", |figures| {
        verified(figures)
            .iter()
            .zip(&seen)
            .all(|(now, before)| *now > before + 192 * MIB / 4096)
    });
    assert_eq!(
        each(&after, "guest.pages_corrupt").sum::<u64>(),
        0,
        "{after}"
    );
    let breaks = each(&after, "cow_breaks").sum::<u64>() - broken;
    assert!(
        breaks <= STARTUP_BREAKS,
        "{breaks} writes were seen, of guests that never write: {after}"
    );
    // A frame that lost a reference to a guest that maps it goes with the others' references.
    for name in &VMS[..2] {
        kill(fleet.process.vm_pid(name));
    }
    fleet.until("their end", |figures| {
        VMS[..2]
            .iter()
            .all(|name| find_vm(figures, name).is_some_and(|vm| vm["state"] == "ended"))
    });
    let survivor = |figures: &Value| find_vm(figures, VMS[2]).unwrap().clone();
    let seen = number(
        &survivor(&fleet.folder.ps().unwrap()),
        "guest.pages_verified",
    );
    let last = fleet.until("two more passes of the last one", |figures| {
        number(&survivor(figures), "guest.pages_verified") > seen + 2 * 192 * MIB / 4096
    });
    assert_eq!(number(&survivor(&last), "guest.pages_corrupt"), 0, "{last}");
    fleet.process.signal(Signal::INT);
    let end = fleet.end(SOON);
    assert!(!end.log.contains(CORRUPT), "{}", end.log);
    end.check_guest(end.vm(VMS[2]));
}
