//! The guest's console: bytes in, safe lines out, and the test guests' figures taken out of it.
//!
//! A guest may write anything. What reaches the host's terminal or log is printable ASCII and tabs;
//! every other byte is shown as `\xNN`, so that a guest cannot move the cursor, set a title or forge
//! another guest's lines. Lines are cut at [`LINE_BYTES_MAX`]. Only a [raw](Console::raw) console, which
//! a person asked for by standing at a terminal, passes everything on.
//!
//! Known gap: the amount of text is not limited; a guest can fill the log it was given.

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

use tidemark_guest_protocol::{KEY_CORRUPT, KEY_VERIFIED, REPORT_PREFIX};

use super::LOG_INTERVAL;
use super::serial::ConsoleSink;
use crate::out::rate_limit::RateLimit;
use crate::words::GuestReport;

/// Longest line in bytes of guest text; longer ones are cut into several (chosen: four terminal
/// widths and more than any kernel message).
pub const LINE_BYTES_MAX: usize = 1024;

/// Figures that a built-in test guest printed. Read without a lock by the reporter.
#[derive(Debug, Default)]
struct Figures {
    seen: AtomicBool,
    verified: AtomicU64,
    corrupt: AtomicU64,
}

struct Output {
    /// The line so far, as the guest sent it.
    line: Vec<u8>,
    writer: Box<dyn Write + Send>,
    /// Whether the guest's bytes go out as they are, and not as lines.
    raw: bool,
    failures: RateLimit,
}

impl Output {
    fn put(&mut self, bytes: &[u8]) {
        let written = self.writer.write_all(bytes);
        if let Err(error) = written.and_then(|()| self.writer.flush())
            && let Some(suppressed) = self.failures.allow(Instant::now())
        {
            log::warn!("console output lost ({suppressed} more before): {error}");
        }
    }
}

/// Splits a guest's output into lines.
pub struct Console {
    prefix: String,
    output: Mutex<Output>,
    figures: Figures,
    first_byte: OnceLock<Instant>,
}

impl Console {
    /// A console that writes each line, after `prefix`, with one call to `writer`.
    pub fn new(prefix: &str, writer: Box<dyn Write + Send>) -> Console {
        Console::with(prefix, writer, false)
    }

    /// A console that passes every byte on at once and as it is: for a person at a terminal, who
    /// needs prompts and cursor movements, and trusts the guest with that terminal.
    pub fn raw(writer: Box<dyn Write + Send>) -> Console {
        Console::with("", writer, true)
    }

    fn with(prefix: &str, writer: Box<dyn Write + Send>, raw: bool) -> Console {
        Console {
            prefix: prefix.to_string(),
            output: Mutex::new(Output {
                line: Vec::new(),
                writer,
                raw,
                failures: RateLimit::new(1, LOG_INTERVAL),
            }),
            figures: Figures::default(),
            first_byte: OnceLock::new(),
        }
    }

    /// When the guest wrote its first byte.
    pub fn first_byte(&self) -> Option<Instant> {
        self.first_byte.get().copied()
    }

    /// What a test guest last reported; `None` until it did.
    pub fn report(&self) -> Option<GuestReport> {
        self.figures
            .seen
            .load(Ordering::Acquire)
            .then(|| GuestReport {
                pages_verified: self.figures.verified.load(Ordering::Relaxed),
                pages_corrupt: self.figures.corrupt.load(Ordering::Relaxed),
            })
    }

    /// Writes out an unfinished line: at the end, or when a prompt should become visible.
    pub fn flush(&self) {
        let mut output = self.lock();
        if !output.line.is_empty() {
            self.finish(&mut output);
        }
    }

    fn finish(&self, output: &mut Output) {
        let line = std::mem::take(&mut output.line);
        if self.take_report(&line) || output.raw {
            // The buffer's memory is kept for the next line.
            output.line = line;
            output.line.clear();
            return;
        }
        let mut text = Vec::with_capacity(self.prefix.len() + line.len() + 1);
        text.extend_from_slice(self.prefix.as_bytes());
        sanitize(&line, &mut text);
        text.push(b'\n');
        output.put(&text);
        output.line = line;
        output.line.clear();
    }

    /// Whether `line` was a report line.
    fn take_report(&self, line: &[u8]) -> bool {
        let Some(items) = line.strip_prefix(REPORT_PREFIX.as_bytes()) else {
            return false;
        };
        // A line is at most LINE_BYTES_MAX long, which bounds this loop.
        for item in items.split(|byte| *byte == b' ') {
            let Some((key, value)) = parse_item(item) else {
                continue;
            };
            let figure = if key == KEY_VERIFIED.as_bytes() {
                &self.figures.verified
            } else if key == KEY_CORRUPT.as_bytes() {
                &self.figures.corrupt
            } else {
                continue;
            };
            figure.store(value, Ordering::Relaxed);
            self.figures.seen.store(true, Ordering::Release);
        }
        true
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConsoleSink for Console {
    fn write(&self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.first_byte.get_or_init(Instant::now);
        let mut output = self.lock();
        if output.raw {
            output.put(bytes);
        }
        for byte in bytes {
            match byte {
                b'\n' => self.finish(&mut output),
                b'\r' => {}
                _ => output.line.push(*byte),
            }
            if output.line.len() >= LINE_BYTES_MAX {
                self.finish(&mut output);
            }
        }
    }
}

fn parse_item(item: &[u8]) -> Option<(&[u8], u64)> {
    let equals = item.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (&item[..equals], &item[equals + 1..]);
    // Digits only: u64's parser would also take a sign.
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some((key, std::str::from_utf8(value).ok()?.parse().ok()?))
}

fn sanitize(line: &[u8], text: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    for byte in line {
        match byte {
            b'\t' | 0x20..=0x7e => text.push(*byte),
            _ => text.extend_from_slice(&[
                b'\\',
                b'x',
                HEX[usize::from(byte >> 4)],
                HEX[usize::from(byte & 15)],
            ]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);
    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn console() -> (Console, Shared) {
        let shared = Shared::default();
        (Console::new("vm| ", Box::new(shared.clone())), shared)
    }

    fn text(shared: &Shared) -> String {
        String::from_utf8(shared.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn hostile_bytes_never_reach_the_terminal() {
        let (console, shared) = console();
        console.write(b"\x1b]0;title\x07 ok\t\xc2\x9b\r\nforged\rline\n");
        assert_eq!(
            text(&shared),
            "vm| \\x1b]0;title\\x07 ok\t\\xc2\\x9b\nvm| forgedline\n"
        );
    }

    #[test]
    fn long_lines_are_cut_and_partial_ones_flushed() {
        let (console, shared) = console();
        console.write(&vec![b'a'; LINE_BYTES_MAX + 3]);
        assert_eq!(text(&shared).len(), 4 + LINE_BYTES_MAX + 1);
        console.flush();
        console.flush();
        assert!(text(&shared).ends_with("\nvm| aaa\n"));
    }

    #[test]
    fn a_raw_console_passes_everything_on_and_still_reads_reports() {
        let shared = Shared::default();
        let console = Console::raw(Box::new(shared.clone()));
        console.write(b"login: ");
        assert_eq!(text(&shared), "login: ");
        console.write(b"\x1b[1m\r\ntidemark: pages_verified=1\nrest");
        console.flush();
        let all = "login: \x1b[1m\r\ntidemark: pages_verified=1\nrest";
        assert_eq!(text(&shared), all);
        assert_eq!(
            console.report().map(|report| report.pages_verified),
            Some(1)
        );
    }

    #[test]
    fn report_lines_become_figures() {
        let (console, shared) = console();
        assert_eq!(console.report(), None);
        assert_eq!(console.first_byte(), None);
        console.write(b"tidemark: pages_verified=12 pages_corrupt=0\n");
        console.write(b"tidemark: pages_verified=13 later=1 pages_corrupt=-1 x pages_corrupt=\n");
        console.write(b"tidemark: pages_corrupt=99999999999999999999\n");
        assert_eq!(text(&shared), "");
        assert_eq!(
            console.report(),
            Some(GuestReport {
                pages_verified: 13,
                pages_corrupt: 0
            })
        );
        assert!(console.first_byte().is_some());
    }

    #[test]
    fn a_prefix_inside_a_line_is_text() {
        let (console, shared) = console();
        console.write(b"x tidemark: pages_verified=12\n");
        assert_eq!(console.report(), None);
        assert_eq!(text(&shared), "vm| x tidemark: pages_verified=12\n");
    }
}
