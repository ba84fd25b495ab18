//! Standard output of commands that answer and end.

use std::io::{self, ErrorKind, Write};

use super::Error;

/// Writes an answer and a line's end. A reader who has gone, having seen enough (`| head`), is told
/// nothing more, and nothing is wrong.
///
/// # Errors
/// When the text cannot be written: its disk is full.
pub(super) fn print(text: &str) -> Result<(), Error> {
    written(print_to(io::stdout().lock(), text))
}

/// What a failed write to standard output means: see [`print`].
pub(super) fn written(result: io::Result<()>) -> Result<(), Error> {
    match result {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(super::io("write to standard output")),
    }
}

fn print_to(mut out: impl Write, text: &str) -> io::Result<()> {
    writeln!(out, "{text}")?;
    out.flush()
}
