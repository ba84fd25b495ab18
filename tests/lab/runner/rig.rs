//! A Linux guest under test: machine, pager, fault thread, and a conversation over the serial line.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use tidemark::boot::image::Image;
use tidemark::devices::console::Console;
use tidemark::devices::sink::BalloonSink;
use tidemark::devices::virtio::block::{Access, Disk};
use tidemark::machine::{Machine, MachineSpec};
use tidemark::mem::Pager;
use tidemark::mem::credit::CreditBook;
use tidemark::mem::pager::{Settings, mappings_max};
use tidemark::mem::swapfile::SwapFile;
use tidemark::sys::ram::{GuestRam, Layout};
use tidemark::units::{Gfn, GfnRange, Pages};
use tidemark::words::{Exit, TakePath};

use super::faults::{FaultThreads, READERS};

/// Why a test failed.
pub type Failure = Box<dyn std::error::Error>;

/// How long a guest may take to come up. The lab emulates two levels of machines.
const BOOT_LIMIT: Duration = Duration::from_secs(90);
/// How long a command may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// Bytes that the serial port takes at once.
const PIECE_BYTES: usize = 16;

/// What a guest is made of.
#[derive(Clone)]
pub struct Plan {
    /// Folder with the kernel and `initrd.gz`.
    pub guest: PathBuf,
    /// File name of the kernel.
    pub kernel: &'static str,
    pub memory: Pages,
    pub cpus: u8,
    /// Further words for the kernel.
    pub cmdline: String,
    pub credit: CreditBook,
    /// Image of the guest's disk, if it has one.
    pub disk: Option<(PathBuf, Access)>,
}

/// What the guest wrote so far.
#[derive(Default)]
struct Transcript {
    text: Mutex<String>,
    grown: Condvar,
}

#[derive(Clone)]
struct Recorder {
    transcript: Arc<Transcript>,
    echo: bool,
}

impl Write for Recorder {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        if self.echo {
            print!("    {text}");
        }
        self.transcript
            .text
            .lock()
            .expect("no panic")
            .push_str(&text);
        self.transcript.grown.notify_all();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Passes the balloon's words to the pager.
struct PagerSink(Arc<Pager>);

impl BalloonSink for PagerSink {
    fn inflate(&self, gfns: &[Gfn]) {
        self.0.inflate(gfns).expect("inflate");
    }
    fn deflate(&self, gfns: &[Gfn]) {
        self.0.deflate(gfns);
    }
    fn report_free(&self, range: GfnRange) {
        self.0.report_free(range).expect("report free pages");
    }
}

/// A running guest.
pub struct Rig {
    pub machine: Machine,
    pub pager: Arc<Pager>,
    transcript: Arc<Transcript>,
    /// Ends behind the machine.
    _faults: FaultThreads,
    read_to: usize,
}

impl Rig {
    /// Starts a guest; it has not booted yet.
    pub fn start(plan: &Plan) -> Result<Rig, Failure> {
        let ram = GuestRam::new(Layout::new(plan.memory))?;
        let settings = Settings {
            path: TakePath::choose(tidemark::sys::uffd::probe()?, None)?,
            swap: Box::new(SwapFile::create(Path::new("."))?),
            credit: plan.credit.clone(),
            readers: READERS,
            large_pages: true,
            mappings_max: mappings_max(),
            observer: None,
        };
        let pager = Arc::new(Pager::new(ram.clone(), settings)?);
        let faults = FaultThreads::start(&pager, |error| panic!("cannot serve faults: {error}"));
        let transcript = Arc::new(Transcript::default());
        let recorder = Recorder {
            transcript: transcript.clone(),
            echo: std::env::var_os("LAB_ECHO").is_some(),
        };
        let console = Arc::new(Console::new("", Box::new(recorder)));
        let more = std::env::var("LAB_CMDLINE").unwrap_or_default();
        let disk = plan.disk.as_ref();
        let disk = disk.map(|(path, access)| Disk::open(path, *access));
        let spec = MachineSpec {
            kernel: Image::file(open(&plan.guest.join(plan.kernel))?)?,
            initrd: Some(Image::file(open(&plan.guest.join("initrd.gz"))?)?),
            cmdline: format!("console=ttyS0 tidemark.commands {} {more}", plan.cmdline),
            balloon: true,
            cpus: plan.cpus,
            disks: disk.transpose()?.into_iter().collect(),
        };
        let mut machine = Machine::new(spec, ram, Arc::new(PagerSink(pager.clone())), console)?;
        machine.start()?;
        Ok(Rig {
            machine,
            pager,
            transcript,
            _faults: faults,
            read_to: 0,
        })
    }

    /// Starts a guest and waits until its first program listens.
    pub fn boot(plan: &Plan) -> Result<Rig, Failure> {
        let mut rig = Rig::start(plan)?;
        rig.wait_ready()?;
        Ok(rig)
    }

    pub fn wait_ready(&mut self) -> Result<(), Failure> {
        let before = self.wait_text("tidemark-guest: ready", BOOT_LIMIT)?;
        // A guest without its drivers would pass whatever does not need them.
        match before.lines().find(|line| line.contains("does not load")) {
            Some(line) => Err(line.into()),
            None => Ok(()),
        }
    }

    /// Waits for a line that contains `mark`; returns what came before it and has not been returned.
    fn wait_text(&mut self, mark: &str, limit: Duration) -> Result<String, Failure> {
        let deadline = Instant::now() + limit;
        let mut text = self.transcript.text.lock().expect("no panic");
        loop {
            if let Some(at) = text[self.read_to..].find(mark) {
                let at = self.read_to + at;
                if let Some(end) = text[at..].find('\n') {
                    let before = text[self.read_to..at + end].to_string();
                    self.read_to = at + end + 1;
                    return Ok(before);
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.machine.exit().is_some() {
                let tail: Vec<&str> = text.lines().rev().take(25).collect();
                let tail: Vec<&str> = tail.into_iter().rev().collect();
                return Err(format!(
                    "no {mark:?} within {limit:?}, exit {:?}; the console ends:\n{}",
                    self.machine.exit(),
                    tail.join("\n")
                )
                .into());
            }
            let step = left.min(Duration::from_millis(200));
            (text, _) = self
                .transcript
                .grown
                .wait_timeout(text, step)
                .expect("no panic");
        }
    }

    /// Types on the serial line.
    pub fn send(&mut self, text: &str) -> Result<(), Failure> {
        let deadline = Instant::now() + COMMAND_LIMIT;
        for piece in text.as_bytes().chunks(PIECE_BYTES) {
            let mut piece = piece;
            while !piece.is_empty() {
                let taken = self.machine.input(piece);
                piece = &piece[taken..];
                if Instant::now() > deadline {
                    return Err("the guest does not read its serial line".into());
                }
                if taken == 0 {
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        }
        Ok(())
    }

    /// Runs a command in the guest; returns its output when its status is 0.
    pub fn run(&mut self, command: &str) -> Result<String, Failure> {
        self.send(&format!("{command}\n"))?;
        let output = self.wait_text("=END", COMMAND_LIMIT)?;
        match output.rsplit_once("=END ") {
            Some((output, "0")) => Ok(output.trim_end().to_string()),
            _ => Err(format!("{command:?} failed: {output}").into()),
        }
    }

    /// Waits until `condition` holds.
    pub fn until(
        &self,
        what: &str,
        limit: Duration,
        mut condition: impl FnMut(&Rig) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        let deadline = Instant::now() + limit;
        while !condition(self)? {
            if Instant::now() > deadline || self.machine.exit().is_some() {
                return Err(format!("{what}: not within {limit:?}").into());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    /// Anonymous memory behind the guest, counted page by page.
    pub fn backed(&self) -> Result<Pages, Failure> {
        Ok(self.pager.census()?.anonymous)
    }

    /// Waits for the guest to end by itself.
    pub fn wait_exit(&self, limit: Duration) -> Result<Exit, Failure> {
        Ok(self.machine.wait(limit).ok_or("the guest does not end")?)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.machine.stop();
        // Faults are served until no vCPU can be in one.
        self.machine.join(Duration::from_secs(5));
    }
}

fn open(path: &Path) -> Result<File, Failure> {
    File::open(path).map_err(|error| format!("{}: {error}", path.display()).into())
}
