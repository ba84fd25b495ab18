//! Requests of people: any datagram is one or an error, and answered by JSON.

use std::time::Duration;

use tidemark::host::control::{self, Reply, Request};
use tidemark::host::manager::{Manager, Settings};
use tidemark::host::process::ProcessId;
use tidemark::host::registration::Registration;
use tidemark::policy::PolicyKind;
use tidemark::policy::lease::OwnerId;
use tidemark::policy::settings::PolicySettings;
use tidemark::units::Pages;
use tidemark::words::{Allocation, Sampling, Sharing};

use super::groups::Groups;

/// Requests of one input, a line each.
const REQUESTS_MAX: usize = 8;

/// Whether one of them was a request.
pub fn body(data: &[u8]) -> bool {
    let mut lines = data.split(|byte| *byte == b'\n').take(REQUESTS_MAX);
    // Most are none, and need no host.
    if lines.clone().all(|line| control::read(line).is_err()) {
        return false;
    }
    let mut manager = host();
    let mut understood = false;
    for (owner, line) in (0..).map(OwnerId).zip(&mut lines) {
        if let Ok(request) = control::read(line) {
            understood = true;
            check_request(&request);
        }
        let reply = control::answer(&mut manager, line, owner, Duration::from_secs(1));
        check_reply(&reply);
        manager.audit();
        manager.take_outgoing();
    }
    manager.tick(Duration::from_secs(2));
    manager.audit();
    understood
}

/// Two VMs.
fn host() -> Manager {
    let settings = Settings {
        budget: Pages::mib(64),
        policy: PolicyKind::Esx,
        policy_settings: PolicySettings::default(),
        sampling: Sampling::default(),
        seed: 1,
    };
    let mut manager = Manager::with_groups(settings, Box::new(Groups::default()));
    for (pid, name) in [(1, "a"), (2, "b")] {
        let registration = Registration {
            name: name.to_owned(),
            allocation: Allocation::of(Pages::mib(32)),
            share_group: None,
            sharing: Sharing::default(),
            managed: true,
            lease: None,
        };
        let admitted = manager.admit(registration, ProcessId { pid, started: 1 }, None);
        admitted.expect("there is room for two");
    }
    manager
}

/// A client can say it.
fn check_request(request: &Request) {
    let text = serde_json::to_vec(request).expect("a request is JSON");
    assert_eq!(&control::read(&text).expect("a request"), request);
}

/// It arrives as it was sent, and an error is one line.
fn check_reply(reply: &Reply) {
    let parts = control::datagrams(reply);
    let (last, first) = parts.split_last().expect("a reply is never empty");
    assert_eq!(last.first(), Some(&control::LAST));
    assert!(first.iter().all(|part| part[0] == control::MORE));
    let json: Vec<u8> = parts.iter().flat_map(|part| &part[1..]).copied().collect();
    let back: Reply = serde_json::from_slice(&json).expect("a reply is JSON");
    assert_eq!(&back, reply);
    if let Reply::Error(text) = reply {
        let steers = |c: char| c != '\t' && c.is_control();
        assert!(!text.is_empty() && !text.contains(steers), "{text:?}");
    }
}
