//! The pager's oracle as a part of the soak.

use std::process::{Command, Stdio};

use crate::common::note;

/// Cargo's variables for this test, which would make the oracle's build one of this test.
const OF_THIS_TEST: [&str; 5] = [
    "CARGO_PKG_",
    "CARGO_MANIFEST_",
    "CARGO_BIN_",
    "CARGO_CRATE_",
    "CARGO_PRIMARY_",
];

/// Runs `tests/pager_oracle.rs` with a seed, on both ways of taking pages out.
pub fn round(seed: u64) {
    let cargo = std::env::var_os("CARGO").expect("tests are started by Cargo");
    let mut command = Command::new(cargo);
    command
        .args(["test", "--quiet", "--locked", "--test", "pager_oracle"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("TIDEMARK_SEED", seed.to_string())
        .env_remove("TIDEMARK_TAKE")
        .stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if OF_THIS_TEST.iter().any(|start| text.starts_with(start)) {
            command.env_remove(&name);
        }
    }
    let output = command.output().expect("cargo can be started");
    assert!(
        output.status.success(),
        "the oracle failed; again: TIDEMARK_SEED={seed} cargo test --test pager_oracle\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    note(&format!("oracle: seed {seed}: passed"));
}
