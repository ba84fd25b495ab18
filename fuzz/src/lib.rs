//! The fuzz targets of tidemark, for cargo-fuzz. `make fuzz` runs them.

pub mod bodies;

use std::sync::atomic::{AtomicU64, Ordering};

static PLAYED: AtomicU64 = AtomicU64::new(0);
static REACHED: AtomicU64 = AtomicU64::new(0);

/// Plays one input of the target of that name. Says now and then how many inputs got to what the target
/// is about.
pub fn run(name: &str, data: &[u8]) {
    let target = bodies::TARGETS.iter().find(|target| target.name == name);
    let reached = (target.expect("the target is in the list").body)(data);
    let reached = REACHED.fetch_add(reached.into(), Ordering::Relaxed) + u64::from(reached);
    let played = PLAYED.fetch_add(1, Ordering::Relaxed) + 1;
    if played.is_power_of_two() && played >= 1 << 12 {
        let percent = 100 * reached / played;
        eprintln!("{name}: {percent} % of {played} inputs got to what it is about");
    }
}
