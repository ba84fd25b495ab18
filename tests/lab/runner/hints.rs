//! Free page hinting while a guest with two CPUs is short of memory: what a guest is given of the
//! memory that it hinted at a moment ago must not be dropped any more.

use std::path::Path;
use std::time::{Duration, Instant};

use tidemark::mem::credit::CreditBook;
use tidemark::units::Pages;

use super::rig::{Failure, Plan, Rig};

/// For how long rounds follow each other while the guest works.
const TIME: Duration = Duration::from_secs(30);
/// How long the guest may take for a round.
const ROUND_LIMIT: Duration = Duration::from_secs(40);
/// What the guest shall have hinted at in that time, at least.
const HINTED_MIN: Pages = Pages::mib(48);

pub fn free_page_hinting(guest: &Path) -> Result<(), Failure> {
    let plan = Plan {
        guest: guest.into(),
        kernel: "vmlinuz",
        memory: Pages::mib(192),
        cpus: 2,
        cmdline: "quiet".into(),
        credit: CreditBook::unlimited(),
        disk: None,
    };
    let mut rig = Rig::boot(&plan)?;
    what_was_freed_comes_at_once(&mut rig)?;
    rounds_under_pressure(&mut rig)?;
    rig.pager.audit()?;
    Ok(())
}

/// One round, until the guest has no more; what it gave.
fn round(rig: &Rig) -> Result<Pages, Failure> {
    let balloon = rig.machine.balloon();
    let before = balloon.hinted();
    let deadline = Instant::now() + ROUND_LIMIT;
    balloon.begin_hints();
    while balloon.hints_are_on() {
        if Instant::now() > deadline || rig.machine.exit().is_some() {
            return Err("the round does not end".into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(balloon.hinted().saturating_sub(before))
}

fn what_was_freed_comes_at_once(rig: &mut Rig) -> Result<(), Failure> {
    for when in ["at once", "when it has been reported"] {
        rig.run("fill /tmp/data 64")?;
        let used = rig.backed()?;
        rig.run("rm /tmp/data")?;
        let freed = Instant::now();
        // Blocks of 4 MiB are not all that is free.
        let less = |rig: &Rig| Ok(rig.backed()? + Pages::mib(32) <= used);
        if when != "at once" {
            rig.until("free page reporting", ROUND_LIMIT, less)?;
        }
        println!(
            "  {used}, then {} {:?} after 64 MiB were freed",
            rig.backed()?,
            freed.elapsed()
        );
        let start = Instant::now();
        let hinted = round(rig)?;
        let took = start.elapsed();
        println!(
            "  a round {when}: {hinted} in {took:?}, {} are left",
            rig.backed()?
        );
        if !less(rig)? {
            return Err("a round took too little".into());
        }
    }
    Ok(())
}

fn rounds_under_pressure(rig: &mut Rig) -> Result<(), Failure> {
    // Together nearly all that the guest has: while one reads what it wrote, the other wants memory
    // that the round holds, and only its shrinker can give that back.
    rig.run("churn /tmp/a 34 &")?;
    rig.run("churn /tmp/b 24 &")?;
    let end = Instant::now() + TIME;
    let (mut rounds, mut hinted) = (0, Pages::ZERO);
    while Instant::now() < end {
        hinted += round(rig)?;
        rounds += 1;
        // Some follow at once, before others the guest may use what it has back.
        std::thread::sleep(Duration::from_millis(rounds % 4 * 300));
    }
    rig.run("touch /tmp/stop; wait")?;
    let passes = rig.run("wc -l </tmp/passes")?;
    let bad = rig.run("[ ! -e /tmp/bad ] || sort /tmp/bad | uniq -c")?;
    println!("  {rounds} rounds gave {hinted} while the guest made {passes} passes");
    if !bad.is_empty() {
        return Err(format!("the guest says: {bad}").into());
    }
    if hinted < HINTED_MIN {
        return Err(format!("only {hinted} were hinted at").into());
    }
    Ok(())
}
