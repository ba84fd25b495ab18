//! The files that a VM boots from, opened and checked before anything is started.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::boot::image::Image;
use crate::boot::{builtin, fit};
use crate::config::{Boot, ConfigError, IMAGE_BYTES_MAX, Kind, VmSpec, open_file};
use crate::devices::virtio::block::{Access, Disk};
use crate::out::with_causes;
use crate::sys::ram::Layout;

const KERNELS: &str =
    "a bzImage of Linux 3.8 or later or an ELF file with a PVH note, for x86-64, and memory for it";
const INITRDS: &str = "a file that fits the memory behind the kernel";
const DISKS: &str =
    "an image of whole sectors that no other VM writes, and that none has if this one writes";

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
    /// Opens the files of `spec` and asks the loaders whether they can be booted in its memory.
    /// `origin` is where the spec was written.
    ///
    /// # Errors
    /// The first file that cannot be used, as a mistake in the configuration.
    pub fn open(spec: &VmSpec, origin: &str) -> Result<Files, ConfigError> {
        let wrong = |key: &str, path: &Path, problem: &dyn fmt::Display, allowed: &str| {
            ConfigError::Value {
                place: format!("{origin}: vm {:?}", spec.name),
                key: key.to_owned(),
                value: format!("{path:?}"),
                problem: format!("{problem}; must be {allowed}"),
            }
        };
        let (kernel, initrd) = match &spec.boot {
            Boot::Guest(name) => {
                let image = builtin::find(name).expect("the configuration checked the name");
                (Image::Builtin(image), None)
            }
            Boot::Kernel { kernel, initrd } => {
                let layout = Layout::new(spec.allocation.size);
                let open = |key, path: &PathBuf, allowed| {
                    let file = open_file(path, Kind::Regular, IMAGE_BYTES_MAX);
                    file.map(Image::File)
                        .map_err(|error| wrong(key, path, &error, allowed))
                };
                let image = open("kernel", kernel, KERNELS)?;
                let room = fit::kernel(&image, &layout)
                    .map_err(|error| wrong("kernel", kernel, &with_causes(&error), KERNELS))?;
                let initrd = initrd.as_ref().map(|path| {
                    let initrd = open("initrd", path, INITRDS)?;
                    fit::initrd(&initrd, room, &layout)
                        .map_err(|error| wrong("initrd", path, &with_causes(&error), INITRDS))?;
                    Ok(initrd)
                });
                (image, initrd.transpose()?)
            }
        };
        let disk = spec.disk.as_ref().map(|path| {
            let access = match spec.disk_read_only {
                true => Access::ReadOnly,
                false => Access::Writable,
            };
            Disk::open(path, access)
                .map_err(|error| wrong("disk", path, &with_causes(&error), DISKS))
        });
        Ok(Files {
            kernel,
            initrd,
            disk: disk.transpose()?,
        })
    }
}
