//! The verbs against a running fleet, how a run ends, and what bad input and a bad machine get.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use common::Capability::{Kvm, Uffd};
use common::fleet::{Fleet, Folder, MIB, SOON, alone, find_vm, number};
use common::{note, require};
use rustix::process::Signal;

/// Two guests that work a little and rest a lot.
fn two() -> &'static str {
    r#"
        [host]
        memory = "128M"
        swap_dir = "."
        [[vm]]
        name = "a"
        memory = "32M"
        guest = "verify"
        cmdline = "fill=50 pause_ms=1"
        [[vm]]
        name = "b"
        memory = "32M"
        guest = "verify"
        cmdline = "fill=50 pause_ms=1"
    "#
}

fn compares(figures: &serde_json::Value, name: &str) -> bool {
    find_vm(figures, name).is_some_and(|vm| vm["guest"]["pages_verified"].as_u64() > Some(0))
}

#[test]
fn ctrl_c_ends_a_run_well_and_soon() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let mut fleet = Fleet::start(two(), &[]);
    fleet.until("work", |figures| {
        compares(figures, "a") && compares(figures, "b")
    });
    let started = Instant::now();
    fleet.process.signal(Signal::INT);
    let end = fleet.end(SOON);
    assert!(
        started.elapsed() < Duration::from_secs(8),
        "{:?}",
        started.elapsed()
    );
    end.check();
}

#[test]
fn a_run_ends_after_its_time() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let started = Instant::now();
    let end = Fleet::start(two(), &["--for", "2500ms"]).end(SOON);
    let took = started.elapsed();
    assert!(
        took >= Duration::from_millis(2500) && took < Duration::from_secs(12),
        "{took:?}"
    );
    end.check();
}

#[test]
fn stop_ends_one_vm_and_the_run_goes_on() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let mut fleet = Fleet::start(two(), &[]);
    fleet.until("work", |figures| {
        compares(figures, "a") && compares(figures, "b")
    });
    assert!(fleet.folder.output(&["stop", "a"]).status.success());
    let figures = fleet.until("its end", |figures| {
        find_vm(figures, "a").is_some_and(|vm| vm["state"] == "ended")
    });
    let a = find_vm(&figures, "a").unwrap();
    assert_eq!(a["exit"]["reason"], "stopped");
    assert_eq!(number(a, "consumed_bytes"), 0);
    let table = String::from_utf8(fleet.folder.output(&["ps"]).stdout).unwrap();
    let line = |name: &str| {
        let mut lines = table.lines();
        lines.find(|line| line.starts_with(name)).map(str::to_owned)
    };
    assert!(line("a ").unwrap().contains("stopped"), "{table}");
    assert!(line("b ").unwrap().contains("running"), "{table}");
    let said = fleet.folder.fails(&["stop", "a"], 1);
    assert!(said.contains("\"a\"") && said.contains('b'), "{said}");
    assert!(fleet.folder.output(&["stop", "b"]).status.success());
    let end = fleet.end(SOON);
    end.check();
}

#[test]
fn set_changes_a_running_vm_and_says_what_is_allowed() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let mut fleet = Fleet::start(two(), &[]);
    fleet.until("work", |figures| {
        let a = find_vm(figures, "a");
        a.is_some_and(|vm| number(vm, "consumed_bytes") > 8 * MIB) && compares(figures, "a")
    });
    let bad: [(&[&str], &[&str]); 9] = [
        (&["a", "limit=lots"], &["limit", "lots", "512M"]),
        (&["a", "limit=64M"], &["limit", "64", "32"]),
        (
            &["a", "reservation=24M", "limit=16M"],
            &["reservation", "24", "16"],
        ),
        (
            &["a", "shares=many"],
            &["shares", "many", "high, normal, low"],
        ),
        (
            &["a", "shares=99999999999999"],
            &["shares", "99999999999999"],
        ),
        (&["a", "colour=red"], &["colour", "shares", "dynamic_max"]),
        (&["nobody", "shares=low"], &["nobody", "there are"]),
        (&["host", "memory=1M"], &["memory", "1M", "16M to 64T"]),
        (
            &["host", "memory=300M", "policy=magic"],
            &["policy", "magic", "esx, "],
        ),
    ];
    let folder = &fleet.folder;
    for (args, words) in bad {
        let said = folder.fails(&[&["set"], args].concat(), 1);
        for word in words {
            assert!(said.contains(word), "set {args:?}: no {word:?} in {said}");
        }
    }
    let vm = folder.vm("a").unwrap();
    assert_eq!(
        number(&vm, "target_bytes"),
        32 * MIB,
        "nothing was changed: {vm}"
    );
    let good: [&[&str]; 3] = [
        &["a", "shares=high"],
        &["a", "reservation=4M"],
        &["a", "limit=8M"],
    ];
    for args in good {
        let output = folder.output(&[&["set"], args].concat());
        assert!(output.status.success(), "{args:?}: {output:?}");
        assert!(
            output.stdout.is_empty() && output.stderr.is_empty(),
            "{output:?}"
        );
    }
    fleet.until("the new limit", |figures| {
        find_vm(figures, "a").is_some_and(|vm| {
            number(vm, "target_bytes") == 8 * MIB && number(vm, "consumed_bytes") <= 8 * MIB
        })
    });
    fleet.process.signal(Signal::TERM);
    fleet.end(SOON).check();
}

#[test]
fn the_worst_exit_decides() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let vm = |guest: &str| {
        format!("[[vm]]\nname = \"{guest}\"\nmemory = \"16M\"\nguest = \"{guest}\"\n")
    };
    let host = "[host]\nmemory = \"64M\"\nswap_dir = \".\"\n";
    let good = Fleet::start(&format!("{host}{}", vm("hello")), &[]).end(SOON);
    assert_eq!(good.status.code(), Some(0), "{}", good.log);
    assert_eq!(good.vm("hello")["exit"]["reason"], "guest-exit");
    assert!(
        good.log.contains("hello: hello from tidemark"),
        "{}",
        good.log
    );

    let bad = Fleet::start(&format!("{host}{}{}", vm("hello"), vm("panic")), &[]).end(SOON);
    assert_eq!(bad.status.code(), Some(1), "{}", bad.log);
    assert_eq!(number(bad.vm("hello"), "exit.code"), 0);
    assert_eq!(number(bad.vm("panic"), "exit.code"), 101);
    assert_eq!(bad.vm("panic")["exit"]["reason"], "guest-exit");
    bad.check_sums();
}

#[test]
fn a_console_goes_to_its_file() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let toml = r#"
        [host]
        memory = "64M"
        swap_dir = "."
        [[vm]]
        name = "hello"
        memory = "16M"
        guest = "hello"
        console = "hello.log"
    "#;
    let mut fleet = Fleet::start(toml, &[]);
    assert_eq!(fleet.process.wait(SOON).code(), Some(0));
    assert_eq!(fleet.folder.read("hello.log"), "hello from tidemark\n");
    assert!(
        !fleet.process.log().contains("hello from"),
        "{}",
        fleet.process.log()
    );
}

#[test]
fn a_guest_that_writes_rubbish_harms_nobody() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let toml = r#"
        [host]
        memory = "96M"
        swap_dir = "."
        [[vm]]
        name = "rubbish"
        memory = "32M"
        guest = "rubbish"
        share_group = "g"
        [[vm]]
        name = "verify"
        memory = "48M"
        guest = "verify"
        share_group = "g"
    "#;
    let mut fleet = Fleet::start(toml, &[]);
    let figures = fleet.until("its end", |figures| {
        find_vm(figures, "rubbish").is_some_and(|vm| vm["state"] == "ended")
    });
    let rubbish = find_vm(&figures, "rubbish").unwrap();
    assert_eq!(rubbish["exit"]["reason"], "guest-exit", "{rubbish}");
    assert_eq!(number(rubbish, "exit.code"), 0);
    let seen = find_vm(&figures, "verify").map_or(0, |vm| number(vm, "guest.pages_verified"));
    fleet.until("its neighbour going on", |figures| {
        find_vm(figures, "verify")
            .is_some_and(|vm| vm["guest"]["pages_verified"].as_u64() > Some(seen + 10_000))
    });
    fleet.process.signal(Signal::INT);
    let end = fleet.end(SOON);
    assert_eq!(end.status.code(), Some(0), "{}", end.log);
    end.check_guest(end.vm("verify"));
    assert!(end.log.contains("rubbish done"), "{}", end.log);
    // Every failure is logged, and a loop of them is not a loop of lines.
    let warnings = end.log.lines().filter(|line| line.contains("warn")).count();
    assert!(
        (1..200).contains(&warnings),
        "{warnings} warnings:\n{}",
        end.log
    );
}

#[test]
fn bad_fleets_start_nothing() {
    let folder = Folder::new();
    folder.write("text", "no kernel at all");
    let cases = [
        (
            "colour = \"red\"\nguest = \"hello\"",
            &["colour", "unknown", "reservation"][..],
        ),
        (
            "guest = \"hello\"\nlimit = \"32M\"\nreservation = \"48M\"",
            &["reservation", "48M", "limit", "32M"],
        ),
        (
            "kernel = \"nowhere\"",
            &["kernel", "nowhere", "No such file"],
        ),
        ("kernel = \"text\"", &["kernel", "text", "ELF"]),
        ("kernel = \".\"", &["kernel"]),
        ("guest = \"nobody\"", &["guest", "nobody", "verify"]),
        (
            "guest = \"hello\"\nmemory = \"lots\"",
            &["memory", "lots", "512M"],
        ),
        ("guest = \"hello\"\ncpus = 0", &["cpus", "0", "1 to 64"]),
        (
            "guest = \"hello\"\nshares = \"some\"",
            &["shares", "some", "normal"],
        ),
        ("guest = \"hello\"\ncount = 0", &["count", "0"]),
    ];
    for (lines, words) in cases {
        // The first VM is good: a mistake in the second keeps it from starting, too.
        let toml = format!(
            "[host]\nmemory = \"64M\"\n[[vm]]\nname = \"good\"\nguest = \"hello\"\n\
             console = \"good.log\"\n[[vm]]\nname = \"bad\"\n{lines}\n"
        );
        folder.write("fleet.toml", &toml);
        for args in [&["run", "fleet.toml"][..], &["run", "fleet.toml", "--json"]] {
            let said = folder.fails(args, 2);
            for word in ["fleet.toml"].iter().chain(words) {
                assert!(said.contains(word), "{lines}: no {word:?} in {said}");
            }
        }
        assert_eq!(folder.files().len(), 2, "{:?}", folder.files());
    }
}

/// Runs `tidemark run` of a guest where a device cannot be opened.
fn without(folder: &Folder, setup: &str) -> Option<std::process::Output> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let script = format!("{setup} && exec \"$0\" run --guest hello --memory 16M --json");
    let mut command = Command::new("unshare");
    command
        .args(["-m", "sh", "-c", &script, env!("CARGO_BIN_EXE_tidemark")])
        .env("XDG_RUNTIME_DIR", folder.path())
        .current_dir(folder.path());
    // 32 is what mount fails with, 1 what unshare does; both say so on standard error.
    let output = command.output().ok()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (!said.contains("unshare:") && !said.contains("mount:")).then_some(output)
}

fn names(output: &std::process::Output, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    for word in words {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
    assert!(output.stdout.is_empty());
}

#[test]
fn a_missing_device_is_named_with_the_command_that_grants_it() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let folder = Folder::new();
    let Some(output) = without(&folder, "mount --bind /dev/null /dev/kvm") else {
        return note("no mount namespaces here: a missing /dev/kvm is not tested");
    };
    names(
        &output,
        &["/dev/kvm is no KVM device", "`sudo modprobe kvm`"],
    );
    let covered = "mount -t tmpfs none /dev && mkdir -p /dev/shm";
    let output = without(&folder, covered).unwrap();
    names(&output, &["/dev/kvm is missing"]);

    // As an ordinary user: the device is there and not ours.
    let script = "mount -t tmpfs none /dev && mknod /dev/kvm c 10 232 && chmod 600 /dev/kvm \
                  && mknod /dev/null c 1 3 && chmod 666 /dev/null \
                  && exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$0\" check";
    let binary = folder.path().join("tidemark-copy");
    std::fs::copy(env!("CARGO_BIN_EXE_tidemark"), &binary).unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", script])
        .arg(&binary)
        .current_dir(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        said.contains("/dev/kvm: permission denied; `sudo usermod -aG kvm"),
        "{output:?}"
    );
    if std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd")
        .unwrap()
        .trim()
        == "0"
    {
        for word in ["userfaultfd", "unprivileged_userfaultfd=1", "setfacl"] {
            assert!(said.contains(word), "no {word:?} in {output:?}");
        }
    }
}
