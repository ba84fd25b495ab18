//! The guest's console and where its text goes.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use super::error::{Error, os};
use super::terminal::Terminal;
use crate::config::VmSpec;
use crate::devices::console::Console;
use crate::out::Out;
use crate::threads::CONSOLE;

/// The file of `spec` where the guest's text goes, if it names one.
///
/// # Errors
/// When it cannot be made.
pub(super) fn open(spec: &VmSpec) -> Result<Option<File>, Error> {
    let create = |path: &PathBuf| {
        File::create(path).map_err(|source| Error::Open {
            path: path.display().to_string(),
            source,
        })
    };
    spec.console.as_ref().map(create).transpose()
}

/// The guest's console, which writes to the [`Out`]: `terminal`, else `file`, else standard output. No
/// vCPU waits for that place.
///
/// # Errors
/// When the thread that writes to it cannot be started.
pub(super) fn start(
    file: Option<File>,
    terminal: Option<&Terminal>,
) -> Result<(Console, Out), Error> {
    let complain = |errno| log::warn!("console output is lost: {errno}");
    let started = match (terminal, file) {
        (Some(terminal), _) => terminal.out(),
        (None, None) => Out::start(&CONSOLE, io::stdout(), complain),
        (None, Some(file)) => Out::start(&CONSOLE, file, complain),
    };
    let out = started.map_err(os("start a thread"))?;
    let console = match terminal {
        Some(_) => Console::raw(Box::new(out.clone())),
        None => Console::new("", Box::new(out.clone())),
    };
    Ok((console, out))
}
