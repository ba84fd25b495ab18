//! A person at the guest's serial port: keys go to the guest as they are, the guest's bytes to the
//! terminal, until Ctrl-] is pressed.
//!
//! The VM process does this itself, with the terminal that it inherited. `tidemark run` only keeps
//! the modes, so that they are put back however its VM ends.

use std::io::{self, IsTerminal, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, getpgrp};
use rustix::termios::{OptionalActions, OutputModes, Termios};
use rustix::termios::{tcgetattr, tcgetpgrp, tcsetattr};
use vmm_sys_util::signal::block_signal;

use crate::devices::serial::Serial;
use crate::out::Out;
use crate::threads;

/// Ctrl-], as in telnet: a key that nobody needs in a shell or an editor.
const LEAVE: u8 = 0x1d;
/// Keys read at once.
const KEYS: usize = 256;
/// Pause when the guest does not read what it was sent.
const FULL_PAUSE: Duration = Duration::from_millis(20);

/// The modes that standard input's terminal had. One for the process, as the terminal is, so that
/// a panic in any thread can put them back.
static MODES: Mutex<Option<Termios>> = Mutex::new(None);

/// The terminal of this process. Its modes are put back when this value is dropped.
#[derive(Debug)]
pub struct Terminal(());

impl Terminal {
    /// The terminal, if standard input and output are one and it listens to this process: not when
    /// a shell runs it in the background.
    pub fn open() -> Option<Terminal> {
        let (input, output) = (io::stdin(), io::stdout());
        if !input.is_terminal() || !output.is_terminal() {
            return None;
        }
        // Of a terminal that does not control this process there is no foreground.
        let foreground = |group: Pid| group == getpgrp();
        if !tcgetpgrp(&input).map_or(true, foreground) {
            return None;
        }
        let modes = tcgetattr(&input).ok()?;
        *MODES.lock().ok()? = Some(modes);
        Some(Terminal(()))
    }

    /// What is shown on it. The threads that this thread starts from now on can use the terminal
    /// from the background.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn out(&self) -> io::Result<Out> {
        // If our parent dies we are in the background: without this, neither the keys nor the modes
        // could be touched from there without being stopped.
        for signal in [libc::SIGTTIN, libc::SIGTTOU] {
            if let Err(error) = block_signal(signal) {
                log::debug!("signal {signal}: {error:?}");
            }
        }
        // A terminal that is gone needs to hear nothing.
        Out::start(&threads::CONSOLE, io::stdout(), |_| {})
    }

    /// Starts who carries its keys to a guest, once there is one; a byte is written to `leave` for
    /// Ctrl-]. `out` is what [`Terminal::out`] returned.
    ///
    /// # Errors
    /// When its modes cannot be read, or the thread cannot be started.
    pub(super) fn keys(&self, leave: UnixStream, out: Out) -> io::Result<Keys> {
        let mut modes = tcgetattr(io::stdin())?;
        modes.make_raw();
        // A line feed is still shown as a new line: guests without a terminal driver send no more.
        modes.output_modes |= OutputModes::OPOST;
        let (guest, connected) = mpsc::sync_channel::<Arc<Serial>>(1);
        let shown = out.clone();
        threads::KEYS.spawn(move || {
            if let Ok(serial) = connected.recv() {
                carry_keys(&serial, &leave, &out);
            }
        })?;
        Ok(Keys {
            modes,
            guest,
            shown,
        })
    }
}

/// A thread that waits for a guest to carry keys to.
pub(super) struct Keys {
    modes: Termios,
    guest: SyncSender<Arc<Serial>>,
    shown: Out,
}

impl Keys {
    /// Connects the terminal to the guest's `serial` port.
    ///
    /// # Errors
    /// When its modes cannot be set.
    pub fn connect(self, serial: Arc<Serial>) -> io::Result<()> {
        let line = "tidemark: Ctrl-] leaves this console and stops the VM";
        self.shown.line(line);
        tcsetattr(io::stdin(), OptionalActions::Now, &self.modes)?;
        // A thread that has ended has panicked, which ends the process.
        let _ = self.guest.try_send(serial);
        Ok(())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the terminal's modes back, if they were changed.
pub(super) fn restore() {
    let modes = MODES.lock().ok().and_then(|mut modes| modes.take());
    if let Some(modes) = modes
        && let Err(errno) = tcsetattr(io::stdin(), OptionalActions::Now, &modes)
    {
        log::debug!("cannot put the terminal's modes back: {errno}");
    }
}

/// Until Ctrl-] or the end of the terminal.
fn carry_keys(serial: &Serial, mut leave: &UnixStream, out: &Out) {
    let mut keys = [0; KEYS];
    loop {
        let keys = match rustix::io::read(io::stdin(), &mut keys) {
            Err(Errno::INTR) => continue,
            Ok(count) => &keys[..count],
            Err(_) => &[],
        };
        if keys.is_empty() || keys.contains(&LEAVE) {
            // Nothing else can be done when the agent is gone: then the process ends.
            let _ = leave.write(&[LEAVE]);
            return out.line("");
        }
        let mut rest = keys;
        while !rest.is_empty() {
            rest = &rest[serial.input(rest)..];
            if !rest.is_empty() {
                thread::sleep(FULL_PAUSE);
            }
        }
    }
}
