//! What happened in a round, with its times: printed when the round fails.

use std::fmt::Write as _;
use std::time::Instant;

/// The log of a round.
pub struct Diary {
    /// What repeats the round.
    title: String,
    start: Instant,
    lines: String,
}

impl Diary {
    /// An empty one.
    pub fn new(title: String) -> Diary {
        Diary {
            title,
            start: Instant::now(),
            lines: String::new(),
        }
    }

    /// The round begins now: times count from here.
    pub fn begin(&mut self) {
        self.start = Instant::now();
        self.lines.push_str("-------- the script begins\n");
    }

    /// Adds a line.
    pub fn note(&mut self, text: &str) {
        let at = self.start.elapsed().as_secs_f64();
        writeln!(self.lines, "{at:8.2} {text}").expect("a String grows");
    }

    /// A failure with everything that led to it.
    pub fn failure(&self, what: &str) -> String {
        let at = self.start.elapsed().as_secs_f64();
        format!("{}: {what}\n{}{at:8.2} failed", self.title, self.lines)
    }
}
