//! A fleet in which nothing happens: its processes sleep, and notice at once when something does.
#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers are tests too: a panic is their way to fail"
)]

mod common;

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use common::Capability::{Kvm, Uffd};
use common::fleet::{Fleet, MIB, SOON, alone, find_vm, number, rss_anon_bytes};
use common::require;
use tidemark::sys::priority::AHEAD;

/// Two guests with the same 16 MiB, one of which writes all of them some time later. The clock
/// frequency is a guess: the time is some 20 seconds.
const FLEET: &str = r#"
    [host]
    memory = "256M"
    swap_dir = "."
    [[vm]]
    name = "rests"
    memory = "24M"
    guest = "meter"
    share_group = "g"
    console = "rests.log"
    cmdline = "set=16777216 kinds=c tsc_khz=2500000 do=fill,sleep:3600000"
    [[vm]]
    name = "wakes"
    memory = "24M"
    guest = "meter"
    share_group = "g"
    console = "wakes.log"
    cmdline = "set=16777216 kinds=c tsc_khz=2500000 do=fill,sleep:20000,write,sleep:3600000"
"#;

/// How often the main thread of a process has gone to sleep.
fn sleeps(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.unwrap().trim().parse().unwrap()
}

/// Field 19 of a process's stat file: its main thread's niceness.
fn niceness(pid: u32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    fields.split_whitespace().nth(16).unwrap().parse().unwrap()
}

/// Waits until each process has woken up no more often than that in a time.
fn until_they_sleep(pids: &[(u32, u64)], time: Duration) {
    let deadline = Instant::now() + SOON;
    loop {
        let before: Vec<u64> = pids.iter().map(|(pid, _)| sleeps(*pid)).collect();
        thread::sleep(time);
        let wakes = pids
            .iter()
            .zip(before)
            .map(|((pid, _), before)| sleeps(*pid) - before);
        let wakes: Vec<u64> = wakes.collect();
        if wakes
            .iter()
            .zip(pids)
            .all(|(wakes, (_, most))| wakes <= most)
        {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "they do not sleep: {wakes:?} in {time:?}"
        );
    }
}

#[test]
fn a_fleet_at_rest_sleeps_and_who_wakes_up_is_noticed() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let mut fleet = Fleet::start(FLEET, &[]);
    let shared = |figures: &serde_json::Value, name| {
        find_vm(figures, name).map(|vm| number(vm, "shared_bytes"))
    };
    fleet.until("both share", |figures| {
        let most = |name| shared(figures, name) >= Some(15 * MIB);
        most("rests") && most("wakes")
    });
    let (rests, wakes) = (fleet.process.vm_pid("rests"), fleet.process.vm_pid("wakes"));
    let host = fleet.process.pid();
    // Awake they wake up 30 and more times a second.
    until_they_sleep(
        &[(rests, 6), (wakes, 6), (host, 12)],
        Duration::from_secs(3),
    );
    assert!(shared(&fleet.folder.ps().unwrap(), "wakes") >= Some(15 * MIB));

    // Shared pages are written without a fault that the process would hear of.
    let before = rss_anon_bytes(wakes).unwrap();
    common::wait_for("the guest that writes", SOON, || {
        rss_anon_bytes(wakes).unwrap() >= before + 8 * MIB
    });
    let written = Instant::now();
    fleet.until_within(Duration::from_secs(3), "known writes", |figures| {
        shared(figures, "wakes") <= Some(8 * MIB)
    });
    // At rest nothing would have been measured for two seconds, nor counted for longer.
    let late = written.elapsed();
    assert!(late < Duration::from_millis(1500), "{late:?}");

    // Who may run ahead does so alone.
    let ahead = niceness(host);
    assert!(ahead == AHEAD || ahead >= 0, "{ahead}");
    assert_eq!(niceness(rests), ahead.max(0));
    let figures = fleet.folder.ps().unwrap();
    let late = |key: &str| figures["host"][key].as_f64().unwrap();
    assert!(
        late("tick_late_ms") <= late("tick_late_ms_peak"),
        "{figures}"
    );
    fleet.process.signal(rustix::process::Signal::INT);
    fleet.end(SOON).check_sums();
}
