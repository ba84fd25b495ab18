//! Large pages under a stock guest, on kernels that keep page tables, and on one that moves no pages.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use tidemark::mem::reclaim::Reclaimer;
use tidemark::units::{CHUNK_PAGES, Gfn, Pages};

use super::list::{check, plan};
use super::rig::{Failure, Rig};

/// Of an entry of pagemap, and the frame number in it (`Documentation/admin-guide/mm/pagemap.rst`).
const PRESENT: u64 = 1 << 63;
const FRAME: u64 = (1 << 55) - 1;
/// `KPF_THP` of kpageflags.
const LARGE: u64 = 1 << 22;

/// A guest gets large pages while memory is plenty. They survive samples, as the kernel says, and give
/// their parts up to swap without a byte lost.
pub fn large_pages(guest: &Path) -> Result<(), Failure> {
    let mut rig = Rig::start(&plan(guest, 1))?;
    rig.pager.set_plenty(true)?;
    rig.wait_ready()?;
    rig.run("fill /tmp/data 80")?;
    let before = rig.run("sha1sum </tmp/data")?;
    rig.pager.drop_stock()?;
    let filled = large(&rig)?;
    println!("  {}: {filled} in large pages", rig.pager.path().name());
    check(filled >= Pages::mib(16), || format!("{filled} are large"))?;
    is_so(&rig, "when it was filled")?;
    sample(&mut rig)?;
    let sampled = large(&rig)?;
    check(sampled.0 * 4 >= filled.0 * 3, || {
        format!("{sampled} are large after samples")
    })?;
    is_so(&rig, "after three samples")?;
    rig.pager.audit()?;
    rig.pager.set_plenty(false)?;
    swap_out(&rig)?;
    let left = large(&rig)?;
    check(left < sampled, || "swapping split none".into())?;
    is_so(&rig, "after swapping half out")?;
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

/// What ought to be large is: the kernel says of the first page of so many chunks that it is a large
/// page's. (How much of that is mapped by one entry each, as smaps counts it, is up to the kernel: Linux
/// 6.1 maps some by small ones, more of them the longer it runs.)
fn is_so(rig: &Rig, when: &str) -> Result<(), Failure> {
    let ram = rig.pager.ram();
    let (pagemap, flags) = (
        File::open("/proc/self/pagemap")?,
        File::open("/proc/kpageflags")?,
    );
    let entry = |file: &File, index: u64| -> std::io::Result<u64> {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, index * 8)?;
        Ok(u64::from_ne_bytes(bytes))
    };
    let mut huge = Pages::ZERO;
    for start in (0..ram.layout().end().0).step_by(CHUNK_PAGES as usize) {
        let page = entry(&pagemap, ram.hva(Gfn(start)) as u64 / 4096)?;
        if page & PRESENT != 0 && entry(&flags, page & FRAME)? & LARGE != 0 {
            huge += Pages(CHUNK_PAGES.into());
        }
    }
    let ought = large(rig)?;
    println!("  {when}: {ought} ought to be large, {huge} are");
    check(huge >= ought, || {
        format!("{when}: {ought} ought to be large, {huge} are")
    })
}
