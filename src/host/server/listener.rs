//! The socket file at which VMs and control clients find the host manager.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::Error;
use crate::link::socket;

/// A socket that listens, and its file.
pub(super) struct Listener {
    pub fd: OwnedFd,
    pub path: PathBuf,
    inode: u64,
    /// Kept for the time when there is no descriptor left: see [`Listener::turn_away`].
    spare: Option<OwnedFd>,
}

impl Listener {
    /// Listens at `path`: see [`super::Server::listen`].
    pub fn new(path: &Path) -> Result<Listener, Error> {
        let failed = |source: io::Error| Error::Listen {
            path: path.to_owned(),
            source,
        };
        if let Some(folder) = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
        {
            let made = fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder);
            made.map_err(failed)?;
        }
        if inode(path).is_some() {
            match socket::connect(path) {
                Ok(_) => {
                    return Err(Error::InUse {
                        path: path.to_owned(),
                    });
                }
                Err(socket::Error::Connect {
                    source: Errno::CONNREFUSED,
                    ..
                }) if is_socket(path) => fs::remove_file(path).map_err(failed)?,
                // Not a socket of ours: bind says what is wrong with it.
                Err(_) => {}
            }
        }
        let bound = || -> io::Result<OwnedFd> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let fd = net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
            net::bind(&fd, &SocketAddrUnix::new(path)?)?;
            // Nobody can connect before `listen`, so nobody gets in before the mode is set.
            fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
            net::listen(&fd, 64)?;
            Ok(fd)
        };
        Ok(Listener {
            fd: bound().map_err(failed)?,
            path: path.to_owned(),
            inode: inode(path).unwrap_or(0),
            spare: spare(),
        })
    }

    /// The next connection.
    ///
    /// # Errors
    /// `AGAIN` when there is none.
    pub fn accept(&self) -> Result<OwnedFd, Errno> {
        net::accept_with(&self.fd, SocketFlags::CLOEXEC)
    }

    /// Closes the next connection where there is no descriptor for it, so that whoever came hears
    /// at once and the loop is not woken for it again and again.
    pub fn turn_away(&mut self) {
        drop(self.spare.take());
        // It may have gone by itself.
        let _ = self.accept();
        self.spare = spare();
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Only our own socket file: another host manager may have replaced it.
        if inode(&self.path) == Some(self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A descriptor of nothing.
fn spare() -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open("/dev/null", flags, Mode::empty()).ok()
}

/// A connection to any other kind of file is refused too.
fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
}

fn inode(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).ok().map(|meta| meta.ino())
}
