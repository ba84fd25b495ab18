//! Large pages under a stock guest, on kernels that keep page tables, and on one that moves no pages.

use std::path::Path;

use tidemark::mem::reclaim::Reclaimer;
use tidemark::units::{CHUNK_PAGES, Gfn, GfnRange, Pages};

use super::list::{check, plan};
use super::rig::{Failure, Rig};

/// A guest gets large pages while memory is plenty. They survive samples, as the kernel counts them, and
/// give their parts up to swap without a byte lost.
pub fn large_pages(guest: &Path) -> Result<(), Failure> {
    let mut rig = Rig::start(&plan(guest, 1))?;
    rig.pager.set_plenty(true)?;
    rig.wait_ready()?;
    rig.run("fill /tmp/data 80")?;
    let before = rig.run("sha1sum </tmp/data")?;
    rig.pager.drop_stock()?;
    let (filled, huge) = (large(&rig)?, anon_huge()?);
    println!(
        "  {}: {filled} in large pages, {huge} as the kernel counts the process",
        rig.pager.path().name()
    );
    check(filled >= Pages::mib(16), || format!("{filled} are large"))?;
    let chunk = GfnRange::new(Gfn(0), CHUNK_PAGES);
    let least = match rig.pager.space().is_large(chunk)? {
        Some(_) => filled.0,
        // Linux 6.1 does not say more than how much is mapped whole, and it maps some large pages, which
        // stay such, by small entries.
        None => filled.0 / 2,
    };
    check(huge.0 >= least, || {
        format!("{filled} ought to be large, the kernel says {huge}")
    })?;
    sample(&mut rig)?;
    let (sampled, huge) = (large(&rig)?, anon_huge()?);
    println!("  after three samples {sampled}, {huge}");
    check(sampled.0 * 4 >= filled.0 * 3, || {
        format!("{sampled} are large after samples, the kernel says {huge}")
    })?;
    rig.pager.audit()?;
    rig.pager.set_plenty(false)?;
    swap_out(&rig)?;
    let (left, huge) = (large(&rig)?, anon_huge()?);
    println!("  after swapping half out {left}, {huge}");
    check(left < sampled, || "swapping split none".into())?;
    let after = rig.run("sha1sum </tmp/data")?;
    check(before == after, || format!("{before} became {after}"))?;
    rig.pager.audit()?;
    Ok(())
}

/// Takes every chunk into a sample three times, while the guest reads all that it has written.
fn sample(rig: &mut Rig) -> Result<(), Failure> {
    let end = rig.pager.ram().layout().end();
    for place in [0, 200, 400] {
        let drawn: Vec<Gfn> = (place..end.0).step_by(512).map(Gfn).collect();
        rig.pager.begin_sample(&drawn)?;
        rig.run("sha1sum </tmp/data")?;
        let touched = rig.pager.touched_in_sample()?;
        check(touched > 0, || "no sampled page was touched".into())?;
        rig.pager.end_sample()?;
    }
    Ok(())
}

fn swap_out(rig: &Rig) -> Result<(), Failure> {
    let wanted = Pages(rig.backed()?.0 / 2);
    let mut reclaimer = Reclaimer::new(3);
    let mut taken = Pages::ZERO;
    while taken < wanted {
        let done = reclaimer.step(&rig.pager, 128)?;
        check(!done.barren, || format!("only {taken} of {wanted} went"))?;
        taken += Pages(u64::from(done.pages));
    }
    Ok(())
}

fn large(rig: &Rig) -> Result<Pages, Failure> {
    Ok(rig.pager.report()?.measured.gauges.large)
}

/// Memory of this process in large pages.
fn anon_huge() -> Result<Pages, Failure> {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup")?;
    let mut lines = text.lines();
    let line = lines.find_map(|line| line.strip_prefix("AnonHugePages:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(Pages::in_bytes(
        kib.ok_or("no AnonHugePages")?.parse::<u64>()? << 10,
    ))
}
