//! What a VM process finds that has left for its jail and has no filter: each wall by itself.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, Mode, fchmod, memfd_create};
use rustix::process::{Pid, getppid, test_kill_process};
use tidemark::threads::jail::{self, Jail};

/// What stands outside, and what is open inside.
struct World {
    folder: PathBuf,
    /// A group's frames, which VM processes may read.
    pool: OwnedFd,
    path: UnixListener,
    hidden: SocketAddr,
    _hidden: UnixListener,
    net: TcpListener,
    outside: Pid,
}

impl World {
    fn new(folder: &Path) -> World {
        let file = memfd_create("pool", MemfdFlags::CLOEXEC).unwrap();
        fchmod(&file, Mode::RUSR).unwrap();
        let by_proc = format!("/proc/self/fd/{}", file.as_raw_fd());
        let name = format!("tidemark-escape-{}", std::process::id());
        let hidden = SocketAddr::from_abstract_name(name).unwrap();
        World {
            folder: folder.to_owned(),
            pool: File::open(by_proc).unwrap().into(),
            path: UnixListener::bind(folder.join("socket")).unwrap(),
            _hidden: UnixListener::bind_addr(&hidden).unwrap(),
            hidden,
            net: TcpListener::bind("127.0.0.1:0").unwrap(),
            outside: getppid().unwrap(),
        }
    }

    /// Every attack, and how it went.
    fn attack(&self) -> Vec<(&'static str, io::Result<()>)> {
        let by_proc = format!("/proc/self/fd/{}", self.pool.as_raw_fd());
        let writable = |path: &Path| OpenOptions::new().write(true).open(path).map(drop);
        let entries = || match fs::read_dir("/")?.count() {
            0 => Err(io::ErrorKind::NotFound.into()),
            _ => Ok(()),
        };
        let net = self.net.local_addr().unwrap();
        let outside = self.outside.as_raw_nonzero().get();
        vec![
            ("a file by its path", writable(&self.folder.join("log"))),
            ("a secret", File::open("/etc/passwd").map(drop)),
            ("what is in the root", entries()),
            (
                "a new file",
                File::create(self.folder.join("made")).map(drop),
            ),
            ("the pool, for writing", writable(Path::new(&by_proc))),
            (
                "the pool's mode",
                fchmod(&self.pool, Mode::RUSR | Mode::WUSR).map_err(io::Error::from),
            ),
            (
                "a socket by its path",
                UnixStream::connect(self.folder.join("socket")).map(drop),
            ),
            (
                "a socket without a path",
                UnixStream::connect_addr(&self.hidden).map(drop),
            ),
            ("a port of the host", TcpStream::connect(net).map(drop)),
            (
                "a signal",
                test_kill_process(self.outside).map_err(io::Error::from),
            ),
            ("tracing", super::attacks::trace(outside)),
            ("root", super::attacks::be_root()),
            (
                "another root",
                rustix::process::chroot(".").map_err(io::Error::from),
            ),
        ]
    }
}

/// The attacks that succeed from inside `jail`, of a process that has only this thread.
pub fn succeeded(folder: &Path, jail: Jail) -> Vec<&'static str> {
    let world = World::new(folder);
    // Both listen, whoever connects.
    assert!(world.path.local_addr().is_ok());
    jail::enter(jail).unwrap();
    let made = world.attack();
    let made = made.into_iter().filter(|(_, answer)| answer.is_ok());
    made.map(|(name, _)| name).collect()
}
