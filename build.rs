//! Builds the test guests (`guest-images/`) so that they can be embedded.
//!
//! The guests are a workspace of their own, because they are built without `std` and linked as bare
//! images. Writes `$OUT_DIR/guest_images.rs`, the table that `boot::builtin` includes.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Variables that cargo itself needs in the nested build; all others of cargo's are this build's.
const KEPT: &[&str] = &["CARGO_HOME", "CARGO_MAKEFLAGS", "CARGO_NET_OFFLINE"];
/// Variables that would change how the guests are compiled: flags, clippy, coverage, Miri.
const COMPILER: &[&str] = &[
    "RUSTC",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_LINKER",
    "RUSTDOC",
    "RUSTDOCFLAGS",
    "RUSTFLAGS",
];

fn main() {
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let workspace = root.join("guest-images");
    let out = PathBuf::from(variable("OUT_DIR"));
    for part in [
        "Cargo.toml",
        "Cargo.lock",
        "protocol",
        "model",
        "runtime",
        "guests",
    ] {
        println!("cargo::rerun-if-changed={}", workspace.join(part).display());
    }
    println!("cargo::rerun-if-changed=build.rs");

    let images = build(&workspace, &out.join("guest-images"));
    let mut table = String::from("pub static IMAGES: &[(&str, &[u8])] = &[\n");
    for name in names(&workspace.join("guests/src/bin")) {
        let image = images.join(&name);
        writeln!(table, "    ({name:?}, include_bytes!({image:?})),").expect("memory suffices");
    }
    table.push_str("];\n");
    fs::write(out.join("guest_images.rs"), table).expect("the output directory is writable");
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|error| panic!("{name}, which cargo sets: {error}"))
}

/// Builds all guests; returns the directory of the images.
fn build(workspace: &Path, target_directory: &Path) -> PathBuf {
    let host = variable("HOST");
    let mut cargo = Command::new(variable("CARGO"));
    for (name, _) in env::vars_os() {
        let ours = name.to_str().is_some_and(|name| {
            COMPILER.contains(&name) || (name.starts_with("CARGO_") && !KEPT.contains(&name))
        });
        if ours {
            cargo.env_remove(name);
        }
    }
    // Set and empty, it also overrides the flags of any cargo configuration file.
    cargo.env("CARGO_ENCODED_RUSTFLAGS", "");
    cargo
        .current_dir(workspace)
        .args([
            "build",
            "--release",
            "--offline",
            "--locked",
            "--package",
            "tidemark-guests",
        ])
        .args(["--target", &host])
        .arg("--target-dir")
        .arg(target_directory);
    let status = cargo
        .status()
        .unwrap_or_else(|error| panic!("cannot start cargo: {error}"));
    assert!(
        status.success(),
        "building the test guests in {}: {status}",
        workspace.display()
    );
    target_directory.join(host).join("release")
}

/// The guests' names, sorted: one source file each.
fn names(sources: &Path) -> Vec<String> {
    let entries = fs::read_dir(sources)
        .unwrap_or_else(|error| panic!("cannot list {}: {error}", sources.display()));
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.path().file_stem()?.to_str().map(str::to_owned))
        .collect();
    names.sort();
    names
}
