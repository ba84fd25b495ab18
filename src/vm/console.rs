//! The guest's console and where its text goes.

use std::fs::File;
use std::io;

use super::error::{Error, os};
use super::terminal::Terminal;
use crate::config::VmSpec;
use crate::devices::console::Console;
use crate::out::Out;
use crate::threads::CONSOLE;

/// The guest's console, which writes to the [`Out`]: the file of `spec`, else `terminal`, else
/// standard output. No vCPU waits for that place.
///
/// # Errors
/// When the file cannot be made, or the thread that writes to it cannot be started.
pub(super) fn open(spec: &VmSpec, terminal: Option<&Terminal>) -> Result<(Console, Out), Error> {
    let complain = |errno| log::warn!("console output is lost: {errno}");
    let started = match (terminal, &spec.console) {
        (Some(terminal), _) => terminal.out(),
        (None, None) => Out::start(&CONSOLE, io::stdout(), complain),
        (None, Some(path)) => {
            let file = File::create(path).map_err(|source| Error::Open {
                path: path.display().to_string(),
                source,
            })?;
            Out::start(&CONSOLE, file, complain)
        }
    };
    let out = started.map_err(os("start a thread"))?;
    let console = match terminal {
        Some(_) => Console::raw(Box::new(out.clone())),
        None => Console::new("", Box::new(out.clone())),
    };
    Ok((console, out))
}
