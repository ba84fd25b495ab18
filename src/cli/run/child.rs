//! One VM process that `tidemark run` started.

use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{self, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::io::{Errno, FdFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::screen::Screen;
use crate::cli::jail::JailArgs;
use crate::cli::vm::registration;
use crate::cli::{Error, io};
use crate::config::VmSpec;
use crate::host::accounts::{VmFigures, VmState};
use crate::host::process::Process;
use crate::host::server::Server;
use crate::link::socket;
use crate::out::printable;
use crate::words::{Exit, ExitReason};

/// Longest line of a VM that is shown whole, bytes.
const LINE_BYTES_MAX: usize = 4096;
/// Reads from one child before the others have their turn.
const READS_PER_TURN: usize = 16;

/// Where a VM process writes what its guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stdout {
    /// To us, who show it line by line.
    Lines,
    /// To the terminal, which it inherits; it reads the keys as well.
    Terminal,
}

/// A VM process.
pub struct Child {
    name: String,
    memory_bytes: u64,
    process: process::Child,
    started: Instant,
    /// What it writes; `None` at its end.
    output: Option<OwnedFd>,
    /// Number under which the output is watched; the process has the next one.
    number: u64,
    exited: OwnedFd,
    status: Option<ExitStatus>,
    line: Vec<u8>,
    last_line: String,
    /// When the guest's first byte came; stays empty where it does not come to us.
    boot: Option<Duration>,
    console: Stdout,
    refused: Option<String>,
    kill_at: Option<Instant>,
    /// Killed by us before it could be asked to stop.
    stopped_early: bool,
}

impl Child {
    /// Starts the process of `vm`, watched under `number` and `number + 1`.
    pub fn start(
        vm: &VmSpec,
        seed: u64,
        jail: JailArgs,
        console: Stdout,
        number: u64,
        server: &mut Server,
    ) -> Result<Child, Error> {
        let what = || format!("start the process of {}", vm.name);
        let os = |errno: Errno| io(what())(errno.into());
        let (ours, theirs) = socket::pair()?;
        // No other thread and no other child can inherit it in between.
        rustix::io::fcntl_setfd(&theirs, FdFlags::empty()).map_err(os)?;
        let (output, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(os)?;
        rustix::io::ioctl_fionbio(&output, true).map_err(os)?;
        let copy = writer.try_clone().map_err(io(what()))?;
        let program = std::env::current_exe().map_err(io("find this program's file"))?;
        let link_fd = std::os::fd::AsRawFd::as_raw_fd(&theirs);
        let started = Instant::now();
        let mut command = Command::new(program);
        command
            .arg("vm")
            .arg(format!("--link-fd={link_fd}"))
            .args(vm.to_args())
            .args(jail.to_args())
            // Seed of whatever the VM process draws at random.
            .env("TIDEMARK_SEED", seed.to_string())
            .stderr(Stdio::from(copy));
        match console {
            Stdout::Lines => command
                .stdin(Stdio::null())
                .stdout(Stdio::from(writer))
                // Ctrl-C on the terminal is for us; we ask the VM to stop.
                .process_group(0),
            // In our group, to be in the terminal's foreground.
            Stdout::Terminal => command.stdin(Stdio::inherit()).stdout(Stdio::inherit()),
        };
        let process = command.spawn().map_err(io(what()))?;
        // The pipe ends with the process.
        drop((command, theirs));
        let pid = Pid::from_child(&process);
        let exited = pidfd_open(pid, PidfdFlags::empty()).map_err(os)?;
        // The peer credentials of a pair name us, who made it; so the host manager is told.
        let pidfd = exited.try_clone().map_err(io(what()))?;
        let vm_process =
            Process::child(pidfd, pid).map_err(|error| io(what())(std::io::Error::other(error)))?;
        server.adopt(ours, registration(vm), vm_process)?;
        server.watch(&output, number)?;
        server.watch(&exited, number + 1)?;
        Ok(Child {
            name: vm.name.clone(),
            memory_bytes: vm.allocation.size.bytes(),
            process,
            started,
            output: Some(output),
            number,
            exited,
            status: None,
            line: Vec::new(),
            last_line: String::new(),
            boot: None,
            console,
            refused: None,
            kill_at: None,
            stopped_early: false,
        })
    }

    /// Name of its VM.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the process has ended and all it wrote was read.
    pub fn is_gone(&self) -> bool {
        self.status.is_some() && self.output.is_none()
    }

    /// One of its descriptors is ready.
    pub fn ready(&mut self, number: u64, server: &Server, screen: &Screen) {
        if number == self.number {
            self.read(server, screen);
        } else if self.status.is_none() {
            self.status = self.process.try_wait().ok().flatten();
            if self.status.is_some() {
                server.unwatch(&self.exited);
            }
        }
    }

    fn read(&mut self, server: &Server, screen: &Screen) {
        let mut bytes = [0; 4096];
        for _ in 0..READS_PER_TURN {
            let Some(output) = &self.output else {
                return;
            };
            match rustix::io::read(output, &mut bytes) {
                Ok(0) => {
                    server.unwatch(output);
                    self.output = None;
                    self.show(screen);
                }
                Ok(count) => {
                    if self.console == Stdout::Lines {
                        self.boot.get_or_insert_with(|| self.started.elapsed());
                    }
                    self.take(&bytes[..count], screen);
                }
                Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    fn take(&mut self, bytes: &[u8], screen: &Screen) {
        for &byte in bytes {
            if byte == b'\n' {
                self.show(screen);
            } else {
                self.line.push(byte);
                if self.line.len() == LINE_BYTES_MAX {
                    self.show(screen);
                }
            }
        }
    }

    /// Shows the line that is complete. What a guest writes must not steer the terminal.
    fn show(&mut self, screen: &Screen) {
        let line = std::mem::take(&mut self.line);
        let text = String::from_utf8_lossy(&line);
        let text = printable(text.trim_end());
        if !text.is_empty() {
            screen.line(&format!("{}: {text}", self.name));
            self.last_line = text;
        }
    }

    /// The host manager did not admit it.
    pub fn refused(&mut self, reason: String) {
        self.refused = Some(reason);
    }

    /// Ends the process.
    pub fn kill(&mut self) {
        if self.status.is_none() {
            // It can only have ended by itself meanwhile.
            let _ = self.process.kill();
        }
    }

    /// Ends a process that was not there to be asked.
    pub fn kill_unjoined(&mut self) {
        self.stopped_early = self.status.is_none();
        self.kill();
    }

    /// Ends the process `grace` after the first call.
    pub fn kill_after(&mut self, grace: Duration, now: Instant) {
        if now >= *self.kill_at.get_or_insert(now + grace) {
            self.kill();
        }
    }

    /// Figures of a VM that never joined.
    pub fn blank(&self) -> VmFigures {
        VmFigures {
            name: self.name.clone(),
            memory_bytes: self.memory_bytes,
            ..VmFigures::default()
        }
    }

    /// Adds what only we know.
    pub fn complete(&self, vm: &mut VmFigures) {
        vm.state = VmState::Ended;
        vm.boot_ms = self.boot.map(|boot| boot.as_secs_f64() * 1e3);
        let never_joined = vm.exit.is_none();
        if never_joined {
            let reason = match self.stopped_early {
                true => ExitReason::Stopped,
                false => ExitReason::Error,
            };
            let said = Some(self.last_line.clone()).filter(|line| !line.is_empty());
            let status = self.status.map(|status| status.to_string());
            vm.exit = Some(Exit {
                reason,
                code: 0,
                message: self.refused.clone().or(said).or(status),
            });
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Nobody is left behind, whatever ended this run.
        self.kill();
        let _ = self.process.wait();
    }
}
