//! What a host manager leaves to the next one: a file beside its socket.
//!
//! A journal: one JSON line for each [`Note`], appended before the VM or the user is answered, so that
//! it is there however the host manager ends. It is written anew when it is opened and when most of
//! its lines are out of date, into a new file that replaces the old one in one step. The first line
//! names the boot: process ids mean nothing after the next one. While a host manager lives it holds a
//! lock on the file. A host manager that leaves no VM behind removes it.
//!
//! Reading trusts nothing: the file must be a regular one that only its owner can read and write, and
//! its owner must be us; its size, its lines and the number of VMs are bounded; a line that is none of
//! ours is ignored and counted. What the lines say is checked by [`super::manager::Manager::restore`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::manager::{HostRecord, Note, VMS_MAX, VmRecord};

/// Largest file that is read, bytes.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// Longest line, bytes.
const LINE_BYTES_MAX: usize = 2048;
/// Lines beyond four for each VM that make the file be written anew.
const LINES_SPARE: usize = 1024;
/// Version of the lines.
const VERSION: u32 = 1;

/// The record cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("cannot {operation} the record {}: {source}", path.display())]
    Io {
        /// Which.
        operation: &'static str,
        /// Of what file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody else could have written it.
    #[error("the record {} is not trusted: {why}", path.display())]
    Untrusted {
        /// Of what file.
        path: PathBuf,
        /// Why.
        why: &'static str,
    },
    /// Another host manager holds it.
    #[error("another host manager keeps the record {}", path.display())]
    InUse {
        /// Of what file.
        path: PathBuf,
    },
}

/// The first line.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    tidemark_record: u32,
    /// The kernel's random name of this boot, and the PID namespace.
    boot: String,
}

impl Head {
    fn now() -> Head {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let pids = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        Head {
            tidemark_record: VERSION,
            boot: format!("{} {}", boot.trim(), pids.display()),
        }
    }
}

/// What an earlier host manager left.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Its settings.
    pub host: Option<HostRecord>,
    /// Its VMs, by name; whether they live is another question.
    pub vms: BTreeMap<String, VmRecord>,
    /// Lines that were none of ours.
    pub ignored: usize,
}

/// The record of this host manager.
#[derive(Debug)]
pub struct Record {
    path: PathBuf,
    file: File,
    /// Names of the VMs that live.
    live: BTreeSet<String>,
    lines: usize,
    /// The last write failed: the file may end within a line.
    torn: bool,
}

impl Record {
    /// Where the record of the host manager at `socket` is.
    pub fn path(socket: &Path) -> PathBuf {
        let mut path = socket.as_os_str().to_owned();
        path.push(".record");
        path.into()
    }

    /// Reads what the last host manager left; nothing when there is no file.
    ///
    /// # Errors
    /// When the file is not to be trusted, cannot be read, or is in use.
    pub fn read(path: &Path) -> Result<Found, Error> {
        let failed = |source: Errno| error("read", path)(source.into());
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT) => return Ok(Found::default()),
            Err(Errno::LOOP) => return Err(untrusted(path, "it is a symbolic link")),
            Err(errno) => return Err(failed(errno)),
        };
        let meta = file.metadata().map_err(error("read", path))?;
        if !meta.is_file() {
            return Err(untrusted(path, "it is no regular file"));
        }
        if meta.uid() != rustix::process::geteuid().as_raw() {
            return Err(untrusted(path, "it belongs to another user"));
        }
        if meta.mode() & 0o077 != 0 {
            return Err(untrusted(path, "others may read or write it"));
        }
        if meta.len() > FILE_BYTES_MAX {
            return Err(untrusted(path, "it is too large"));
        }
        lock(&file, path)?;
        let mut bytes = Vec::new();
        let mut bounded = file.take(FILE_BYTES_MAX);
        bounded
            .read_to_end(&mut bytes)
            .map_err(error("read", path))?;
        Ok(Found::parse(&bytes, &Head::now()))
    }

    /// Starts a record with these notes, in place of whatever was there.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create(path: &Path, notes: &[Note]) -> Result<Record, Error> {
        let file = written_anew(path, notes)?;
        let mut record = Record {
            path: path.to_owned(),
            file,
            live: BTreeSet::new(),
            lines: 0,
            torn: false,
        };
        record.count(notes);
        Ok(record)
    }

    /// Adds notes; `all` are those that a new file would begin with.
    ///
    /// # Errors
    /// When they cannot be written; the next call tries to write everything anew.
    pub fn append(&mut self, notes: &[Note], all: impl FnOnce() -> Vec<Note>) -> Result<(), Error> {
        if notes.is_empty() && !self.torn {
            return Ok(());
        }
        let spare = LINES_SPARE + 4 * self.live.len();
        if self.torn || self.lines + notes.len() > spare {
            self.torn = true;
            let all = all();
            self.file = written_anew(&self.path, &all)?;
            (self.torn, self.lines) = (false, 0);
            self.live.clear();
            self.count(&all);
            return Ok(());
        }
        if let Err(source) = self.file.write_all(&lines(notes)) {
            self.torn = true;
            return Err(error("write", &self.path)(source));
        }
        self.count(notes);
        Ok(())
    }

    /// As after a write that failed.
    #[cfg(test)]
    pub fn fail(&mut self) {
        self.torn = true;
    }

    fn count(&mut self, notes: &[Note]) {
        self.lines += notes.len();
        for note in notes {
            match note {
                Note::Vm(vm) => drop(self.live.insert(vm.name.clone())),
                Note::Gone(name) => drop(self.live.remove(name)),
                Note::Host(_) => {}
            }
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        // Nobody is left for the next host manager to know.
        if self.live.is_empty() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Found {
    fn parse(bytes: &[u8], head: &Head) -> Found {
        let mut found = Found::default();
        // What is behind the last line break was cut off: nobody was answered for it.
        let end = bytes.iter().rposition(|&byte| byte == b'\n').unwrap_or(0);
        let mut lines = bytes[..end].split(|&byte| byte == b'\n');
        let first = lines.next().unwrap_or_default();
        if serde_json::from_slice::<Head>(first).ok().as_ref() != Some(head) {
            // Of another boot, or of another version.
            return found;
        }
        for line in lines.filter(|line| !line.is_empty()) {
            let note = match line.len() <= LINE_BYTES_MAX {
                true => serde_json::from_slice(line).ok(),
                false => None,
            };
            match note {
                Some(Note::Host(host)) => found.host = Some(host),
                Some(Note::Gone(name)) => drop(found.vms.remove(&name)),
                Some(Note::Vm(vm))
                    if found.vms.len() < VMS_MAX || found.vms.contains_key(&vm.name) =>
                {
                    found.vms.insert(vm.name.clone(), vm);
                }
                Some(Note::Vm(_)) | None => found.ignored += 1,
            }
        }
        found
    }
}

fn lines(notes: &[Note]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for note in notes {
        serde_json::to_writer(&mut bytes, note).expect("notes have string keys only");
        bytes.push(b'\n');
    }
    bytes
}

/// A file with the first line and these notes, put in the place of the old one.
fn written_anew(path: &Path, notes: &[Note]) -> Result<File, Error> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    match fs::remove_file(&new) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(error("replace", &new)(source));
        }
        _ => {}
    }
    let flags = OFlags::WRONLY
        | OFlags::APPEND
        | OFlags::CREATE
        | OFlags::EXCL
        | OFlags::NOFOLLOW
        | OFlags::CLOEXEC;
    let opened = rustix::fs::open(&new, flags, Mode::RUSR | Mode::WUSR);
    let mut file = File::from(opened.map_err(|errno| error("create", &new)(errno.into()))?);
    lock(&file, &new)?;
    let mut bytes = serde_json::to_vec(&Head::now()).expect("the head has string keys only");
    bytes.push(b'\n');
    bytes.extend(lines(notes));
    let written = file.write_all(&bytes).and_then(|()| fs::rename(&new, path));
    if let Err(source) = written {
        let _ = fs::remove_file(&new);
        return Err(error("write", path)(source));
    }
    Ok(file)
}

fn lock(file: &File, path: &Path) -> Result<(), Error> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(Error::InUse {
            path: path.to_owned(),
        }),
        Err(errno) => Err(error("lock", path)(errno.into())),
    }
}

fn error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io {
        operation,
        path,
        source,
    }
}

fn untrusted(path: &Path, why: &'static str) -> Error {
    Error::Untrusted {
        path: path.to_owned(),
        why,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;
    use crate::host::manager::WayBack;
    use crate::host::pool::PoolId;
    use crate::host::process::ProcessId;
    use crate::units::Pages;
    use crate::words::{Allocation, Sharing, Token};

    fn vm(name: &str, reservation: u64) -> VmRecord {
        let size = Pages::mib(64);
        VmRecord {
            name: name.to_owned(),
            process: ProcessId {
                pid: 4711,
                started: 99,
            },
            allocation: Allocation {
                size,
                reservation: Pages(reservation),
                limit: size,
                shares: 10,
                dynamic_min: Pages::ZERO,
                dynamic_max: size,
            },
            managed: true,
            share_group: Some("g".to_owned()),
            sharing: Sharing::default(),
            pool: PoolId {
                device: 1,
                inode: 2,
                frames: 512,
            },
            way: Some(WayBack {
                door: 3,
                token: Token::of([1, reservation]),
            }),
        }
    }

    fn note(name: &str, reservation: u64) -> Note {
        Note::Vm(vm(name, reservation))
    }

    fn folder() -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = Record::path(&folder.path().join("host.sock"));
        (folder, path)
    }

    #[test]
    fn the_next_one_reads_what_was_last_said_of_each_vm() {
        let (_folder, path) = folder();
        assert_eq!(Record::read(&path).unwrap(), Found::default());
        let host = HostRecord {
            started_budget: Pages(1),
            started_policy: "esx".to_owned(),
            budget: Pages(2),
            policy: "pref".to_owned(),
        };
        let notes = [Note::Host(host.clone()), note("a", 1), note("b", 1)];
        let mut record = Record::create(&path, &notes).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(matches!(Record::read(&path), Err(Error::InUse { .. })));
        record
            .append(&[note("a", 7), Note::Gone("b".to_owned())], Vec::new)
            .unwrap();
        // As if it had been killed.
        let copy = fs::read(&path).unwrap();
        let found = Found::parse(&copy, &Head::now());
        assert_eq!(found.host, Some(host));
        assert_eq!(found.vms, [("a".to_owned(), vm("a", 7))].into());
        assert_eq!(found.ignored, 0);
        // The last line was cut off: those before it count.
        let found = Found::parse(&copy[..copy.len() - 5], &Head::now());
        assert_eq!((found.vms.len(), found.ignored), (2, 0));
        drop(record);
        assert!(path.exists());
        drop(Record::create(&path, &[]).unwrap());
        assert!(!path.exists(), "nobody is left to be known");
    }

    #[test]
    fn the_file_does_not_grow_with_what_is_said() {
        let (_folder, path) = folder();
        let mut record = Record::create(&path, &[]).unwrap();
        for n in 0..4000 {
            record
                .append(&[note("a", n)], || vec![note("a", n)])
                .unwrap();
        }
        let bytes = fs::read(&path).unwrap();
        assert!(bytes.len() < 400 * (LINES_SPARE + 10), "{}", bytes.len());
        let found = Found::parse(&bytes, &Head::now());
        assert_eq!(found.vms["a"], vm("a", 3999));
    }

    #[test]
    fn a_record_of_another_boot_says_nothing() {
        let mut bytes = serde_json::to_vec(&Head {
            tidemark_record: VERSION,
            boot: "another".to_owned(),
        })
        .unwrap();
        bytes.push(b'\n');
        bytes.extend(lines(&[note("a", 1)]));
        assert_eq!(Found::parse(&bytes, &Head::now()), Found::default());
    }

    #[test]
    fn what_others_could_have_written_is_not_read() {
        let (folder, path) = folder();
        fs::write(&path, "x").unwrap();
        let refused = |path: &Path| match Record::read(path) {
            Err(Error::Untrusted { why, .. }) => why,
            other => panic!("{other:?}"),
        };
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(refused(&path).contains("others"));
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(refused(&link).contains("symbolic"));
        assert!(refused(folder.path()).contains("regular"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(FILE_BYTES_MAX + 1)
            .unwrap();
        assert!(refused(&path).contains("large"));
        // A symbolic link in its place is replaced, not followed.
        let target = folder.path().join("target");
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        drop(Record::create(&path, &[note("a", 1)]).unwrap());
        assert!(!target.exists() && Record::read(&path).unwrap().vms.len() == 1);
    }

    #[test]
    fn more_vms_than_there_can_be_are_ignored() {
        let mut bytes = serde_json::to_vec(&Head::now()).unwrap();
        bytes.push(b'\n');
        let notes: Vec<Note> = (0..=VMS_MAX).map(|n| note(&format!("v{n}"), 1)).collect();
        bytes.extend(lines(&notes));
        bytes.extend(lines(&[note("v0", 9)]));
        bytes.extend(format!("{{\"gone\":\"{}\"}}\n", "x".repeat(LINE_BYTES_MAX)).bytes());
        let found = Found::parse(&bytes, &Head::now());
        assert_eq!((found.vms.len(), found.ignored), (VMS_MAX, 2));
        assert_eq!(found.vms["v0"].allocation.reservation, Pages(9));
    }

    proptest! {
        #[test]
        fn rubbish_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400), cut in 0..600_usize) {
            let mut all = serde_json::to_vec(&Head::now()).unwrap();
            all.push(b'\n');
            all.extend(lines(&[note("a", 1), note("b", 2)]));
            all.truncate(cut);
            all.extend(bytes);
            Found::parse(&all, &Head::now());
        }
    }
}
