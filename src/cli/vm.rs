//! `tidemark vm`: one VM process, which is its own launcher where no other left it a link.

use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;

use super::jail::JailArgs;
use super::{Error, folder, io, resources};
use crate::config::{COMMAND_LINE, VmArgs, VmSpec};
use crate::host::control;
use crate::host::registration::Registration;
use crate::link::door::Door;
use crate::link::socket::{self, Link};
use crate::out::Out;
use crate::sys::inherited;
use crate::vm::files::Files;
use crate::vm::inspect::Inspector;
use crate::vm::join;
use crate::words::{ExitReason, Token};

/// Flags of `tidemark vm`.
#[derive(Debug, Args)]
pub struct VmCommand {
    #[command(flatten)]
    vm: VmArgs,
    #[command(flatten)]
    jail: JailArgs,
    /// Socket of the host manager to join [default: the only one that listens]
    #[arg(long, value_name = "PATH", conflicts_with = "link_fd")]
    host: Option<PathBuf>,
    /// Redeem a lease of `tidemark reserve`: at least what it promises becomes the reservation
    #[arg(long, value_name = "TOKEN", conflicts_with = "link_fd")]
    lease: Option<Token>,
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
    let jail = args.jail.jail()?;
    let spec = resources::with(|resources| args.vm.to_spec(resources))?;
    // A fleet's files were looked at before.
    let mut inspector = match inherited {
        None => Inspector::start([&spec.boot], jail).map_err(io("start a process"))?,
        Some(_) => None,
    };
    let files = Files::open(&spec, COMMAND_LINE)?;
    let (link, door) = match inherited {
        Some(fd) => {
            let link = Link::new(fd)?;
            join::say_hello(&link)?;
            (link, None)
        }
        None => {
            let path = folder::find(args.host.as_deref());
            if let Some(inspector) = &mut inspector {
                inspector.look([(&spec, &files)], COMMAND_LINE)?;
            }
            launch(&spec, args.lease, &path?)?
        }
    };
    drop(inspector);
    let exit = crate::vm::process::run(&spec, files, link, door, started, jail, out)?;
    if let Some(message) = &exit.message {
        return Err(Error::Missing(format!("{}: {message}", spec.name)));
    }
    Ok(match (exit.reason, exit.code) {
        (ExitReason::GuestExit, code) if code != 0 => ExitCode::FAILURE,
        (ExitReason::Error | ExitReason::Killed, _) => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    })
}

/// What the host manager is told of a VM, which has no say in it later.
pub fn registration(spec: &VmSpec) -> Registration {
    Registration {
        name: spec.name.clone(),
        allocation: spec.allocation,
        managed: spec.management.is_managed(),
        share_group: spec.share_group.clone(),
        sharing: spec.sharing,
        lease: None,
    }
}

/// Registers this process as the VM of `spec` with the host manager at `path`: its link, and where a later
/// host manager finds it. From here on the process connects to nobody.
fn launch(spec: &VmSpec, lease: Option<Token>, path: &Path) -> Result<(Link, Option<Door>), Error> {
    let (ours, theirs) = socket::pair()?;
    let link = Link::new(ours)?;
    join::say_hello(&link)?;
    // A link to the socket may lie in another folder than the socket.
    let real = path.canonicalize();
    let door = match Door::open(real.as_deref().unwrap_or(path)) {
        Ok(door) => Some(door),
        Err(error) => {
            log::warn!("{}: ends with its host manager: {error}", spec.name);
            None
        }
    };
    let registration = Registration {
        lease,
        ..registration(spec)
    };
    let number = door.as_ref().map(Door::number);
    control::join(path, registration, number, theirs)?;
    Ok((link, door))
}
