//! `tidemark vm`: one VM process.

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;

use super::{Error, folder, resources};
use crate::config::{COMMAND_LINE, VmArgs};
use crate::link::socket::Link;
use crate::out::Out;
use crate::sys::inherited;
use crate::vm::files::Files;
use crate::words::ExitReason;

/// Flags of `tidemark vm`.
#[derive(Debug, Args)]
pub struct VmCommand {
    #[command(flatten)]
    vm: VmArgs,
    /// Socket of the host manager to join [default: the only one that listens]
    #[arg(long, value_name = "PATH", conflicts_with = "link_fd")]
    host: Option<PathBuf>,
    /// Redeem a lease of `tidemark reserve`: at least what it promises becomes the reservation
    #[arg(long, value_name = "ID", conflicts_with = "link_fd")]
    lease: Option<u64>,
    /// Descriptor of a connected link that the parent process left open
    #[arg(long, value_name = "N", hide = true)]
    link_fd: Option<RawFd>,
}

/// Runs the VM until it ends. `started` is when the program was.
pub fn run(args: VmCommand, started: Instant, out: &Out) -> Result<ExitCode, Error> {
    // First of all: nothing else may have opened the descriptor's number.
    let inherited = match args.link_fd {
        Some(number) => Some(inherited::take(number).map_err(|errno| {
            Error::Usage(format!(
                "--link-fd {number}: {errno}; `tidemark run` passes it"
            ))
        })?),
        None => None,
    };
    let spec = resources::with(|resources| args.vm.to_spec(resources))?;
    let files = Files::open(&spec, COMMAND_LINE)?;
    let link = match inherited {
        Some(fd) => Link::new(fd)?,
        None => Link::connect(&folder::find(args.host.as_deref())?)?,
    };
    let exit = crate::vm::process::run(&spec, files, link, args.lease, started, out)?;
    if let Some(message) = &exit.message {
        return Err(Error::Missing(format!("{}: {message}", spec.name)));
    }
    Ok(match (exit.reason, exit.code) {
        (ExitReason::GuestExit, code) if code != 0 => ExitCode::FAILURE,
        (ExitReason::Error | ExitReason::Killed, _) => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    })
}
