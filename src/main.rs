//! The `tidemark` command.

use std::process::ExitCode;

use clap::Parser;
use tidemark::cli::{self, Cli};

fn main() -> ExitCode {
    cli::main(Cli::parse())
}
