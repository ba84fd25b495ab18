//! Each policy with real guests: its targets follow its rule, what guests hold follows the targets,
//! the budget is kept, every byte survives and everybody gets on. The shipped scenarios in small.
#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers are tests too: a panic is their way to fail"
)]

mod common;

use std::time::{Duration, Instant};

use common::Capability::{Kvm, Uffd};
use common::fleet::{Fleet, Folder, MIB, Process, SOON, alone, find_vm, number};
use common::{require, wait_for};
use rustix::process::Signal;
use serde_json::Value;

/// Slow by design: 5 and 20 s of asking until a balloon is named.
const LONG: Duration = Duration::from_secs(90);

fn fleet(host: &str, vms: &str) -> Fleet {
    let toml = format!("[host]\nswap_dir = \".\"\nsample_period = \"500ms\"\n{host}\n{vms}");
    Fleet::start(&toml, &[])
}

fn figure(figures: &Value, vm: &str, key: &str) -> Option<u64> {
    find_vm(figures, vm)?[key].as_u64()
}

fn why<'a>(figures: &'a Value, vm: &str) -> &'a str {
    find_vm(figures, vm)
        .and_then(|vm| vm["target_why"].as_str())
        .unwrap_or_default()
}

/// Within a part in so many, and a MiB.
fn near(a: u64, b: u64, part: u64) -> bool {
    a.abs_diff(b) <= a.max(b) / part + MIB
}

/// Everybody of these compares so many pages more.
fn gets_on(fleet: &mut Fleet, names: &[&str], pages: u64) {
    let verified = |figures: &Value, name: &str| {
        find_vm(figures, name).and_then(|vm| vm["guest"]["pages_verified"].as_u64())
    };
    let before = fleet.until("figures of all", |figures| {
        names.iter().all(|name| verified(figures, name).is_some())
    });
    fleet.until("progress of all", |figures| {
        names
            .iter()
            .all(|name| verified(figures, name) > verified(&before, name).map(|n| n + pages))
    });
}

fn end(fleet: Fleet) -> common::fleet::End {
    fleet.process.signal(Signal::INT);
    let end = fleet.end(SOON);
    assert_eq!(end.status.code(), Some(0), "{}", end.log);
    for vm in end.figures["vms"].as_array().unwrap() {
        let corrupt = vm["guest"]["pages_corrupt"].as_u64();
        assert_eq!(corrupt.unwrap_or(0), 0, "{vm}\n{}", end.log);
    }
    end.check_sums();
    end
}

/// Two guests whose data is far more than either may have.
fn squeezed(range: &str) -> String {
    format!(
        "[[vm]]\nname = \"v\"\ncount = 2\nmemory = \"96M\"\nguest = \"verify\"\n\
         cmdline = \"fill=85\"\n{range}"
    )
}

/// Where a target stands in its range, in thousandths.
fn place(target: u64, least: u64, most: u64) -> u64 {
    (target.max(least) - least) * 1000 / (most - least)
}

#[test]
fn proportional_gives_all_the_same_fraction_of_ranges_that_can_be_edited() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let vm = |name: &str, range: &str| {
        format!(
            "[[vm]]\nname = \"{name}\"\nmemory = \"96M\"\nguest = \"verify\"\n\
             cmdline = \"fill=85\"\n{range}\n"
        )
    };
    let narrow = vm("narrow", "dynamic_min = \"32M\"\ndynamic_max = \"64M\"");
    let wide = vm("wide", "dynamic_min = \"24M\"\ndynamic_max = \"96M\"");
    let host = "memory = \"112M\"\npolicy = \"proportional\"";
    let mut fleet = fleet(host, &format!("{narrow}{wide}"));
    let same = |figures: &Value, narrow: (u64, u64), wide: (u64, u64)| {
        let held = |name: &str, range: (u64, u64)| {
            let target = figure(figures, name, "target_bytes")?;
            let consumed = figure(figures, name, "consumed_bytes")?;
            near(consumed, target, 20).then(|| place(target, range.0 * MIB, range.1 * MIB))
        };
        match (held("narrow", narrow), held("wide", wide)) {
            (Some(a), Some(b)) => a.abs_diff(b) <= 20 && (100..900).contains(&a),
            _ => false,
        }
    };
    let figures = fleet.until("the same fraction", |figures| {
        same(figures, (32, 64), (24, 96))
    });
    assert!(
        why(&figures, "wide").contains("% of its dynamic range"),
        "{figures}"
    );
    gets_on(&mut fleet, &["narrow", "wide"], 5000);
    let set = fleet
        .folder
        .output(&["set", "narrow", "dynamic_max=90M", "dynamic_min=40M"]);
    assert!(set.status.success(), "{set:?}");
    fleet.until("the same fraction of the new ranges", |figures| {
        same(figures, (40, 90), (24, 96))
    });
    gets_on(&mut fleet, &["narrow", "wide"], 5000);
    end(fleet);
}

#[test]
fn guests_cut_far_below_their_use_get_on_under_every_policy() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let mut fleet = fleet("memory = \"112M\"", &squeezed("dynamic_min = \"32M\""));
    fleet.until("the host manager", |_| true);
    for policy in ["proportional", "pref", "pressure", "self", "esx"] {
        let set = fleet
            .folder
            .output(&["set", "host", &format!("policy={policy}")]);
        assert!(set.status.success(), "{set:?}");
        fleet.until("targets below the use", |figures| {
            let cut = |name| {
                figure(figures, name, "target_bytes") < Some(64 * MIB)
                    && figure(figures, name, "target_bytes") > Some(24 * MIB)
                    && figure(figures, name, "consumed_bytes") < Some(72 * MIB)
            };
            figures["host"]["policy"] == policy && cut("v-0") && cut("v-1")
        });
        gets_on(&mut fleet, &["v-0", "v-1"], 5000);
    }
    let end = end(fleet);
    assert!(end.sum("peak.swapped_bytes") > 0, "{}", end.figures);
    assert!(end.sum("peak.ballooned_bytes") > 0, "{}", end.figures);
}

#[test]
fn a_policy_that_promises_more_than_there_is_is_refused_while_guests_run() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let mut fleet = fleet("memory = \"112M\"", &squeezed("dynamic_min = \"60M\""));
    fleet.until("both", |figures| {
        figure(figures, "v-1", "consumed_bytes").is_some()
    });
    let line = fleet
        .folder
        .fails(&["set", "host", "policy=proportional"], 1);
    for word in ["proportional", "120.0 MiB", "112.0 MiB", "2 VMs"] {
        assert!(line.contains(word), "no {word:?} in {line}");
    }
    assert_eq!(fleet.folder.ps().unwrap()["host"]["policy"], "esx");
    end(fleet);
}

/// Waldspurger's figure 7 in small: an idle guest and an active one with equal shares.
#[test]
fn esx_taxes_idle_memory() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    // The idle one works, too: not sleep but what it touches makes the difference here.
    let vms = "[[vm]]\nname = \"idle\"\nmemory = \"96M\"\nguest = \"touch\"\n\
               cmdline = \"set=80 then=4M after=3 write=1\"\n\
               [[vm]]\nname = \"active\"\nmemory = \"96M\"\nguest = \"touch\"\n\
               cmdline = \"set=80 write=1\"\n";
    let targets = |tax: u32, holds: fn(u64, u64) -> bool| {
        let mut fleet = fleet(&format!("memory = \"112M\"\nidle_tax = {tax}"), vms);
        let figures = fleet.until_within(LONG, "targets by the tax", |figures| {
            let active = |vm| figure(figures, vm, "active_bytes");
            let target = |vm| figure(figures, vm, "target_bytes");
            let sampled = active("idle") > Some(0) && active("active") > active("idle");
            match (target("idle"), target("active")) {
                (Some(idle), Some(busy)) => sampled && holds(idle, busy),
                _ => false,
            }
        });
        assert!(why(&figures, "idle").contains("share"), "{figures}");
        end(fleet);
    };
    targets(0, |idle, active| near(idle, active, 10));
    targets(75, |idle, active| active > idle + idle / 2);
}

/// Working sets that are known, one growing and one shrinking, without any help of the guests.
#[test]
fn sampling_finds_the_working_set_within_its_error() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let vm = |name: &str, set: &str| {
        format!(
            "[[vm]]\nname = \"{name}\"\nmemory = \"128M\"\nguest = \"touch\"\n\
             cmdline = \"{set} after=12 write=1\"\n"
        )
    };
    let vms = vm("grows", "set=24M then=80M") + &vm("shrinks", "set=80M then=24M");
    let mut fleet = fleet("memory = \"384M\"", &vms);
    let is = |figures: &Value, vm: &str, mib: u64| {
        let active = figure(figures, vm, "active_bytes");
        let error = figure(figures, vm, "active_error_bytes");
        match (active, error) {
            (Some(active), Some(error)) => {
                error < 40 * MIB && active > 0 && active.abs_diff(mib * MIB) <= error + 2 * MIB
            }
            _ => false,
        }
    };
    fleet.until_within(LONG, "the first sets", |figures| {
        is(figures, "grows", 24) && is(figures, "shrinks", 80)
    });
    fleet.until_within(LONG, "the second sets", |figures| {
        is(figures, "grows", 80) && is(figures, "shrinks", 24)
    });
    end(fleet);
}

/// A guest that used all its memory and sleeps since loses its claim at once: when memory becomes short,
/// it is swapped, and not the neighbour that works.
#[test]
fn a_sleeping_guest_is_swapped_and_its_busy_neighbour_is_not() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    /// Of a sample. The slow average alone takes more than seven of them.
    const PERIOD: Duration = Duration::from_secs(2);
    let host = "[host]\nswap_dir = \".\"\nsample_period = \"2s\"\nmemory = \"256M\"\n";
    let vms = "[[vm]]\nname = \"sleeper\"\nmemory = \"84M\"\nguest = \"hog\"\n\
               cmdline = \"fill=95 pause_ms=600000\"\n\
               [[vm]]\nname = \"busy\"\nmemory = \"84M\"\nguest = \"touch\"\n\
               cmdline = \"set=76M write=1\"\n";
    let mut fleet = Fleet::start(&format!("{host}{vms}"), &[]);
    let active = |figures: &Value, vm| figure(figures, vm, "active_bytes");
    // The sleeper may have filled its memory before it is sampled: what it holds is all that is sure, and
    // that something is known of it once its first period is over.
    fleet.until_within(LONG, "two guests that hold all they use", |figures| {
        figure(figures, "sleeper", "consumed_bytes") > Some(72 * MIB)
            && active(figures, "sleeper") > Some(0)
            && active(figures, "busy") > Some(60 * MIB)
    });
    fleet.until_within(LONG, "the sleep", |figures| {
        active(figures, "sleeper") < Some(60 * MIB)
    });
    let start = Instant::now();
    fleet.until_within(LONG, "an estimate without the old set", |figures| {
        active(figures, "sleeper") < Some(9 * MIB)
    });
    let took = start.elapsed();
    assert!(took < 5 * PERIOD, "it took {took:?} to see that it sleeps");
    let set = fleet.folder.output(&["set", "host", "memory=144M"]);
    assert!(set.status.success(), "{set:?}");
    let figures = fleet.until_within(LONG, "the sleeper swapped", |figures| {
        figure(figures, "sleeper", "swapped_bytes") > Some(16 * MIB)
            && figures["host"]["state"] != "low"
            && figures["host"]["state"] != "hard"
    });
    let out = |figures: &Value, vm| figure(figures, vm, "swap_out_pages").unwrap();
    let before = out(&figures, "busy");
    gets_on(&mut fleet, &["busy"], 200_000);
    fleet.process.signal(Signal::INT);
    let end = fleet.end(SOON);
    // The peak is from the time of the larger budget.
    common::fleet::check_sums(&end.figures);
    assert_eq!(end.sum("guest.pages_corrupt"), 0, "{}", end.figures);
    let (sleeper, busy) = (out(&end.figures, "sleeper"), out(&end.figures, "busy"));
    assert!(sleeper > 4 * busy, "{sleeper} and {busy}: {}", end.figures);
    assert!(
        busy < before + 256,
        "{busy} after {before}: {}",
        end.figures
    );
}

/// "self": a guest holds little more than it uses, also when the host has plenty.
#[test]
fn self_follows_the_guest_up_at_once_and_down_slowly() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let vms = "[[vm]]\nname = \"t\"\nmemory = \"256M\"\nguest = \"touch\"\n\
               cmdline = \"set=160M then=32M after=8 free=1 write=1\"\n";
    let mut fleet = fleet("memory = \"512M\"\npolicy = \"self\"", vms);
    fleet.until("room for the whole set", |figures| {
        figure(figures, "t", "target_bytes") >= Some(160 * MIB)
            && figure(figures, "t", "consumed_bytes") >= Some(152 * MIB)
    });
    // Down to the floor of a guest of 256 MiB, 104 MiB, though the host has plenty.
    let figures = fleet.until_within(LONG, "the guest shrunk", |figures| {
        figure(figures, "t", "target_bytes") < Some(112 * MIB)
            && figure(figures, "t", "consumed_bytes") < Some(113 * MIB)
    });
    assert!(
        number(find_vm(&figures, "t").unwrap(), "ballooned_bytes") > 100 * MIB,
        "{figures}"
    );
    assert!(why(&figures, "t").contains("committed"), "{figures}");
    assert_eq!(figures["host"]["state"], "high");
    assert_eq!(figure(&figures, "t", "swap_out_pages"), Some(0));
    end(fleet);
}

#[test]
fn pref_gives_what_each_uses_and_starts_nobody_without_a_surplus() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    // qmemman prefers at least 200 MiB, so only larger guests differ.
    let vms = "[[vm]]\nname = \"small\"\nmemory = \"512M\"\nguest = \"touch\"\n\
               cmdline = \"set=32M write=1\"\n\
               [[vm]]\nname = \"large\"\nmemory = \"512M\"\nguest = \"touch\"\n\
               cmdline = \"set=300M write=1\"\n";
    let mut fleet = fleet("memory = \"680M\"\npolicy = \"pref\"", vms);
    let figures = fleet.until_within(LONG, "targets by use", |figures| {
        let target = |vm| figure(figures, vm, "target_bytes");
        match (target("small"), target("large")) {
            (Some(small), Some(large)) => {
                (199 * MIB..260 * MIB).contains(&small) && large > 380 * MIB
            }
            _ => false,
        }
    });
    assert!(
        why(&figures, "large").contains("prefers 1.3 x"),
        "{figures}"
    );
    let set = fleet.folder.output(&["set", "host", "memory=360M"]);
    assert!(set.status.success(), "{set:?}");
    fleet.until("a full host", |figures| {
        number(figures, "host.free_bytes") < 24 * MIB
            && figure(figures, "large", "consumed_bytes") < Some(310 * MIB)
    });
    // Neither holds more than it prefers: memory is promised to nobody else.
    let line = fleet.folder.fails(&["reserve", "100M"], 1);
    assert!(line.contains("above what they prefer"), "{line}");
    assert!(line.contains("needs 10"), "{line}");
    end(fleet);
}

#[test]
fn pressure_tightens_slowly_and_backs_off_fast() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let vms = "[[vm]]\nname = \"calm\"\nmemory = \"256M\"\nguest = \"touch\"\n\
               cmdline = \"set=128M write=1\"\n\
               [[vm]]\nname = \"hurt\"\nmemory = \"160M\"\nguest = \"verify\"\n\
               cmdline = \"fill=90\"\n";
    let mut fleet = fleet("memory = \"512M\"\npolicy = \"pressure\"", vms);
    let target = |figures: &Value, vm| figure(figures, vm, "target_bytes");
    let first = fleet.until("settled guests", |figures| {
        figure(figures, "calm", "consumed_bytes") > Some(126 * MIB)
            && figure(figures, "hurt", "consumed_bytes") > Some(136 * MIB)
            && why(figures, "calm").starts_with("0 of 100 refaults")
            // A guest grows faster than its target.
            && target(figures, "calm") > figure(figures, "calm", "consumed_bytes")
    });
    // 1 % less every 6 s while nothing comes back.
    let calm = target(&first, "calm").unwrap();
    fleet.until("a smaller target", |figures| {
        target(figures, "calm") < Some(calm - calm / 120)
    });
    // Held far below its use for a while, then free to hold what it likes.
    let set = |value: &str| {
        let set = fleet.folder.output(&["set", "hurt", value]);
        assert!(set.status.success(), "{set:?}");
    };
    set("limit=112M");
    wait_for("a tight guest", SOON, || {
        let figures = fleet.folder.ps().unwrap();
        figure(&figures, "hurt", "consumed_bytes") < Some(113 * MIB)
    });
    set("limit=160M");
    let figures = fleet.until("the target backed off", |figures| {
        target(figures, "hurt") > Some(140 * MIB)
    });
    assert!(target(&figures, "calm") < Some(calm), "{figures}");
    gets_on(&mut fleet, &["hurt"], 5000);
    end(fleet);
}

/// A balloon that never answers: named, and swapped instead; who obeys pays nothing for it.
#[test]
fn a_stuck_balloon_is_named_and_pays_alone() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    // A fleet each, at the same time: most of it is waiting.
    std::thread::scope(|scope| {
        for policy in ["esx", "proportional"] {
            scope.spawn(move || stuck_beside_good(policy));
        }
    });
}

fn stuck_beside_good(policy: &str) {
    let vms = "[[vm]]\nname = \"stuck\"\nmemory = \"64M\"\nguest = \"stuck\"\n\
               cmdline = \"fill=85\"\ndynamic_min = \"16M\"\n\
               [[vm]]\nname = \"good\"\nmemory = \"64M\"\nguest = \"verify\"\n\
               cmdline = \"fill=85\"\ndynamic_min = \"16M\"\n";
    let host = format!("memory = \"80M\"\npolicy = \"{policy}\"");
    let mut fleet = fleet(&host, vms);
    let conduct = |figures: &Value, vm: &str| {
        let vm = find_vm(figures, vm);
        vm.map_or(Value::Null, |vm| vm["balloon"].clone())
    };
    fleet.until_within(LONG, "the stuck balloon named", |figures| {
        conduct(figures, "stuck") == "stuck"
    });
    // Only time in which it is asked counts, and swapping ends each shortage soon.
    let figures = fleet.until_within(2 * LONG, "it called uncooperative", |figures| {
        conduct(figures, "stuck") == "uncooperative"
    });
    assert_eq!(conduct(&figures, "good"), "cooperative", "{figures}");
    gets_on(&mut fleet, &["stuck", "good"], 1000);
    let end = end(fleet);
    let (stuck, good) = (end.vm("stuck"), end.vm("good"));
    assert_eq!(number(stuck, "peak.ballooned_bytes"), 0, "{stuck}");
    assert!(number(stuck, "peak.swapped_bytes") > 8 * MIB, "{stuck}");
    // Equal shares and ranges: refusing has gained it nothing.
    assert!(
        number(stuck, "consumed_bytes") < number(good, "consumed_bytes") + 6 * MIB,
        "{}",
        end.figures
    );
}

/// The XCP questions in small: three guests with the same range on a host for a third of it; when one
/// ends, the others share what it had.
#[test]
fn three_guests_share_alike_and_two_take_over_from_the_third() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let vms = "[[vm]]\nname = \"x\"\ncount = 3\nmemory = \"96M\"\nguest = \"hog\"\n\
               cmdline = \"fill=90 pause_ms=100\"\ndynamic_min = \"16M\"\n";
    let mut fleet = fleet("memory = \"128M\"\npolicy = \"proportional\"", vms);
    let alike = |figures: &Value, names: &[&str], least: u64, most: u64| {
        let all = |key| names.iter().map(move |vm| figure(figures, vm, key));
        all("target_bytes").all(|target| {
            target > Some(least * MIB)
                && target < Some(most * MIB)
                && all("target_bytes").all(|other| near(target.unwrap(), other.unwrap_or(0), 50))
        }) && all("consumed_bytes").all(|held| held > Some((least - 2) * MIB))
    };
    fleet.until("three alike", |figures| {
        alike(figures, &["x-0", "x-1", "x-2"], 32, 44)
    });
    let stop = fleet.folder.output(&["stop", "x-1"]);
    assert!(stop.status.success(), "{stop:?}");
    fleet.until("two alike, with more", |figures| {
        alike(figures, &["x-0", "x-2"], 48, 64)
    });
    gets_on(&mut fleet, &["x-0", "x-2"], 1000);
    end(fleet);
}

/// The 27th guest: it does not fit as configured, and starts because the others shrink.
#[test]
fn one_more_guest_starts_by_squeezing_the_others() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let folder = Folder::new();
    let host = Process::start(folder.command(&["host", "--memory", "160M"]));
    wait_for("the host manager", SOON, || {
        host.log().contains("listens at")
    });
    let vm = |name: &str, more: &[&str]| {
        let args = ["vm", "--swap-dir", ".", "--memory", "48M", "--name", name];
        Process::start(folder.command(&[&args, more].concat()))
    };
    let options = |seed: u32| format!("fill=85 seed={seed}");
    let mut old: Vec<Process> = (0..5)
        .map(|n| {
            let options = options(n);
            vm(
                &format!("old-{n}"),
                &["--guest", "verify", "--cmdline", &options],
            )
        })
        .collect();
    let held = || -> u64 {
        let figures = folder.ps().unwrap();
        let held = |n| figure(&figures, &format!("old-{n}"), "consumed_bytes");
        (0..5).filter_map(held).sum()
    };
    wait_for("a full host", SOON, || held() > 120 * MIB);
    // 44 MiB promised, of which not 10 are free.
    let mut new = vm(
        "new",
        &[
            "--guest",
            "hog",
            "--cmdline",
            "fill=75 seed=9 pause_ms=100",
            "--reservation",
            "44M",
        ],
    );
    wait_for("the new guest with its memory", SOON, || {
        let figures = folder.ps().unwrap();
        figure(&figures, "new", "consumed_bytes") > Some(34 * MIB) && held() < 112 * MIB
    });
    let figures = folder.ps().unwrap();
    let admission = find_vm(&figures, "new").unwrap()["admission"]
        .as_str()
        .unwrap();
    for word in ["needs 45", "is free; squeezes ", "old-0 by ", "old-4 by "] {
        assert!(admission.contains(word), "no {word:?} in {admission}");
    }
    wait_for("work of all", SOON, || {
        let figures = folder.ps().unwrap();
        let names = (0..5).map(|n| format!("old-{n}")).chain(["new".to_owned()]);
        names.into_iter().all(|name| {
            let vm = find_vm(&figures, &name);
            vm.is_some_and(|vm| vm["guest"]["pages_verified"].as_u64() > Some(1000))
        })
    });
    let figures = folder.ps().unwrap();
    common::fleet::check_sums(&figures);
    for vm in figures["vms"].as_array().unwrap() {
        assert_eq!(number(vm, "guest.pages_corrupt"), 0, "{vm}");
    }
    assert_eq!(
        figure(&figures, "new", "swap_out_pages"),
        Some(0),
        "{figures}"
    );
    for process in old.iter_mut().chain([&mut new]) {
        process.signal(Signal::TERM);
    }
    for mut process in old.into_iter().chain([new]) {
        assert_eq!(process.wait(SOON).code(), Some(0), "{}", process.log());
    }
}

/// The 32 clones in small: what all have in common is held once, so all fit without swapping.
#[test]
fn clones_fit_because_they_share() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let vms = "[[vm]]\nname = \"clone\"\ncount = 8\nmemory = \"48M\"\nguest = \"duplicate\"\n\
               share_group = \"g\"\n";
    let mut fleet = fleet("memory = \"128M\"", vms);
    fleet.until_within(LONG, "the common pages held once", |figures| {
        let vms = figures["vms"].as_array().unwrap();
        vms.len() == 8 && vms.iter().map(|vm| number(vm, "saved_bytes")).sum::<u64>() > 200 * MIB
    });
    let end = end(fleet);
    assert!(
        end.figures["host"]["consumed_bytes"].as_u64() < Some(128 * MIB),
        "{}",
        end.figures
    );
}
