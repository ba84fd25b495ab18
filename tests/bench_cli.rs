//! `tidemark bench`: measures a little, prints what it promises, leaves nothing behind.
#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers are tests too: a panic is their way to fail"
)]

mod common;

use std::process::Stdio;
use std::time::Duration;

use common::Capability::{Kvm, Uffd};
use common::fleet::{Folder, Process, SOON, alone, is_alive};
use common::{require, wait_for};
use rustix::process::Signal;
use serde_json::Value;

/// What a bench may take on a busy machine.
const LONG: Duration = Duration::from_secs(170);

/// What every file of KSM's settings says, where the kernel has it.
fn ksm() -> Vec<(String, String)> {
    let folder = "/sys/kernel/mm/ksm";
    [
        "run",
        "pages_to_scan",
        "sleep_millisecs",
        "smart_scan",
        "use_zero_pages",
    ]
    .map(|name| {
        let text = std::fs::read_to_string(format!("{folder}/{name}"));
        (name.to_owned(), text.unwrap_or_default())
    })
    .to_vec()
}

/// Runs a bench to its end; its JSON object. Nothing of it is left.
fn bench(args: &[&str]) -> Value {
    let before = ksm();
    let folder = Folder::new();
    let mut all = vec!["bench"];
    all.extend(args);
    all.extend(["--json", "--dir", "."]);
    let mut process = Process::start(folder.command(&all));
    let status = process.wait(LONG);
    assert_eq!(status.code(), Some(0), "{args:?}");
    assert_eq!(ksm(), before);
    let left = folder.files();
    assert!(left.is_empty(), "left behind: {left:?}");
    // Others may have benches of their own.
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap();
    let own = format!("tidemark-bench-{}/", process.pid());
    assert!(!swaps.contains(&own), "{swaps}");
    serde_json::from_str(&process.stdout()).unwrap()
}

fn figure(row: &Value, key: &str) -> f64 {
    let figure = row[key].as_f64();
    figure.unwrap_or_else(|| panic!("no number {key} in {row}"))
}

#[test]
fn the_bench_of_a_guest_has_its_rows() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let result = bench(&["guest", "--size", "16M", "--runs", "1", "--seconds", "3"]);
    for key in [
        "first_touch_4k",
        "first_touch_large",
        "first_touch_scanned",
        "steady_large",
        "rewritten_early",
        "rewritten_late",
        "rewritten_rested",
    ] {
        let row = &result["ratios"][key];
        let (ours, peer) = (figure(row, "ours"), figure(row, "peer"));
        assert!(ours > 0.0 && peer > 0.0, "{key}: {row}");
        let ratio = match row["unit"].as_str() {
            Some("us/page") => peer / ours,
            Some("k ops/s") => ours / peer,
            unit => panic!("{key}: unit {unit:?}"),
        };
        assert!((figure(row, "ratio") / ratio - 1.0).abs() < 1e-9, "{row}");
        assert_eq!(row["runs"], 1, "{row}");
        assert!(row["peer_is"].as_str().is_some(), "{row}");
    }
}

/// A row that has a ratio, or says why it has none.
fn check_row(row: &Value) {
    assert!(figure(row, "ours") > 0.0, "{row}");
    match row.get("could_not_run") {
        Some(why) => {
            eprintln!("NOTE: the peer could not run: {why}");
            assert!(
                row.get("peer").is_none() && row.get("ratio").is_none(),
                "{row}"
            );
        }
        None => {
            assert!(
                figure(row, "peer") > 0.0 && figure(row, "ratio") > 0.0,
                "{row}"
            );
        }
    }
}

#[test]
fn the_storm_puts_ksm_back() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let result = bench(&["storm", "--size", "8M", "--runs", "1"]);
    for key in ["storm_worst_ms", "storm_p50_us", "storm_p99_us"] {
        check_row(&result["ratios"][key]);
    }
}

#[test]
fn the_wake_leaves_no_swap_on() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let args = [
        "wake",
        "--size",
        "16M",
        "--runs",
        "1",
        "--for-ratio",
        "wake_seq",
    ];
    let result = bench(&args);
    check_row(&result["ratios"]["wake_seq"]);
    assert!(result["ratios"].get("wake_random").is_none(), "{result}");
}

#[test]
fn the_half_has_both_arms_and_leaves_no_swap_on() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let result = bench(&["half", "--size", "16M", "--runs", "1", "--seconds", "3"]);
    let row = &result["ratios"]["half"];
    check_row(row);
    // Less than half of the set is not in memory, and no more than the limit.
    let resident = figure(row, "ours_resident_mib");
    assert!((6.0..=10.0).contains(&resident), "{row}");
    for arm in ["ours", "peer"] {
        assert!(figure(row, &format!("{arm}_present")) > 0.0, "{row}");
    }
    assert!(figure(row, "ours_present") > figure(row, "ours"), "{row}");
}

#[test]
fn more_guests_fit_where_pages_are_shared() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let result = bench(&["density", "--size", "16M", "--runs", "1"]);
    let row = &result["ratios"]["density"];
    check_row(row);
    // A third is zero and a third common; neither arm can hold more than that saves.
    let bound = |guest_mib: f64| assert!((16.0 / 3.0..16.0).contains(&guest_mib), "{row}");
    bound(figure(row, "ours_guest_mib"));
    if row.get("could_not_run").is_none() {
        bound(figure(row, "peer_guest_mib"));
    }
    assert!(figure(row, "plain_guest_mib") >= 16.0, "{row}");
    assert!(figure(row, "ours") > figure(row, "plain"), "{row}");
}

#[test]
fn a_newcomer_grabs_what_others_hold() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let result = bench(&["grab", "--size", "16M", "--runs", "1"]);
    let row = &result["ratios"]["grab"];
    check_row(row);
    // The host was full: what the newcomer wants was not free.
    let free_bytes = figure(row, "free_part") * figure(row, "budget_bytes");
    assert!(free_bytes < f64::from(16 << 20), "{row}");
    for others in ["ours_others_kept", "peer_others_kept"] {
        assert!(figure(row, others) > 0.0, "{row}");
    }
}

#[test]
fn a_balloon_without_its_guests_files_is_an_error() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let folder = Folder::new();
    let args = "bench balloon --kernel no/vmlinuz --initrd no/initrd.gz --size 4M --dir .";
    let args: Vec<&str> = args.split(' ').collect();
    let output = folder.output(&args);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("no/vmlinuz"), "{text}");
    assert!(folder.files().is_empty(), "{:?}", folder.files());
}

#[test]
fn rows_can_be_chosen_and_shown_as_a_table() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let folder = Folder::new();
    let args = "bench guest --size 8M --runs 2 --for-ratio first_touch_4k --dir .";
    let args: Vec<&str> = args.split(' ').collect();
    let output = folder.output(&args);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("first_touch_4k") && text.contains("plain arm"),
        "{text}"
    );
    assert!(!text.contains("rewritten"), "{text}");
}

#[test]
fn ctrl_c_leaves_nothing() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let folder = Folder::new();
    let mut command = folder.command(&["bench", "guest", "--seconds", "60", "--dir", "."]);
    command.stdin(Stdio::null());
    let mut process = Process::start(command);
    let mut fleet = Vec::new();
    wait_for("a guest to run", SOON, || {
        fleet = descendants(process.pid());
        fleet.len() >= 2
    });
    process.signal(Signal::INT);
    assert_eq!(process.wait(SOON).code(), Some(130));
    assert_eq!(process.stdout(), "");
    for pid in fleet {
        assert!(!is_alive(pid), "process {pid} is left");
    }
    assert!(folder.files().is_empty(), "{:?}", folder.files());
}

/// The children of a process, and theirs.
fn descendants(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let children = text.split_whitespace().filter_map(|pid| pid.parse().ok());
    children
        .flat_map(|child| std::iter::once(child).chain(descendants(child)))
        .collect()
}

#[test]
fn bad_flags_are_status_2() {
    let folder = Folder::new();
    for args in [
        &["bench"][..],
        &["bench", "nothing"],
        &["bench", "guest", "--runs", "0"],
        &["bench", "guest", "--size", "1K"],
        &["bench", "guest", "--size", "64X"],
        &["bench", "guest", "--seconds", "1"],
        &["bench", "guest", "--for-ratio", "speed"],
        &["bench", "half", "--for-ratio", "grab"],
        &["bench", "balloon", "--runs", "1"],
    ] {
        let output = folder.output(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}
