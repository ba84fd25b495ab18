//! The `tidemark` command.

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use tidemark::cli::{self, Cli};

fn main() -> ExitCode {
    let started = Instant::now();
    cli::main(Cli::parse(), started)
}
