//! The TOML shape of a fleet file.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::check::{Draft, Value};
use super::error::ConfigError;

/// A whole fleet file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FleetFile {
    #[serde(default)]
    pub(super) host: HostTable,
    #[serde(default)]
    pub(super) vm: Vec<VmTable>,
}

/// The `[host]` table.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HostTable {
    pub(super) memory: Option<Value>,
    pub(super) policy: Option<String>,
    pub(super) idle_tax: Option<Value>,
    pub(super) min_free: Option<String>,
    pub(super) sample_pages: Option<Value>,
    pub(super) sample_period: Option<String>,
    pub(super) swap_dir: Option<PathBuf>,
    pub(super) seed: Option<u64>,
}

/// One `[[vm]]` table.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VmTable {
    name: String,
    pub(super) count: Option<Value>,
    memory: Option<Value>,
    cpus: Option<Value>,
    guest: Option<String>,
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
    cmdline: Option<String>,
    disk: Option<PathBuf>,
    #[serde(default)]
    disk_read_only: bool,
    shares: Option<Value>,
    reservation: Option<Value>,
    limit: Option<Value>,
    dynamic_min: Option<Value>,
    dynamic_max: Option<Value>,
    share_group: Option<String>,
    console: Option<PathBuf>,
}

impl VmTable {
    pub(super) fn into_draft(self, swap_dir: Option<PathBuf>) -> Draft {
        Draft {
            name: self.name,
            memory: self.memory,
            cpus: self.cpus,
            guest: self.guest,
            kernel: self.kernel,
            initrd: self.initrd,
            cmdline: self.cmdline,
            disk: self.disk,
            disk_read_only: self.disk_read_only,
            shares: self.shares,
            reservation: self.reservation,
            limit: self.limit,
            dynamic_min: self.dynamic_min,
            dynamic_max: self.dynamic_max,
            share_group: self.share_group,
            console: self.console,
            swap_dir,
        }
    }
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
