//! Standard error of a run: the VMs' lines, and a live table that is redrawn in place.

use std::io::{self, IsTerminal, Write};

use super::child::Stdout;
use crate::cli::table;
use crate::host::accounts::Figures;

/// What is on the screen.
pub struct Screen {
    kind: Kind,
    /// Lines of the table that stand above the cursor.
    drawn: usize,
    table: Vec<String>,
}

#[derive(PartialEq, Eq)]
enum Kind {
    /// A table in place.
    Table,
    /// A line a second.
    Lines,
    /// Only what the VMs say.
    Quiet,
}

impl Screen {
    /// A table on a terminal; without one a line a second, or none when the result is JSON. No
    /// figures beside a VM that has the terminal.
    pub fn new(console: Stdout, json: bool) -> Screen {
        let kind = match (console, io::stderr().is_terminal(), json) {
            (Stdout::Terminal, ..) => Kind::Quiet,
            (Stdout::Lines, true, _) => Kind::Table,
            (Stdout::Lines, false, false) => Kind::Lines,
            (Stdout::Lines, false, true) => Kind::Quiet,
        };
        Screen {
            kind,
            drawn: 0,
            table: Vec::new(),
        }
    }

    /// Shows the figures.
    pub fn draw(&mut self, figures: &Figures) {
        match self.kind {
            Kind::Quiet => {}
            Kind::Lines => write_all(&format!("tidemark: {}\n", table::host_line(&figures.host))),
            Kind::Table => {
                let width = rustix::termios::tcgetwinsize(io::stderr())
                    .map_or(80, |size| usize::from(size.ws_col).max(20));
                let cut = |line: String| line.chars().take(width - 1).collect();
                self.table = table::lines(figures).into_iter().map(cut).collect();
                let text = self.erasure() + &self.drawing();
                write_all(&text);
            }
        }
    }

    /// Shows a line above the table.
    pub fn line(&mut self, line: &str) {
        let text = format!("{}{line}\n{}", self.erasure(), self.drawing());
        write_all(&text);
    }

    /// Takes the table away.
    pub fn clear(&mut self) {
        let text = self.erasure();
        self.table.clear();
        write_all(&text);
    }

    fn erasure(&mut self) -> String {
        match std::mem::take(&mut self.drawn) {
            0 => String::new(),
            lines => format!("\x1b[{lines}A\x1b[J"),
        }
    }

    fn drawing(&mut self) -> String {
        self.drawn = self.table.len();
        self.table.iter().map(|line| format!("{line}\n")).collect()
    }
}

/// One write, so that nothing of other processes comes between. A terminal that is gone is no
/// reason to end the fleet.
fn write_all(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}
