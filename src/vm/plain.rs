//! The main thread of a VM whose memory tidemark does not manage.
//!
//! Guest RAM is plain anonymous memory, advised as the user said: no fault comes here, nothing is
//! scanned, shared or swapped by us, and there is no balloon. The VM is promised all of its memory.
//! It asks for credit for all of it before its guest is built, and keeps that credit whatever the
//! guest touches. Of the host manager's orders it obeys only the one to stop: none of the others can
//! concern a VM that is entitled to all that it can hold.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::active::Threads;
use super::building::Building;
use super::console;
use super::error::{Error, os};
use super::failure::Failure;
use super::files::Files;
use super::join::LAST_WORDS;
use super::launch::Launch;
use super::outside::Outside;
use super::terminal::Terminal;
use super::uplink::{Heard, Uplink};
use super::wait::wait;
use crate::config::VmSpec;
use crate::devices::sink::BalloonSink;
use crate::link::message::{ToHost, ToVm, Welcome};
use crate::machine::Machine;
use crate::out::Out;
use crate::sys::pagemap::PageTables;
use crate::sys::pool_view::PoolView;
use crate::sys::ram::{GuestRam, Layout};
use crate::sys::{signals, space};
use crate::threads::jail::Jail;
use crate::units::{Gfn, GfnRange, Pages};
use crate::words::{Advice, Exit, ExitReason, Holding, Measured, Report};

/// Time between reports.
const REPORT: Duration = Duration::from_millis(100);

/// There is no balloon that could say anything.
#[derive(Debug)]
struct NoBalloon;

impl BalloonSink for NoBalloon {
    fn inflate(&self, _gfns: &[Gfn]) {}
    fn deflate(&self, _gfns: &[Gfn]) {}
    fn report_free(&self, _range: GfnRange) {}
}

/// See the module documentation.
pub(super) struct Plain<'a> {
    spec: &'a VmSpec,
    host: Uplink,
    failure: Arc<Failure>,
    /// Readable when the VM was asked to stop: by a signal, or by whoever writes to `asks`.
    signals: UnixStream,
    asks: UnixStream,
    /// Where the guest's text goes.
    out: Out,
    building: Building,
    threads: Threads,
    has_begun: bool,
    tables: PageTables,
    /// Anonymous memory of the process before it had any of the guest's.
    own: Pages,
    granted: Pages,
    asked: bool,
    pool: PoolView,
    report: Instant,
    stopping: bool,
    started: Instant,
}

/// What a VM needs before it runs.
pub(super) struct Prepared {
    signals: UnixStream,
    asks: UnixStream,
    out: Out,
    building: Building,
    threads: Threads,
    tables: PageTables,
    own: Pages,
}

/// Maps the guest's memory, opens its console, and leaves for `jail`; the process's own words go to `log`.
///
/// # Errors
/// When one of them cannot be had.
pub(super) fn prepare(
    spec: &VmSpec,
    advice: Option<Advice>,
    files: Files,
    terminal: Option<&Terminal>,
    jail: Jail,
    log: &Out,
) -> Result<Prepared, Error> {
    let (signals, asks) = signals::pipe(&[libc::SIGINT, libc::SIGTERM, libc::SIGHUP])
        .map_err(os("wait for signals"))?;
    let tables = PageTables::open().map_err(space::Error::PageTables)?;
    let ram = GuestRam::advised(Layout::new(spec.allocation.size), advice)?;
    let outside = Outside::leave(spec, jail, log)?;
    let (console, out) = console::start(outside.console, terminal)?;
    let (console, sink) = (Arc::new(console), Arc::new(NoBalloon));
    let building = Building::prepare(spec, files, outside.kvm, console, ram, sink)?;
    let own = tables.anonymous().map_err(space::Error::PageTables)?;
    Ok(Prepared {
        signals,
        asks,
        out,
        building,
        threads: outside.threads,
        tables,
        own,
    })
}

impl<'a> Plain<'a> {
    /// A VM that was welcomed. Nothing of its guest is there yet. `started` is when the program was.
    pub fn new(
        spec: &'a VmSpec,
        prepared: Prepared,
        host: Uplink,
        welcome: &Welcome,
        pool: PoolView,
        failure: Arc<Failure>,
        started: Instant,
    ) -> Plain<'a> {
        let Prepared {
            signals,
            asks,
            out,
            building,
            threads,
            tables,
            own,
        } = prepared;
        Plain {
            spec,
            host,
            failure,
            signals,
            asks,
            out,
            building,
            threads,
            has_begun: false,
            tables,
            own,
            granted: welcome.credit,
            asked: false,
            pool,
            report: Instant::now(),
            stopping: false,
            started,
        }
    }

    /// Confines the process, builds the guest once all of its memory is granted, and serves it until
    /// it ends.
    pub fn run(mut self, terminal: Option<&Terminal>) -> Exit {
        let terminal = terminal.map(|terminal| (terminal, &self.out));
        let mut launch = match Launch::prepare(self.spec.cpus, terminal, &self.threads, &self.asks)
        {
            Ok(launch) => Some(launch),
            Err(error) => {
                self.failure.set(&error);
                None
            }
        };
        let mut machine: Option<Machine> = None;
        let ended = loop {
            if let Some(message) = self.failure.get() {
                break Exit::error(message);
            }
            if let Some(exit) = machine.as_ref().and_then(Machine::exit) {
                break exit;
            }
            if self.stopping && machine.is_none() {
                break Exit::plain(ExitReason::Stopped);
            }
            match self.advance(&mut launch) {
                Ok(None) => {}
                Ok(Some(started)) => machine = Some(started),
                Err(error) => {
                    self.failure.set(&error);
                    continue;
                }
            }
            self.hear(machine.as_ref());
            self.host.flush();
            self.rejoin();
            self.settle();
            if Instant::now() >= self.report {
                self.report = Instant::now() + REPORT;
                self.tell(machine.as_ref());
            }
            self.wait(machine.as_ref());
        };
        self.end(machine, ended)
    }

    /// The next step towards a running guest, which is returned when it runs.
    fn advance(&mut self, launch: &mut Option<Launch>) -> Result<Option<Machine>, Error> {
        if self.granted >= self.spec.allocation.size && !self.has_begun {
            self.has_begun = true;
            self.building.begin();
        }
        let Some(built) = self.building.take() else {
            return Ok(None);
        };
        let launch = launch.take().expect("a machine is built once");
        let (machine, _accounts) = launch.start(built?)?;
        Ok(Some(machine))
    }

    fn hear(&mut self, machine: Option<&Machine>) {
        if signals::drain(&self.signals) > 0 {
            self.stop(machine);
        }
        loop {
            match self.host.hear() {
                Heard::Nothing => return,
                Heard::Message(ToVm::Credit { pages }) => self.granted += pages,
                Heard::Message(ToVm::Stop) => self.stop(machine),
                // It maps no frames and has nothing to give.
                Heard::Message(ToVm::Orders(_) | ToVm::Candidates { .. } | ToVm::Want { .. }) => {}
                Heard::Message(ToVm::Welcome(_) | ToVm::Refused { .. } | ToVm::Knock { .. }) => {
                    log::warn!(
                        "{}: the host manager answers where nobody asked",
                        self.spec.name
                    );
                }
                Heard::Lost(why) => self.lose_host(&why, machine),
            }
        }
    }

    fn stop(&mut self, machine: Option<&Machine>) {
        self.stopping = true;
        if let Some(machine) = machine {
            machine.stop();
        }
    }

    fn lose_host(&mut self, why: &str, machine: Option<&Machine>) {
        let name = &self.spec.name;
        if self.host.may_return() {
            log::warn!("{name}: the host manager {why}; the guest goes on");
        } else {
            log::error!("{name}: the host manager {why}; the VM ends with it");
            self.stop(machine);
        }
    }

    /// A host manager that comes back is told that the VM holds what it was granted.
    fn rejoin(&mut self) {
        let held = self.granted.min(self.spec.allocation.size);
        if let Some((welcome, pool)) = self.host.rejoin(|| held, &self.pool) {
            (self.granted, self.asked, self.pool) = (welcome.credit, false, pool);
            log::warn!("{}: joined a host manager again", self.spec.name);
        }
    }

    /// Asks once for all that it lacks: requests wait with the host manager until they are granted.
    fn settle(&mut self) {
        let pages = self.spec.allocation.size.saturating_sub(self.granted);
        if pages > Pages::ZERO && !self.asked && self.host.has_room() {
            self.asked = true;
            self.host.send(&ToHost::CreditRequest { pages });
        }
    }

    fn tell(&self, machine: Option<&Machine>) {
        match self.measure(machine) {
            Ok(report) => self.host.send(&ToHost::Report(Box::new(report))),
            Err(error) => log::warn!("{}: no report: {error}", self.spec.name),
        }
    }

    fn measure(&self, machine: Option<&Machine>) -> io::Result<Report> {
        let guest = self.tables.anonymous()?.saturating_sub(self.own);
        let mut measured = Measured::default();
        if let Some(machine) = machine {
            measured.guest = machine.console().report();
            measured.start_us = machine
                .first_run()
                .and_then(|at| at.duration_since(self.started).as_micros().try_into().ok());
        }
        Ok(Report {
            holding: Holding::private(guest.min(self.spec.allocation.size)),
            overhead: self.own + self.tables.tables()?,
            measured,
        })
    }

    fn wait(&self, machine: Option<&Machine>) {
        let now = Instant::now();
        let read = |fd| (fd, PollFlags::IN);
        let built = machine.is_none().then(|| self.building.as_fd());
        let own = [
            Some(read(self.failure.event())),
            Some(read(self.signals.as_fd())),
            machine.map(AsFd::as_fd).map(read),
            built.map(read),
        ];
        let fds: Vec<(BorrowedFd<'_>, PollFlags)> =
            own.into_iter().flatten().chain(self.host.fds()).collect();
        wait(&fds, self.report.saturating_duration_since(now));
    }

    /// The last words.
    fn end(mut self, machine: Option<Machine>, ended: Exit) -> Exit {
        if let Some(machine) = &machine {
            machine.console().flush();
        }
        self.tell(machine.as_ref());
        self.host
            .send_last(&ToHost::Exited(ended.clone()), LAST_WORDS);
        // As with managed memory the process ends without dismantling its machine.
        std::mem::forget(machine);
        // What its place does not take by now is lost.
        let _ = self.out.finish(crate::out::FINISH);
        ended
    }
}
