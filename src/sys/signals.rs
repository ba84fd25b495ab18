//! Signals as something to wait for.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// A pair of sockets: the first can be read, without waiting, after one of `signals`, one byte for
/// each. Whoever writes to the second is heard in the same way.
///
/// # Errors
/// When the kernel refuses descriptors or handlers.
pub fn pipe(signals: &[i32]) -> io::Result<(UnixStream, UnixStream)> {
    let (reader, writer) = UnixStream::pair()?;
    reader.set_nonblocking(true)?;
    for &signal in signals {
        signal_hook::low_level::pipe::register(signal, writer.try_clone()?)?;
    }
    Ok((reader, writer))
}

/// Has these signals do nothing: what they would end goes on. A program that it starts is ended by
/// them as ever.
///
/// # Errors
/// When the kernel refuses a handler.
pub fn outlive(signals: &[i32]) -> io::Result<()> {
    signals.iter().try_for_each(|&signal| {
        // Nobody reads the flag; it stands for a handler that does nothing.
        signal_hook::flag::register(signal, Arc::default()).map(|_registered| ())
    })
}

/// How many signals came since the last call, at most 64 of them.
pub fn drain(mut reader: &UnixStream) -> usize {
    let mut bytes = [0; 64];
    reader.read(&mut bytes).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_signal_that_would_end_the_process_does_not() {
        outlive(&[libc::SIGXFSZ, libc::SIGHUP]).unwrap();
        signal_hook::low_level::raise(libc::SIGXFSZ).unwrap();
        signal_hook::low_level::raise(libc::SIGHUP).unwrap();
    }

    #[test]
    fn signals_and_words_are_counted_alike() {
        let (reader, mut writer) = pipe(&[libc::SIGWINCH]).unwrap();
        assert_eq!(drain(&reader), 0);
        signal_hook::low_level::raise(libc::SIGWINCH).unwrap();
        writer.write_all(&[0]).unwrap();
        assert_eq!(drain(&reader), 2);
        assert_eq!(drain(&reader), 0);
    }
}
