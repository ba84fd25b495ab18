//! A program beside a fleet. Most often it is this one, started again, that prints what the guest
//! `meter` prints: a VM that joins the fleet, or the work of `meter` as an ordinary process.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::fleet::PATIENCE;
use super::meter::Said;
use super::{Bench, Error, io};

/// How long it may take to end.
const GRACE: Duration = Duration::from_secs(8);
/// Time between two looks.
const LOOK: Duration = Duration::from_millis(10);

/// See the module documentation. Dropping it ends it.
pub(super) struct Program<'a> {
    bench: &'a Bench<'a>,
    child: Child,
    console: PathBuf,
}

impl<'a> Program<'a> {
    /// Starts this program with these arguments.
    pub fn start(bench: &'a Bench<'a>, args: &[String]) -> Result<Program<'a>, Error> {
        let program = std::env::current_exe().map_err(io("find this program's file"))?;
        let mut command = Command::new(program);
        command.args(args);
        Program::of(bench, command, &format!("tidemark {}", args.join(" ")))
    }

    /// Starts a program, which is called `name` where it cannot be.
    pub fn of(
        bench: &'a Bench<'a>,
        mut command: Command,
        name: &str,
    ) -> Result<Program<'a>, Error> {
        bench.check()?;
        let console = bench.scratch.file("console");
        let out = File::create(&console).map_err(io("create a console's file"))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            // Ctrl-C on the terminal is for the bench, which ends it.
            .process_group(0)
            .spawn()
            .map_err(io(format!("start `{name}`")))?;
        Ok(Program {
            bench,
            child,
            console,
        })
    }

    /// Its number.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or(i32::MAX)
    }

    /// The file with what it has written to standard output.
    pub fn console(&self) -> &Path {
        &self.console
    }

    /// What it has said so far.
    pub fn said(&self) -> Said {
        let text = fs::read(&self.console).unwrap_or_default();
        Said::read(&String::from_utf8_lossy(&text))
    }

    /// Looks until `look` sees it in what was said; `None` if it ends before, or not in time.
    pub fn until<T>(&mut self, look: impl Fn(&Said) -> Option<T>) -> Result<Option<T>, Error> {
        self.watch(|program| look(&program.said()))
    }

    /// Looks until `look` has seen it; `None` if the program ends before, or not in time.
    pub fn watch<T>(
        &mut self,
        mut look: impl FnMut(&Program<'_>) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // The end is looked at first: what was said before it is then seen.
            let ended = self.child.try_wait().map_err(io("wait for a process"))?;
            if let Some(seen) = look(self) {
                return Ok(Some(seen));
            }
            self.bench.check()?;
            if ended.is_some() || Instant::now() > deadline {
                return Ok(None);
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Waits for it to end, as it has said that it does.
    ///
    /// # Errors
    /// Why it did not end well, for people.
    pub fn end(mut self) -> Result<(), String> {
        let deadline = Instant::now() + GRACE;
        while Instant::now() < deadline {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(LOOK),
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => return Err(format!("it ended with {status}")),
                Err(error) => return Err(error.to_string()),
            }
        }
        Err("it did not end in time".to_owned())
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        // Nothing is killed that was waited for: its number may be another's.
        let ended = self.child.kill().and_then(|()| self.child.wait());
        if let Err(error) = ended {
            log::error!("cannot end a process: {error}");
        }
    }
}
