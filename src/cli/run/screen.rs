//! Standard error of a run: the VMs' lines, and a live table that is redrawn in place.

use std::io::{self, IsTerminal};

use super::child::Stdout;
use crate::cli::table;
use crate::host::accounts::Figures;
use crate::out::{self, Out};

/// What is on the screen.
pub struct Screen {
    kind: Kind,
    out: Out,
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
    pub fn new(console: Stdout, json: bool, out: &Out) -> Screen {
        let kind = match (console, io::stderr().is_terminal(), json) {
            (Stdout::Terminal, ..) => Kind::Quiet,
            (Stdout::Lines, true, _) => Kind::Table,
            (Stdout::Lines, false, false) => Kind::Lines,
            (Stdout::Lines, false, true) => Kind::Quiet,
        };
        Screen {
            kind,
            out: out.clone(),
        }
    }

    /// Shows the figures.
    pub fn draw(&self, figures: &Figures) {
        match self.kind {
            Kind::Quiet => {}
            Kind::Lines => {
                let line = table::host_line(&figures.host);
                self.out.line(&format!("tidemark: {line}"));
            }
            Kind::Table => {
                let width = rustix::termios::tcgetwinsize(io::stderr())
                    .map_or(80, |size| usize::from(size.ws_col).max(20));
                let cut = |line: String| line.chars().take(width - 1).collect();
                let lines = table::lines(figures).into_iter();
                self.out.frame(lines.map(cut).collect());
            }
        }
    }

    /// Shows a line above the table.
    pub fn line(&self, line: &str) {
        self.out.line(line);
    }

    /// Takes the table away, and gives the lines before it a moment to be seen.
    pub fn clear(&self) {
        self.out.frame(Vec::new());
        // Standard output may be somewhere else: the result is shown in any case.
        let _ = self.out.finish(out::FINISH);
    }
}
