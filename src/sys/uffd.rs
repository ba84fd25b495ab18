//! userfaultfd: the few requests the pager uses, with every expected errno decoded.
//!
//! The bindgen-based crate needs libclang and lacks MOVE, so the requests are spelled out here with
//! compile-time size checks. Source: `include/uapi/linux/userfaultfd.h` and userfaultfd(2).
//!
//! This module is private to `sys`: requests take raw addresses, and [`super::space`] is what makes
//! them safe to call by checking every range against mappings that it owns.
#![expect(unsafe_code)]
// UNSAFETY: ioctl(2) with structures that the kernel fills in.

use std::fs::OpenOptions;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use vmm_sys_util::eventfd::EventFd;

/// Page faults caused by write protection are reported.
pub const FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;
/// Private mappings of memory files can be write-protected (Linux 5.19 and later).
pub const FEATURE_WP_SHMEM: u64 = 1 << 12;
/// A moved mapping stays registered, and the move waits until its event was read.
pub const FEATURE_EVENT_REMAP: u64 = 1 << 2;
/// `UFFDIO_MOVE` (Linux 6.8 and later).
pub const FEATURE_MOVE: u64 = 1 << 16;

/// Names of the feature bits, for `tidemark check`.
pub const FEATURE_NAMES: &[(u64, &str)] = &[
    (1 << 0, "pagefault-flag-wp"),
    (1 << 1, "event-fork"),
    (1 << 2, "event-remap"),
    (1 << 3, "event-remove"),
    (1 << 4, "missing-hugetlbfs"),
    (1 << 5, "missing-shmem"),
    (1 << 6, "event-unmap"),
    (1 << 7, "sigbus"),
    (1 << 8, "thread-id"),
    (1 << 9, "minor-hugetlbfs"),
    (1 << 10, "minor-shmem"),
    (1 << 11, "exact-address"),
    (1 << 12, "wp-hugetlbfs-shmem"),
    (1 << 13, "wp-unpopulated"),
    (1 << 14, "poison"),
    (1 << 15, "wp-async"),
    (1 << 16, "move"),
];

const API: u64 = 0xaa;
const REGISTER_MODE_MISSING: u64 = 1 << 0;
const REGISTER_MODE_WP: u64 = 1 << 1;
const WRITEPROTECT_MODE_WP: u64 = 1 << 0;
const EVENT_PAGEFAULT: u8 = 0x12;
const EVENT_REMAP: u8 = 0x14;
const PAGEFAULT_FLAG_WRITE: u64 = 1 << 0;
const PAGEFAULT_FLAG_WP: u64 = 1 << 1;

#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
struct UffdioRegister {
    range: Range,
    mode: u64,
    ioctls: u64,
}

/// `uffdio_copy` and `uffdio_move` have one shape: the last field is the bytes done or `-errno`.
#[repr(C)]
struct Transfer {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    done: i64,
}

#[repr(C)]
struct UffdioZeropage {
    range: Range,
    mode: u64,
    done: i64,
}

#[repr(C)]
struct UffdioWriteprotect {
    range: Range,
    mode: u64,
}

/// `uffd_msg`, read as words: event in the low byte of the first, then the event's arguments.
type Message = [u64; 4];

const _: () = {
    assert!(size_of::<UffdioApi>() == 24);
    assert!(size_of::<Range>() == 16);
    assert!(size_of::<UffdioRegister>() == 32);
    assert!(size_of::<Transfer>() == 40);
    assert!(size_of::<UffdioZeropage>() == 32);
    assert!(size_of::<UffdioWriteprotect>() == 24);
    assert!(size_of::<Message>() == 32);
};

/// `_IOC(direction, 0xAA, number, size)`; direction 2 = read, 3 = read and write.
const fn request(direction: u64, number: u64, size: usize) -> u64 {
    (direction << 30) | ((size as u64) << 16) | (API << 8) | number
}

const UFFDIO_API: u64 = request(3, 0x3f, size_of::<UffdioApi>());
const UFFDIO_REGISTER: u64 = request(3, 0x00, size_of::<UffdioRegister>());
const UFFDIO_UNREGISTER: u64 = request(2, 0x01, size_of::<Range>());
const UFFDIO_WAKE: u64 = request(2, 0x02, size_of::<Range>());
const UFFDIO_COPY: u64 = request(3, 0x03, size_of::<Transfer>());
const UFFDIO_ZEROPAGE: u64 = request(3, 0x04, size_of::<UffdioZeropage>());
const UFFDIO_MOVE: u64 = request(3, 0x05, size_of::<Transfer>());
const UFFDIO_WRITEPROTECT: u64 = request(3, 0x06, size_of::<UffdioWriteprotect>());
const USERFAULTFD_IOC_NEW: u64 = request(0, 0x00, 0);

/// What is asked of a userfaultfd once it is open.
pub const REQUESTS: [u64; 7] = [
    UFFDIO_REGISTER,
    UFFDIO_UNREGISTER,
    UFFDIO_WAKE,
    UFFDIO_COPY,
    UFFDIO_ZEROPAGE,
    UFFDIO_MOVE,
    UFFDIO_WRITEPROTECT,
];

/// Why a userfaultfd cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Neither the device nor the system call is allowed.
    #[error(
        "no userfaultfd: /dev/userfaultfd: {device}; system call: {syscall} (grant it with: \
         sudo chmod 0666 /dev/userfaultfd, or sudo sysctl vm.unprivileged_userfaultfd=1)"
    )]
    Denied {
        /// Answer to opening the device.
        device: std::io::Error,
        /// Answer to the system call.
        syscall: Errno,
    },
    /// No descriptor to wait with.
    #[error("cannot create a descriptor to wait for page faults")]
    Wait(#[source] std::io::Error),
    /// The kernel lacks a feature.
    #[error("userfaultfd refuses features {wanted:#x}: {source}")]
    Features {
        /// The bits asked for.
        wanted: u64,
        /// The kernel's answer.
        source: Errno,
    },
}

/// How a transfer into or out of registered memory ended short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The next page of the destination is there already.
    Exists,
    /// The next page of the source is not there.
    Missing,
    /// The next page cannot be moved now (pinned, or mapped elsewhere).
    Busy,
    /// The kernel refused for another reason.
    Refused(Errno),
}

/// Pages transferred before the end or the first obstacle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transferred {
    /// Bytes done.
    pub bytes: usize,
    /// `None` when all of it was done.
    pub stop: Option<Stop>,
}

/// Something the pager must know of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A thread touched a missing page at this address and waits.
    Missing {
        /// Faulting address, page-aligned.
        hva: usize,
        /// Whether the thread writes.
        write: bool,
    },
    /// A thread wrote to a write-protected page at this address and waits.
    Protected {
        /// Faulting address, page-aligned.
        hva: usize,
    },
    /// A mapping was moved; reading this lets the mover go on.
    Remapped,
}

/// A userfaultfd of this process.
///
/// While a thread moves a registered mapping, every transfer answers EAGAIN until somebody has read
/// the move's event; and whoever makes transfers may hold a lock that the fault threads wait for.
/// So each thread that meets EAGAIN reads the events itself, and leaves them in the backlog for the
/// fault threads.
#[derive(Debug)]
pub struct Uffd {
    fd: OwnedFd,
    backlog: Mutex<Vec<Event>>,
    /// Written for each addition to the backlog.
    call: EventFd,
    /// Waits for the two descriptors, edge-triggered: an event wakes one thread, which reads all
    /// there are.
    epoll: OwnedFd,
}

fn ioctl<T>(fd: BorrowedFd<'_>, request: u64, argument: &mut T) -> Result<(), Errno> {
    // SAFETY: `request` encodes the size of `T` (checked above for every pair used in this file),
    // and `argument` is valid for reads and writes of that size.
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(argument)) };
    if answer == 0 {
        Ok(())
    } else {
        Err(last_errno())
    }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

fn open_raw() -> Result<OwnedFd, OpenError> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    let device = match OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/userfaultfd")
    {
        Ok(device) => {
            // SAFETY: the request takes its flags by value and returns a new descriptor.
            let fd = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, flags) };
            if fd >= 0 {
                // SAFETY: the descriptor was just created and belongs to nobody else.
                return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
            }
            std::io::Error::last_os_error()
        }
        Err(error) => error,
    };
    // SAFETY: userfaultfd(2) takes flags by value.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    match i32::try_from(fd) {
        Ok(fd) if fd >= 0 => {
            // SAFETY: the descriptor was just created and belongs to nobody else.
            Ok(unsafe { OwnedFd::from_raw_fd(fd) })
        }
        _ => Err(OpenError::Denied {
            device,
            syscall: last_errno(),
        }),
    }
}

/// An epoll descriptor that tells once of each new readability of the two.
fn epoll_of(fds: [BorrowedFd<'_>; 2]) -> Result<OwnedFd, Errno> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (fd, data) in fds.into_iter().zip(0..) {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, fd, epoll::EventData::new_u64(data), flags)?;
    }
    Ok(epoll)
}

/// The feature bits that this kernel offers.
///
/// # Errors
/// When no userfaultfd can be opened.
pub fn probe() -> Result<u64, OpenError> {
    let fd = open_raw()?;
    let mut api = UffdioApi {
        api: API,
        features: 0,
        ioctls: 0,
    };
    ioctl(fd.as_fd(), UFFDIO_API, &mut api)
        .map_err(|source| OpenError::Features { wanted: 0, source })?;
    Ok(api.features)
}

impl Uffd {
    /// Opens one with the given features enabled.
    ///
    /// # Errors
    /// When it is not allowed or the kernel lacks a feature.
    pub fn open(features: u64) -> Result<Uffd, OpenError> {
        let fd = open_raw()?;
        let mut api = UffdioApi {
            api: API,
            features,
            ioctls: 0,
        };
        ioctl(fd.as_fd(), UFFDIO_API, &mut api).map_err(|source| OpenError::Features {
            wanted: features,
            source,
        })?;
        let call = EventFd::new(libc::EFD_NONBLOCK).map_err(OpenError::Wait)?;
        let epoll = epoll_of([fd.as_fd(), super::event::borrow(&call)])
            .map_err(|errno| OpenError::Wait(errno.into()))?;
        Ok(Uffd {
            fd,
            backlog: Mutex::default(),
            call,
            epoll,
        })
    }

    /// Waits, for `limit` at most, until there may be something to read. Any number of threads may
    /// wait: an event wakes one of them, which must read until nothing is left.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn wait(&self, limit: Option<Duration>) -> Result<(), Errno> {
        let limit = limit.map(|limit| Timespec::try_from(limit).map_err(|_| Errno::INVAL));
        let mut ready = [MaybeUninit::uninit(); 2];
        match epoll::wait(&self.epoll, &mut ready, limit.transpose()?.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Wakes one of the threads in [`Uffd::wait`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn call_one(&self) -> Result<(), Errno> {
        self.call
            .write(1)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Takes the waiting events off the descriptor, so that a moving mapping gets on.
    fn unblock(&self) -> Result<(), Errno> {
        let mut events = Vec::new();
        self.read_descriptor(&mut events)?;
        events.retain(|event| *event != Event::Remapped);
        if events.is_empty() {
            std::thread::yield_now();
            return Ok(());
        }
        self.backlog().extend(events);
        self.call_one()
    }

    fn backlog(&self) -> MutexGuard<'_, Vec<Event>> {
        self.backlog.lock().expect("nothing panics under this lock")
    }

    /// Arms a range for missing and write-protection faults.
    pub(super) fn register(&self, start: usize, len: usize) -> Result<(), Errno> {
        self.register_mode(start, len, REGISTER_MODE_MISSING | REGISTER_MODE_WP)
    }

    /// Arms a range for write-protection faults alone, as a mapping of pool frames needs it.
    pub(super) fn register_protection(&self, start: usize, len: usize) -> Result<(), Errno> {
        self.register_mode(start, len, REGISTER_MODE_WP)
    }

    fn register_mode(&self, start: usize, len: usize, mode: u64) -> Result<(), Errno> {
        let mut register = UffdioRegister {
            range: range(start, len),
            mode,
            ioctls: 0,
        };
        ioctl(self.fd(), UFFDIO_REGISTER, &mut register)
    }

    /// Disarms a range and wakes whoever waits in it.
    pub(super) fn unregister(&self, start: usize, len: usize) -> Result<(), Errno> {
        ioctl(self.fd(), UFFDIO_UNREGISTER, &mut range(start, len))
    }

    /// Lets threads that wait in the range try again.
    pub(super) fn wake(&self, start: usize, len: usize) -> Result<(), Errno> {
        ioctl(self.fd(), UFFDIO_WAKE, &mut range(start, len))
    }

    /// Maps the zero page over missing pages and wakes.
    pub(super) fn zeropage(&self, start: usize, len: usize) -> Transferred {
        self.transfer(len, |done| {
            let range = range(start + done, len - done);
            let mut zero = UffdioZeropage {
                range,
                mode: 0,
                done: 0,
            };
            (ioctl(self.fd(), UFFDIO_ZEROPAGE, &mut zero), zero.done)
        })
    }

    /// Copies into missing pages and wakes.
    pub(super) fn copy(&self, dst: usize, src: usize, len: usize) -> Transferred {
        self.transfer_with(UFFDIO_COPY, dst, src, len)
    }

    /// Moves pages themselves into missing pages and wakes who waits at the destination.
    pub(super) fn relocate(&self, dst: usize, src: usize, len: usize) -> Transferred {
        self.transfer_with(UFFDIO_MOVE, dst, src, len)
    }

    fn transfer_with(&self, request: u64, dst: usize, src: usize, len: usize) -> Transferred {
        self.transfer(len, |done| {
            let mut args = Transfer {
                dst: (dst + done) as u64,
                src: (src + done) as u64,
                len: (len - done) as u64,
                mode: 0,
                done: 0,
            };
            (ioctl(self.fd(), request, &mut args), args.done)
        })
    }

    /// Write-protects present pages of a range.
    pub(super) fn protect(&self, start: usize, len: usize) -> Result<(), Errno> {
        self.writeprotect(start, len, WRITEPROTECT_MODE_WP)
    }

    /// [`Uffd::protect`] as a transfer: all of the part or nothing.
    pub(super) fn protect_part(&self, start: usize, len: usize) -> Transferred {
        match self.protect(start, len) {
            Ok(()) => Transferred {
                bytes: len,
                stop: None,
            },
            Err(Errno::NOENT) => Transferred {
                bytes: 0,
                stop: Some(Stop::Missing),
            },
            Err(errno) => Transferred {
                bytes: 0,
                stop: Some(Stop::Refused(errno)),
            },
        }
    }

    /// Lifts the protection and wakes.
    pub(super) fn unprotect(&self, start: usize, len: usize) -> Result<(), Errno> {
        self.writeprotect(start, len, 0)
    }

    fn writeprotect(&self, start: usize, len: usize, mode: u64) -> Result<(), Errno> {
        for _ in 0..RETRIES_MAX {
            let mut args = UffdioWriteprotect {
                range: range(start, len),
                mode,
            };
            match ioctl(self.fd(), UFFDIO_WRITEPROTECT, &mut args) {
                Err(Errno::AGAIN) => self.unblock()?,
                answer => return answer,
            }
        }
        Err(Errno::AGAIN)
    }

    /// Repeats a request over what is left until it is done or meets an obstacle.
    fn transfer(
        &self,
        len: usize,
        mut step: impl FnMut(usize) -> (Result<(), Errno>, i64),
    ) -> Transferred {
        let mut bytes = 0;
        for _ in 0..RETRIES_MAX {
            if bytes == len {
                return Transferred { bytes, stop: None };
            }
            let (answer, done) = step(bytes);
            bytes += usize::try_from(done).unwrap_or(0);
            let stop = match answer {
                Ok(()) => continue,
                // A partial transfer answers EAGAIN too; progress is in `done`.
                Err(Errno::AGAIN) => match self.unblock() {
                    Ok(()) => continue,
                    Err(errno) => Stop::Refused(errno),
                },
                Err(Errno::EXIST) => Stop::Exists,
                Err(Errno::NOENT) => Stop::Missing,
                Err(Errno::BUSY) => Stop::Busy,
                Err(errno) => Stop::Refused(errno),
            };
            return Transferred {
                bytes,
                stop: Some(stop),
            };
        }
        Transferred {
            bytes,
            stop: Some(Stop::Refused(Errno::AGAIN)),
        }
    }

    /// Reads all waiting events, without blocking; appends them to `events`. As many as there are
    /// threads can wait, since each waits for its own.
    ///
    /// # Errors
    /// When the descriptor fails; an empty queue is no error.
    pub fn read_events(&self, events: &mut Vec<Event>) -> Result<(), Errno> {
        events.append(&mut self.backlog());
        self.read_descriptor(events)
    }

    fn read_descriptor(&self, events: &mut Vec<Event>) -> Result<(), Errno> {
        const AT_ONCE: usize = 16;
        let mut buffer = [0u8; AT_ONCE * size_of::<Message>()];
        loop {
            let bytes = match rustix::io::read(&self.fd, &mut buffer) {
                Ok(bytes) => bytes,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error),
            };
            for message in buffer[..bytes].chunks_exact(size_of::<Message>()) {
                events.extend(decode(message));
            }
            if bytes < buffer.len() {
                return Ok(());
            }
        }
    }
}

/// Bound of the retries while another thread moves a mapping, which takes microseconds; this many
/// are seconds.
const RETRIES_MAX: u32 = 1_000_000;

fn range(start: usize, len: usize) -> Range {
    Range {
        start: start as u64,
        len: len as u64,
    }
}

fn decode(message: &[u8]) -> Option<Event> {
    let word = |index: usize| {
        let bytes = message.get(index * 8..index * 8 + 8)?.try_into().ok()?;
        Some(u64::from_ne_bytes(bytes))
    };
    match *message.first()? {
        EVENT_PAGEFAULT => {
            let hva = usize::try_from(word(2)?).ok()? & !(crate::units::PAGE_SIZE - 1);
            let flags = word(1)?;
            Some(if flags & PAGEFAULT_FLAG_WP != 0 {
                Event::Protected { hva }
            } else {
                let write = flags & PAGEFAULT_FLAG_WRITE != 0;
                Event::Missing { hva, write }
            })
        }
        EVENT_REMAP => Some(Event::Remapped),
        _ => None,
    }
}
