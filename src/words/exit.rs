//! How a VM ended.

use serde::{Deserialize, Serialize};

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Why.
    pub reason: ExitReason,
    /// The guest's code for [`ExitReason::GuestExit`], else zero.
    pub code: u32,
    /// One line for people when `reason` is `Error`.
    pub message: Option<String>,
}

impl Exit {
    /// An end without code or message.
    pub fn plain(reason: ExitReason) -> Exit {
        Exit {
            reason,
            code: 0,
            message: None,
        }
    }

    /// An end that needs words.
    pub fn error(message: String) -> Exit {
        Exit {
            message: Some(message),
            ..Exit::plain(ExitReason::Error)
        }
    }
}

/// The ways a VM can end; the names of the JSON contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitReason {
    /// The guest wrote a code to port 0xf4.
    GuestExit,
    /// The guest powered off.
    Shutdown,
    /// The guest asked for a reset.
    Reset,
    /// `--for`, a signal, or `tidemark stop`.
    Stopped,
    /// The VM process died without a word.
    Killed,
    /// The VM process could not go on.
    Error,
}
