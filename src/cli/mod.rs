//! The command line: text in, calls to the host manager or a VM, text out.

mod before;
pub mod bench;
pub mod check;
mod control;
mod folder;
mod host;
mod jail;
mod resources;
mod run;
pub mod simulate;
mod stdout;
mod table;
mod vm;

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use clap::{ArgAction, Parser, Subcommand};

use crate::config::ConfigError;
use crate::out::{self, Out};
use crate::threads::LOG;
use crate::vm::inspect;
use crate::{host as manager, link};

/// Runs more virtual machines than the host has memory for, and shows where every page went.
#[derive(Debug, Parser)]
#[command(name = "tidemark", version, arg_required_else_help = true)]
pub struct Cli {
    /// Say more on standard error (-v: information, -vv: details)
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a fleet of VMs and a host manager for them, in the foreground
    Run(Box<run::RunArgs>),
    /// Run a host manager alone; VMs join it with `tidemark vm --host`
    Host(host::HostCommand),
    /// Run one VM that joins a host manager
    Vm(Box<vm::VmCommand>),
    /// Show the VMs of a running host manager
    Ps(control::PsArgs),
    /// Change settings of a VM, or of the host (`set host memory=8G`)
    Set(control::SetArgs),
    /// Reserve memory for a VM to come, until it comes, this command ends, or the time is over
    Reserve(control::ReserveArgs),
    /// End a VM
    Stop(control::StopArgs),
    /// Replay scenarios with model guests on the policies' own code
    Simulate(simulate::SimulateArgs),
    /// Measure what being managed costs a guest, beside plain memory, KSM and the kernel's swap
    Bench(bench::BenchCommand),
    /// Show what this host offers and what will be used, or whether a fleet file could be run
    Check(check::CheckArgs),
}

/// What can end a command early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The fleet file or a flag is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Flags that do not go together, or a value that is none.
    #[error("{0}")]
    Usage(String),
    /// No host manager, or none that can be told apart.
    #[error(transparent)]
    Folder(#[from] folder::Error),
    /// The host manager's answer was no.
    #[error(transparent)]
    Call(#[from] manager::control::CallError),
    /// The host manager cannot run.
    #[error(transparent)]
    Host(#[from] manager::server::Error),
    /// The link to the host manager.
    #[error(transparent)]
    Link(#[from] link::socket::Error),
    /// A VM process.
    #[error(transparent)]
    Vm(#[from] crate::vm::Error),
    /// A measurement.
    #[error(transparent)]
    Bench(#[from] bench::Error),
    /// The host lacks something.
    #[error("{0}")]
    Missing(String),
    /// A VM could not be started.
    #[error("cannot {what}")]
    Io {
        /// What failed.
        what: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

impl Error {
    /// Exit status: 2 when the user has to write something else, 1 otherwise.
    fn status(&self) -> u8 {
        match self {
            Error::Config(_) | Error::Usage(_) => 2,
            _ => 1,
        }
    }
}

fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
    let what = what.into();
    move |source| Error::Io { what, source }
}

/// What a process does that `run` or `vm` has started to look at files, and its status; `None`: this is
/// another one. It has no command line but a word that no user writes, and nobody to write to.
pub fn inspect() -> Option<ExitCode> {
    let is_inspector = std::env::args_os()
        .nth(1)
        .is_some_and(|verb| verb == inspect::VERB);
    is_inspector.then(|| inspect::serve().map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS))
}

/// Carries out a command line; the exit status of the process. `started` is when the program was.
pub fn main(cli: Cli, started: Instant) -> ExitCode {
    // A log that cannot be written must not complain to itself.
    let out = Out::later(&LOG, std::io::stderr(), |_| {});
    let begun = match &cli.command {
        // Its thread starts in the VM's jail.
        Command::Vm(_) => Ok(()),
        _ => out.begin(),
    };
    if let Err(error) = begun {
        // Nobody is left to tell when standard error is gone.
        let _ = writeln!(
            std::io::stderr(),
            "tidemark: cannot start a thread: {error}"
        );
        return ExitCode::FAILURE;
    }
    start_log(cli.verbose, out.clone());
    let status = carry_out(cli.command, started, &out);
    // What is not read by now is lost.
    let _ = out.finish(out::FINISH);
    status
}

fn carry_out(command: Command, started: Instant, out: &Out) -> ExitCode {
    let result = match command {
        Command::Run(args) => run::run(*args, out),
        Command::Host(args) => host::run(&args, out),
        Command::Vm(args) => vm::run(*args, started, out),
        Command::Ps(args) => control::ps(&args),
        Command::Set(args) => control::set(&args),
        Command::Reserve(args) => control::reserve(&args, out),
        Command::Stop(args) => control::stop(&args),
        Command::Simulate(args) => simulate::run(&args),
        Command::Bench(args) => bench::run(&args, out),
        Command::Check(args) => check::run(&args),
    };
    result.unwrap_or_else(|error| {
        complain(&error, out);
        ExitCode::from(error.status())
    })
}

fn complain(error: &dyn std::error::Error, out: &Out) {
    let line = out::printable(&out::with_causes(error));
    out.line(&format!("tidemark: {line}"));
}

fn start_log(verbose: u8, out: Out) {
    let level = match verbose {
        0 => log::LevelFilter::Warn,
        1 => log::LevelFilter::Info,
        _ => log::LevelFilter::Debug,
    };
    env_logger::Builder::new()
        .filter_level(level)
        .target(env_logger::Target::Pipe(Box::new(out)))
        .format(|target, record| {
            let level = record.level().as_str().to_ascii_lowercase();
            // Peers have a say in some lines.
            let line = out::printable(&record.args().to_string());
            writeln!(target, "tidemark: {level}: {line}")
        })
        .init();
}
