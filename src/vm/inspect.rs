//! Whether what a fleet boots from can be booted: asked before the start, of a process that can do
//! nothing else.
//!
//! A kernel may be anybody's. The launcher, which has its user's rights, opens it and reads no byte of
//! it. It starts this program again as an *inspector*, which enters the sandbox and is then handed a
//! kernel at a time, with a question; the answer is a short message that is checked as a hostile
//! one. A process that ends, says something else or takes longer than `ANSWER_TIMEOUT` has refused the
//! file. The VM process itself parses the file anew, in its own sandbox.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{self, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{Shutdown, shutdown};
use serde::{Deserialize, Serialize};

use super::files::{Files, mistake};
use crate::boot::fit;
use crate::boot::image::Image;
use crate::config::{Boot, ConfigError, VmSpec};
use crate::link::codec::{self, Message};
use crate::link::message::{BoundError, TEXT_BYTES_MAX};
use crate::link::socket::{self, TakeFd};
use crate::out::with_causes;
use crate::sys::ram::Layout;
use crate::threads::jail::{self, Jail, User};
use crate::threads::{INSPECTOR, sandbox};
use crate::units::Pages;

/// The word that makes this program an inspector. No verb: `tidemark --help` knows nothing of it.
pub const VERB: &str = "inspect-files";
/// What follows it where VM processes have a jail: one as is granted, or all of it.
const JAILED: &str = "jailed";
const HARDENED: &str = "hardened";
/// How long the answer about one file may take. Chosen: long enough for a disk that has to start.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// A question or an answer, at most.
const ANSWER_BYTES_MAX: usize = 2 * TEXT_BYTES_MAX;

/// What a launcher wants to know of a kernel, which comes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Question {
    memory: Pages,
    kernel_bytes: u64,
    initrd_bytes: Option<u64>,
}

/// What an inspector says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Answer {
    Fits,
    /// Why the kernel cannot be booted.
    Kernel(String),
    /// Why the initial RAM disk cannot.
    Initrd(String),
}

impl Message for Question {
    fn check(&self) -> Result<(), BoundError> {
        Ok(())
    }
}

impl Message for Answer {
    fn check(&self) -> Result<(), BoundError> {
        match self {
            Answer::Kernel(text) | Answer::Initrd(text) if text.len() > TEXT_BYTES_MAX => {
                Err(BoundError {
                    field: "answer",
                    found: text.len(),
                    allowed: TEXT_BYTES_MAX,
                })
            }
            _ => Ok(()),
        }
    }
}

/// This program as an inspector. It has no place to write to, and nothing to learn from its environment.
fn own_program(jail: Jail) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(VERB).env_clear();
    if jail != Jail::default() {
        command.arg(match jail.hardened {
            true => HARDENED,
            false => JAILED,
        });
    }
    command.stdout(Stdio::null()).stderr(Stdio::null());
    Ok(command)
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum Silent {
    #[error("the process that looked at it was ended ({0})")]
    Ended(String),
    #[error("the process that looked at it took longer than {} s", .0.as_secs())]
    Late(Duration),
    #[error("the process that looked at it made no sense ({0})")]
    Senseless(codec::Error),
    #[error("the process that looks at it cannot be asked ({0})")]
    Os(Errno),
}

/// A process that looks at files. Whoever drops this value waits until the process has ended.
#[derive(Debug)]
pub struct Inspector {
    process: process::Child,
    socket: OwnedFd,
}

impl Inspector {
    /// Starts the process, if one of these VMs boots from a file: built-in images need no look. It takes
    /// a millisecond until it is there, for which nobody has to wait. Where the VMs leave for `jail`, so
    /// does the process.
    ///
    /// # Errors
    /// When there can be no process.
    pub fn start<'a>(
        boots: impl IntoIterator<Item = &'a Boot>,
        jail: Jail,
    ) -> io::Result<Option<Inspector>> {
        let is_file = |boot: &Boot| matches!(boot, Boot::Kernel { .. });
        match boots.into_iter().any(is_file) {
            true => Inspector::start_program(own_program(jail)?).map(Some),
            false => Ok(None),
        }
    }

    /// Starts `program`, which has the other end of the socket as its standard input.
    fn start_program(mut program: Command) -> io::Result<Inspector> {
        let (socket, theirs) = socket::pair().map_err(io::Error::other)?;
        // By value: its other end is the process's alone, so that the end of one is the end of both.
        let process = program.stdin(theirs).spawn()?;
        Ok(Inspector { process, socket })
    }

    /// Has the files of these VMs looked at, which are described at `origin`. The process ends by itself
    /// then.
    ///
    /// # Errors
    /// The first file that cannot be booted, or of which that cannot be found out, as a mistake in the
    /// configuration.
    pub fn look<'a>(
        &mut self,
        vms: impl IntoIterator<Item = (&'a VmSpec, &'a Files)>,
        origin: &str,
    ) -> Result<(), ConfigError> {
        let mut asked: Vec<(&Boot, Question)> = Vec::new();
        for (spec, files) in vms {
            let (Boot::Kernel { kernel, initrd }, Image::File { file, length }) =
                (&spec.boot, &files.kernel)
            else {
                continue;
            };
            let question = Question {
                memory: spec.allocation.size,
                kernel_bytes: *length,
                initrd_bytes: files.initrd.as_ref().map(Image::length),
            };
            // The VMs of one table are alike.
            if asked.contains(&(&spec.boot, question)) {
                continue;
            }
            let (key, path, problem) = match self.ask(&question, file, ANSWER_TIMEOUT) {
                Ok(Answer::Fits) => {
                    asked.push((&spec.boot, question));
                    continue;
                }
                Ok(Answer::Initrd(problem)) => ("initrd", initrd.as_ref(), problem),
                Ok(Answer::Kernel(problem)) => ("kernel", Some(kernel), problem),
                Err(silent) => ("kernel", Some(kernel), silent.to_string()),
            };
            let path = path.unwrap_or(kernel);
            return Err(mistake(spec, origin, key, path, &problem));
        }
        // It can only have ended by itself meanwhile.
        let _ = shutdown(&self.socket, Shutdown::Both);
        Ok(())
    }

    fn ask(
        &mut self,
        question: &Question,
        kernel: &File,
        timeout: Duration,
    ) -> Result<Answer, Silent> {
        let deadline = Instant::now() + timeout;
        let question = codec::encode(question).map_err(Silent::Senseless)?;
        match socket::send_datagram(&self.socket, &question, Some(kernel.as_fd())) {
            Err(Errno::PIPE | Errno::CONNRESET) => return Err(self.end()),
            sent => sent.map_err(Silent::Os)?,
        }
        let mut buffer = vec![0; ANSWER_BYTES_MAX];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if !await_datagram(&self.socket, Some(left)).map_err(Silent::Os)? {
                return Err(Silent::Late(timeout));
            }
            match socket::recv_datagram(&self.socket, &mut buffer, TakeFd::Never) {
                Ok(datagram) if datagram.bytes > 0 => {
                    let answer = codec::decode(&buffer[..datagram.bytes]);
                    return answer.map_err(Silent::Senseless);
                }
                Ok(_) | Err(Errno::CONNRESET) => return Err(self.end()),
                Err(Errno::MSGSIZE) => {
                    let bytes = ANSWER_BYTES_MAX + 1;
                    return Err(Silent::Senseless(codec::Error::Oversized { bytes }));
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(Silent::Os(errno)),
            }
        }
    }

    /// How it ended, having closed its socket.
    fn end(&mut self) -> Silent {
        // It may have closed the socket alone.
        let _ = self.process.kill();
        Silent::Ended(match self.process.wait() {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        })
    }
}

impl Drop for Inspector {
    fn drop(&mut self) {
        // It can only have ended by itself meanwhile.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Waits until something can be read; false: nothing came in time.
fn await_datagram(socket: impl AsFd, limit: Option<Duration>) -> Result<bool, Errno> {
    let limit = limit.map(|limit| Timespec::try_from(limit).expect("a wait of seconds"));
    match poll(&mut [PollFd::new(&socket, PollFlags::IN)], limit.as_ref()) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(true),
        Err(errno) => Err(errno),
    }
}

/// Why an inspector ends before its launcher has.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
    /// The jail.
    #[error(transparent)]
    Jail(#[from] jail::Error),
    /// The socket.
    #[error("cannot speak to who started this inspector")]
    Os(#[from] Errno),
    /// What came is no question.
    #[error("no question of who started this inspector")]
    Codec(#[from] codec::Error),
}

/// The body of an inspector: answers what comes over standard input, until it ends.
///
/// # Errors
/// When its launcher is none, or there is no sandbox.
pub fn serve() -> Result<(), Error> {
    sandbox::begin()?;
    let word = std::env::args().nth(2);
    if let Some(word) = word {
        jail::enter(Jail {
            hardened: word == HARDENED,
            user: rustix::process::geteuid().is_root().then_some(User::Auto),
        })?;
    }
    sandbox::enter(&INSPECTOR)?;
    let socket = io::stdin();
    let mut buffer = vec![0; ANSWER_BYTES_MAX];
    loop {
        await_datagram(&socket, None)?;
        let datagram = match socket::recv_datagram(&socket, &mut buffer, TakeFd::One) {
            Err(Errno::AGAIN | Errno::INTR) => continue,
            datagram => datagram?,
        };
        let Some(kernel) = datagram.fd.filter(|_| datagram.bytes > 0) else {
            return Ok(());
        };
        let question = codec::decode(&buffer[..datagram.bytes])?;
        let answer = codec::encode(&answer(question, kernel.into()))?;
        socket::send_datagram(&socket, &answer, None)?;
    }
}

/// Asks the loaders' own parsers.
fn answer(question: Question, kernel: File) -> Answer {
    let layout = Layout::new(question.memory);
    let kernel = Image::File {
        file: kernel,
        length: question.kernel_bytes,
    };
    let room = match fit::kernel(&kernel, &layout) {
        Ok(room) => room,
        Err(error) => return Answer::Kernel(with_causes(&error)),
    };
    let initrd = question.initrd_bytes;
    match initrd.map(|bytes| fit::initrd(bytes, room, &layout)) {
        Some(Err(error)) => Answer::Initrd(with_causes(&error)),
        Some(Ok(())) | None => Answer::Fits,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::*;

    const QUESTION: Question = Question {
        memory: Pages::mib(64),
        kernel_bytes: 6,
        initrd_bytes: None,
    };

    fn file(text: &str) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.rewind().unwrap();
        file
    }

    /// What is learnt of a kernel from this program.
    fn ask(program: &[&str], timeout: Duration) -> Result<Answer, Silent> {
        let mut command = Command::new(program[0]);
        command.args(&program[1..]).stdout(Stdio::null());
        let mut inspector = Inspector::start_program(command).unwrap();
        inspector.ask(&QUESTION, &file("kernel"), timeout)
    }

    #[test]
    fn a_process_that_says_nothing_is_a_refusal() {
        const LONG: Duration = Duration::from_secs(60);
        let said = |program: &[&str], timeout| ask(program, timeout).unwrap_err().to_string();
        let line = said(&["false"], LONG);
        assert!(line.ends_with("was ended (exit status: 1)"), "{line}");
        let line = said(&["sh", "-c", "kill -SEGV $$"], LONG);
        assert!(line.contains("signal: 11"), "{line}");
        let line = said(&["sleep", "1000"], Duration::from_millis(10));
        assert!(line.contains("took longer than"), "{line}");
    }

    #[test]
    fn an_answer_is_checked_as_a_hostile_one() {
        let long = Answer::Kernel("x".repeat(TEXT_BYTES_MAX + 1));
        let unchecked = postcard::to_extend(&long, vec![crate::link::message::VERSION]).unwrap();
        for bytes in [&unchecked[..], b"no answer", &[7; ANSWER_BYTES_MAX + 1]] {
            let (ours, theirs) = socket::pair().unwrap();
            socket::send_datagram(&theirs, bytes, None).unwrap();
            let process = Command::new("true").spawn().unwrap();
            let mut inspector = Inspector {
                process,
                socket: ours,
            };
            let answer = inspector.ask(&QUESTION, &file("kernel"), ANSWER_TIMEOUT);
            assert!(matches!(answer, Err(Silent::Senseless(_))), "{answer:?}");
        }
    }

    #[test]
    fn the_parsers_are_asked() {
        let answer = |initrd_bytes| {
            let question = Question {
                initrd_bytes,
                ..QUESTION
            };
            answer(question, file("kernel"))
        };
        let Answer::Kernel(why) = answer(Some(1)) else {
            panic!("it fits");
        };
        assert!(why.contains("neither a bzImage nor an ELF file"), "{why}");
    }
}
