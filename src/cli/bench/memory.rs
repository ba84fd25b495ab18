//! Memory that the processes of an arm take from the host, by the kernel's own figures.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;

use super::{Error, io};
use crate::sys::proc::{self, MAPPING_BYTES};

/// Bytes of a block in a file's metadata: see stat(2).
const BLOCK_BYTES: u64 = 512;

/// Memory of these processes together, bytes: what is anonymous or of a file, where a page that
/// several map counts once; all of their memory files, mapped or not; their page tables; and what
/// the kernel needs for their mappings.
///
/// # Errors
/// When one of them has ended, or may not be looked at.
pub(super) fn of(pids: &[i32]) -> Result<u64, Error> {
    let (mut bytes, mut files) = (0, BTreeMap::new());
    for pid in pids {
        let read = |name: &str| {
            let path = format!("/proc/{pid}/{name}");
            fs::read_to_string(&path).map_err(io(format!("read {path}")))
        };
        let (rollup, status) = (read("smaps_rollup")?, read("status")?);
        let size = |text, name| proc::size(text, name).unwrap_or_default().bytes();
        // Memory files are counted whole, below.
        bytes += size(&rollup, "Pss").saturating_sub(size(&rollup, "Pss_Shmem"));
        bytes += size(&status, "VmPTE");
        bytes += read("maps")?.lines().count() as u64 * MAPPING_BYTES;
        add_memory_files(*pid, &mut files)?;
    }
    Ok(bytes + files.into_values().sum::<u64>())
}

/// Adds the memory files that a process has open, by device and number, with the memory of each.
fn add_memory_files(pid: i32, files: &mut BTreeMap<(u64, u64), u64>) -> Result<(), Error> {
    let folder = format!("/proc/{pid}/fd");
    let entries = fs::read_dir(&folder).map_err(io(format!("read {folder}")))?;
    for entry in entries.flatten() {
        let target = fs::read_link(entry.path()).unwrap_or_default();
        if !target.to_string_lossy().starts_with("/memfd:") {
            continue;
        }
        // It may have been closed meanwhile.
        if let Ok(file) = fs::metadata(entry.path()) {
            files.insert((file.dev(), file.ino()), file.blocks() * BLOCK_BYTES);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    #[test]
    fn a_memory_file_counts_once_and_without_being_mapped() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let file = memfd_create("tidemark-bench", MemfdFlags::CLOEXEC).unwrap();
        let mut file = fs::File::from(file);
        file.write_all(&[1; 5 * 4096]).unwrap();
        let key = |file: &fs::File| {
            let found = file.metadata().unwrap();
            (found.dev(), found.ino())
        };
        let _twice = file.try_clone().unwrap();
        let mut files = BTreeMap::new();
        add_memory_files(pid, &mut files).unwrap();
        assert_eq!(files[&key(&file)], 5 * 4096);
        assert!(of(&[pid]).unwrap() > 5 * 4096);
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        assert!(of(&[i32::MAX]).is_err());
    }
}
