//! The main job, smaller: a fleet with twice the memory of its host keeps its data and the budget.

mod common;

use common::Capability::{Kvm, Uffd};
use common::fleet::{End, Fleet, MIB, SOON, alone, check_sums, number, rss_anon_bytes};
use common::require;

/// Four guests of 64 MiB that fill 85 %, in `budget`. What they need is in examples/demo.toml.
fn fleet(budget: &str) -> String {
    format!(
        r#"
        [host]
        memory = "{budget}"
        swap_dir = "."
        seed = 7
        [[vm]]
        name = "verify"
        count = 4
        memory = "64M"
        guest = "verify"
        cmdline = "fill=85"
        share_group = "demo"
        "#
    )
}

/// Sum of the anonymous memory of all VM processes and the run itself; `None` once some are gone.
fn anonymous_bytes(fleet: &mut Fleet) -> Option<u64> {
    let mut pids: Vec<u32> = fleet
        .process
        .vms()
        .into_iter()
        .map(|(_, pid)| pid)
        .collect();
    pids.push(fleet.process.pid());
    pids.into_iter().map(rss_anon_bytes).sum()
}

/// Runs the fleet while the kernel's own count of its memory is watched.
fn run_watched(toml: &str, args: &[&str], take: Option<&str>, budget: u64) -> End {
    let mut fleet = Fleet::start_with(toml, args, |command| {
        if let Some(take) = take {
            command.env("TIDEMARK_TAKE", take);
        }
    });
    let mut most = 0;
    while fleet.process.status().is_none() {
        most = most.max(anonymous_bytes(&mut fleet).unwrap_or(0));
        if let Some(figures) = fleet.folder.ps() {
            check_sums(&figures);
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    // The frames that VMs share are the host manager's, and not anonymous.
    assert!(
        most > 0 && most <= budget,
        "the kernel counted {most} of {budget}"
    );
    fleet.end(SOON)
}

fn overcommit(take: Option<&str>) {
    let end = run_watched(&fleet("128M"), &["--for", "14s"], take, 128 * MIB);
    end.check();
    for figure in [
        "peak.ballooned_bytes",
        "peak.saved_bytes",
        "peak.swapped_bytes",
    ] {
        assert!(end.sum(figure) > 0, "{figure}: {}", end.figures);
    }
    assert!(end.sum("swap_in_pages") > 0, "{}", end.figures);
    assert_eq!(end.sum("swap_errors"), 0, "{}", end.figures);
}

#[test]
fn half_the_memory_is_enough() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    overcommit(None);
}

#[test]
fn half_the_memory_is_enough_without_moving_pages() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    overcommit(Some("copy"));
}

#[test]
fn nothing_is_reclaimed_where_nothing_is_short() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let end = run_watched(&fleet("512M"), &["--for", "6s"], None, 512 * MIB);
    end.check();
    for figure in [
        "peak.ballooned_bytes",
        "peak.swapped_bytes",
        "swap_out_pages",
    ] {
        assert_eq!(end.sum(figure), 0, "{figure}: {}", end.figures);
    }
    let seconds = &end.figures["host"]["state_seconds"];
    for state in ["soft", "hard", "low"] {
        assert_eq!(seconds[state], 0.0, "{seconds}");
    }
    assert!(
        seconds["high"].as_f64().is_some_and(|high| high > 4.0),
        "{seconds}"
    );
    // Sharing is always on.
    assert!(number(&end.figures["host"], "pages_sharing") > 0);
}
