//! The process at the other end of a Unix socket, as a pidfd.
#![expect(unsafe_code)]
// UNSAFETY: our libraries have no wrapper for SO_PEERPIDFD.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

/// `SO_PEERPIDFD` of asm-generic/socket.h (Linux 6.5); the libc crate does not have it.
const SO_PEERPIDFD: libc::c_int = 77;

/// A pidfd of the process that connected `socket`, or made the pair.
///
/// # Errors
/// `NOPROTOOPT` before Linux 6.5; another one when that process is gone already.
pub fn peer_pidfd(socket: impl AsFd) -> Result<OwnedFd, Errno> {
    let mut number: RawFd = -1;
    let mut length: libc::socklen_t = size_of::<RawFd>()
        .try_into()
        .expect("a descriptor's number is four bytes");
    // SAFETY: both pointers are to locals that outlive the call, and `length` is the size of what
    // the first one points to: the kernel writes at most that much.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut number).cast(),
            &raw mut length,
        )
    };
    if answer != 0 {
        let error = std::io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
    }
    if number < 0 {
        return Err(Errno::SRCH);
    }
    // SAFETY: the kernel has just made this descriptor, closed on exec, for the caller to own, and
    // nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_peer_of_a_pair_is_whoever_made_it() {
        let (socket, _peer) = UnixStream::pair().unwrap();
        let pidfd = match peer_pidfd(&socket) {
            Ok(pidfd) => pidfd,
            Err(Errno::NOPROTOOPT) => return,
            Err(errno) => panic!("{errno}"),
        };
        let info = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
        let info = std::fs::read_to_string(info).unwrap();
        let pid = info.lines().find_map(|line| line.strip_prefix("Pid:"));
        assert_eq!(pid.unwrap().trim(), std::process::id().to_string());
    }

    #[test]
    fn what_is_no_socket_has_no_peer() {
        let file = std::fs::File::open("/proc/self/stat").unwrap();
        assert_eq!(peer_pidfd(file).unwrap_err(), Errno::NOTSOCK);
    }
}
