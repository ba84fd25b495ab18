//! A key that is on or off.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Visitor};

/// `true` or `false` in a file, `on` or `off` as a flag; either is understood in both. What is
/// neither is kept for the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Switch {
    /// `true`, `"true"` or `"on"`.
    On,
    /// `false`, `"false"` or `"off"`.
    Off,
    /// Anything else.
    Neither(String),
}

impl From<&str> for Switch {
    fn from(text: &str) -> Switch {
        match text {
            "on" | "true" => Switch::On,
            "off" | "false" => Switch::Off,
            text => Switch::Neither(text.to_owned()),
        }
    }
}

impl<'de> Deserialize<'de> for Switch {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Switch, D::Error> {
        struct OnOrOff;
        impl Visitor<'_> for OnOrOff {
            type Value = Switch;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true or false")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Switch, E> {
                Ok(Switch::from(text))
            }
            fn visit_bool<E: de::Error>(self, on: bool) -> Result<Switch, E> {
                Ok(match on {
                    true => Switch::On,
                    false => Switch::Off,
                })
            }
        }
        deserializer.deserialize_any(OnOrOff)
    }
}
