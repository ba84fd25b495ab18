//! What describes one VM: the flags that `tidemark vm` and `tidemark run` share, and the keys of a
//! `[[vm]]` table.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::error::{COMMAND_LINE, ConfigError};
use super::fleet::Resources;
use super::spec::VmSpec;
use super::switch::Switch;
use crate::words::{AllocationKeys, Written};

/// One VM as somebody wrote it. Numbers are checked with the rest, not by clap, so that a mistake
/// reads the same as in a fleet file.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmArgs {
    /// Name of the VM [default: the guest's name, or "vm"]
    #[arg(long)]
    pub name: Option<String>,
    // In a file they stand in the same table: see `beside`.
    #[command(flatten)]
    #[serde(skip)]
    /// What it is entitled to.
    pub allocation: AllocationKeys,
    /// Virtual CPUs [default: 1]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub cpus: Option<Written>,
    /// A built-in test guest to boot
    #[arg(long, value_name = "NAME")]
    pub guest: Option<String>,
    /// A kernel to boot (ELF with a PVH note, or bzImage)
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk of the kernel
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line, or options of the test guest
    #[arg(long, value_name = "STRING", allow_hyphen_values = true)]
    pub cmdline: Option<String>,
    /// Disk image
    #[arg(long, value_name = "FILE")]
    pub disk: Option<PathBuf>,
    /// The guest may not write its disk; several VMs may then have the same
    #[arg(long)]
    #[serde(default)]
    pub disk_read_only: bool,
    /// Whether tidemark manages its memory; off: the host's kernel does, and all of it is reserved [default: on]
    #[arg(long, value_name = "on|off")]
    pub memory_management: Option<Switch>,
    /// What the kernel is told about memory that tidemark does not manage: hugepage, nohugepage or mergeable
    #[arg(long, value_name = "ADVICE")]
    pub advise: Option<String>,
    /// Whether memory that is filled in order may come in large pages of 2 MiB [default: on]
    #[arg(long, value_name = "on|off")]
    pub large_pages: Option<Switch>,
    /// Whether what is written to its swap file is encrypted, with a key that only its process has [default: off]
    #[arg(long, value_name = "on|off")]
    pub encrypt_swap: Option<Switch>,
    /// VMs of one group share equal pages
    #[arg(long, value_name = "NAME")]
    pub share_group: Option<String>,
    /// Whether its guests can time what others have: plain, or hardened for all of the group alike [default: plain]
    #[arg(long, value_name = "HOW")]
    pub sharing: Option<String>,
    /// Console log file [default: the terminal, if there is one and this is its only VM; else standard output, and under `tidemark run` prefixed lines on standard error]
    #[arg(long, value_name = "FILE")]
    pub console: Option<PathBuf>,
    /// Folder of the swap file [default: /var/tmp]
    #[arg(long, value_name = "DIR")]
    #[serde(skip)]
    pub swap_dir: Option<PathBuf>,
    /// How many such VMs; `tidemark vm` is always one.
    #[arg(skip)]
    pub count: Option<Written>,
}

impl VmArgs {
    /// Whether the flags name something to boot.
    pub fn names_boot(&self) -> bool {
        self.guest.is_some() || self.kernel.is_some()
    }

    /// The checked VM.
    ///
    /// # Errors
    /// The first mistake.
    pub fn to_spec(&self, resources: &Resources<'_>) -> Result<VmSpec, ConfigError> {
        let vm = VmArgs {
            name: Some(self.own_name()),
            ..self.clone()
        };
        vm.check(COMMAND_LINE, Path::new(""), resources)
    }

    /// The name, or what stands for it on the command line.
    pub(super) fn own_name(&self) -> String {
        let name = self.name.as_ref().or(self.guest.as_ref());
        name.map_or("vm", String::as_str).to_owned()
    }
}
