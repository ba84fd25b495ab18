//! The host manager's means against a guest that does not play along, and what reservation, limit
//! and admission promise.
#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers are tests too: a panic is their way to fail"
)]

mod common;

use common::Capability::{Kvm, Uffd};
use common::fleet::{Fleet, MIB, SOON, alone, find_vm, number};
use common::require;
use rustix::process::Signal;

#[test]
fn a_stuck_balloon_is_swapped_and_its_neighbours_are_unharmed() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let toml = r#"
        [host]
        memory = "96M"
        swap_dir = "."
        [[vm]]
        name = "stuck"
        memory = "64M"
        guest = "stuck"
        cmdline = "fill=85"
        [[vm]]
        name = "verify"
        count = 2
        memory = "48M"
        guest = "verify"
        share_group = "g"
    "#;
    let mut fleet = Fleet::start(toml, &[]);
    fleet.until("the stuck guest swapped", |figures| {
        let stuck = find_vm(figures, "stuck");
        stuck.is_some_and(|vm| {
            number(vm, "swapped_bytes") > 4 * MIB && number(vm, "swap_in_pages") > 0
        }) && figures["host"]["state_seconds"]["soft"].as_f64() > Some(0.0)
    });
    let compared: Vec<u64> = counts(&fleet.folder.ps().unwrap());
    fleet.until("progress of all", |figures| {
        let now = counts(figures);
        now.len() == 3
            && now
                .iter()
                .zip(&compared)
                .all(|(now, before)| *now > before + 2000)
    });
    fleet.process.signal(Signal::INT);
    let end = fleet.end(SOON);
    end.check();
    assert_eq!(number(end.vm("stuck"), "peak.ballooned_bytes"), 0);
    for name in ["verify-0", "verify-1"] {
        assert!(
            number(end.vm(name), "peak.ballooned_bytes") > 0,
            "{}",
            end.figures
        );
    }
}

/// Pages verified by each guest that has reported.
fn counts(figures: &serde_json::Value) -> Vec<u64> {
    let vms = figures["vms"].as_array().unwrap();
    vms.iter()
        .filter_map(|vm| vm["guest"]["pages_verified"].as_u64())
        .collect()
}

#[test]
fn a_hog_stays_at_its_limit() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let toml = r#"
        [host]
        memory = "256M"
        swap_dir = "."
        [[vm]]
        name = "hog"
        memory = "64M"
        guest = "hog"
        limit = "40M"
    "#;
    let end = Fleet::start(toml, &["--for", "8s"]).end(SOON);
    end.check();
    let hog = end.vm("hog");
    // A vCPU can fill some 4 MiB between two measurements, and is then held until it is balanced.
    assert!(number(hog, "peak.consumed_bytes") <= 46 * MIB, "{hog}");
    assert!(
        (36 * MIB..=41 * MIB).contains(&number(hog, "consumed_bytes")),
        "{hog}"
    );
    // And it gets on, by swapping its own pages.
    assert!(number(hog, "guest.pages_verified") > 2000, "{hog}");
    assert!(
        number(hog, "peak.ballooned_bytes") + number(hog, "peak.swapped_bytes") > 0,
        "{hog}"
    );
    // The host itself was never short.
    let seconds = &end.figures["host"]["state_seconds"];
    assert_eq!(
        (&seconds["hard"], &seconds["low"]),
        (&0.0.into(), &0.0.into())
    );
}

#[test]
fn a_reservation_is_kept_under_pressure() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    // Without its reservation the first VM would get a third of the budget.
    let toml = r#"
        [host]
        memory = "112M"
        swap_dir = "."
        [[vm]]
        name = "kept"
        memory = "64M"
        guest = "hog"
        cmdline = "fill=75 pause_ms=100"
        reservation = "60M"
        [[vm]]
        name = "hog"
        count = 2
        memory = "64M"
        guest = "hog"
    "#;
    let mut fleet = Fleet::start(toml, &[]);
    let full = 44 * MIB;
    fleet.until("pressure", |figures| {
        let kept = find_vm(figures, "kept");
        let hogs = ["hog-0", "hog-1"].map(|name| find_vm(figures, name));
        kept.is_some_and(|vm| number(vm, "consumed_bytes") > full)
            && hogs
                .iter()
                .all(|vm| vm.is_some_and(|vm| number(vm, "swap_out_pages") > 1000))
    });
    for _ in 0..20 {
        let kept = fleet.folder.vm("kept").unwrap();
        assert!(number(&kept, "consumed_bytes") > full, "{kept}");
        assert_eq!(number(&kept, "swap_out_pages"), 0, "{kept}");
        assert_eq!(number(&kept, "ballooned_bytes"), 0, "{kept}");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    fleet.process.signal(Signal::INT);
    let end = fleet.end(SOON);
    end.check();
    let seconds = &end.figures["host"]["state_seconds"];
    let tight: f64 = ["hard", "low"]
        .iter()
        .filter_map(|state| seconds[*state].as_f64())
        .sum();
    assert!(tight > 0.0, "{seconds}");
}

#[test]
fn who_cannot_be_promised_its_reservation_is_refused_with_the_arithmetic() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let vm = |name: &str| {
        format!(
            "[[vm]]\nname = \"{name}\"\nmemory = \"64M\"\nguest = \"idle\"\nreservation = \"48M\"\n"
        )
    };
    let toml = format!(
        "[host]\nmemory = \"96M\"\nswap_dir = \".\"\n{}{}",
        vm("first"),
        vm("second")
    );
    let end = Fleet::start(&toml, &["--for", "3s"]).end(SOON);
    assert_eq!(end.status.code(), Some(1), "{}", end.log);
    let refused: Vec<&str> = ["first", "second"]
        .into_iter()
        .filter(|name| end.vm(name)["exit"]["reason"] == "error")
        .collect();
    // Whoever says hello last.
    assert_eq!(refused.len(), 1, "{}", end.figures);
    let message = end.vm(refused[0])["exit"]["message"].as_str().unwrap();
    for word in [refused[0], "48", "96", "reserv", "overhead"] {
        assert!(message.contains(word), "no {word} in {message}");
    }
    let other = if refused[0] == "first" {
        "second"
    } else {
        "first"
    };
    assert_eq!(end.vm(other)["exit"]["reason"], "stopped", "{}", end.log);
    end.check_sums();
}
