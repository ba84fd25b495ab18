//! Text of others, for a terminal.

use std::fmt::Write;

/// `text` as one line that moves no cursor and asks the terminal for nothing: control characters,
/// and those that change the direction of what follows, are shown as `\xNN` or `\u{NNNN}`.
pub fn printable(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        let code = u32::from(c);
        // To write to a `String` does not fail.
        let _ = match c {
            '\t' => line.write_char(c),
            '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                write!(line, "\\u{{{code:04x}}}")
            }
            _ if c.is_control() => write!(line, "\\x{code:02x}"),
            _ => line.write_char(c),
        };
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_steers_the_terminal() {
        let hostile = "a\x1b]0;title\x07\r\nb\u{9b}31m\x7f\u{202e}c\td\u{e9}";
        let shown = "a\\x1b]0;title\\x07\\x0d\\x0ab\\x9b31m\\x7f\\u{202e}c\td\u{e9}";
        assert_eq!(printable(hostile), shown);
        assert_eq!(printable(shown), shown);
    }
}
