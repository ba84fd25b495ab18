//! One VM process from its first message to its last: build, run, report, end.
//!
//! | thread | does |
//! |---|---|
//! | main | joins the host manager, then `agent`: orders, credit, sharing, swapping, reports |
//! | faults | serves page faults; must never wait for another thread |
//! | vcpu N | run the guest and its devices |
//! | console, log | write the guest's text and our own: `out`; nobody waits for them |
//! | keys | with a terminal only: reads it for the guest's serial port |
//! | builder, then statistics | loads the guest; then asks its balloon driver for statistics. Both touch guest memory and may wait for credit, which the main thread brings |

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use vmm_sys_util::eventfd::EventFd;

use super::agent::Agent;
use super::files::Files;
use super::machine::{Machine, MachineSpec};
use super::terminal::{self, Terminal};
use crate::config::VmSpec;
use crate::devices::console::Console;
use crate::devices::sink::BalloonSink;
use crate::link::message::{Hello, ToHost, ToVm, Welcome};
use crate::link::socket::{self, Link, Received};
use crate::mem::credit::CreditBook;
use crate::mem::pager::{self, Settings};
use crate::mem::swapfile::{self, SwapFile};
use crate::mem::{self, Pager};
use crate::out::{self, Out};
use crate::sys::event;
use crate::sys::ksm;
use crate::sys::pool_view::PoolView;
use crate::sys::ram::{self, GuestRam, Layout};
use crate::sys::space::{self};
use crate::sys::uffd;
use crate::units::{Gfn, GfnRange, Pages};
use crate::words::{Exit, ExitReason, TakePath};

/// How long the host manager may take to admit a VM.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a VM that has ended waits for the host manager to hear how.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(1);
/// Stack of a helper thread, bytes: shallow code only.
const STACK_BYTES: usize = 256 << 10;
/// Period of the guest statistics. Chosen: the kernel's driver answers from counters at hand.
const STATISTICS_PERIOD: Duration = Duration::from_secs(1);

/// Why a VM process cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The link failed before the VM was admitted.
    #[error(transparent)]
    Link(#[from] socket::Error),
    /// The host manager refused the VM.
    #[error("{0}")]
    Refused(String),
    /// The host manager did not follow the protocol.
    #[error("the host manager {0}")]
    Protocol(&'static str),
    /// Guest memory.
    #[error(transparent)]
    Ram(#[from] ram::Error),
    /// userfaultfd.
    #[error(transparent)]
    Uffd(#[from] uffd::OpenError),
    /// The environment forces a take path that is not to be had.
    #[error("{0}")]
    TakePath(String),
    /// Page-table operations.
    #[error(transparent)]
    Space(#[from] space::Error),
    /// The pager.
    #[error(transparent)]
    Pager(#[from] mem::Error),
    /// The swap file.
    #[error(transparent)]
    SwapFile(#[from] swapfile::CreateError),
    /// The machine.
    #[error(transparent)]
    Machine(#[from] super::Error),
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] super::sandbox::Error),
    /// The console's file.
    #[error("cannot open {path}")]
    Open {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A thread or descriptor.
    #[error("cannot {what}")]
    Os {
        /// What failed.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// The first thing that went wrong in any thread, and a descriptor that tells.
#[derive(Debug)]
pub(super) struct Failure {
    first: Mutex<Option<String>>,
    event: EventFd,
}

impl Failure {
    fn new() -> io::Result<Failure> {
        Ok(Failure {
            first: Mutex::default(),
            event: EventFd::new(libc::EFD_NONBLOCK)?,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        self.first.lock().expect("nothing panics under this lock")
    }

    /// Records an error and its causes, unless there is one already.
    pub fn set(&self, error: &dyn std::error::Error) {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            // A transparent error repeats its cause's text.
            let part = error.to_string();
            if !text.ends_with(&part) {
                text = format!("{text}: {part}");
            }
            cause = error.source();
        }
        self.lock().get_or_insert(text);
        if let Err(error) = self.event.write(1) {
            log::error!("cannot tell of a failure: {error}");
        }
    }

    /// The error, if there is one.
    pub fn get(&self) -> Option<String> {
        self.lock().clone()
    }

    /// Readable once there is an error.
    pub fn event(&self) -> BorrowedFd<'_> {
        event::borrow(&self.event)
    }
}

/// The pager as the balloon sees it: a failure stops the VM instead of the device.
#[derive(Debug)]
struct PagerSink {
    pager: Arc<Pager>,
    failure: Arc<Failure>,
}

impl PagerSink {
    fn check(&self, result: Result<(), mem::Error>) {
        if let Err(error) = result {
            self.failure.set(&error);
        }
    }
}

impl BalloonSink for PagerSink {
    fn inflate(&self, gfns: &[Gfn]) {
        self.check(self.pager.inflate(gfns));
    }

    fn deflate(&self, gfns: &[Gfn]) {
        self.pager.deflate(gfns);
    }

    fn report_free(&self, range: GfnRange) {
        self.check(self.pager.report_free(range));
    }
}

/// The first message of a link. `held` is what the VM holds already.
pub(super) fn hello(spec: &VmSpec, held: Pages, lease: Option<u64>) -> ToHost {
    ToHost::Hello(Hello {
        name: spec.name.clone(),
        allocation: spec.allocation,
        share_group: spec.share_group.clone(),
        held,
        lease,
    })
}

/// The terms in the answer to a hello.
///
/// # Errors
/// When the VM is not admitted.
pub(super) fn terms(answer: Received) -> Result<(Welcome, PoolView), Error> {
    match answer {
        Received::Message(ToVm::Welcome(welcome), Some(pool)) => {
            let view = PoolView::new(pool, welcome.pool_frames);
            Ok((welcome, view))
        }
        Received::Message(ToVm::Welcome(_), None) => Err(Error::Protocol("sent no frame pool")),
        Received::Message(ToVm::Refused { reason }, _) => Err(Error::Refused(reason)),
        Received::Message(..) => Err(Error::Protocol("did not answer the VM's hello")),
        Received::Closed => Err(Error::Link(socket::Error::Closed)),
        Received::TimedOut => Err(Error::Protocol("did not answer in time")),
    }
}

/// Runs the VM of `spec`, which boots from `files`, until it ends; the host manager is at the other
/// end of `link`. The time to the guest's first instruction is reported from `started` on. `lease`
/// is the one it redeems. The process's own words go to `out`.
///
/// # Errors
/// When the VM was not admitted. Whatever happens later is in its [`Exit`], and the host manager
/// was told.
pub fn run(
    spec: &VmSpec,
    files: Files,
    link: Link,
    lease: Option<u64>,
    started: Instant,
    out: &Out,
) -> Result<Exit, Error> {
    stop_on_panic(out.clone());
    ksm::switch_off().map_err(|errno| os("switch KSM off for this process")(errno.into()))?;
    link.send(&hello(spec, Pages::ZERO, lease))?;
    let (welcome, pool) = terms(link.recv(Some(WELCOME_TIMEOUT))?)?;
    let failure = Arc::new(Failure::new().map_err(os("create an eventfd"))?);
    // Dropped when the guest has ended.
    let terminal = match spec.console {
        None => Terminal::open(),
        Some(_) => None,
    };
    match prepare(spec, files, terminal.as_ref(), &welcome, &failure) {
        Ok((pager, building, seed, console)) => {
            let agent = Agent::new(spec, link, welcome, pool, pager, failure, seed)
                .map_err(os("wait for signals"))?;
            let terminal = terminal.as_ref().map(|terminal| (terminal, &console));
            let ended = agent.run(building, terminal, started);
            // What its place does not take by now is lost.
            let _ = console.finish(out::FINISH);
            Ok(ended)
        }
        Err(error) => {
            failure.set(&error);
            let ended = exit(ExitReason::Error, failure.get());
            // The process says it as well, on standard error and by its status.
            if let Err(error) = link.send_last(&ToHost::Exited(ended.clone()), LAST_WORDS) {
                log::warn!("{}: the host manager does not hear it: {error}", spec.name);
            }
            Ok(ended)
        }
    }
}

/// A broken invariant in any thread stops the VM: the others would wait for that thread for ever,
/// or go on with tables that are wrong.
fn stop_on_panic(out: Out) {
    std::panic::set_hook(Box::new(move |panic| {
        terminal::restore();
        let backtrace = Backtrace::capture();
        let thread = thread::current();
        let name = thread.name().unwrap_or("unnamed");
        // Directly, it could wait for whoever should read it.
        out.line(&format!("tidemark: thread {name}: {panic}"));
        if backtrace.status() == BacktraceStatus::Captured {
            out.line(&backtrace.to_string());
        }
        let _ = out.finish(out::FINISH);
        std::process::abort();
    }));
}

fn os(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Os { what, source }
}

/// Everything up to the guest's first instruction, which waits for the agent.
fn prepare(
    spec: &VmSpec,
    files: Files,
    terminal: Option<&Terminal>,
    welcome: &Welcome,
    failure: &Arc<Failure>,
) -> Result<(Arc<Pager>, Building, u64, Out), Error> {
    let seed = seed_of(spec);
    let forced = std::env::var(TakePath::VARIABLE).ok();
    let path = TakePath::choose(uffd::probe()?, forced.as_deref()).map_err(Error::TakePath)?;
    log::info!("{}: takes pages by {}, seed {seed}", spec.name, path.name());
    let swap = Box::new(SwapFile::create(&spec.swap_dir)?);
    let ram = GuestRam::new(Layout::new(spec.allocation.size))?;
    let credit = CreditBook::new(welcome.credit, welcome.credit_batch);
    let pager = Arc::new(Pager::new(
        ram.clone(),
        Settings {
            path,
            swap,
            seed,
            credit,
            mappings_max: pager::mappings_max(),
        },
    )?);
    serve_faults(pager.clone(), failure.clone())?;
    let sink = Arc::new(PagerSink {
        pager: pager.clone(),
        failure: failure.clone(),
    });
    let out = console_out(spec, terminal)?;
    let console = match terminal {
        Some(_) => Console::raw(Box::new(out.clone())),
        None => Console::new("", Box::new(out.clone())),
    };
    let building = build(spec, files, Arc::new(console), ram, sink)?;
    Ok((pager, building, seed, out))
}

/// Seed of this VM's random choices: `TIDEMARK_SEED`, or one from the clock, printed either way.
fn seed_of(spec: &VmSpec) -> u64 {
    let given = std::env::var("TIDEMARK_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    given.unwrap_or_else(|| {
        log::info!("{}: TIDEMARK_SEED is not set", spec.name);
        fastrand::u64(..)
    })
}

fn spawn(
    name: &str,
    work: impl FnOnce() + Send + 'static,
) -> Result<thread::JoinHandle<()>, Error> {
    thread::Builder::new()
        .name(name.into())
        .stack_size(STACK_BYTES)
        .spawn(work)
        .map_err(|source| Error::Os {
            what: "start a thread",
            source,
        })
}

fn serve_faults(pager: Arc<Pager>, failure: Arc<Failure>) -> Result<(), Error> {
    // Whoever waits for a page after a failure waits until the process ends, which is at once.
    let serve = move || pager.serve_faults(None, || false, |error| failure.set(error));
    spawn("faults", serve).map(|_detached| ())
}

/// A machine under construction.
pub(super) struct Building {
    done: EventFd,
    result: Receiver<Result<Machine, super::Error>>,
}

impl Building {
    /// Readable when [`Building::take`] has something.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        event::borrow(&self.done)
    }

    /// The machine, once.
    pub fn take(&self) -> Option<Result<Machine, super::Error>> {
        self.result.try_recv().ok()
    }
}

/// Starts a thread that builds the machine.
fn build(
    spec: &VmSpec,
    files: Files,
    console: Arc<Console>,
    ram: Arc<GuestRam>,
    sink: Arc<dyn BalloonSink>,
) -> Result<Building, Error> {
    let machine = MachineSpec {
        kernel: files.kernel,
        initrd: files.initrd,
        disks: files.disk.into_iter().collect(),
        cmdline: spec.cmdline.clone(),
        cpus: spec.cpus,
    };
    let done = EventFd::new(libc::EFD_NONBLOCK).map_err(os("create an eventfd"))?;
    let tell = done.try_clone().map_err(os("create an eventfd"))?;
    let (sender, result) = mpsc::channel();
    let work = move || {
        let machine = Machine::new(machine, ram, sink, console);
        let balloon = machine
            .as_ref()
            .ok()
            .map(|machine| machine.balloon().clone());
        if sender.send(machine).is_err() || tell.write(1).is_err() {
            return;
        }
        let Some(balloon) = balloon else { return };
        loop {
            thread::sleep(STATISTICS_PERIOD);
            if balloon.driver_up() {
                balloon.request_stats();
            }
        }
    };
    spawn("builder", work)?;
    Ok(Building { done, result })
}

/// Where the guest's text goes: no vCPU waits for that place.
fn console_out(spec: &VmSpec, terminal: Option<&Terminal>) -> Result<Out, Error> {
    let complain = |errno| log::warn!("console output is lost: {errno}");
    let started = match (terminal, &spec.console) {
        (Some(terminal), _) => terminal.out(),
        (None, None) => Out::start("console", io::stdout(), complain),
        (None, Some(path)) => {
            let file = std::fs::File::create(path).map_err(|source| Error::Open {
                path: path.display().to_string(),
                source,
            })?;
            Out::start("console", file, complain)
        }
    };
    started.map_err(os("start a thread"))
}

/// An exit that the VM process itself decided on.
pub(super) fn exit(reason: ExitReason, message: Option<String>) -> Exit {
    Exit {
        reason,
        code: 0,
        message,
    }
}

/// Waits for any of the descriptors; spurious wake-ups are fine.
pub(super) fn wait(fds: &[(BorrowedFd<'_>, PollFlags)], timeout: Duration) {
    let mut polled: Vec<PollFd<'_>> = fds
        .iter()
        .map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags))
        .collect();
    let timeout = rustix::event::Timespec {
        tv_sec: timeout.as_secs().cast_signed(),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    match poll(&mut polled, Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(errno) => log::error!("cannot wait: {errno}"),
    }
}
