//! What a user wrote, kept until its meaning is known and for the message if it has none.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Visitor};

use crate::units::Pages;

/// A value of a fleet file, a scenario, a flag or `tidemark set`, as it was written: sizes and
/// weights may be texts or numbers. Displays as in a TOML file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// Quoted in a file; every flag.
    Text(String),
    /// A number of a file.
    Number(i64),
}

impl Written {
    /// The bare text, to be parsed.
    pub fn text(&self) -> String {
        match self {
            Written::Text(text) => text.clone(),
            Written::Number(number) => number.to_string(),
        }
    }
}

impl From<&str> for Written {
    fn from(text: &str) -> Written {
        Written::Text(text.to_owned())
    }
}

impl From<Pages> for Written {
    /// In bytes.
    fn from(pages: Pages) -> Written {
        Written::Number(i64::try_from(pages.bytes()).unwrap_or(i64::MAX))
    }
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Written::Text(text) => write!(f, "{text:?}"),
            Written::Number(number) => write!(f, "{number}"),
        }
    }
}

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Written, D::Error> {
        struct TextOrNumber;
        impl Visitor<'_> for TextOrNumber {
            type Value = Written;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a whole number")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Written, E> {
                Ok(Written::from(text))
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Written, E> {
                Ok(Written::Number(number))
            }
        }
        deserializer.deserialize_any(TextOrNumber)
    }
}
