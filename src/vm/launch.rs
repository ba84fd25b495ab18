//! The last steps before a guest's first instruction.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::Error;
use super::active::{self, Account};
use super::terminal::Terminal;
use crate::machine::Machine;
use crate::machine::gate::Hold;
use crate::out::Out;
use crate::threads::sandbox;

/// Connects the guest's serial port to the terminal, if that is its console; a byte is written to
/// `asks` when the person there wants the VM to stop.
///
/// # Errors
/// When the terminal does not let itself be used.
pub(super) fn connect(
    terminal: Option<(&Terminal, &Out)>,
    machine: &Machine,
    asks: &UnixStream,
) -> Result<(), Error> {
    let Some((terminal, out)) = terminal else {
        return Ok(());
    };
    let leave = asks.try_clone();
    leave
        .and_then(|leave| terminal.connect(Arc::clone(machine.serial()), leave, out.clone()))
        .map_err(|source| Error::Terminal { source })
}

/// Closes the way back, then lets the guest run. The last files to be opened are the accounts of its
/// `cpus` vCPUs, which exist once their threads do.
///
/// # Errors
/// When there can be no threads, or no sandbox.
pub(super) fn start(mut machine: Machine, cpus: u8) -> Result<(Machine, Vec<Account>), Error> {
    machine.gate().close(Hold::Paused);
    machine.start()?;
    let accounts = active::accounts(cpus);
    sandbox::enter()?;
    machine.gate().open(Hold::Paused);
    Ok((machine, accounts))
}
