//! `tidemark ps`, `set` and `stop`: requests to a running host manager.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::stdout::print;
use super::{Error, folder, table};
use crate::host::accounts::Figures;
use crate::host::control::{CallError, Request, call, take_lease};
use crate::out::Out;

/// Which host manager.
#[derive(Debug, Args)]
struct Target {
    /// Socket of the host manager [default: $TIDEMARK_SOCKET, or the only one that listens]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl Target {
    fn call(&self, request: &Request) -> Result<serde_json::Value, Error> {
        let path = folder::find(self.socket.as_deref())?;
        Ok(call(&path, request)?)
    }
}

/// Flags of `tidemark ps`.
#[derive(Debug, Args)]
pub struct PsArgs {
    /// Print the figures as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

/// Flags of `tidemark set`.
#[derive(Debug, Args)]
pub struct SetArgs {
    /// Name of the VM, or host
    vm: String,
    /// VM: shares, reservation, limit, dynamic_min, dynamic_max; host: memory, policy
    #[arg(required = true, value_name = "KEY=VALUE")]
    changes: Vec<String>,
    #[command(flatten)]
    target: Target,
}

/// Flags of `tidemark reserve`.
#[derive(Debug, Args)]
pub struct ReserveArgs {
    /// How much, as in 64M
    size: String,
    /// As much up to this as can be promised
    #[arg(long, value_name = "SIZE")]
    max: Option<String>,
    /// End by itself after this time, as in 30s
    #[arg(long = "for", value_name = "TIME")]
    time: Option<String>,
    /// Print the lease as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

/// Flags of `tidemark stop`.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// Name of the VM
    vm: String,
    #[command(flatten)]
    target: Target,
}

/// Shows the VMs.
pub fn ps(args: &PsArgs) -> Result<ExitCode, Error> {
    let value = args.target.call(&Request::Ps)?;
    if args.json {
        print(&value.to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    let figures: Figures = serde_json::from_value(value).map_err(|error| {
        Error::Call(CallError::Refused(format!(
            "the host manager is of another version: {error}"
        )))
    })?;
    print(&table::lines(&figures).join("\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// Changes settings.
pub fn set(args: &SetArgs) -> Result<ExitCode, Error> {
    let mut changes = BTreeMap::new();
    for change in &args.changes {
        let (key, value) = change.split_once('=').ok_or_else(|| {
            Error::Usage(format!(
                "{change:?}: KEY=VALUE is expected, as in limit=64M"
            ))
        })?;
        if changes.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(Error::Usage(format!("{key} is set twice")));
        }
    }
    let vm = args.vm.clone();
    args.target.call(&Request::Set { vm, changes })?;
    Ok(ExitCode::SUCCESS)
}

/// Takes a lease and keeps it until it ends.
pub fn reserve(args: &ReserveArgs, out: &Out) -> Result<ExitCode, Error> {
    let path = folder::find(args.target.socket.as_deref())?;
    let request = Request::Reserve {
        size: args.size.clone(),
        max: args.max.clone(),
        time: args.time.clone(),
    };
    let taken = take_lease(&path, &request)?;
    let lease = &taken.lease;
    let id = lease["lease"].clone();
    if args.json {
        print(&lease.to_string())?;
    } else {
        let mib = |key: &str| table::mib_of(lease[key].as_u64().unwrap_or(0));
        print(&format!(
            "lease {id}: {} reserved, {} overhead; redeem it with `tidemark vm --lease {}`",
            mib("reservation_bytes"),
            mib("overhead_bytes"),
            lease["token"].as_str().unwrap_or_default()
        ))?;
    }
    let end = taken.wait()?;
    out.line(&match end["vm"].as_str() {
        Some(vm) => format!("tidemark: lease {id}: redeemed by {vm}"),
        None => format!("tidemark: lease {id}: expired"),
    });
    Ok(ExitCode::SUCCESS)
}

/// Ends a VM.
pub fn stop(args: &StopArgs) -> Result<ExitCode, Error> {
    let vm = args.vm.clone();
    args.target.call(&Request::Stop { vm })?;
    Ok(ExitCode::SUCCESS)
}
