//! The command line: `key=value` options of a behaviour, and virtio-mmio devices as Linux has them.

use core::fmt;

/// Keys that a VMM or a person may give to any kernel; ignored here, as is anything that starts
/// with [`IGNORED_PREFIX`].
const IGNORED: &[&str] = &[
    "console",
    "earlyprintk",
    "panic",
    "pci",
    "quiet",
    "reboot",
    "root",
];
const IGNORED_PREFIX: &str = "tidemark.";
const DEVICE: &str = "virtio_mmio.device";

/// The options of one guest, checked against the keys it knows.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    line: &'a str,
}

/// What is wrong with a command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionError<'a> {
    /// The behaviour has no option of this name.
    Unknown(&'a str),
    /// The value is no number of the wanted sort or out of range.
    Invalid {
        /// Name of the option.
        key: &'a str,
        /// The value given.
        value: &'a str,
        /// What would be right.
        wanted: &'static str,
    },
}

impl fmt::Display for OptionError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(key) => write!(f, "unknown option {key}"),
            Self::Invalid { key, value, wanted } => {
                write!(f, "option {key}={value}: wanted {wanted}")
            }
        }
    }
}

/// Part of memory: as a share or as an amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// Percent of the guest's memory.
    Percent(u32),
    /// Bytes.
    Bytes(u64),
}

impl Amount {
    /// Pages of 4 KiB, given the pages that are 100 percent.
    #[must_use]
    pub fn pages(self, all: u32) -> u32 {
        let pages = match self {
            Self::Percent(percent) => u64::from(all) * u64::from(percent) / 100,
            Self::Bytes(bytes) => bytes / 4096,
        };
        u32::try_from(pages).unwrap_or(u32::MAX).min(all)
    }
}

impl<'a> Options<'a> {
    /// Checks that every option is one of `keys` or one that concerns the machine.
    ///
    /// **Errors**: the first unknown option.
    pub fn parse(line: &'a str, keys: &[&[&str]]) -> Result<Self, OptionError<'a>> {
        for token in line.split_ascii_whitespace() {
            let key = token.split_once('=').map_or(token, |(key, _)| key);
            let known = keys.iter().any(|list| list.contains(&key))
                || IGNORED.contains(&key)
                || key == DEVICE
                || key.starts_with(IGNORED_PREFIX);
            if !known {
                return Err(OptionError::Unknown(key));
            }
        }
        Ok(Self { line })
    }

    /// The last value given for `key`; an option without `=` has the value `1`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&'a str> {
        self.line
            .split_ascii_whitespace()
            .map(|token| token.split_once('=').unwrap_or((token, "1")))
            .filter(|(name, _)| *name == key)
            .map(|(_, value)| value)
            .next_back()
    }

    /// A whole number of at most `max`.
    pub fn number(&self, key: &'a str, default: u64, max: u64) -> Result<u64, OptionError<'a>> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => {
                parse_number(value)
                    .filter(|number| *number <= max)
                    .ok_or(OptionError::Invalid {
                        key,
                        value,
                        wanted: "a whole number within its range",
                    })
            }
        }
    }

    /// A percentage, 0 to 100.
    pub fn percent(&self, key: &'a str, default: u32) -> Result<u32, OptionError<'a>> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => parse_percent(value).ok_or(OptionError::Invalid {
                key,
                value,
                wanted: "0 to 100",
            }),
        }
    }

    /// `64M` or a percentage (`50` or `50%`).
    pub fn amount(&self, key: &'a str, default: Amount) -> Result<Amount, OptionError<'a>> {
        let Some(value) = self.get(key) else {
            return Ok(default);
        };
        if let Some(percent) = parse_percent(value) {
            return Ok(Amount::Percent(percent));
        }
        parse_size(value)
            .map(Amount::Bytes)
            .ok_or(OptionError::Invalid {
                key,
                value,
                wanted: "a percentage or a size such as 64M",
            })
    }

    /// Base addresses of the virtio-mmio devices, in the order given.
    pub fn devices(&self) -> impl Iterator<Item = u64> + use<'a> {
        self.line.split_ascii_whitespace().filter_map(|token| {
            let (key, value) = token.split_once('=')?;
            if key != DEVICE {
                return None;
            }
            let (_size, rest) = value.split_once('@')?;
            parse_number(rest.split(':').next()?)
        })
    }
}

fn parse_percent(value: &str) -> Option<u32> {
    let digits = value.strip_suffix('%').unwrap_or(value);
    digits.parse().ok().filter(|percent| *percent <= 100)
}

/// A size of at least a page, with one of the suffixes K, M, G (with or without `iB`) or in bytes.
fn parse_size(value: &str) -> Option<u64> {
    let value = value.strip_suffix("iB").unwrap_or(value);
    let (digits, shift) = match value.as_bytes().last()? {
        b'K' | b'k' => (&value[..value.len() - 1], 10),
        b'M' | b'm' => (&value[..value.len() - 1], 20),
        b'G' | b'g' => (&value[..value.len() - 1], 30),
        _ => (value, 0),
    };
    let bytes = digits.parse::<u64>().ok()?.checked_mul(1 << shift)?;
    // Less than a page is rather a percentage that is too high.
    (bytes >= 4096).then_some(bytes)
}

fn parse_number(value: &str) -> Option<u64> {
    match value.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => value.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: &[&[&str]] = &[&["fill", "seed"], &["set", "write"]];

    fn options(line: &str) -> Options<'_> {
        Options::parse(line, KEYS).expect("valid")
    }

    #[test]
    fn the_last_value_counts() {
        let options = options("fill=10 seed=0x10  fill=20 write");
        assert_eq!(options.percent("fill", 1), Ok(20));
        assert_eq!(options.number("seed", 1, u64::MAX), Ok(16));
        assert_eq!(options.number("write", 0, 1), Ok(1));
        assert_eq!(options.get("set"), None);
    }

    #[test]
    fn unknown_options_are_named_and_machine_options_are_not() {
        let known = "console=ttyS0 reboot=t quiet virtio_mmio.device=4K@0xd0000000:5 tidemark.x=1";
        assert!(Options::parse(known, KEYS).is_ok());
        assert_eq!(
            Options::parse("fill=1 fil=2", KEYS).map(|_| ()),
            Err(OptionError::Unknown("fil"))
        );
    }

    #[test]
    fn values_out_of_range_are_refused() {
        assert!(options("fill=101").percent("fill", 0).is_err());
        assert!(options("fill=-1").percent("fill", 0).is_err());
        assert!(options("seed=").number("seed", 0, 9).is_err());
        assert!(options("seed=10").number("seed", 0, 9).is_err());
        assert!(
            options("set=64X")
                .amount("set", Amount::Percent(1))
                .is_err()
        );
        assert!(
            options("set=99999999999G")
                .amount("set", Amount::Percent(1))
                .is_err()
        );
    }

    #[test]
    fn amounts_become_pages() {
        let amount = |line| {
            options(line)
                .amount("set", Amount::Percent(25))
                .expect("valid")
        };
        assert_eq!(amount("").pages(1000), 250);
        assert_eq!(amount("set=50%").pages(1000), 500);
        assert_eq!(amount("set=1M").pages(1000), 256);
        assert_eq!(amount("set=64KiB").pages(1000), 16);
        assert_eq!(amount("set=1G").pages(1000), 1000);
    }

    #[test]
    fn devices_are_found_in_both_dialects() {
        let line = "virtio_mmio.device=512@0xfeb00000:5 fill=1 virtio_mmio.device=4K@0xd0000000:5:0 \
                    virtio_mmio.device=bad";
        assert_eq!(
            options(line).devices().collect::<Vec<_>>(),
            [0xfeb0_0000, 0xd000_0000]
        );
    }
}
