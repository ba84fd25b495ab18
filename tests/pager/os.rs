//! What the host's kernel does to a process's memory, brought about on purpose: its own swapping,
//! merging of equal pages, compaction.
#![expect(unsafe_code)]
// UNSAFETY: system calls that no crate of ours wraps; none of them changes content.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use tidemark::units::PAGE_SIZE;

/// `PR_SET_MEMORY_MERGE` (include/uapi/linux/prctl.h).
const PR_SET_MEMORY_MERGE: i32 = 67;

fn answer(code: i32) -> io::Result<()> {
    match code {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Offers all memory of this process to the kernel's merging of equal pages.
pub fn offer_memory_for_merging() -> io::Result<()> {
    // SAFETY: takes its arguments by value; merging does not change content.
    answer(unsafe { libc::prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0) })
}

/// Asks the kernel to swap these bytes out.
pub fn page_out(start: usize, bytes: usize) -> io::Result<()> {
    // SAFETY: the advice does not change content, whatever is mapped there.
    answer(unsafe { libc::madvise(start as *mut _, bytes, libc::MADV_PAGEOUT) })
}

/// A swap file of the host's own kernel, in use until it is dropped.
#[derive(Debug)]
pub struct HostSwap {
    path: PathBuf,
}

impl HostSwap {
    /// Makes a file in `folder` and swaps to it.
    pub fn on(folder: &Path, bytes: u64) -> io::Result<HostSwap> {
        let path = folder.join(format!("swap-of-a-test-{}", std::process::id()));
        let file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        let swap = HostSwap { path };
        // The header as mkswap writes it (include/linux/swap.h): version and last page behind the
        // boot block, the magic word at the end of the first page.
        let last_page = u32::try_from(bytes / PAGE_SIZE as u64 - 1).map_err(io::Error::other)?;
        let mut header = [0; PAGE_SIZE];
        header[1024..1028].copy_from_slice(&1u32.to_ne_bytes());
        header[1028..1032].copy_from_slice(&last_page.to_ne_bytes());
        header[PAGE_SIZE - 10..].copy_from_slice(b"SWAPSPACE2");
        file.write_all_at(&header, 0)?;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes)?;
        file.sync_all()?;
        let name = swap.name();
        // SAFETY: the name is a string that ends with a zero.
        answer(unsafe { libc::swapon(name.as_ptr(), 0) })?;
        Ok(swap)
    }

    fn name(&self) -> CString {
        CString::new(self.path.as_os_str().as_bytes()).expect("no zero in a path")
    }
}

impl Drop for HostSwap {
    fn drop(&mut self) {
        let name = self.name();
        // SAFETY: the name is a string that ends with a zero.
        let off = answer(unsafe { libc::swapoff(name.as_ptr()) });
        let removed = fs::remove_file(&self.path);
        for error in [off, removed].into_iter().filter_map(Result::err) {
            eprintln!("{}: {error}", self.path.display());
        }
    }
}

/// Writable private anonymous mappings of at least `bytes_min` of this process, (start, bytes):
/// guest RAM, stages, stacks, arenas of the allocator.
pub fn anonymous_mappings(bytes_min: usize) -> Vec<(usize, usize)> {
    let maps = fs::read_to_string("/proc/self/maps").expect("/proc");
    maps.lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let (start, end) = words.next()?.split_once('-')?;
            let start = usize::from_str_radix(start, 16).ok()?;
            let bytes = usize::from_str_radix(end, 16).ok()? - start;
            let writable = words.next()? == "rw-p";
            let anonymous = words.nth(2)? == "0";
            (writable && anonymous && bytes >= bytes_min).then_some((start, bytes))
        })
        .collect()
}

/// A figure of /proc/vmstat, 0 if the kernel does not have it.
pub fn vmstat(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/vmstat").expect("/proc");
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(found, _)| *found == name)
        .and_then(|(_, value)| value.parse().ok())
        .unwrap_or(0)
}

const KSM: &str = "/sys/kernel/mm/ksm";
const KSM_FILES: [&str; 3] = ["sleep_millisecs", "pages_to_scan", "run"];

/// The kernel's merging of equal pages at full speed; dropped, it is as it was.
#[derive(Debug)]
pub struct Ksm {
    before: [String; 3],
    /// Held while another test process may not change the settings.
    _lock: File,
}

impl Ksm {
    /// Waits for other tests that use it, and changes nothing yet.
    ///
    /// # Errors
    /// When the settings are not ours to change, or the host merges already.
    pub fn acquire() -> io::Result<Ksm> {
        let lock = File::options().write(true).open(format!("{KSM}/run"))?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
        let read = |name| fs::read_to_string(format!("{KSM}/{name}"));
        let before = [
            read(KSM_FILES[0])?,
            read(KSM_FILES[1])?,
            read(KSM_FILES[2])?,
        ];
        if before[2].trim() != "0" {
            return Err(io::Error::other("the host uses it"));
        }
        Ok(Ksm {
            before,
            _lock: lock,
        })
    }

    /// Merges from now on.
    pub fn start(&self) -> io::Result<()> {
        self.set(["1", "20000", "1"])
    }

    /// Stops, and makes each merged page one of its own again.
    pub fn unmerge(&self) -> io::Result<()> {
        self.set(["20", "100", "2"])
    }

    fn set(&self, values: [&str; 3]) -> io::Result<()> {
        let mut files = KSM_FILES.iter().zip(values);
        files.try_for_each(|(name, value)| fs::write(format!("{KSM}/{name}"), value.trim()))
    }

    /// Pages of this process that are merged.
    pub fn merged() -> u64 {
        let text = fs::read_to_string("/proc/self/ksm_merging_pages").unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }
}

impl Drop for Ksm {
    fn drop(&mut self) {
        let before = self.before.each_ref().map(String::as_str);
        if let Err(error) = self.unmerge().and_then(|()| self.set(before)) {
            eprintln!("{KSM}: {error}");
        }
    }
}

/// Whether the kernel gives large pages to who asks for them.
pub fn has_large_pages() -> bool {
    let enabled = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    enabled.is_ok_and(|enabled| !enabled.contains("[never]"))
}
