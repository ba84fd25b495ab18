//! The tests with one guest at a time; [`super::large`] has the one of large pages, [`super::fleet`] and
//! [`super::cgroups`] those with several guests, [`super::kernel`] those without one.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use tidemark::devices::virtio::block::Access;
use tidemark::mem::credit::CreditBook;
use tidemark::mem::reclaim::Reclaimer;
use tidemark::sys::pagemap::Backing;
use tidemark::units::{CHUNK_PAGES, Gfn, GfnRange, Pages};
use tidemark::words::ExitReason;

use super::cgroups;
use super::fleet;
use super::hints;
use super::kernel;
use super::large;
use super::rig::{Failure, Plan, Rig};

type Test = fn(&Path) -> Result<(), Failure>;

/// Name and body of each test, in the order in which they run.
pub const TESTS: [(&str, Test); 13] = [
    ("boot_disk_and_reboot", boot_disk_and_reboot),
    ("smp_boot_and_power_off", smp_boot_and_power_off),
    ("smp_reboot", smp_reboot),
    ("vmlinux_on_its_own_root", vmlinux_on_its_own_root),
    ("more_than_4_gib", more_than_4_gib),
    ("balloon", balloon),
    ("free_page_hinting", hints::free_page_hinting),
    ("host_swapping", host_swapping),
    ("large_pages", large::large_pages),
    ("overcommit", fleet::overcommit),
    ("numa_migration", kernel::numa_migration),
    ("swap_of_the_host", kernel::swap_of_the_host),
    ("memory_cgroups", cgroups::memory_cgroups),
];

/// Tests that run only when they are named: they measure, and `overcommit` shows that guests share.
pub const BY_NAME: [(&str, Test); 2] = [
    ("two_sisters", fleet::two_sisters),
    ("four_sisters", fleet::four_sisters),
];

/// How long the guest's driver may take for what it does by itself.
const DRIVER_LIMIT: Duration = Duration::from_secs(40);

/// First frame above the hole for devices.
const FOUR_GIB: Gfn = Gfn(1 << 20);

pub fn plan(guest: &Path, cpus: u8) -> Plan {
    Plan {
        guest: guest.into(),
        kernel: "vmlinuz",
        memory: Pages::mib(160),
        cpus,
        cmdline: "quiet".into(),
        credit: CreditBook::unlimited(),
        disk: None,
    }
}

pub fn check(condition: bool, what: impl FnOnce() -> String) -> Result<(), Failure> {
    if condition {
        Ok(())
    } else {
        Err(what().into())
    }
}

fn ends_with(rig: &Rig, reason: &ExitReason) -> Result<(), Failure> {
    let exit = rig.wait_exit(Duration::from_secs(30))?;
    check(exit.reason == *reason, || {
        format!("the guest ended with {exit:?}")
    })
}

fn boot_disk_and_reboot(guest: &Path) -> Result<(), Failure> {
    let image = Path::new("root.img");
    std::fs::copy(guest.join(image), image)?;
    let plan = Plan {
        disk: Some((image.into(), Access::Writable)),
        ..plan(guest, 1)
    };
    let mut rig = Rig::boot(&plan)?;
    let clock = rig.run("cat /sys/devices/system/clocksource/clocksource0/current_clocksource")?;
    check(clock == "kvm-clock", || format!("the clock is {clock}"))?;
    rig.run("head -c 64 /dev/hwrng >/tmp/random && [ $(wc -c </tmp/random) = 64 ]")?;
    rig.run("mount /dev/vda /mnt && [ -x /mnt/bin/busybox ]")?;
    rig.run("head -c 3000000 /dev/urandom >/mnt/data && sync && sha1sum </mnt/data >/mnt/sum")?;
    rig.run("umount /mnt && echo 3 >/proc/sys/vm/drop_caches && mount /dev/vda /mnt")?;
    rig.run("[ \"$(sha1sum </mnt/data)\" = \"$(cat /mnt/sum)\" ]")?;
    // What the guest discards leaves the image's file.
    let blocks = || std::fs::metadata(image).map(|it| it.blocks());
    let before = blocks()?;
    rig.run("rm /mnt/data && sync && fstrim /mnt && umount /mnt")?;
    let after = blocks()?;
    let freed = before.saturating_sub(after) * 512;
    check(freed >= 3_000_000, || {
        format!("the discard freed {freed} bytes")
    })?;
    rig.send("reboot -f\n")?;
    ends_with(&rig, &ExitReason::Reset)
}

/// The uncompressed kernel, entered by PVH, takes its root from a disk that it may not write.
fn vmlinux_on_its_own_root(guest: &Path) -> Result<(), Failure> {
    let plan = Plan {
        kernel: "vmlinux",
        cmdline: "quiet root=/dev/vda".into(),
        disk: Some((guest.join("root.img"), Access::ReadOnly)),
        ..plan(guest, 1)
    };
    let mut rig = Rig::boot(&plan)?;
    let root = rig.run("sed -n 's/^[^ ]* [/] \\(ext4 r[ow]\\).*/\\1/p' /proc/mounts")?;
    check(root == "ext4 ro", || format!("the root is {root:?}"))?;
    rig.run("[ $(blockdev --getro /dev/vda) = 1 ] && ! echo x >/dev/vda")?;
    rig.send("poweroff -f\n")?;
    ends_with(&rig, &ExitReason::Shutdown)
}

/// Memory on both sides of the hole below 4 GiB; far more than the emulated host has.
fn more_than_4_gib(guest: &Path) -> Result<(), Failure> {
    let plan = Plan {
        memory: Pages::mib(5 << 10),
        ..plan(guest, 1)
    };
    let mut rig = Rig::boot(&plan)?;
    let total = rig.run("sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")?;
    let total: u64 = total.parse()?;
    check(total > 4 << 20, || format!("the guest has {total} KiB"))?;
    let before = backed_from(&rig, FOUR_GIB)?;
    rig.run("fill /tmp/data 48 && [ \"$(sha1sum </tmp/data)\" = \"$(sha1sum </tmp/data)\" ]")?;
    let after = backed_from(&rig, FOUR_GIB)?;
    println!("  {total} KiB in all; {before} back what is above 4 GiB, then {after}");
    check(after >= before + Pages::mib(24), || {
        "the guest keeps below 4 GiB".into()
    })?;
    rig.send("poweroff -f\n")?;
    ends_with(&rig, &ExitReason::Shutdown)
}

/// Anonymous memory behind the guest from `start` on.
fn backed_from(rig: &Rig, start: Gfn) -> Result<Pages, Failure> {
    let space = rig.pager.space();
    let end = space.ram().layout().end().0;
    let mut backed = Pages::ZERO;
    for first in (start.0..end).step_by(CHUNK_PAGES as usize) {
        let range = GfnRange::new(Gfn(first), CHUNK_PAGES.min(end - first));
        let pages = space.backing(range)?;
        let pages = pages.iter().filter(|it| **it == Backing::Anonymous);
        backed += Pages(pages.count() as u64);
    }
    Ok(backed)
}

fn smp_boot_and_power_off(guest: &Path) -> Result<(), Failure> {
    let mut rig = Rig::boot(&plan(guest, 2))?;
    let cpus = rig.run("nproc")?;
    check(cpus == "2", || format!("{cpus} CPUs"))?;
    // Both do something at once, and the second one takes interrupts.
    rig.run("(taskset 1 sha1sum /bin/busybox & taskset 2 sha1sum /bin/busybox; wait)")?;
    rig.send("poweroff -f\n")?;
    ends_with(&rig, &ExitReason::Shutdown)
}

/// The kernel stops its other CPUs before it resets.
fn smp_reboot(guest: &Path) -> Result<(), Failure> {
    let mut rig = Rig::boot(&plan(guest, 2))?;
    rig.send("reboot -f\n")?;
    ends_with(&rig, &ExitReason::Reset)
}

fn balloon(guest: &Path) -> Result<(), Failure> {
    let mut rig = Rig::boot(&plan(guest, 1))?;
    statistics(&mut rig)?;
    inflate_and_deflate(&mut rig)?;
    free_page_reporting(&mut rig)?;
    deflate_on_oom(&mut rig)
}

fn statistics(rig: &mut Rig) -> Result<(), Failure> {
    let balloon = rig.machine.balloon();
    let before = balloon.stats_updates();
    println!("  {before} statistics before the first request");
    // A request is dropped while the device is busy.
    let fresh = |_: &Rig| {
        balloon.request_stats();
        Ok(balloon.stats_updates() > before)
    };
    rig.until("statistics", DRIVER_LIMIT, fresh)?;
    let stats = balloon.stats();
    let total = stats.total_bytes.ok_or("no total in the statistics")?;
    let free = stats.free_bytes.ok_or("no free memory in the statistics")?;
    check(free < total && total > 100 << 20, || format!("{stats:?}"))?;
    // What the guest does to free memory is told from Linux 6.12 on.
    let told = stats.alloc_stalls.is_some() && stats.direct_reclaim_bytes.is_some();
    let release = rig.run("uname -r")?;
    check(told != release.starts_with("6.1."), || {
        format!("{release}: {stats:?}")
    })
}

fn inflate_and_deflate(rig: &mut Rig) -> Result<(), Failure> {
    // Memory that is used and freed again is what a balloon takes first.
    rig.run("fill /tmp/data 48 && rm /tmp/data")?;
    let wanted = Pages::mib(64);
    rig.machine.balloon().set_target(wanted);
    let full = |rig: &Rig| Ok(rig.machine.balloon().actual() == wanted);
    rig.until("inflate", DRIVER_LIMIT, full)?;
    let ballooned = rig.backed()?;
    println!("  64 MiB in the balloon: {ballooned} back the guest");
    check(ballooned <= Pages::mib(160 - 64), || {
        format!("{ballooned} are left")
    })?;
    rig.machine.balloon().set_target(Pages::ZERO);
    let empty = |rig: &Rig| Ok(rig.machine.balloon().actual() == Pages::ZERO);
    rig.until("deflate", DRIVER_LIMIT, empty)?;
    rig.run("fill /tmp/data 64 && rm /tmp/data")?;
    Ok(())
}

fn free_page_reporting(rig: &mut Rig) -> Result<(), Failure> {
    rig.run("fill /tmp/data 64")?;
    let used = rig.backed()?;
    rig.run("rm /tmp/data")?;
    let back = |rig: &Rig| Ok(rig.backed()? + Pages::mib(40) <= used);
    rig.until("free page reporting", DRIVER_LIMIT, back)?;
    println!("  reported free: {used} before, {} after", rig.backed()?);
    Ok(())
}

fn deflate_on_oom(rig: &mut Rig) -> Result<(), Failure> {
    let free = rig.run("free -m | sed -n 's/^Mem: *[0-9]* *[0-9]* *\\([0-9]*\\).*/\\1/p'")?;
    let free: u64 = free.trim().parse()?;
    // To within 24 MiB of what the guest has; the workload then wants 40.
    let wanted = Pages::mib(free - 24);
    rig.machine.balloon().set_target(wanted);
    let full = |rig: &Rig| Ok(rig.machine.balloon().actual() == wanted);
    rig.until("inflate", DRIVER_LIMIT, full)?;
    rig.run("fill /tmp/data 40")?;
    let actual = rig.machine.balloon().actual();
    println!("  out of memory: the balloon went from {wanted} to {actual}");
    check(actual < wanted, || "the balloon did not deflate".into())?;
    rig.machine.balloon().set_target(Pages::ZERO);
    rig.run("rm /tmp/data")?;
    Ok(())
}

fn host_swapping(guest: &Path) -> Result<(), Failure> {
    let mut rig = Rig::boot(&plan(guest, 1))?;
    rig.run("fill /tmp/data 32")?;
    let before = rig.run("sha1sum </tmp/data")?;
    let mut reclaimer = Reclaimer::new(3);
    let used = rig.backed()?;
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    let mut taken = Pages::ZERO;
    while taken < Pages(used.0 * 2 / 3) && std::time::Instant::now() < deadline {
        let done = reclaimer.step(&rig.pager, 32)?;
        if let Some(failure) = done.failure {
            return Err(failure.into());
        }
        taken += Pages(u64::from(done.pages));
    }
    let swapped = rig.pager.report()?;
    println!(
        "  {taken} of {used} taken, {} swapped",
        swapped.measured.gauges.swapped
    );
    check(swapped.measured.gauges.swapped >= Pages::mib(16), || {
        "too little was swapped".into()
    })?;
    let after = rig.run("sha1sum </tmp/data")?;
    check(before == after, || format!("{before} became {after}"))?;
    let report = rig.pager.report()?;
    check(report.measured.counters.swap_in_pages > 1000, || {
        format!("{report:?}")
    })?;
    rig.pager.audit()?;
    Ok(())
}
