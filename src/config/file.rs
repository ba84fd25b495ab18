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

/// Tables of fleet and scenario files of which there may be several.
const SEVERAL: [&str; 2] = ["vm", "change"];

/// Parses the text of a TOML file; `path` is for the message.
pub(crate) fn parse<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start.min(text.len()));
        let before = text.get(..start).unwrap_or("");
        let line = before.matches('\n').count() + 1;
        let text = text.lines().nth(line - 1).unwrap_or_default();
        let key = text.split_once('=').map(|(key, _)| key.trim());
        let table = text
            .trim()
            .strip_prefix('[')
            .and_then(|text| text.strip_suffix(']'));
        let problem = match (key, table) {
            // Of which the parser says that a map is no sequence.
            (None, Some(name)) if SEVERAL.contains(&name.trim()) => {
                format!("there may be several of these tables: write [[{name}]]")
            }
            // Whatever the parser says, it becomes one line.
            (Some(key), _) => format!("{key}: {}", error.message().replace('\n', "; ")),
            (None, _) => error.message().replace('\n', "; "),
        };
        ConfigError::Syntax {
            path: path.to_owned(),
            line,
            problem,
        }
    })
}
