//! The files that a VM boots from, opened before anything is started. No byte of them is read here:
//! `inspect` has them looked at by a process that can do nothing else.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::boot::builtin;
use crate::boot::image::Image;
use crate::config::{Boot, ConfigError, IMAGE_BYTES_MAX, Kind, VmSpec, open_file};
use crate::devices::virtio::block::{Access, Disk};
use crate::out::with_causes;

const KERNELS: &str =
    "a bzImage of Linux 3.8 or later or an ELF file with a PVH note, for x86-64, and memory for it";
const INITRDS: &str = "a file that fits the memory behind the kernel";
const DISKS: &str =
    "an image of whole sectors that no other VM writes, and that none has if this one writes";

/// What a file under `key` must be.
fn allowed(key: &str) -> &'static str {
    match key {
        "kernel" => KERNELS,
        "initrd" => INITRDS,
        _ => DISKS,
    }
}

/// The mistake that `spec`, written at `origin`, names the file at `path` under `key`.
pub(super) fn mistake(
    spec: &VmSpec,
    origin: &str,
    key: &str,
    path: &Path,
    problem: &str,
) -> ConfigError {
    ConfigError::Value {
        place: format!("{origin}: vm {:?}", spec.name),
        key: key.to_owned(),
        value: format!("{path:?}"),
        problem: format!("{problem}; must be {}", allowed(key)),
    }
}

/// What a VM is made from.
#[derive(Debug)]
pub struct Files {
    /// The kernel or test guest.
    pub kernel: Image,
    /// Its initial RAM disk.
    pub initrd: Option<Image>,
    /// Its disk, locked as long as this value lives.
    pub disk: Option<Disk>,
}

impl Files {
    /// Opens the files of `spec`. `origin` is where that was written.
    ///
    /// # Errors
    /// The first file that cannot be used, as a mistake in the configuration.
    pub fn open(spec: &VmSpec, origin: &str) -> Result<Files, ConfigError> {
        let wrong = |key, path: &Path, problem: &dyn fmt::Display| {
            mistake(spec, origin, key, path, &problem.to_string())
        };
        let (kernel, initrd) = match &spec.boot {
            Boot::Guest(name) => {
                let image = builtin::find(name).expect("the configuration checked the name");
                (Image::Builtin(image), None)
            }
            Boot::Kernel { kernel, initrd } => {
                let open = |key, path: &PathBuf| {
                    let file = open_file(path, Kind::Regular, IMAGE_BYTES_MAX);
                    file.and_then(|file| Ok(Image::file(file)?))
                        .map_err(|error| wrong(key, path, &error))
                };
                let kernel = open("kernel", kernel)?;
                let initrd = initrd.as_ref().map(|path| open("initrd", path));
                (kernel, initrd.transpose()?)
            }
        };
        let disk = spec.disk.as_ref().map(|path| {
            let access = match spec.disk_read_only {
                true => Access::ReadOnly,
                false => Access::Writable,
            };
            Disk::open(path, access).map_err(|error| wrong("disk", path, &with_causes(&error)))
        });
        Ok(Files {
            kernel,
            initrd,
            disk: disk.transpose()?,
        })
    }
}
