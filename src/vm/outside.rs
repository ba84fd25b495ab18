//! What a VM process takes from outside before it leaves that for good.

use std::fs::File;

use kvm_ioctls::Kvm;

use super::active::Threads;
use super::console;
use super::error::{Error, os};
use crate::config::VmSpec;
use crate::machine;
use crate::out::Out;
use crate::threads::jail::{self, Jail};

/// What is opened by a path and used later.
pub(super) struct Outside {
    /// Where the guest's text goes, if that is a file.
    pub console: Option<File>,
    pub kvm: Kvm,
    pub threads: Threads,
}

impl Outside {
    /// Opens it, and then takes the process into `jail`. From here on there may be other threads: that
    /// of `out` is the first.
    ///
    /// # Errors
    /// What cannot be had.
    pub fn leave(spec: &VmSpec, jail: Jail, out: &Out) -> Result<Outside, Error> {
        let outside = Outside {
            console: console::open(spec)?,
            kvm: machine::open_kvm()?,
            threads: Threads::open().map_err(os("list this process's threads"))?,
        };
        jail::enter(jail)?;
        out.begin().map_err(os("start a thread"))?;
        Ok(outside)
    }
}
