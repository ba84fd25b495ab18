//! Sizes (`512M`, `512MiB`, `2G`, bytes) and durations (`500ms`, `30s`, `5m`) as texts.

use std::time::Duration;

use crate::units::{PAGE_SIZE, Pages};

/// What a size may look like, for messages.
const SIZE_FORMS: &str = "512M, 512MiB, 2G or a number of bytes";
/// What a duration may look like, for messages.
const DURATION_FORMS: &str = "500ms, 30s, 5m or 2h";

/// A text is not a size, or not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not a number with a unit of bytes, or too large for 64 bits.
    #[error("not a valid size, e.g. {SIZE_FORMS}")]
    NoSize,
    /// Not a whole number of pages.
    #[error("must be whole 4 KiB pages, a multiple of 4096 bytes")]
    NotPages,
    /// Not a number with a unit of time.
    #[error("not a valid duration, e.g. {DURATION_FORMS}")]
    NoDuration,
}

/// Parses a size; units are powers of 1024, in any letter case.
///
/// # Errors
/// When the text is no size, does not fit 64 bits, or is no whole number of pages. Usable as a
/// clap `value_parser`.
pub fn parse_size(text: &str) -> Result<Pages, SizeError> {
    let (number, unit) = split_unit(text).ok_or(SizeError::NoSize)?;
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(SizeError::NoSize),
    };
    let bytes = number.checked_mul(1 << shift).ok_or(SizeError::NoSize)?;
    if bytes.is_multiple_of(PAGE_SIZE as u64) {
        Ok(Pages::in_bytes(bytes))
    } else {
        Err(SizeError::NotPages)
    }
}

/// Parses a duration. A number without a unit is refused: it could mean anything.
///
/// # Errors
/// When the text is no duration. Usable as a clap `value_parser`.
pub fn parse_duration(text: &str) -> Result<Duration, SizeError> {
    let (number, unit) = split_unit(text).ok_or(SizeError::NoDuration)?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(SizeError::NoDuration),
    };
    number
        .checked_mul(milliseconds)
        .map(Duration::from_millis)
        .ok_or(SizeError::NoDuration)
}

/// Leading decimal digits and the rest, blanks between them removed.
fn split_unit(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    Some((digits.parse().ok()?, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for text in ["512M", "512MiB", "512m", "512 MB", "524288K", "536870912"] {
            assert_eq!(parse_size(text), Ok(Pages::mib(512)), "{text}");
        }
        assert_eq!(parse_size("2G"), Ok(Pages::mib(2048)));
        assert_eq!(parse_size("0"), Ok(Pages::ZERO));
        for text in [
            "",
            "M",
            "-1M",
            "1.5G",
            "12X",
            "99999999999T",
            "0x1000",
            "1M2",
        ] {
            assert_eq!(parse_size(text), Err(SizeError::NoSize), "{text}");
        }
        assert_eq!(parse_size("4097"), Err(SizeError::NotPages));
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_duration("5m"), Ok(Duration::from_secs(300)));
        for text in ["", "s", "30", "-1s", "1.5s", "5d", "99999999999999999999s"] {
            assert_eq!(parse_duration(text), Err(SizeError::NoDuration), "{text}");
        }
    }
}
