//! What the guests of a share group may find out of each other by the clock.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How the pages of a share group are shared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sharing {
    /// Equal pages get one frame; what nobody else has stays where it is. A guest that times its writes
    /// finds out which of its pages others have.
    #[default]
    Plain,
    /// Every page that is worth a look gets a frame, equal to another or not, so that all of them
    /// behave alike.
    Hardened,
}

impl Sharing {
    /// Each of them.
    pub const ALL: [Sharing; 2] = [Sharing::Plain, Sharing::Hardened];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Sharing::Plain => "plain",
            Sharing::Hardened => "hardened",
        }
    }

    /// The one of that name.
    pub fn named(name: &str) -> Option<Sharing> {
        Sharing::ALL
            .into_iter()
            .find(|sharing| sharing.name() == name)
    }

    /// Whether it is [`Sharing::Hardened`].
    pub fn is_hardened(self) -> bool {
        self == Sharing::Hardened
    }
}

impl fmt::Display for Sharing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
