//! Checked descriptions of the host, a VM, a fleet.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::policy::PolicyKind;
use crate::policy::settings::PolicySettings;
use crate::units::Pages;
use crate::words::{Allocation, Management, Sampling, Sharing};

/// A host and its VMs. Names are unique.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetSpec {
    /// The `[host]` table.
    pub host: HostSpec,
    /// One for each VM, `count` expanded, in the order of the file.
    pub vms: Vec<VmSpec>,
}

/// The host's side of a fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSpec {
    /// The budget: memory of all guests and their overheads.
    pub memory: Pages,
    /// Which policy sets the targets.
    pub policy: PolicyKind,
    /// And with which settings.
    pub settings: PolicySettings,
    /// How the VMs' working sets are estimated.
    pub sampling: Sampling,
    /// Folder of the swap files.
    pub swap_dir: PathBuf,
    /// Base of the seeds of built-in guests.
    pub seed: u64,
}

/// What a VM boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Boot {
    /// A built-in test guest, by name.
    Guest(String),
    /// A kernel file (ELF or bzImage).
    Kernel {
        /// The kernel.
        kernel: PathBuf,
        /// Its initial RAM disk.
        initrd: Option<PathBuf>,
    },
}

/// One VM, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmSpec {
    /// 1 to 64 of `[A-Za-z0-9._-]`.
    pub name: String,
    /// What it is entitled to.
    pub allocation: Allocation,
    /// Who manages its memory.
    pub management: Management,
    /// Whether it may have large pages where its memory is managed.
    pub large_pages: bool,
    /// Whether what is written to its swap file is encrypted.
    pub encrypt_swap: bool,
    /// Number of virtual CPUs, 1 to 64.
    pub cpus: u8,
    /// What it boots.
    pub boot: Boot,
    /// The kernel's or test guest's command line.
    pub cmdline: String,
    /// Image of its disk.
    pub disk: Option<PathBuf>,
    /// Whether the guest may not write it, and other VMs may have it too.
    pub disk_read_only: bool,
    /// VMs of one group may share pages; `None`: only with itself.
    pub share_group: Option<String>,
    /// How the pages of its group are shared: the same for all of its VMs.
    pub sharing: Sharing,
    /// Console log; `None`: prefixed lines on standard error.
    pub console: Option<PathBuf>,
    /// Folder of its swap file.
    pub swap_dir: PathBuf,
}

impl VmSpec {
    /// The flags of `tidemark vm` that describe this VM; [`VmArgs`](super::VmArgs) parses them back
    /// to an equal spec. Every flag is one argument (`--key=value`), so no value can be taken for a
    /// flag.
    pub fn to_args(&self) -> Vec<OsString> {
        let mut args = Vec::new();
        let mut flag = |key: &str, value: OsString| {
            let mut arg = OsString::from(format!("--{key}="));
            arg.push(value);
            args.push(arg);
        };
        let bytes = |pages: Pages| OsString::from(pages.bytes().to_string());
        flag("name", self.name.clone().into());
        let allocation = &self.allocation;
        flag("memory", bytes(allocation.size));
        flag("cpus", self.cpus.to_string().into());
        match &self.boot {
            Boot::Guest(name) => flag("guest", name.into()),
            Boot::Kernel { kernel, initrd } => {
                flag("kernel", kernel.into());
                if let Some(initrd) = initrd {
                    flag("initrd", initrd.into());
                }
            }
        }
        flag("cmdline", self.cmdline.clone().into());
        flag("shares", allocation.shares.to_string().into());
        flag("reservation", bytes(allocation.reservation));
        flag("limit", bytes(allocation.limit));
        flag("dynamic-min", bytes(allocation.dynamic_min));
        flag("dynamic-max", bytes(allocation.dynamic_max));
        if let Management::Plain(advice) = self.management {
            flag("memory-management", "off".into());
            if let Some(advice) = advice {
                flag("advise", advice.name().into());
            }
        }
        if !self.large_pages {
            flag("large-pages", "off".into());
        }
        if self.encrypt_swap {
            flag("encrypt-swap", "on".into());
        }
        if let Some(disk) = &self.disk {
            flag("disk", disk.into());
        }
        if let Some(group) = &self.share_group {
            flag("share-group", group.into());
            if self.sharing.is_hardened() {
                flag("sharing", self.sharing.name().into());
            }
        }
        if let Some(console) = &self.console {
            flag("console", console.into());
        }
        flag("swap-dir", (&self.swap_dir).into());
        if self.disk_read_only {
            args.push("--disk-read-only".into());
        }
        args
    }
}
