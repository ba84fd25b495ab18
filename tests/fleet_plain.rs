//! VMs whose memory tidemark does not manage, beside one that it does.
#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers are tests too: a panic is their way to fail"
)]

mod common;

use common::Capability::{Kvm, Uffd};
use common::fleet::{Fleet, Folder, MIB, SOON, alone, find_vm, number, rss_anon_bytes};
use common::require;

fn fleet(host: &str, advise: &str) -> String {
    format!(
        r#"
        [host]
        memory = "{host}"
        swap_dir = "."
        [[vm]]
        name = "plain"
        memory = "48M"
        memory_management = false
        advise = "{advise}"
        guest = "verify"
        cmdline = "fill=70 pause_ms=1"
        [[vm]]
        name = "managed"
        memory = "48M"
        guest = "verify"
        cmdline = "fill=70 pause_ms=1"
    "#
    )
}

/// Flags that the kernel keeps of the mapping of a process that has most memory.
fn largest_mapping_flags(pid: u32) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut largest = (0, String::new());
    let mut resident = 0;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("Rss:") {
            resident = rest.trim().trim_end_matches(" kB").parse().unwrap();
        } else if let Some(flags) = line.strip_prefix("VmFlags:")
            && resident > largest.0
        {
            largest = (resident, format!("{flags} "));
        }
    }
    largest.1
}

#[test]
fn a_plain_vm_keeps_all_of_its_memory_and_the_managed_one_gives() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    // Not enough for both: what lacks must come from the managed one.
    let mut fleet = Fleet::start(&fleet("74M", "nohugepage"), &[]);
    let figures = fleet.until("both work, one of them squeezed", |figures| {
        let Some(plain) = find_vm(figures, "plain") else {
            return false;
        };
        let Some(managed) = find_vm(figures, "managed") else {
            return false;
        };
        let verified = |vm: &serde_json::Value| vm["guest"]["pages_verified"].as_u64() > Some(9000);
        let taken = managed["swapped_bytes"].as_u64() > Some(0)
            || managed["ballooned_bytes"].as_u64() > Some(0);
        verified(plain) && verified(managed) && taken
    });
    let plain = find_vm(&figures, "plain").unwrap();
    assert_eq!(plain["memory_management"], false, "{plain}");
    assert!(plain.get("take_path").is_none(), "{plain}");
    let managed = find_vm(&figures, "managed").unwrap();
    assert!(managed.get("memory_management").is_none(), "{managed}");
    // Charged in full, consumed as far as it is touched.
    for key in ["credit_bytes", "target_bytes"] {
        assert_eq!(number(plain, key), 48 * MIB, "{key}: {plain}");
    }
    let consumed = number(plain, "consumed_bytes");
    assert!((32 * MIB..48 * MIB).contains(&consumed), "{plain}");
    let pid = fleet.process.vm_pid("plain");
    let resident = rss_anon_bytes(pid).unwrap();
    assert!(resident.abs_diff(consumed) < 8 * MIB, "{resident}: {plain}");
    for key in [
        "ballooned_bytes",
        "swapped_bytes",
        "compressed_bytes",
        "zero_bytes",
        "shared_bytes",
    ] {
        assert_eq!(number(plain, key), 0, "{key}: {plain}");
    }
    // Its memory is not armed.
    let flags = largest_mapping_flags(pid);
    assert!(flags.contains(" nh ") && !flags.contains(" um "), "{flags}");
    let managed_pid = fleet.process.vm_pid("managed");
    assert!(largest_mapping_flags(managed_pid).contains(" um "));

    let said = fleet.folder.fails(&["set", "plain", "limit=24M"], 1);
    assert!(said.contains("not managed"), "{said}");
    assert!(
        fleet
            .folder
            .output(&["set", "plain", "shares=high"])
            .status
            .success()
    );
    assert!(fleet.folder.output(&["stop", "plain"]).status.success());
    fleet.until("only the managed one runs", |figures| {
        let state = |name| find_vm(figures, name).map(|vm| vm["state"].clone());
        state("plain") == Some("ended".into()) && state("managed") == Some("running".into())
    });
    fleet.process.signal(rustix::process::Signal::INT);
    fleet.end(SOON).check();
}

#[test]
fn the_kernel_hears_the_advice() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    for (advise, flag) in [("hugepage", " hg "), ("mergeable", " mg ")] {
        let mut fleet = Fleet::start(&fleet("512M", advise), &[]);
        fleet.until("the plain one works", |figures| {
            find_vm(figures, "plain")
                .is_some_and(|vm| vm["guest"]["pages_verified"].as_u64() > Some(0))
        });
        let pid = fleet.process.vm_pid("plain");
        let flags = largest_mapping_flags(pid);
        assert!(flags.contains(flag), "{advise}: {flags}");
        fleet.process.signal(rustix::process::Signal::INT);
        fleet.end(SOON).check_sums();
    }
}

#[test]
fn a_plain_vm_that_does_not_fit_is_not_admitted() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    let folder = Folder::new();
    let flags = [
        "run",
        "--guest",
        "hello",
        "--memory",
        "64M",
        "--host-memory",
        "48M",
    ];
    let off = ["--memory-management", "off", "--json", "--swap-dir", "."];
    let output = folder.output(&[&flags[..], &off[..]].concat());
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("cannot admit") && text.contains("reservation 64.0 MiB"),
        "{text}"
    );
    // Managed, the same guest fits.
    let output = folder.output(&[&flags[..], &["--json", "--swap-dir", "."]].concat());
    assert_eq!(output.status.code(), Some(0));
}
