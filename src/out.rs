//! Text that leaves the process without holding whoever wrote it.
//!
//! A terminal under Ctrl-S, a pipe that nobody reads or a slow disk holds the thread that writes to
//! it, for as long as it likes. That must be neither the host manager's only thread nor a guest's
//! vCPU. So each place that text goes to has an [`Out`]: one thread that does nothing but write, and
//! a queue of at most [`QUEUE_BYTES_MAX`] before it. Text for which the queue has no room is dropped,
//! and counted in a line of its own once there is room again. What is in the queue and what is being
//! written is at most twice that bound.
//!
//! Below the text there may be a frame: lines that are redrawn in place, as a table that is kept up
//! to date. A frame that was not written yet is replaced by the next one.
//!
//! A place that is gone (a closed pipe) swallows everything.

mod causes;
mod printable;
pub mod rate_limit;

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

pub use self::causes::with_causes;
pub use self::printable::printable;
use crate::threads::Thread;

/// Text that waits to be written, at most. Chosen: some thousand lines, so that a guest that boots
/// while the machine is busy loses none.
pub const QUEUE_BYTES_MAX: usize = 256 << 10;
/// How long a process that ends waits for its last text to be written.
pub const FINISH: Duration = Duration::from_secs(1);
/// Why text is dropped.
const UNTAKEN: &str = "the terminal or pipe did not take them";
/// Bytes that a pipe takes as a whole (limits.h).
const PIPE_BUF: usize = 4096;

/// One place that text goes to. Copies share it. Whoever [writes](io::Write) to it never waits, and
/// each call is written or dropped as a whole.
#[derive(Debug, Clone)]
pub struct Out(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    start: Mutex<Start>,
}

type Starter = dyn FnOnce(Arc<Shared>) -> io::Result<()> + Send;

/// Starts the thread, once.
#[derive(Default)]
struct Start(Option<Box<Starter>>);

impl fmt::Debug for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Start").field(&self.0.is_some()).finish()
    }
}

/// What was dropped.
#[derive(Debug, Default, Clone, Copy)]
struct Gap {
    bytes: usize,
    lines: usize,
}

impl Gap {
    fn add(&mut self, text: &[u8]) {
        self.bytes += text.len();
        self.lines += text.iter().filter(|byte| **byte == b'\n').count();
    }

    fn is_empty(self) -> bool {
        self.bytes == 0
    }

    /// Says so in `text`.
    fn tell(self, why: &str, text: &mut Vec<u8>) {
        if self.is_empty() {
            return;
        }
        if text.last().is_some_and(|last| *last != b'\n') {
            text.push(b'\n');
        }
        let lines = self.lines.max(1);
        text.extend_from_slice(format!("tidemark: {lines} lines dropped: {why}\n").as_bytes());
    }
}

#[derive(Debug, Default)]
struct Queue {
    text: Vec<u8>,
    /// What was dropped behind `text`.
    gap: Gap,
    frame: Vec<String>,
    /// Whether the frame is another one than was last written.
    redraw: bool,
    writing: bool,
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.text.is_empty() && self.gap.is_empty() && !self.redraw
    }

    fn push(&mut self, text: &[u8]) {
        // What comes behind a gap must not stand before it.
        if !self.gap.is_empty() || self.text.len() + text.len() > QUEUE_BYTES_MAX {
            self.gap.add(text);
        } else {
            self.text.extend_from_slice(text);
        }
    }
}

/// What is written at a time.
struct Batch {
    text: Vec<u8>,
    gap: Gap,
    frame: Vec<String>,
}

/// Whether text was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finished {
    /// It was, as far as its place takes any.
    Yes,
    /// The place took nothing for too long.
    No,
}

impl Out {
    /// Starts `thread`, which writes to `place`. It ends with the process. When `place` begins to
    /// refuse text, `complain` hears why.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn start(
        thread: &'static Thread,
        place: impl AsFd + Send + 'static,
        complain: fn(Errno),
    ) -> io::Result<Out> {
        let out = Out::later(thread, place, complain);
        out.begin()?;
        Ok(out)
    }

    /// The same for a process that must have no second thread yet: nothing is written before
    /// [`Out::begin`] or [`Out::finish`].
    pub fn later(
        thread: &'static Thread,
        place: impl AsFd + Send + 'static,
        complain: fn(Errno),
    ) -> Out {
        let start = move |shared: Arc<Shared>| {
            let work = move || shared.write_for_ever(&place, complain);
            thread.spawn(work).map(|_detached| ())
        };
        Out(Arc::new(Shared {
            start: Mutex::new(Start(Some(Box::new(start)))),
            ..Shared::default()
        }))
    }

    /// Starts the thread, if it has not been.
    ///
    /// # Errors
    /// When there can be none: what is written is dropped.
    pub fn begin(&self) -> io::Result<()> {
        let start = &self.0.start;
        let start = start
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .0
            .take();
        start.map_or(Ok(()), |start| start(Arc::clone(&self.0)))
    }

    /// Writes a line.
    pub fn line(&self, line: &str) {
        self.put(format!("{line}\n").as_bytes());
    }

    /// Shows these lines below all text, in place of those that were shown there before.
    pub fn frame(&self, lines: Vec<String>) {
        let mut queue = self.0.lock();
        queue.redraw |= queue.frame != lines;
        queue.frame = lines;
        self.0.changed.notify_all();
    }

    /// Waits at most `limit` until everything is written.
    pub fn finish(&self, limit: Duration) -> Finished {
        if self.begin().is_err() {
            return Finished::No;
        }
        let deadline = Instant::now() + limit;
        let mut queue = self.0.lock();
        while queue.writing || !queue.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Finished::No;
            }
            let wait = self.0.changed.wait_timeout(queue, left);
            queue = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
        Finished::Yes
    }

    fn put(&self, text: &[u8]) {
        self.0.lock().push(text);
        self.0.changed.notify_all();
    }
}

impl io::Write for Out {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.put(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The body of the thread.
    fn write_for_ever(&self, place: &impl AsFd, complain: fn(Errno)) {
        // Lines of the frame that stand above the cursor.
        let mut drawn = 0;
        // What could not be written, and why, until something can.
        let mut lost = (Gap::default(), String::new());
        loop {
            let batch = self.take();
            let mut text = erasure(drawn);
            lost.0.tell(&lost.1, &mut text);
            text.extend_from_slice(&batch.text);
            batch.gap.tell(UNTAKEN, &mut text);
            for line in &batch.frame {
                text.extend_from_slice(line.as_bytes());
                text.push(b'\n');
            }
            match write_all(place, &text) {
                Ok(()) => {
                    drawn = batch.frame.len();
                    lost.0 = Gap::default();
                }
                Err(errno) => {
                    drawn = 0;
                    if lost.0.is_empty() {
                        complain(errno);
                    }
                    lost.0.add(&batch.text);
                    lost.0.bytes += batch.gap.bytes;
                    lost.0.lines += batch.gap.lines;
                    lost.1 = errno.to_string();
                }
            }
            self.lock().writing = false;
            self.changed.notify_all();
        }
    }

    /// Waits for something to write.
    fn take(&self) -> Batch {
        let mut queue = self.lock();
        while queue.is_empty() {
            let wait = self.changed.wait(queue);
            queue = wait.unwrap_or_else(PoisonError::into_inner);
        }
        queue.writing = true;
        queue.redraw = false;
        Batch {
            text: std::mem::take(&mut queue.text),
            gap: std::mem::take(&mut queue.gap),
            frame: queue.frame.clone(),
        }
    }
}

/// What takes a frame of `lines` away.
fn erasure(lines: usize) -> Vec<u8> {
    match lines {
        0 => Vec::new(),
        _ => format!("\x1b[{lines}A\x1b[J").into_bytes(),
    }
}

/// Writes all of it, in parts that end with a line and that a pipe takes as a whole: other processes
/// and threads may write there as well.
fn write_all(place: &impl AsFd, mut text: &[u8]) -> Result<(), Errno> {
    while !text.is_empty() {
        let most = text.len().min(PIPE_BUF);
        let end = text[..most].iter().rposition(|byte| *byte == b'\n');
        let part = match end {
            Some(end) if most < text.len() => end + 1,
            _ => most,
        };
        match rustix::io::write(place, &text[..part]) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => text = &text[written..],
            Err(Errno::INTR) => {}
            // Somebody who shares it wants to do without waiting; this thread is here to wait.
            Err(Errno::AGAIN) => match poll(&mut [PollFd::new(place, PollFlags::OUT)], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            },
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::OwnedFd;

    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;
    use crate::threads::LOG;

    fn quiet(_: Errno) {}

    const SOON: Duration = Duration::from_secs(20);

    fn pipe(flags: PipeFlags) -> (File, OwnedFd) {
        let (reader, writer) = pipe_with(flags | PipeFlags::CLOEXEC).unwrap();
        (File::from(reader), writer)
    }

    /// All that is written until the place is closed; the thread holds it for ever, so that the
    /// last line has to be known.
    fn read_until(reader: &mut File, end: &str) -> String {
        let (mut text, mut bytes) = (String::new(), [0; 4096]);
        while !text.ends_with(end) {
            let count = reader.read(&mut bytes).unwrap();
            assert!(count > 0, "closed after {text:?}");
            text.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
        }
        text
    }

    #[test]
    fn a_pipe_that_nobody_reads_holds_nobody_and_takes_no_memory() {
        let (mut reader, writer) = pipe(PipeFlags::empty());
        let out = Out::start(&LOG, writer, quiet).unwrap();
        let start = Instant::now();
        let lines: u64 = 200_000;
        for n in 0..lines {
            out.line(&format!("line {n}"));
        }
        assert!(start.elapsed() < SOON);
        assert!(out.0.lock().text.len() <= QUEUE_BYTES_MAX);
        assert_eq!(out.finish(Duration::from_millis(20)), Finished::No);
        // What was taken arrives in order, and then how much was not.
        let (mut next, mut dropped) = (0, 0);
        while next < lines {
            for line in read_until(&mut reader, "\n").lines() {
                let told = line.strip_suffix(&format!(" lines dropped: {UNTAKEN}"));
                let told = told.and_then(|line| line.strip_prefix("tidemark: "));
                if let Some(count) = told {
                    dropped += count.parse::<u64>().unwrap();
                    next += count.parse::<u64>().unwrap();
                } else {
                    assert_eq!(line, format!("line {next}"));
                    next += 1;
                }
            }
        }
        assert_eq!(next, lines);
        assert!((1..lines - 1000).contains(&dropped), "{dropped}");
        out.line("again");
        assert_eq!(read_until(&mut reader, "again\n"), "again\n");
        assert_eq!(out.finish(SOON), Finished::Yes);
    }

    #[test]
    fn a_frame_stands_below_the_text_and_only_the_newest_is_written() {
        let (mut reader, writer) = pipe(PipeFlags::empty());
        let out = Out::start(&LOG, writer, quiet).unwrap();
        out.frame(vec!["one".to_owned(), "two".to_owned()]);
        assert_eq!(read_until(&mut reader, "two\n"), "one\ntwo\n");
        out.line("text");
        let up = "\x1b[2A\x1b[J";
        assert_eq!(
            read_until(&mut reader, "two\n"),
            format!("{up}text\none\ntwo\n")
        );
        // It cannot be written while this is.
        out.line(&"x".repeat(QUEUE_BYTES_MAX / 2));
        while !out.0.lock().text.is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        for n in 0..1000 {
            out.frame(vec![format!("frame {n}")]);
        }
        let text = read_until(&mut reader, "frame 999\n");
        assert_eq!(
            text.matches("frame").count(),
            1,
            "{}",
            text.replace('x', "")
        );
        out.frame(Vec::new());
        assert_eq!(read_until(&mut reader, "J"), "\x1b[1A\x1b[J");
        assert_eq!(out.finish(SOON), Finished::Yes);
    }

    #[test]
    fn a_closed_pipe_swallows_everything() {
        let (reader, writer) = pipe(PipeFlags::empty());
        drop(reader);
        let mut out = Out::start(&LOG, writer, quiet).unwrap();
        for _ in 0..3 {
            out.line("nobody hears it");
            out.write_all(b"nor this").unwrap();
            assert_eq!(out.finish(SOON), Finished::Yes);
        }
    }

    #[test]
    fn what_a_full_disk_does_not_take_is_told_once_and_counted() {
        static TOLD: Mutex<Vec<Errno>> = Mutex::new(Vec::new());
        let full = File::options().write(true).open("/dev/full").unwrap();
        let out = Out::start(&LOG, full, |errno| TOLD.lock().unwrap().push(errno)).unwrap();
        for _ in 0..3 {
            out.line("lost");
            assert_eq!(out.finish(SOON), Finished::Yes);
        }
        assert_eq!(*TOLD.lock().unwrap(), [Errno::NOSPC]);
        let mut gap = Gap::default();
        gap.add(b"a\nb\nc");
        let mut text = b"begun".to_vec();
        gap.tell("why", &mut text);
        assert_eq!(text, b"begun\ntidemark: 2 lines dropped: why\n");
    }

    #[test]
    fn a_place_that_others_made_nonblocking_loses_nothing() {
        let (mut reader, writer) = pipe(PipeFlags::empty());
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        let out = Out::start(&LOG, writer, quiet).unwrap();
        let line = "y".repeat(999);
        for _ in 0..200 {
            out.line(&line);
        }
        out.line("end");
        let text = read_until(&mut reader, "end\n");
        assert_eq!(text.lines().filter(|read| *read == line).count(), 200);
    }

    #[test]
    fn lines_stay_whole_among_other_writers() {
        let (mut reader, writer) = pipe(PipeFlags::empty());
        let copy = writer.try_clone().unwrap();
        let outs = [
            Out::start(&LOG, writer, quiet).unwrap(),
            Out::start(&LOG, copy, quiet).unwrap(),
        ];
        for _ in 0..100 {
            outs[0].line(&"a".repeat(700));
            outs[1].line(&"b".repeat(900));
        }
        let mut bytes = vec![0; 100 * (701 + 901)];
        reader.read_exact(&mut bytes).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        for line in text.lines() {
            let first = line.chars().next().unwrap();
            assert!(line.chars().all(|c| c == first), "{line}");
        }
    }
}
