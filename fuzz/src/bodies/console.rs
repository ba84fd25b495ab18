//! What a guest prints, what a person types, and what any text becomes for a terminal.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tidemark::devices::bus::BusDevice;
use tidemark::devices::console::{Console, LINE_BYTES_MAX};
use tidemark::devices::idle::IdlePort;
use tidemark::devices::interrupt::NoInterrupt;
use tidemark::devices::serial::{ConsoleSink, Serial, WAITING_BYTES_MAX};
use tidemark::out::printable;

use super::input::Input;

const PREFIX: &str = "vm| ";
const STEPS_MAX: usize = 256;

#[derive(Clone, Default)]
struct Page(Arc<Mutex<Vec<u8>>>);

impl Page {
    fn text(&self) -> Vec<u8> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl io::Write for Page {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut page = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        page.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether a line reached the page.
pub fn body(data: &[u8]) -> bool {
    check_printable(&String::from_utf8_lossy(data));
    let lines = check_lines(data);
    check_serial(data);
    lines
}

/// Nothing in what is shown steers a terminal; what is shown already stays as it is.
fn check_printable(text: &str) {
    let shown = printable(text);
    let steers = |c: char| {
        c != '\t' && c.is_control()
            || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    assert!(!shown.contains(steers), "{shown:?}");
    assert_eq!(printable(&shown), shown);
    let plain = |c: &char| !steers(*c);
    assert!(text.chars().filter(plain).count() <= shown.chars().count());
}

/// However the bytes are cut, the lines are the same, each of them safe.
fn check_lines(data: &[u8]) -> bool {
    let (whole, parts, raw) = (Page::default(), Page::default(), Page::default());
    let console = Console::new(PREFIX, Box::new(whole.clone()));
    console.write(data);
    console.flush();
    let cut = Console::new(PREFIX, Box::new(parts.clone()));
    let untouched = Console::raw(Box::new(raw.clone()));
    let mut rest = data;
    while let Some(first) = rest.first() {
        let (now, later) = rest.split_at(rest.len().min(1 + usize::from(first % 13)));
        cut.write(now);
        untouched.write(now);
        rest = later;
    }
    cut.flush();
    untouched.flush();
    let text = whole.text();
    assert_eq!(text, parts.text());
    assert_eq!(raw.text(), data);
    assert_eq!(console.report(), cut.report());
    assert_eq!(console.report(), untouched.report());
    assert_eq!(console.first_byte().is_some(), !data.is_empty());
    assert!(text.is_empty() || text.ends_with(b"\n"));
    for line in text
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
    {
        let shown = line.strip_prefix(PREFIX.as_bytes()).expect("a forged line");
        assert!(
            shown.len() <= 4 * LINE_BYTES_MAX,
            "a line of {}",
            shown.len()
        );
        let safe = |byte: &u8| *byte == b'\t' || (b' '..=b'~').contains(byte);
        assert!(shown.iter().all(safe), "{shown:?}");
    }
    !text.is_empty()
}

/// Any access to the port's registers while somebody types.
fn check_serial(data: &[u8]) {
    let mut input = Input::new(data);
    let page = Page::default();
    let console = Arc::new(Console::raw(Box::new(page.clone())));
    let (line, idle) = (Arc::new(NoInterrupt), Arc::new(IdlePort::default()));
    let serial = Serial::new(line, idle, console);
    let (mut typed, mut steps) = (0, 0);
    while !input.is_empty() && steps < STEPS_MAX {
        steps += 1;
        let offset = match input.u8() {
            other @ 0xf8.. => u64::from(other) << 32,
            known => u64::from(known) % 8,
        };
        let length = input.pick(&[1, 1, 1, 2, 4, 8]);
        match input.below(4) {
            0 => serial.read(offset, &mut vec![0; length]),
            1 => {
                let bytes = input.bytes(length);
                typed += serial.input(bytes);
            }
            2 => typed += serial.input(&vec![b'x'; WAITING_BYTES_MAX / 4]),
            _ => serial.write(offset, input.bytes(length)),
        }
    }
    assert!(typed <= STEPS_MAX * WAITING_BYTES_MAX);
}
