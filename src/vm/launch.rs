//! What stands before anything of the guest is read, and the last steps before its first instruction.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::Error;
use super::active::{Account, Threads};
use super::terminal::{Keys, Terminal};
use crate::machine::Machine;
use crate::machine::gate::Hold;
use crate::machine::seats::Seats;
use crate::out::Out;
use crate::threads::{MAIN, sandbox};

/// What waits for the machine in a process that can open and start nothing any more.
pub(super) struct Launch {
    seats: Seats,
    accounts: Vec<Account>,
    keys: Option<Keys>,
}

impl Launch {
    /// Starts the threads that the guest will need, opens what only they have, and then closes the way
    /// back for the whole process. A byte is written to `asks` when the person at the terminal, if
    /// there is one, wants the VM to stop.
    ///
    /// # Errors
    /// When there can be no threads, or no sandbox.
    pub fn prepare(
        cpus: u8,
        terminal: Option<(&Terminal, &Out)>,
        threads: &Threads,
        asks: &UnixStream,
    ) -> Result<Launch, Error> {
        let keys = terminal.map(|(terminal, out)| terminal.keys(asks.try_clone()?, out.clone()));
        let keys = keys.transpose().map_err(unusable)?;
        let seats = Seats::new(cpus)?;
        // They exist once the threads do.
        let accounts = threads.accounts(cpus);
        sandbox::enter(&MAIN)?;
        Ok(Launch {
            seats,
            accounts,
            keys,
        })
    }

    /// Connects the guest's serial port to the terminal, if that is its console, and lets the guest run.
    ///
    /// # Errors
    /// When the terminal does not let itself be used.
    pub fn start(self, mut machine: Machine) -> Result<(Machine, Vec<Account>), Error> {
        if let Some(keys) = self.keys {
            let connected = keys.connect(Arc::clone(machine.serial()));
            connected.map_err(unusable)?;
        }
        machine.gate().close(Hold::Paused);
        machine.start_on(self.seats);
        machine.gate().open(Hold::Paused);
        Ok((machine, self.accounts))
    }
}

fn unusable(source: io::Error) -> Error {
    Error::Terminal { source }
}
