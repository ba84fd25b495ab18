//! Page transfers over a range of the guest, whatever mappings of the kernel it lies in.

use rustix::io::Errno;

use super::space::{Error, guest_error};
use super::uffd::{Stop, Transferred};
use crate::units::{GfnRange, PAGE_SIZE};

/// Runs `step(offset, len)` over a range. The kernel transfers within one of its mappings only, and
/// it merges neighbours when it likes: a step that is refused is tried again in halves, so that
/// only the page that really cannot be done stops it. Returns pages done and the obstacle.
fn over_mappings(
    first: u32,
    count: u32,
    step: &impl Fn(usize, usize) -> Transferred,
) -> (u32, Option<Stop>) {
    let transfer = step(first as usize * PAGE_SIZE, count as usize * PAGE_SIZE);
    let done = u32::try_from(transfer.bytes / PAGE_SIZE).expect("at most the range");
    let rest = count - done;
    match transfer.stop {
        Some(Stop::Missing | Stop::Refused(Errno::INVAL)) if rest > 1 => {
            let half = rest / 2;
            let (front, stop) = over_mappings(first + done, half, step);
            if stop.is_some() {
                return (done + front, stop);
            }
            let (back, stop) = over_mappings(first + done + half, rest - half, step);
            (done + half + back, stop)
        }
        stop => (done, stop),
    }
}

/// Runs `step(offset, len)`, a move, over `len` bytes. Linux 6.18 forgets what it moved when it first had
/// to wait for a page that was being migrated: it moves the page, forgets to go on to the next, and
/// answers that the destination exists. So where that is the answer, `unsaid(offset, len)` looks how
/// many bytes from the offset on have moved all the same.
pub(super) fn moved(
    len: usize,
    step: impl Fn(usize, usize) -> Transferred,
    unsaid: impl Fn(usize, usize) -> Result<usize, Errno>,
) -> Transferred {
    let mut bytes = 0;
    loop {
        let transfer = step(bytes, len - bytes);
        bytes += transfer.bytes;
        if transfer.stop != Some(Stop::Exists) {
            return Transferred { bytes, ..transfer };
        }
        let more = match unsaid(bytes, len - bytes) {
            Ok(more) => more,
            Err(errno) => {
                let stop = Some(Stop::Refused(errno));
                return Transferred { bytes, stop };
            }
        };
        bytes += more;
        if more == 0 || bytes == len {
            let stop = (bytes < len).then_some(Stop::Exists);
            return Transferred { bytes, stop };
        }
    }
}

/// Pages done, and the obstacle that ended the transfer early. A refusal is an error.
pub(super) fn transferred(
    what: &'static str,
    range: GfnRange,
    step: impl Fn(usize, usize) -> Transferred,
) -> Result<(u32, Option<Stop>), Error> {
    match over_mappings(0, range.count, &step) {
        (_, Some(Stop::Refused(source))) => Err(guest_error(what, range, source)),
        done => Ok(done),
    }
}

/// All of it or an error.
pub(super) fn complete(
    what: &'static str,
    range: GfnRange,
    step: impl Fn(usize, usize) -> Transferred,
) -> Result<(), Error> {
    match over_mappings(0, range.count, &step).1 {
        None => Ok(()),
        Some(stop) => Err(stopped(what, range, stop)),
    }
}

/// An obstacle as an error.
pub(super) fn stopped(what: &'static str, range: GfnRange, stop: Stop) -> Error {
    let source = match stop {
        Stop::Exists => Errno::EXIST,
        Stop::Missing => Errno::NOENT,
        Stop::Busy => Errno::BUSY,
        Stop::Refused(errno) => errno,
    };
    guest_error(what, range, source)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Gfn;

    /// A kernel with a mapping of `border` pages, then another; page `hole` is missing.
    fn kernel(border: usize, hole: Option<usize>) -> impl Fn(usize, usize) -> Transferred {
        move |at, len| {
            let (first, end) = (at / PAGE_SIZE, (at + len) / PAGE_SIZE);
            if first < border && end > border {
                return Transferred {
                    bytes: 0,
                    stop: Some(Stop::Missing),
                };
            }
            match hole.filter(|hole| (first..end).contains(hole)) {
                Some(hole) => {
                    let bytes = (hole - first) * PAGE_SIZE;
                    Transferred {
                        bytes,
                        stop: Some(Stop::Missing),
                    }
                }
                None => Transferred {
                    bytes: len,
                    stop: None,
                },
            }
        }
    }

    #[test]
    fn a_border_between_mappings_is_no_obstacle() {
        let range = GfnRange::new(Gfn(0), 100);
        for border in [1, 37, 50, 99] {
            let done = transferred("move", range, kernel(border, None)).unwrap();
            assert_eq!(done, (100, None));
        }
    }

    /// A kernel that moves all it is asked to, but says nothing of its first `silent` calls.
    #[test]
    fn what_moved_unsaid_is_seen() {
        use std::cell::Cell;
        for (silent, batch) in [(0, 8), (1, 1), (1, 3), (3, 2), (1, 8)] {
            let (at_kernel, calls) = (Cell::new(0), Cell::new(0));
            let step = |at: usize, len: usize| {
                calls.set(calls.get() + 1);
                if calls.get() <= silent {
                    at_kernel.set(at + len.min(batch * PAGE_SIZE));
                    let stop = Some(Stop::Exists);
                    return Transferred { bytes: 0, stop };
                }
                assert_eq!(at, at_kernel.get(), "nothing is moved twice");
                at_kernel.set(at + len);
                Transferred {
                    bytes: len,
                    stop: None,
                }
            };
            let done = moved(8 * PAGE_SIZE, step, |at, _| Ok(at_kernel.get() - at));
            let all = Transferred {
                bytes: 8 * PAGE_SIZE,
                stop: None,
            };
            assert_eq!(done, all, "{silent} of {batch}");
        }
    }

    /// A page that really is in the way stays one.
    #[test]
    fn a_destination_that_exists_is_said() {
        let exists = |_: usize, _: usize| Transferred {
            bytes: 0,
            stop: Some(Stop::Exists),
        };
        let done = moved(PAGE_SIZE, exists, |_, _| Ok(0));
        assert_eq!(done.stop, Some(Stop::Exists));
    }

    #[test]
    fn a_missing_page_is_found_exactly() {
        let range = GfnRange::new(Gfn(0), 100);
        for hole in [0, 36, 37, 38, 99] {
            let done = transferred("move", range, kernel(37, Some(hole))).unwrap();
            assert_eq!((done.0 as usize, done.1), (hole, Some(Stop::Missing)));
            assert!(complete("move", range, kernel(37, Some(hole))).is_err());
        }
    }
}
