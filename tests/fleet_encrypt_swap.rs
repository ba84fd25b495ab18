//! What an encrypted swap file shows to somebody who has the disk, beside one that is not encrypted;
//! and that content which was changed there reaches no guest.

mod common;

use std::collections::HashSet;
use std::os::unix::fs::FileExt;

use common::Capability::{Kvm, Root, Uffd};
use common::fleet::{Fleet, MIB, SOON, alone, find_vm, number, swap_file};
use common::require;
use rustix::process::Signal;
use tidemark_guest_model::content::{Identity, Kind};

/// Seed of both guests.
const SEED: u64 = 7;
/// Pages of both guests.
const PAGES: u32 = 64 << 8;
/// Each page has been written as often as this, at most, as long as the test looks.
const VERSIONS: u16 = 8;
const PAGE_BYTES: usize = 4096;

/// The first word of every page that a guest may have written.
fn first_words() -> HashSet<u64> {
    let kinds = [Kind::Unique, Kind::Cache, Kind::Duplicate].into_iter();
    let versions = kinds.flat_map(|kind| (0..VERSIONS).map(move |version| (kind, version)));
    let pages = versions.flat_map(|kind| (0..PAGES).map(move |index| (kind, index)));
    let word = |((kind, version), index)| {
        let seed = SEED;
        Identity {
            kind,
            index,
            version,
            seed,
        }
        .first_word()
    };
    pages.map(word).collect()
}

#[test]
fn an_encrypted_swap_file_tells_nothing_and_a_changed_one_is_not_believed() {
    let Some(_host) = require(&[Kvm, Uffd, Root]) else {
        return;
    };
    let _alone = alone();
    let toml = r#"
        [host]
        memory = "192M"
        swap_dir = "."
        [[vm]]
        name = "plain"
        memory = "64M"
        guest = "verify"
        cmdline = "seed=7"
        limit = "40M"
        [[vm]]
        name = "encrypted"
        memory = "64M"
        guest = "verify"
        cmdline = "seed=7"
        limit = "40M"
        encrypt_swap = true
    "#;
    let mut fleet = Fleet::start(toml, &[]);
    let names = ["plain", "encrypted"];
    fleet.until("pages that come and go", |figures| {
        names.iter().all(|name| {
            find_vm(figures, name).is_some_and(|vm| {
                let passed = u64::from(PAGES) * 85 / 100;
                number(vm, "swapped_bytes") >= 4 * MIB
                    && number(vm, "guest.pages_verified") >= passed
            })
        })
    });
    let known = first_words();
    let [plain, encrypted] = names.map(|name| {
        let content = std::fs::read(swap_file(fleet.process.vm_pid(name))).unwrap();
        let pages = content.chunks_exact(PAGE_BYTES);
        let words = pages.map(|page| u64::from_le_bytes(page[..8].try_into().unwrap()));
        words.filter(|word| known.contains(word)).count()
    });
    assert!(
        plain >= 1000,
        "only {plain} pages of a plain file are known"
    );
    assert_eq!(encrypted, 0);

    let file = swap_file(fleet.process.vm_pid("encrypted"));
    let file = std::fs::OpenOptions::new().write(true).open(file).unwrap();
    let bytes = file.metadata().unwrap().len();
    for at in (100..bytes).step_by(PAGE_BYTES) {
        file.write_all_at(b"changed", at).unwrap();
    }
    fleet.until("the end of its VM", |figures| {
        find_vm(figures, "encrypted").is_none_or(|vm| vm["state"] == "ended")
    });
    fleet.process.signal(Signal::INT);
    let end = fleet.end(SOON);
    let message = end.vm("encrypted")["exit"]["message"].as_str().unwrap();
    assert!(message.contains("changed on the disk"), "{message}");
    assert_eq!(number(end.vm("encrypted"), "guest.pages_corrupt"), 0);
    end.check_guest(end.vm("plain"));
}
