//! Where a host manager finds a VM again: a socket at which the VM process listens.
//!
//! A VM in its sandbox reaches no path. So it leaves this socket beside the host manager's before it is
//! confined, and the next host manager, to which the record tells its number, connects to it. Who
//! connects must know the VM's token.
//!
//! The launcher makes the file. It is the host manager's from the moment the VM is let in: it removes
//! it when the VM's process has ended.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::socket::Error;

/// Connections that wait at a door, at most.
const BACKLOG: i32 = 16;
/// Numbers that are tried until one is free.
const TRIES: u32 = 16;

/// See the module documentation.
#[derive(Debug)]
pub struct Door {
    fd: OwnedFd,
    number: u32,
    /// The file, as long as this process has to remove it.
    path: Option<PathBuf>,
}

/// The file of door `number` of a VM whose host manager listens at `socket`.
pub fn path(socket: &Path, number: u32) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(format!(".vm-{number:08x}"));
    path.into()
}

impl Door {
    /// Listens beside `socket`, where the host manager does.
    ///
    /// # Errors
    /// When there can be no socket in that folder.
    pub fn open(socket: &Path) -> Result<Door, Error> {
        let mut tries = 0;
        loop {
            let number = fastrand::u32(..);
            let path = path(socket, number);
            match listen(&path) {
                Ok(fd) => {
                    let path = Some(path);
                    return Ok(Door { fd, number, path });
                }
                Err(Errno::ADDRINUSE) if tries < TRIES => tries += 1,
                Err(source) => return Err(Error::Door { path, source }),
            }
        }
    }

    /// By which it is recorded.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The host manager has let the VM in: the file is its own now.
    pub fn keep(&mut self) {
        self.path = None;
    }

    /// Who has come; `None`: nobody waits, or nobody can be let in now.
    pub fn accept(&self) -> Option<OwnedFd> {
        net::accept_with(&self.fd, SocketFlags::CLOEXEC).ok()
    }
}

fn listen(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    net::bind(&fd, &SocketAddrUnix::new(path)?)?;
    // Nobody can connect before `listen`, so nobody gets in before the mode is set.
    let closed = fs::set_permissions(path, fs::Permissions::from_mode(0o600));
    let errno = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let listens = closed
        .map_err(errno)
        .and_then(|()| net::listen(&fd, BACKLOG));
    if let Err(errno) = listens {
        let _ = fs::remove_file(path);
        return Err(errno);
    }
    Ok(fd)
}

impl Drop for Door {
    fn drop(&mut self) {
        if let Some(path) = self.path.take() {
            let _ = fs::remove_file(path);
        }
    }
}

impl AsFd for Door {
    /// Readable when somebody has come.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::socket;

    #[test]
    fn a_door_is_its_launchers_until_it_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("host.sock");
        let mut door = Door::open(&socket).unwrap();
        let file = path(&socket, door.number());
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(door.accept().is_none());
        let _visitor = socket::connect_now(&file).unwrap();
        assert!(door.accept().is_some() && door.accept().is_none());
        door.keep();
        drop(door);
        assert!(file.exists());
        drop(Door::open(&socket).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let nowhere = Door::open(&folder.path().join("none/host.sock")).unwrap_err();
        assert!(nowhere.to_string().contains("none/host.sock.vm-"));
    }
}
