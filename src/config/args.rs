//! The flags that describe one VM, shared by `tidemark vm` and `tidemark run`.

use std::path::{Path, PathBuf};

use super::check::{Draft, Value};
use super::error::{COMMAND_LINE, ConfigError};
use super::fleet::Resources;
use super::spec::VmSpec;

/// One VM, as flags. Sizes and shares are checked with the rest, not by clap, so that a mistake
/// reads the same as in a fleet file.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct VmArgs {
    /// Name of the VM [default: the guest's name, or "vm"]
    #[arg(long)]
    pub name: Option<String>,
    /// Configured memory [default: 256M]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub memory: Option<String>,
    /// Virtual CPUs [default: 1]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub cpus: Option<String>,
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
    pub disk_read_only: bool,
    /// Weight: high, normal, low or a number [default: normal]
    #[arg(long, allow_hyphen_values = true)]
    pub shares: Option<String>,
    /// Memory that is never taken from it [default: 0]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub reservation: Option<String>,
    /// Memory that it never gets more than [default: all]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub limit: Option<String>,
    /// Lower end of the dynamic range
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub dynamic_min: Option<String>,
    /// Upper end of the dynamic range
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub dynamic_max: Option<String>,
    /// VMs of one group share equal pages
    #[arg(long, value_name = "NAME")]
    pub share_group: Option<String>,
    /// Console log file [default: the terminal, if there is one and this is its only VM; else standard output, and under `tidemark run` prefixed lines on standard error]
    #[arg(long, value_name = "FILE")]
    pub console: Option<PathBuf>,
    /// Folder of the swap file [default: /var/tmp]
    #[arg(long, value_name = "DIR")]
    pub swap_dir: Option<PathBuf>,
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
        self.draft().check(COMMAND_LINE, Path::new(""), resources)
    }

    pub(super) fn draft(&self) -> Draft {
        let text = |text: &Option<String>| text.clone().map(Value::Text);
        let guest_name = self.guest.clone();
        Draft {
            name: self.name.clone().or(guest_name).unwrap_or("vm".into()),
            memory: text(&self.memory),
            cpus: text(&self.cpus),
            guest: self.guest.clone(),
            kernel: self.kernel.clone(),
            initrd: self.initrd.clone(),
            cmdline: self.cmdline.clone(),
            disk: self.disk.clone(),
            disk_read_only: self.disk_read_only,
            shares: text(&self.shares),
            reservation: text(&self.reservation),
            limit: text(&self.limit),
            dynamic_min: text(&self.dynamic_min),
            dynamic_max: text(&self.dynamic_max),
            share_group: self.share_group.clone(),
            console: self.console.clone(),
            swap_dir: self.swap_dir.clone(),
        }
    }
}
