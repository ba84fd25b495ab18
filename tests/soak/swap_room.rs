//! A folder for swap files that can be full.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::common::fleet::SOON;
use crate::common::note;

/// Room for the swap files of the whole cast.
const SIZE: &str = "size=384m";
/// Longest swap file while the folder is full, where there is no file system to fill.
const FULL_BYTES: u64 = 1 << 20;

/// A small file system of its own as root; a plain folder and limits on the size of files
/// otherwise. Ends with this value.
pub struct SwapRoom {
    path: PathBuf,
    mounted: bool,
    full: bool,
}

impl SwapRoom {
    /// In a new folder at `path`.
    pub fn new(path: PathBuf) -> SwapRoom {
        fs::create_dir(&path).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", SIZE, "tmpfs"])
            .arg(&path)
            .output()
            .is_ok_and(|output| output.status.success());
        if !mounted {
            note("cannot mount: a full swap folder is played by limits on the size of files");
        }
        SwapRoom {
            path,
            mounted,
            full: false,
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether nothing more can be written.
    pub fn is_full(&self) -> bool {
        self.full
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }

    /// Leaves no room; `vms` are the processes that swap to it.
    pub fn fill(&mut self, vms: &[u32]) {
        self.full = true;
        if !self.mounted {
            return limit_files(vms, Some(FULL_BYTES));
        }
        let mut filler = File::create(self.filler()).unwrap();
        let block = vec![0; 64 << 10];
        for size in [block.len(), 4096] {
            loop {
                match filler.write_all(&block[..size]) {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => panic!("cannot fill the swap folder: {error}"),
                }
            }
        }
    }

    /// Makes room again.
    pub fn free(&mut self, vms: &[u32]) {
        self.full = false;
        match self.mounted {
            true => fs::remove_file(self.filler()).unwrap(),
            false => limit_files(vms, None),
        }
    }
}

/// Longest file that the processes may write from now on.
fn limit_files(pids: &[u32], bytes: Option<u64>) {
    for pid in pids {
        let limit = Rlimit {
            current: bytes,
            maximum: None,
        };
        // One that has just ended needs no limit.
        let _ = prlimit(Pid::from_raw(pid.cast_signed()), Resource::Fsize, limit);
    }
}

impl Drop for SwapRoom {
    fn drop(&mut self) {
        if !self.mounted {
            return;
        }
        // Processes that were killed a moment ago may still hold their swap files.
        let deadline = Instant::now() + SOON;
        let unmount = || Command::new("umount").arg(&self.path).output();
        while !unmount().is_ok_and(|output| output.status.success()) {
            if Instant::now() > deadline {
                return note(&format!("{} is left mounted", self.path.display()));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
