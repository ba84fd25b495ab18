//! From what the user wrote about one VM to a checked spec.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{self, Visitor};

use super::error::ConfigError;
use super::fleet::Resources;
use super::size::{SIZE_FORMS, SizeError, parse_size};
use super::spec::{Boot, VmSpec};
use crate::units::{PAGES_MAX, Pages};

/// Folder of swap files unless said otherwise: on disk on every distribution, unlike /tmp.
pub(super) const SWAP_DIR: &str = "/var/tmp";
const MEMORY_DEFAULT: Pages = Pages::mib(256);
const MEMORY_MIN: Pages = Pages::mib(1);
/// What the page map can name.
const MEMORY_MAX: Pages = Pages(PAGES_MAX);
const CPUS_MAX: u8 = 64;
const SHARES_MAX: u64 = 1_000_000_000;
/// Linux' own limit on x86.
const CMDLINE_BYTES_MAX: usize = 2047;

/// A number or a text of the file, kept as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Text(String),
    Number(i64),
}

impl Value {
    /// The bare text, to be parsed.
    pub(crate) fn text(&self) -> String {
        match self {
            Value::Text(text) => text.clone(),
            Value::Number(number) => number.to_string(),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Text(text) => write!(f, "{text:?}"),
            Value::Number(number) => write!(f, "{number}"),
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
        struct TextOrNumber;
        impl Visitor<'_> for TextOrNumber {
            type Value = Value;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a whole number")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Value, E> {
                Ok(Value::Text(text.to_owned()))
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Value, E> {
                Ok(Value::Number(number))
            }
        }
        deserializer.deserialize_any(TextOrNumber)
    }
}

/// One VM as the user wrote it.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    pub(super) name: String,
    pub(super) memory: Option<Value>,
    pub(super) cpus: Option<Value>,
    pub(super) guest: Option<String>,
    pub(super) kernel: Option<PathBuf>,
    pub(super) initrd: Option<PathBuf>,
    pub(super) cmdline: Option<String>,
    pub(super) disk: Option<PathBuf>,
    pub(super) disk_read_only: bool,
    pub(super) shares: Option<Value>,
    pub(super) reservation: Option<Value>,
    pub(super) limit: Option<Value>,
    pub(super) dynamic_min: Option<Value>,
    pub(super) dynamic_max: Option<Value>,
    pub(super) share_group: Option<String>,
    pub(super) console: Option<PathBuf>,
    pub(super) swap_dir: Option<PathBuf>,
}

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
        allowed: impl Into<String>,
    ) -> ConfigError {
        ConfigError::Value {
            place: self.text.clone(),
            key: key.to_owned(),
            value: value.to_string(),
            problem: problem.into(),
            allowed: allowed.into(),
        }
    }

    fn missing(&self, problem: impl Into<String>) -> ConfigError {
        ConfigError::Missing {
            place: self.text.clone(),
            problem: problem.into(),
        }
    }

    /// The size at `key`.
    pub(crate) fn size(&self, key: &str, value: &Value) -> Result<Pages, ConfigError> {
        parse_size(&value.text()).map_err(|error| match error {
            SizeError::NotPages => self.wrong(
                key,
                value,
                "is no whole number of 4 KiB pages",
                "multiples of 4096 bytes",
            ),
            SizeError::NoSize | SizeError::NoDuration => {
                self.wrong(key, value, "is no size", SIZE_FORMS)
            }
        })
    }
}

impl Place {
    /// The weight of a VM; ESX presets: high, normal, low = 20, 10, 5 shares a MiB.
    pub(crate) fn shares(&self, value: Option<&Value>, memory: Pages) -> Result<u64, ConfigError> {
        let per_mib = |shares: u64| memory.bytes() * shares / (1 << 20);
        let Some(value) = value else {
            return Ok(per_mib(10));
        };
        let text = value.text();
        match text.as_str() {
            "high" => return Ok(per_mib(20)),
            "normal" => return Ok(per_mib(10)),
            "low" => return Ok(per_mib(5)),
            _ => {}
        }
        match text.parse() {
            Ok(shares) if shares <= SHARES_MAX => Ok(shares),
            _ => Err(self.wrong(
                "shares",
                value,
                "is no weight",
                format!("high, normal, low or 0 to {SHARES_MAX}"),
            )),
        }
    }
}

/// A size of the draft with its text, or the default that stands for it.
struct Size {
    pages: Pages,
    shown: String,
}

impl Draft {
    /// The checked VM; relative paths are relative to `folder`.
    pub(super) fn check(
        self,
        origin: &str,
        folder: &Path,
        resources: &Resources<'_>,
    ) -> Result<VmSpec, ConfigError> {
        let place = Place {
            text: format!("{origin}: vm {:?}", self.name),
        };
        check_name(&place, "name", &self.name)?;
        if let Some(group) = &self.share_group {
            check_name(&place, "share_group", group)?;
        }
        let memory = self.memory(&place)?;
        let cpus = self.cpus(&place)?;
        let shares = self.shares(&place, memory.pages)?;
        let limit = self.size(&place, "limit", &self.limit, memory.pages)?;
        at_most(&place, "limit", &limit, "memory", &memory)?;
        let reservation = self.size(&place, "reservation", &self.reservation, Pages::ZERO)?;
        at_most(&place, "reservation", &reservation, "limit", &limit)?;
        let dynamic_max = self.size(&place, "dynamic_max", &self.dynamic_max, limit.pages)?;
        at_most(&place, "dynamic_max", &dynamic_max, "memory", &memory)?;
        // A quarter: the least that XenServer supports for a VM of this size.
        let low = Pages(memory.pages.0 / 4)
            .max(reservation.pages)
            .min(dynamic_max.pages);
        let dynamic_min = self.size(&place, "dynamic_min", &self.dynamic_min, low)?;
        at_most(
            &place,
            "dynamic_min",
            &dynamic_min,
            "dynamic_max",
            &dynamic_max,
        )?;
        let boot = self.boot(&place, folder, resources)?;
        let cmdline = self.cmdline(&place)?;
        match &self.disk {
            Some(disk) => check_file(&place, "disk", disk, folder)?,
            None if self.disk_read_only => {
                let problem = "stands without a disk";
                return Err(place.wrong("disk_read_only", true, problem, "only with disk"));
            }
            None => {}
        }
        let swap_dir = folder.join(self.swap_dir.as_deref().unwrap_or(Path::new(SWAP_DIR)));
        Ok(VmSpec {
            name: self.name,
            memory: memory.pages,
            cpus,
            boot,
            cmdline,
            disk: self.disk.map(|path| folder.join(path)),
            disk_read_only: self.disk_read_only,
            shares,
            reservation: reservation.pages,
            limit: limit.pages,
            dynamic_min: dynamic_min.pages,
            dynamic_max: dynamic_max.pages,
            share_group: self.share_group,
            console: self.console.map(|path| folder.join(path)),
            swap_dir,
        })
    }

    fn size(
        &self,
        place: &Place,
        key: &str,
        value: &Option<Value>,
        default: Pages,
    ) -> Result<Size, ConfigError> {
        match value {
            Some(value) => Ok(Size {
                pages: place.size(key, value)?,
                shown: value.to_string(),
            }),
            None => Ok(Size {
                pages: default,
                shown: format!("{default}, its default,"),
            }),
        }
    }

    fn memory(&self, place: &Place) -> Result<Size, ConfigError> {
        let memory = self.size(place, "memory", &self.memory, MEMORY_DEFAULT)?;
        if (MEMORY_MIN..=MEMORY_MAX).contains(&memory.pages) {
            Ok(memory)
        } else {
            Err(place.wrong("memory", memory.shown, "is out of range", "1M to 512G"))
        }
    }

    fn cpus(&self, place: &Place) -> Result<u8, ConfigError> {
        let Some(value) = &self.cpus else {
            return Ok(1);
        };
        match value.text().parse() {
            Ok(cpus @ 1..=CPUS_MAX) => Ok(cpus),
            _ => Err(place.wrong("cpus", value, "is no number of CPUs", "1 to 64")),
        }
    }

    fn shares(&self, place: &Place, memory: Pages) -> Result<u64, ConfigError> {
        place.shares(self.shares.as_ref(), memory)
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
                "stands beside a kernel",
                "guest or kernel, not both",
            )),
            (None, None) => Err(place.missing(format!(
                "guest or kernel is missing (allowed: guest = one of {}; or kernel = a file)",
                resources.guests.join(", ")
            ))),
            (Some(guest), None) => {
                if let Some(initrd) = &self.initrd {
                    return Err(place.wrong(
                        "initrd",
                        format!("{initrd:?}"),
                        "stands beside a built-in guest",
                        "initrd only with kernel",
                    ));
                }
                if !resources.guests.contains(&guest.as_str()) {
                    return Err(place.wrong(
                        "guest",
                        format!("{guest:?}"),
                        "is no built-in guest",
                        resources.guests.join(", "),
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
                "is too long or has a line break or NUL in it",
                format!("one line of at most {CMDLINE_BYTES_MAX} bytes"),
            ));
        }
        Ok(cmdline)
    }
}

fn at_most(
    place: &Place,
    key: &str,
    value: &Size,
    bound_key: &str,
    bound: &Size,
) -> Result<(), ConfigError> {
    if value.pages <= bound.pages {
        return Ok(());
    }
    Err(place.wrong(
        key,
        &value.shown,
        format!(
            "is above {bound_key} = {}",
            bound.shown.trim_end_matches(',')
        ),
        format!("at most {bound_key}, {}", bound.pages),
    ))
}

/// Checks a name that may stand in paths, log prefixes and messages.
fn check_name(place: &Place, key: &str, name: &str) -> Result<(), ConfigError> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if (1..=64).contains(&name.len()) && name.chars().all(good) {
        Ok(())
    } else {
        Err(place.wrong(
            key,
            format!("{name:?}"),
            "is no name",
            "1 to 64 of A-Z a-z 0-9 . _ -",
        ))
    }
}

/// Checks that a file is there and readable; what is in it is for those who use it. A disk may be a
/// block device as well.
fn check_file(place: &Place, key: &str, path: &Path, folder: &Path) -> Result<(), ConfigError> {
    let full = folder.join(path);
    let wrong = |problem: String| place.wrong(key, format!("{path:?}"), problem, "a readable file");
    let cannot = |error| wrong(format!("cannot be opened ({}: {error})", full.display()));
    // Asked before opening: opening a fifo would wait for a writer.
    let kind = std::fs::metadata(&full).map_err(cannot)?.file_type();
    if kind.is_dir() {
        return Err(wrong("is a folder".into()));
    }
    let fits = kind.is_file() || (key == "disk" && kind.is_block_device());
    if !fits {
        return Err(wrong("is no regular file".into()));
    }
    File::open(&full).map(|_| ()).map_err(cannot)
}
