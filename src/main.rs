//! The `tidemark` command.

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use tidemark::cli::{self, Cli};

fn main() -> ExitCode {
    let started = Instant::now();
    // Before anything is read but its first word: a start waits for it.
    cli::inspect().unwrap_or_else(|| cli::main(Cli::parse(), started))
}
