use super::super::manager::Settings;
use super::super::process::ProcessId;
use super::*;
use crate::policy::settings::PolicySettings;
use crate::words::{Allocation, Sampling, Sharing};

#[test]
fn long_replies_come_in_parts_with_one_end() {
    let reply = Reply::Ok(Value::from("x".repeat(3 * PART_BYTES)));
    let parts = datagrams(&reply);
    assert_eq!(parts.len(), 4);
    let marks: Vec<u8> = parts.iter().map(|part| part[0]).collect();
    assert_eq!(marks, [MORE, MORE, MORE, LAST]);
    let json: Vec<u8> = parts.iter().flat_map(|part| part[1..].to_vec()).collect();
    assert_eq!(serde_json::from_slice::<Reply>(&json).unwrap(), reply);
}

#[test]
fn settings_say_what_they_must_be() {
    let mut manager = manager();
    let set = |vm: &str, key: &str, value: &str| Request::Set {
        vm: vm.to_owned(),
        changes: [(key.to_owned(), value.to_owned())].into(),
    };
    // (request, kind, line)
    let table = [
        (
            set("a", "limit", "lots"),
            Kind::Invalid,
            "`limit = \"lots\"`: not a valid size, e.g. 512M, 512MiB, 2G or a number of bytes",
        ),
        (
            set("a", "limit", "65M"),
            Kind::Invalid,
            "`limit = \"65M\"`: must be at most `memory` (64.0 MiB)",
        ),
        (
            set("a", "colour", "red"),
            Kind::Invalid,
            "`colour` is not a setting of a VM: shares, reservation, limit, dynamic_min, \
             dynamic_max are",
        ),
        (
            set("b", "limit", "64M"),
            Kind::NotFound,
            "no VM \"b\": there are a",
        ),
        (
            set("a", "reservation", "40M"),
            Kind::Exhausted,
            "cannot admit \"a\": needs 42.0 MiB (reservation 40.0 MiB + overhead 2.0 MiB), but of 32.0 \
             MiB 0.0 MiB are reserved by 0 VMs and 0.0 MiB are overhead, so 32.0 MiB can be promised \
             (29.7 MiB is free now)",
        ),
        (
            set(HOST, "memory", "1M"),
            Kind::Invalid,
            "`memory = \"1M\"`: must be 16M to 64T",
        ),
        (
            set(HOST, "policy", "magic"),
            Kind::Invalid,
            "`policy = \"magic\"`: must be one of esx, proportional, self, pref, pressure",
        ),
        (
            set(HOST, "limit", "64M"),
            Kind::Invalid,
            "`limit` is not a setting of the host: memory and policy are",
        ),
    ];
    for (request, kind, line) in table {
        let error = lasting(&mut manager, request).unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (kind, line));
    }
}

#[test]
fn a_mistake_is_one_line_whatever_was_asked() {
    let mut manager = manager();
    for datagram in [
        r#"{"verb":"set","vm":"host","changes":{"a\nb":"1"}}"#,
        r#"{"verb":"set","vm":"a","changes":{"\u001b[2J":"1"}}"#,
        r#"{"verb":"set\nx"}"#,
    ] {
        let reply = answer(
            &mut manager,
            datagram.as_bytes(),
            OwnerId(1),
            Duration::ZERO,
        );
        let Reply::Error(line) = reply else {
            panic!("{datagram}: {reply:?}");
        };
        assert!(!line.contains(char::is_control), "{line:?}");
    }
}

#[test]
fn a_mistake_in_one_setting_of_the_host_changes_none() {
    let mut manager = manager();
    let set = |memory: &str, policy: &str| Request::Set {
        vm: HOST.to_owned(),
        changes: [("memory", memory), ("policy", policy)]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
    };
    let before = manager.figures().host;
    // The VM's dynamic minimum is 16 MiB, which `proportional` would promise with 2 MiB of overhead.
    for (memory, policy) in [("17M", "proportional"), ("40M", "magic"), ("1", "esx")] {
        assert!(lasting(&mut manager, set(memory, policy)).is_err());
        let after = manager.figures().host;
        assert_eq!(
            (after.memory_bytes, &after.policy),
            (before.memory_bytes, &before.policy)
        );
    }
    // What would not fit the old budget fits the new one.
    lasting(&mut manager, set("18M", "proportional")).unwrap();
    let after = manager.figures().host;
    assert_eq!(
        (after.memory_bytes, after.policy.as_str()),
        (18 << 20, "proportional")
    );
}

/// A host of 32 MiB with one VM of 64 MiB.
fn manager() -> Manager {
    let mut manager = Manager::new(Settings {
        budget: Pages::mib(32),
        policy: PolicyKind::Esx,
        policy_settings: PolicySettings::default(),
        sampling: Sampling::default(),
        seed: 1,
    });
    let registration = Registration {
        name: "a".to_owned(),
        allocation: Allocation::of(Pages::mib(64)),
        share_group: None,
        sharing: Sharing::default(),
        managed: true,
        lease: None,
    };
    let process = ProcessId { pid: 2, started: 1 };
    manager.admit(registration, process, None).unwrap();
    manager
}
