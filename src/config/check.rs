//! From what the user wrote about one VM to a checked spec.

use std::fmt;
use std::path::Path;

use super::args::VmArgs;
use super::error::ConfigError;
use super::fleet::Resources;
use super::open::{DISK_BYTES_MAX, IMAGE_BYTES_MAX, Kind, Unfit, open_file};
use super::spec::{Boot, VmSpec};
use super::switch::Switch;
use crate::units::Pages;
use crate::words::allocation::AllocationError;
use crate::words::names::{NAME_FORMS, VM_NAME_FORMS, is_name, is_vm_name};
use crate::words::size::parse_size;
use crate::words::{Advice, Management, Sharing, Written};

/// Folder of swap files unless said otherwise: on disk on every distribution, unlike /tmp.
pub(super) const SWAP_DIR: &str = "/var/tmp";
const CPUS_MAX: u8 = 64;
/// Linux' own limit on x86.
const CMDLINE_BYTES_MAX: usize = 2047;

/// Where a mistake was made.
pub(crate) struct Place {
    pub(crate) text: String,
}

impl Place {
    pub(crate) fn wrong(
        &self,
        key: &str,
        value: impl fmt::Display,
        problem: impl Into<String>,
    ) -> ConfigError {
        ConfigError::Value {
            place: self.text.clone(),
            key: key.to_owned(),
            value: value.to_string(),
            problem: problem.into(),
        }
    }

    pub(crate) fn missing(&self, problem: impl Into<String>) -> ConfigError {
        ConfigError::Missing {
            place: self.text.clone(),
            problem: problem.into(),
        }
    }

    /// The size at `key`.
    pub(crate) fn size(&self, key: &str, value: &Written) -> Result<Pages, ConfigError> {
        parse_size(&value.text()).map_err(|error| self.wrong(key, value, error.to_string()))
    }

    /// What has become of the allocation keys here.
    pub(crate) fn allocation<T>(
        &self,
        result: Result<T, AllocationError>,
    ) -> Result<T, ConfigError> {
        result.map_err(|source| ConfigError::Allocation {
            place: self.text.clone(),
            source,
        })
    }
}

/// What a switch must be.
const ON_OR_OFF: &str = "must be true or false (as a flag, on or off)";

impl VmArgs {
    /// The checked VM, which has a name; relative paths are relative to `folder`.
    pub(super) fn check(
        &self,
        origin: &str,
        folder: &Path,
        resources: &Resources<'_>,
    ) -> Result<VmSpec, ConfigError> {
        let name = self.name.as_deref().unwrap_or_default();
        let place = Place {
            text: format!("{origin}: vm {name:?}"),
        };
        if !is_vm_name(name) {
            let problem = format!("must be {VM_NAME_FORMS}");
            return Err(place.wrong("name", format!("{name:?}"), problem));
        }
        if let Some(group) = &self.share_group
            && !is_name(group)
        {
            let problem = format!("must be {NAME_FORMS}");
            return Err(place.wrong("share_group", format!("{group:?}"), problem));
        }
        let sharing = self.sharing(&place)?;
        let management = self.management(&place)?;
        let large_pages = self.large_pages(&place, management)?;
        let encrypt_swap = self.encrypt_swap(&place, management)?;
        let allocation = match management {
            Management::Managed => self.allocation.resolve(),
            Management::Plain(_) => self.allocation.resolve_whole(),
        };
        let allocation = place.allocation(allocation)?;
        let cpus = self.cpus(&place)?;
        let boot = self.boot(&place, folder, resources)?;
        let cmdline = self.cmdline(&place)?;
        match &self.disk {
            Some(disk) => check_file(&place, "disk", disk, folder)?,
            None if self.disk_read_only => {
                let problem = "there is no `disk` to which it could apply";
                return Err(place.wrong("disk_read_only", true, problem));
            }
            None => {}
        }
        let swap_dir = folder.join(self.swap_dir.as_deref().unwrap_or(Path::new(SWAP_DIR)));
        Ok(VmSpec {
            name: name.to_owned(),
            allocation,
            management,
            large_pages,
            encrypt_swap,
            cpus,
            boot,
            cmdline,
            disk: self.disk.as_ref().map(|path| folder.join(path)),
            disk_read_only: self.disk_read_only,
            share_group: self.share_group.clone(),
            sharing,
            console: self.console.as_ref().map(|path| folder.join(path)),
            swap_dir,
        })
    }

    fn management(&self, place: &Place) -> Result<Management, ConfigError> {
        let key = "memory_management";
        match (&self.memory_management, &self.advise) {
            (Some(Switch::Neither(text)), _) => {
                return Err(place.wrong(key, format!("{text:?}"), ON_OR_OFF));
            }
            (Some(Switch::Off), _) => {}
            (None | Some(Switch::On), None) => return Ok(Management::Managed),
            (None | Some(Switch::On), Some(text)) => {
                let problem = format!("is for memory that is not managed (`{key} = false`)");
                return Err(place.wrong("advise", format!("{text:?}"), problem));
            }
        }
        if let Some(group) = &self.share_group {
            let problem = format!("memory that is not managed (`{key} = false`) is not shared");
            return Err(place.wrong("share_group", format!("{group:?}"), problem));
        }
        let named = |text: &String| {
            Advice::named(text).ok_or_else(|| {
                let problem = format!(
                    "must be one of {}",
                    Advice::ALL.map(Advice::name).join(", ")
                );
                place.wrong("advise", format!("{text:?}"), problem)
            })
        };
        Ok(Management::Plain(
            self.advise.as_ref().map(named).transpose()?,
        ))
    }

    fn sharing(&self, place: &Place) -> Result<Sharing, ConfigError> {
        let Some(text) = &self.sharing else {
            return Ok(Sharing::default());
        };
        let wrong = |problem| place.wrong("sharing", format!("{text:?}"), problem);
        let sharing = Sharing::named(text).ok_or_else(|| {
            let names = Sharing::ALL.map(Sharing::name).join(", ");
            wrong(format!("must be one of {names}"))
        })?;
        match self.share_group {
            Some(_) => Ok(sharing),
            None => Err(wrong(
                "there is no `share_group` to which it could apply".into(),
            )),
        }
    }

    fn large_pages(&self, place: &Place, management: Management) -> Result<bool, ConfigError> {
        let problem = "is for memory that is managed: `advise` says it of other memory";
        let switch = managed_switch(place, "large_pages", &self.large_pages, management, problem)?;
        Ok(switch.unwrap_or(true))
    }

    fn encrypt_swap(&self, place: &Place, management: Management) -> Result<bool, ConfigError> {
        let problem = "is for memory that is managed: other memory has no swap file";
        let switch = &self.encrypt_swap;
        let switch = managed_switch(place, "encrypt_swap", switch, management, problem)?;
        Ok(switch.unwrap_or(false))
    }

    fn cpus(&self, place: &Place) -> Result<u8, ConfigError> {
        let Some(value) = &self.cpus else {
            return Ok(1);
        };
        match value.text().parse() {
            Ok(cpus @ 1..=CPUS_MAX) => Ok(cpus),
            _ => {
                let problem = format!("must be 1 to {CPUS_MAX}");
                Err(place.wrong("cpus", value, problem))
            }
        }
    }

    fn boot(
        &self,
        place: &Place,
        folder: &Path,
        resources: &Resources<'_>,
    ) -> Result<Boot, ConfigError> {
        match (&self.guest, &self.kernel) {
            (Some(guest), Some(_)) => Err(place.wrong(
                "guest",
                format!("{guest:?}"),
                "there is a `kernel` too; a VM boots one of them",
            )),
            (None, None) => Err(place.missing(format!(
                "nothing to boot: must have `guest`, one of {}, or `kernel`, a file",
                resources.guests.join(", ")
            ))),
            (Some(guest), None) => {
                if let Some(initrd) = &self.initrd {
                    return Err(place.wrong(
                        "initrd",
                        format!("{initrd:?}"),
                        "a built-in guest takes none; only a `kernel` does",
                    ));
                }
                if !resources.guests.contains(&guest.as_str()) {
                    return Err(place.wrong(
                        "guest",
                        format!("{guest:?}"),
                        format!("must be one of {}", resources.guests.join(", ")),
                    ));
                }
                Ok(Boot::Guest(guest.clone()))
            }
            (None, Some(kernel)) => {
                check_file(place, "kernel", kernel, folder)?;
                if let Some(initrd) = &self.initrd {
                    check_file(place, "initrd", initrd, folder)?;
                }
                Ok(Boot::Kernel {
                    kernel: folder.join(kernel),
                    initrd: self.initrd.as_ref().map(|path| folder.join(path)),
                })
            }
        }
    }

    fn cmdline(&self, place: &Place) -> Result<String, ConfigError> {
        let cmdline = self.cmdline.clone().unwrap_or_default();
        if cmdline.len() > CMDLINE_BYTES_MAX || cmdline.contains(['\0', '\n']) {
            return Err(place.wrong(
                "cmdline",
                format!("{:?}", cmdline.chars().take(32).collect::<String>()),
                format!("must be one line of at most {CMDLINE_BYTES_MAX} bytes, without NUL"),
            ));
        }
        Ok(cmdline)
    }
}

/// A switch for memory that is managed; `problem` is what is wrong with it for other memory.
fn managed_switch(
    place: &Place,
    key: &str,
    switch: &Option<Switch>,
    management: Management,
    problem: &str,
) -> Result<Option<bool>, ConfigError> {
    let on = match switch {
        None => return Ok(None),
        Some(Switch::Neither(text)) => {
            return Err(place.wrong(key, format!("{text:?}"), ON_OR_OFF));
        }
        Some(switch) => *switch == Switch::On,
    };
    match management.is_managed() {
        true => Ok(Some(on)),
        false => Err(place.wrong(key, on, problem)),
    }
}

/// Checks that a file is there and readable; what is in it is for those who use it. A disk may be a
/// block device as well.
fn check_file(place: &Place, key: &str, path: &Path, folder: &Path) -> Result<(), ConfigError> {
    let full = folder.join(path);
    let opened = match key {
        "disk" => open_file(&full, Kind::Disk, DISK_BYTES_MAX),
        _ => open_file(&full, Kind::Regular, IMAGE_BYTES_MAX),
    };
    opened.map(drop).map_err(|unfit| {
        let problem = match unfit {
            Unfit::Io(error) => format!("{}: {error}", full.display()),
            unfit => unfit.to_string(),
        };
        place.wrong(key, format!("{path:?}"), problem)
    })
}
