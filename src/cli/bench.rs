//! `tidemark bench`: what being managed costs a guest, beside what a user would pick instead.
//!
//! Each row is measured on this machine, in this run, by fleets of the built-in guest `meter` that
//! this same program runs as `tidemark run` in a temporary folder. Its peer is the *plain arm*, the
//! same virtual machine with `memory_management = false`, alone or beside KSM or the kernel's swap.
//! `balloon` has Linux guests, and QEMU as its peer.
//! The arms take turns, and who begins alternates. A figure is the median of the runs, with the least and the
//! most of them beside it. A peer that could not run says so, and is no number.
//!
//! | file | job |
//! |---|---|
//! | `fleet` | one fleet under measurement: started, watched, ended, whatever happens |
//! | `meter` | what the guest `meter` prints |
//! | `row` | figures, their ratio, as JSON and as a table |
//! | `cpu` | CPU time of threads, from /proc |
//! | `memory` | memory of processes, from /proc |
//! | `ksm` | KSM's settings, put back whatever happens |
//! | `cgroup` | a memory cgroup, removed whatever happens |
//! | `program` | this program started beside a fleet, ended whatever happens |
//! | `process` | the guest's work as an ordinary process |
//! | `qemu` | QEMU as a peer |
//! | `guest`, `share`, `storm`, `wake`, `half`, `grab`, `idle`, `density`, `balloon` | the rows |

mod balloon;
mod cgroup;
mod cpu;
mod density;
mod fleet;
mod grab;
mod guest;
mod half;
mod idle;
mod ksm;
mod memory;
mod meter;
mod process;
mod program;
mod qemu;
mod row;
mod share;
mod storm;
mod wake;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

use self::fleet::Scratch;
use self::row::Row;
use super::{Error as CliError, check, stdout};
use crate::out::Out;
use crate::sys::kvm;
use crate::words::size::parse_size;

/// Exit status after Ctrl-C, as shells have it.
const INTERRUPTED: u8 = 130;
/// Runs of each arm, at most.
const RUNS_MAX: u8 = 99;

/// Flags of `tidemark bench`.
#[derive(Debug, Args)]
pub struct BenchCommand {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// First touch of memory, steady work, work on memory that is worth sharing
    Guest(Flags),
    /// Sharing, beside KSM: CPU a page, time until it is done, what it costs to keep
    Share(Flags),
    /// Writes to pages that are shared, beside KSM
    Storm(Flags),
    /// Out to disk and back, beside the kernel's swap
    Wake(Flags),
    /// A guest in half of its memory, beside the kernel's swap
    Half(Flags),
    /// A newcomer to a full host, beside one that finds free memory
    Grab(Flags),
    /// Guests that rest, a busy host manager, the demo: what tidemark itself needs
    Idle(Flags),
    /// Guests that a GiB holds, beside KSM
    Density(Flags),
    /// Ballooning a Linux guest, beside QEMU's balloon
    Balloon {
        #[command(flatten)]
        files: balloon::Files,
        #[command(flatten)]
        flags: Flags,
    },
    /// What `half` starts beside a guest
    #[command(hide = true)]
    Process(process::Flags),
}

/// Flags of every bench.
#[derive(Debug, Args)]
struct Flags {
    /// Print one JSON object on standard output
    #[arg(long)]
    json: bool,
    /// Runs of each arm
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=i64::from(RUNS_MAX)))]
    runs: u8,
    /// Memory that a guest works on [default: guest 256M, share 128M, storm, wake and density 64M, half 121M, grab 120M, idle 4M, balloon 96M]
    #[arg(long, value_name = "SIZE", value_parser = set_bytes)]
    size: Option<u64>,
    /// Seconds of each timed piece of work
    #[arg(long, value_name = "N", default_value_t = 14, value_parser = clap::value_parser!(u32).range(2..=3600))]
    seconds: u32,
    /// Measure only these rows, by their keys
    #[arg(long, value_name = "KEY", value_delimiter = ',')]
    for_ratio: Vec<String>,
    /// Folder for swap files, logs and sockets, which are removed
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    dir: PathBuf,
}

/// Least and largest working set: the guests have 3 GiB at most.
const SET_BYTES: std::ops::RangeInclusive<u64> = 4 << 20..=2 << 30;

fn set_bytes(text: &str) -> Result<u64, String> {
    let pages = parse_size(text).map_err(|error| error.to_string())?;
    match SET_BYTES.contains(&pages.bytes()) {
        true => Ok(pages.bytes()),
        false => Err("must be 4M to 2G".to_owned()),
    }
}

/// Why a bench ends early. Nothing of it is left then, either.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Ctrl-C, or SIGTERM.
    #[error("interrupted")]
    Interrupted,
    /// A fleet did not do what it must.
    #[error("{what}: {why}")]
    Fleet {
        /// What was to be seen.
        what: String,
        /// What was seen instead.
        why: String,
    },
    /// A guest found a page that did not hold what it must.
    #[error("{guest}: {pages} pages were corrupt")]
    Corrupt {
        /// Which guest.
        guest: String,
        /// How many.
        pages: u64,
    },
    /// A file, a folder or a process.
    #[error("cannot {what}")]
    Io {
        /// What failed.
        what: String,
        /// Why.
        source: std::io::Error,
    },
}

fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
    let what = what.into();
    move |source| Error::Io { what, source }
}

/// What there is to be measured.
struct Verb<'a> {
    name: &'static str,
    keys: &'static [&'static str],
    /// Memory that a guest works on unless said otherwise.
    size: u64,
    measure: Measure<'a>,
}

/// Measures those of a verb's rows that are wanted.
type Measure<'a> = Box<dyn Fn(&Bench<'_>) -> Result<Vec<Row>, Error> + 'a>;

impl<'a> Verb<'a> {
    fn new(
        name: &'static str,
        keys: &'static [&'static str],
        size: u64,
        measure: impl Fn(&Bench<'_>) -> Result<Vec<Row>, Error> + 'a,
    ) -> Verb<'a> {
        Verb {
            name,
            keys,
            size,
            measure: Box::new(measure),
        }
    }
}

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// tidemark.
    Ours,
    /// What a user would pick instead.
    Peer,
}

/// What all rows of a bench have in common.
struct Bench<'a> {
    flags: &'a Flags,
    /// Memory that a guest works on.
    size: u64,
    scratch: Scratch,
    tsc_khz: u32,
    interrupted: Arc<AtomicBool>,
    out: &'a Out,
}

impl Bench<'_> {
    /// Whether this row is to be measured.
    fn wants(&self, key: &str) -> bool {
        let keys = &self.flags.for_ratio;
        keys.is_empty() || keys.iter().any(|wanted| wanted == key)
    }

    /// Runs both sides `--runs` times, in turn; who begins alternates. The first `discarded` rounds
    /// do not count.
    fn alternate<T>(
        &self,
        what: &str,
        discarded: u8,
        mut run: impl FnMut(Side) -> Result<T, Error>,
    ) -> Result<(Vec<T>, Vec<T>), Error> {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        let rounds = self.flags.runs + discarded;
        for number in 0..rounds {
            self.say(&format!("{what}: run {} of {rounds}", number + 1));
            let order = match number % 2 {
                0 => [Side::Ours, Side::Peer],
                _ => [Side::Peer, Side::Ours],
            };
            for side in order {
                let result = run(side)?;
                match side {
                    _ if number < discarded => {}
                    Side::Ours => ours.push(result),
                    Side::Peer => theirs.push(result),
                }
            }
        }
        Ok((ours, theirs))
    }

    /// Ends the bench if somebody wants it to end.
    fn check(&self) -> Result<(), Error> {
        match self.interrupted.load(Ordering::Relaxed) {
            true => Err(Error::Interrupted),
            false => Ok(()),
        }
    }

    /// Tells how far it is.
    fn say(&self, text: &str) {
        self.out.line(&format!("tidemark: bench: {text}"));
    }
}

/// Measures and prints.
pub fn run(command: &BenchCommand, out: &Out) -> Result<ExitCode, CliError> {
    let (verb, flags): (_, &Flags) = match &command.what {
        What::Guest(flags) => (
            Verb::new("guest", guest::KEYS, guest::SIZE, guest::measure),
            flags,
        ),
        What::Share(flags) => (
            Verb::new("share", share::KEYS, share::SIZE, share::measure),
            flags,
        ),
        What::Storm(flags) => (
            Verb::new("storm", storm::KEYS, storm::SIZE, storm::measure),
            flags,
        ),
        What::Wake(flags) => (
            Verb::new("wake", wake::KEYS, wake::SIZE, wake::measure),
            flags,
        ),
        What::Half(flags) => (
            Verb::new("half", half::KEYS, half::SIZE, half::measure),
            flags,
        ),
        What::Grab(flags) => (
            Verb::new("grab", grab::KEYS, grab::SIZE, grab::measure),
            flags,
        ),
        What::Process(flags) => {
            process::work(*flags)?;
            return Ok(ExitCode::SUCCESS);
        }
        What::Idle(flags) => (
            Verb::new("idle", idle::KEYS, idle::SIZE, idle::measure),
            flags,
        ),
        What::Density(flags) => (
            Verb::new("density", density::KEYS, density::SIZE, density::measure),
            flags,
        ),
        What::Balloon { files, flags } => (
            Verb::new("balloon", balloon::KEYS, balloon::SIZE, |bench| {
                balloon::measure(bench, files)
            }),
            flags,
        ),
    };
    let Verb {
        name,
        keys,
        size,
        measure,
    } = verb;
    if let Some(unknown) = flags
        .for_ratio
        .iter()
        .find(|key| !keys.contains(&key.as_str()))
    {
        return Err(CliError::Usage(format!(
            "--for-ratio {unknown}: `bench {name}` has {}",
            keys.join(", ")
        )));
    }
    check::require()?;
    let tsc_khz = kvm::tsc_khz().ok_or_else(|| {
        CliError::Missing("KVM does not say how fast the time-stamp counter is".to_owned())
    })?;
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        flag::register(signal, Arc::clone(&interrupted))
            .map_err(super::io("register a signal handler"))?;
    }
    let bench = Bench {
        flags,
        size: flags.size.unwrap_or(size),
        scratch: Scratch::new(&flags.dir)?,
        tsc_khz,
        interrupted,
        out,
    };
    let rows = match measure(&bench) {
        Ok(rows) => rows,
        Err(Error::Interrupted) => return Ok(ExitCode::from(INTERRUPTED)),
        Err(error) => return Err(error.into()),
    };
    let text = match flags.json {
        true => whole(name, &bench, &rows).to_string(),
        false => row::table(&rows).join("\n"),
    };
    // Gone before anybody acts on the result.
    drop(bench);
    stdout::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn whole(name: &str, bench: &Bench<'_>, rows: &[Row]) -> Value {
    let ratios: serde_json::Map<String, Value> = rows
        .iter()
        .map(|row| (row.key.to_owned(), row.to_json()))
        .collect();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    json!({
        "bench": name,
        "version": env!("CARGO_PKG_VERSION"),
        "kernel": kernel.trim(),
        "cpus": cpus,
        "tsc_khz": bench.tsc_khz,
        "size_bytes": bench.size,
        "seconds": bench.flags.seconds,
        "ratios": ratios,
    })
}
