//! The TOML shape of a fleet file.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::args::VmArgs;
use super::beside::Beside;
use super::error::ConfigError;
use crate::words::Written;

/// A whole fleet file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FleetFile {
    #[serde(default)]
    pub(super) host: HostTable,
    #[serde(default)]
    pub(super) vm: Vec<Beside<VmArgs>>,
}

/// The `[host]` table.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HostTable {
    pub(super) memory: Option<Written>,
    pub(super) policy: Option<String>,
    pub(super) idle_tax: Option<Written>,
    pub(super) min_free: Option<String>,
    pub(super) sample_pages: Option<Written>,
    pub(super) sample_period: Option<String>,
    pub(super) swap_dir: Option<PathBuf>,
    pub(super) seed: Option<u64>,
}

/// Parses the text of a TOML file; `path` is for the message.
pub(crate) fn parse<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start.min(text.len()));
        let before = text.get(..start).unwrap_or("");
        let line = before.matches('\n').count() + 1;
        // Whatever the parser says, it becomes one line.
        let message = error.message().replace('\n', "; ");
        let key = text
            .lines()
            .nth(line - 1)
            .and_then(|line| line.split_once('='))
            .map(|(key, _)| format!("{}: ", key.trim()))
            .unwrap_or_default();
        ConfigError::Syntax {
            path: path.to_owned(),
            line,
            problem: format!("{key}{message}"),
        }
    })
}
