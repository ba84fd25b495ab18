//! `tidemark host`: the host manager alone.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};

use super::{Error, folder, io, resources};
use crate::config::HostArgs;
use crate::host::manager::Settings;
use crate::host::server::{Event, Server};
use crate::out::Out;
use crate::sys::{priority, signals};

/// Number under which the signal pipe is watched.
const SIGNALS: u64 = 0;

/// Flags of `tidemark host`.
#[derive(Debug, Args)]
pub struct HostCommand {
    /// Memory for all guests and their overheads, or auto
    #[arg(long, value_name = "SIZE", default_value = "auto")]
    memory: String,
    /// Which policy sets the targets [default: esx]
    #[arg(long, value_name = "NAME")]
    policy: Option<String>,
    /// Where to listen [default: host.sock in $XDG_RUNTIME_DIR/tidemark or /run/tidemark]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Seed of the run, for the record
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

/// Serves until a signal comes. The VMs go on without it.
pub fn run(args: &HostCommand, out: &Out) -> Result<ExitCode, Error> {
    let flags = HostArgs {
        memory: Some(args.memory.clone()),
        policy: args.policy.clone(),
    };
    let spec = resources::with(|resources| flags.to_spec(None, resources))?;
    let settings = Settings {
        budget: spec.memory,
        policy: spec.policy,
        policy_settings: spec.settings,
        sampling: spec.sampling,
        seed: args.seed.unwrap_or(spec.seed),
    };
    let path = args.socket.clone().unwrap_or_else(folder::host_socket);
    prepare(&[SIGHUP, SIGXFSZ])?;
    note_priority(priority::run_ahead());
    let mut server = Server::new(settings)?;
    server.listen(&path)?;
    let expected = server.take_over()?;
    let signals = signal_pipe()?;
    server.watch(&signals, SIGNALS)?;
    out.line(&format!(
        "tidemark: host manager listens at {}, budget {}, seed {}",
        path.display(),
        server.manager().ledger().budget(),
        settings.seed
    ));
    if expected > 0 {
        out.line(&format!(
            "tidemark: expects {expected} VMs of the host manager before it to join again"
        ));
    }
    loop {
        for event in server.turn(Duration::from_secs(1))? {
            if event == Event::Ready(SIGNALS) {
                signals::drain(&signals);
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
}

/// Before a host manager starts: neither a terminal that is closed nor a log that has become too long
/// ends it, as far as `outlived` says so, and it may have as many descriptors as the machine lets it.
pub fn prepare(outlived: &[i32]) -> Result<(), Error> {
    signals::outlive(outlived).map_err(io("listen to signals"))?;
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(errno) = setrlimit(Resource::Nofile, raised) {
        log::info!("the limit of open files stays: {errno}");
    }
    Ok(())
}

/// A host manager that may not run ahead of its VMs makes its decisions all the same, only later where
/// CPUs are scarce.
pub fn note_priority(niceness: std::io::Result<i32>) {
    if let Err(error) = niceness {
        log::info!("the host manager does not run ahead of its VMs: {error}");
    }
}

/// A socket that can be read after SIGINT or SIGTERM.
pub fn signal_pipe() -> Result<UnixStream, Error> {
    let (reader, _) = signals::pipe(&[SIGINT, SIGTERM]).map_err(io("listen to signals"))?;
    Ok(reader)
}
