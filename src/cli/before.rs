//! What is looked at before the first VM of a fleet starts: by `run`, and by `check FLEET`.

use super::{Error, check, io};
use crate::config::{FleetSpec, VmSpec};
use crate::threads::jail::Jail;
use crate::vm::files::Files;
use crate::vm::inspect::Inspector;

/// What a look has open. Whoever drops this value waits until the inspector has ended, and lets go of the
/// locks on disks.
#[derive(Debug)]
pub(super) struct Looked {
    _inspector: Option<Inspector>,
    _files: Vec<Files>,
}

/// Looks at what every VM boots from, at the room for what may be swapped, and at the host. `strict`: too
/// little room is a mistake, not a warning.
///
/// # Errors
/// The first mistake in the fleet, which is described at `origin`; else what the host lacks.
pub(super) fn look(
    spec: &FleetSpec,
    origin: &str,
    jail: Jail,
    strict: bool,
) -> Result<Looked, Error> {
    let inspector = Inspector::start(spec.vms.iter().map(|vm| &vm.boot), jail);
    let mut inspector = inspector.map_err(io("start a process"))?;
    // All are open at once, so that one disk under two names meets its own lock.
    let open = |vm: &VmSpec| Files::open(vm, origin);
    let files: Vec<Files> = spec.vms.iter().map(open).collect::<Result<_, _>>()?;
    // The inspector is about to be there. A mistake comes before what the host lacks.
    let host = check::require();
    if let Some(inspector) = &mut inspector {
        inspector.look(spec.vms.iter().zip(&files), origin)?;
    }
    if let Some(shortage) = spec.swap_shortage() {
        match strict {
            true => return Err(Error::Usage(shortage)),
            false => log::warn!("{shortage}"),
        }
    }
    host?;
    Ok(Looked {
        _inspector: inspector,
        _files: files,
    })
}
