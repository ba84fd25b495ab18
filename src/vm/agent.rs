//! The VM's own hand in its memory: carries out the host manager's orders, keeps the credit
//! account, scans, merges, swaps, measures, reports.
//!
//! One loop on the process's main thread. It decides nothing about how much the VM may hold; it
//! only keeps to it. Everything is level-triggered: a lost or late message delays, and never
//! confuses. While the host manager does not read, the agent tells it nothing that can wait: it does
//! not scan, asks for no credit, and keeps the references that it would give back. When the host
//! manager goes away the guest goes on without limits and the agent tries to join again, a step at a
//! time between its other work; under `tidemark run`, whose end nobody else would notice, the VM ends
//! with it. A host manager that knows the VM's frame pool is told first which frames of it the VM maps
//! (its *claims*).

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::active::{self, Active};
use super::gate::Hold;
use super::machine::Machine;
use super::process::{Building, Failure, LAST_WORDS, exit, hello, terms, wait};
use super::sandbox;
use super::terminal::Terminal;
use crate::config::VmSpec;
use crate::link::message::{
    CONTENT_PAGES_MAX, LIST_MAX, OFFER_PAGES_MAX, Orders, ToHost, ToVm, Welcome,
};
use crate::link::socket::{Error as LinkError, Link, Received};
use crate::mem::credit::CreditMove;
use crate::mem::reclaim::{BATCH_PAGES, Reclaimer};
use crate::mem::share::{Scanner, merge};
use crate::mem::{self, Pager};
use crate::out::Out;
use crate::sys::pool_view::PoolView;
use crate::units::{FrameId, Gfn, Pages};
use crate::words::{Exit, ExitReason, MemState, Run};

/// Time between measurements while the VM grows or the host is short. Chosen: in this time one
/// vCPU can fill about 4 MiB unseen.
const MEASURE_BUSY: Duration = Duration::from_millis(10);
/// Time between measurements of a VM that does not grow, at most.
const MEASURE_QUIET: Duration = Duration::from_millis(100);
/// Time between reports.
const REPORT: Duration = Duration::from_millis(100);
/// Time between censuses, at least.
const CENSUS: Duration = Duration::from_secs(1);
/// A census may take at most this part of the time: one in fifty.
const CENSUS_PART: u32 = 50;
/// Batches swapped in one turn of the loop, so that messages are heard in between.
const BATCHES_A_TURN: usize = 16;
/// Pages merged in one turn.
const MERGES_A_TURN: usize = 256;
/// Pages scanned in one turn, at most.
const SCAN_A_TURN: u32 = 1024;
/// A scan takes at most this part of the time, however slow the machine is: the guest needs it too.
const SCAN_TIME_PART: u32 = 4;
/// Pause after the swap file failed.
const SWAP_PAUSE: Duration = Duration::from_secs(1);
/// Pause between attempts to join a host manager again.
const REJOIN: Duration = Duration::from_millis(250);
/// Steps over the page map in which frames are claimed, in one turn.
const CLAIMS_A_TURN: usize = 64;
/// How long a wish for content is worth an answer: the host manager forgets it as soon.
const WANT_AGE_MAX: Duration = Duration::from_secs(5);
/// Wishes that wait while the host manager does not read, at most.
const WANTED_MAX: usize = 2 * LIST_MAX;

/// When things are due.
struct Due {
    measure: Instant,
    quiet: Duration,
    report: Instant,
    census: Instant,
    scan: Instant,
    swap: Instant,
    rejoin: Instant,
}

/// See the module documentation.
pub(super) struct Agent<'a> {
    spec: &'a VmSpec,
    link: Link,
    joined: bool,
    /// A new link, over which the VM has said hello.
    rejoining: Option<Link>,
    /// Why the last hello was refused.
    refused: Option<String>,
    /// Not all frames have been claimed over this link.
    claiming: bool,
    pool: PoolView,
    pager: Arc<Pager>,
    failure: Arc<Failure>,
    /// Readable when the VM was asked to stop: by a signal, or by whoever writes to `asks`.
    signals: UnixStream,
    asks: UnixStream,
    scanner: Scanner,
    reclaimer: Reclaimer,
    active: Active,
    orders: Orders,
    candidates: VecDeque<(Gfn, FrameId)>,
    /// Pages whose content the host manager wants, and since when.
    wanted: VecDeque<(Instant, Gfn)>,
    /// References to give back. They stay here while the host manager does not read.
    released: Vec<FrameId>,
    due: Due,
    stopping: bool,
    held: bool,
    /// When the program was started.
    started: Instant,
}

impl<'a> Agent<'a> {
    pub fn new(
        spec: &'a VmSpec,
        link: Link,
        welcome: Welcome,
        pool: PoolView,
        pager: Arc<Pager>,
        failure: Arc<Failure>,
        seed: u64,
    ) -> io::Result<Agent<'a>> {
        let (signals, asks) = UnixStream::pair()?;
        signals.set_nonblocking(true)?;
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            signal_hook::low_level::pipe::register(signal, asks.try_clone()?)?;
        }
        // A limit on the size of files is an error of the swap file, not the end of the VM.
        signal_hook::flag::register(libc::SIGXFSZ, Arc::default())?;
        let now = Instant::now();
        Ok(Agent {
            spec,
            link,
            joined: true,
            rejoining: None,
            refused: None,
            claiming: false,
            pool,
            pager,
            failure,
            signals,
            asks,
            scanner: Scanner::new(welcome.key_seed),
            reclaimer: Reclaimer::new(seed),
            active: Active::new(welcome.sampling, seed),
            orders: no_orders(),
            candidates: VecDeque::new(),
            wanted: VecDeque::new(),
            released: Vec::new(),
            due: Due {
                measure: now,
                quiet: MEASURE_BUSY,
                report: now + REPORT,
                census: now + CENSUS,
                scan: now,
                swap: now,
                rejoin: now,
            },
            stopping: false,
            held: false,
            started: now,
        })
    }

    /// Waits for the machine to be built, starts it with `terminal` as its console if there is one,
    /// which shows what is written to the [`Out`], and serves it until it ends. `started` is when
    /// the program was.
    pub fn run(
        mut self,
        building: Building,
        terminal: Option<(&Terminal, &Out)>,
        started: Instant,
    ) -> Exit {
        self.started = started;
        let mut machine: Option<Machine> = None;
        let ended = loop {
            if let Some(message) = self.failure.get() {
                break exit(ExitReason::Error, Some(message));
            }
            if let Some(exit) = machine.as_ref().and_then(Machine::exit) {
                break exit;
            }
            if machine.is_none() {
                let built = building.take();
                let start = |machine| {
                    self.connect(terminal, &machine)
                        .and_then(|()| start(machine, self.spec.cpus))
                };
                match built.map(|built| built.and_then(start)) {
                    Some(Ok((built, accounts))) => {
                        // Orders may have come before there was a balloon.
                        built.balloon().set_target(self.orders.balloon_target);
                        self.active.start(accounts);
                        machine = Some(built);
                    }
                    Some(Err(error)) => self.failure.set(&error),
                    None if self.stopping => break exit(ExitReason::Stopped, None),
                    None => {}
                }
            }
            if let Err(error) = self.turn(machine.as_ref()) {
                self.failure.set(&error);
                continue;
            }
            self.wait(machine.as_ref(), &building);
        };
        self.end(machine, ended)
    }

    fn connect(
        &self,
        terminal: Option<(&Terminal, &Out)>,
        machine: &Machine,
    ) -> Result<(), super::Error> {
        let Some((terminal, out)) = terminal else {
            return Ok(());
        };
        let leave = self.asks.try_clone();
        leave
            .and_then(|leave| terminal.connect(Arc::clone(machine.serial()), leave, out.clone()))
            .map_err(|source| super::Error::Terminal { source })
    }

    fn wait(&self, machine: Option<&Machine>, building: &Building) {
        let now = Instant::now();
        let mut next = self.due.measure.min(self.due.report).min(self.due.census);
        let claims = self.claiming && self.has_room();
        if !self.candidates.is_empty() || claims {
            next = now;
        }
        if !self.joined {
            next = next.min(self.due.rejoin);
        }
        let behind = self.joined && self.link.is_behind();
        if self.orders.scan_pages_per_second > 0 && !behind {
            next = next.min(self.due.scan);
        }
        if self.joined && self.excess() > Pages::ZERO {
            next = next.min(self.due.swap);
        }
        let built = machine.is_none().then(|| building.as_fd());
        let of_link = match behind {
            true => PollFlags::IN | PollFlags::OUT,
            false => PollFlags::IN,
        };
        let read = |fd| (fd, PollFlags::IN);
        let fds: Vec<(BorrowedFd<'_>, PollFlags)> = [
            Some(read(self.failure.event())),
            Some(read(self.signals.as_fd())),
            Some(read(self.pager.starved())),
            self.joined.then(|| (self.link.as_fd(), of_link)),
            self.rejoining.as_ref().map(|link| read(link.as_fd())),
            machine.map(AsFd::as_fd).map(read),
            built.map(read),
        ]
        .into_iter()
        .flatten()
        .collect();
        wait(&fds, next.saturating_duration_since(now));
    }

    /// One round of everything that is due.
    fn turn(&mut self, machine: Option<&Machine>) -> Result<(), mem::Error> {
        self.hear_signals(machine);
        self.hear_host(machine)?;
        self.catch_up()?;
        let now = Instant::now();
        if !self.joined {
            self.rejoin(now);
        }
        if now >= self.due.census {
            let census = self.pager.census()?;
            self.due.census = now + CENSUS.max(census.took * CENSUS_PART);
        }
        self.reclaim(now)?;
        if self.pager.drain_starved() {
            self.due.quiet = MEASURE_BUSY;
            self.due.measure = self.due.measure.min(now + MEASURE_BUSY);
        }
        if now >= self.due.measure {
            self.measure(now)?;
        }
        self.settle();
        self.hold(machine);
        if self.joined && !self.claiming {
            self.share()?;
            self.scan(now)?;
        }
        if now >= self.due.report {
            if machine.is_some() {
                self.active.turn(&self.pager)?;
            }
            self.report(machine)?;
            self.due.report = now + REPORT;
        }
        self.claim();
        self.release();
        Ok(())
    }

    fn hear_signals(&mut self, machine: Option<&Machine>) {
        let mut bytes = [0; 16];
        if io::Read::read(&mut &self.signals, &mut bytes).is_ok_and(|count| count > 0) {
            self.stop(machine);
        }
    }

    fn stop(&mut self, machine: Option<&Machine>) {
        self.stopping = true;
        if let Some(machine) = machine {
            machine.stop();
        }
    }

    fn hear_host(&mut self, machine: Option<&Machine>) -> Result<(), mem::Error> {
        while self.joined {
            match self.link.recv(Some(Duration::ZERO)) {
                Ok(Received::TimedOut) => break,
                Ok(Received::Message(message, _)) => self.obey(message, machine)?,
                Ok(Received::Closed) => self.lose_host("closed the link", machine),
                Err(error @ LinkError::Codec(_)) => {
                    self.link.close();
                    self.lose_host(&format!("makes no sense: {error}"), machine);
                }
                Err(error) => {
                    log::warn!("{}: cannot hear: {error}", self.spec.name);
                    break;
                }
            }
        }
        Ok(())
    }

    /// Says what waited for the host manager to read, as far as it does.
    fn catch_up(&mut self) -> Result<(), mem::Error> {
        if self.joined {
            let flushed = self.link.flush();
            self.check_sent(flushed);
        }
        while self.has_room() && !self.wanted.is_empty() {
            let count = self.wanted.len().min(CONTENT_PAGES_MAX);
            let fresh = self.wanted.drain(..count);
            let fresh = fresh.filter(|(since, _)| since.elapsed() < WANT_AGE_MAX);
            let gfns: Vec<Gfn> = fresh.map(|(_, gfn)| gfn).collect();
            let pages = self.pager.copies(&gfns)?;
            if !pages.is_empty() {
                self.send(&ToHost::Content { pages });
            }
        }
        Ok(())
    }

    fn obey(&mut self, message: ToVm, machine: Option<&Machine>) -> Result<(), mem::Error> {
        match message {
            ToVm::Credit { pages } => {
                self.pager.with_credit(|credit| credit.grant(pages));
                self.pager.retry_held()?;
            }
            ToVm::Orders(orders) => {
                if let Some(machine) = machine {
                    machine.balloon().set_target(orders.balloon_target);
                }
                if orders.state > MemState::High {
                    self.due.quiet = MEASURE_BUSY;
                }
                self.pager.bound_store(orders.private_max);
                self.orders = orders;
            }
            ToVm::Candidates { pages } => self.candidates.extend(pages),
            ToVm::Want { gfns } => {
                let now = Instant::now();
                self.wanted.extend(gfns.into_iter().map(|gfn| (now, gfn)));
                let most = self.wanted.len().min(WANTED_MAX);
                self.wanted.drain(..self.wanted.len() - most);
            }
            ToVm::Stop => self.stop(machine),
            ToVm::Welcome(_) | ToVm::Refused { .. } => {
                log::warn!("{}: the host manager answers a hello again", self.spec.name);
            }
        }
        Ok(())
    }

    fn send(&self, message: &ToHost) {
        if self.joined {
            self.check_sent(self.link.send(message));
        }
    }

    /// Whether the host manager takes more than the newest report.
    fn has_room(&self) -> bool {
        self.joined && !self.link.is_behind()
    }

    fn check_sent(&self, sent: Result<(), LinkError>) {
        match sent {
            // The next turn hears the end, behind what the host manager said before it.
            Ok(()) | Err(LinkError::Closed) => {}
            Err(error) => log::error!("{}: a message is lost: {error}", self.spec.name),
        }
    }

    fn lose_host(&mut self, why: &str, machine: Option<&Machine>) {
        self.joined = false;
        self.claiming = false;
        if self.link.home().is_none() {
            log::error!(
                "{}: the host manager {why}; the VM ends with it",
                self.spec.name
            );
            self.stop(machine);
        } else {
            log::warn!(
                "{}: the host manager {why}; the guest goes on",
                self.spec.name
            );
        }
        self.without_host();
    }

    /// Nobody limits the VM, and nobody would unblock it.
    fn without_host(&mut self) {
        self.orders = Orders {
            balloon_target: self.orders.balloon_target,
            ..no_orders()
        };
        self.candidates.clear();
        self.wanted.clear();
        self.released.clear();
        self.pager.bound_store(None);
        self.pager.with_credit(|credit| credit.unlimit());
        if let Err(error) = self.pager.retry_held() {
            self.failure.set(&error);
        }
    }

    /// One step towards a host manager; none of them waits.
    fn rejoin(&mut self, now: Instant) {
        let Some(link) = self.rejoining.take() else {
            if now >= self.due.rejoin {
                self.due.rejoin = now + REJOIN;
                self.ask_to_rejoin();
            }
            return;
        };
        match link.recv(Some(Duration::ZERO)) {
            // As long as it takes: a host manager that is stopped has not refused.
            Ok(Received::TimedOut) => self.rejoining = Some(link),
            // It ended before it let the VM in.
            Ok(Received::Closed) => {}
            Ok(answer) => match terms(answer) {
                Ok((welcome, pool)) => self.rejoined(link, welcome, pool),
                Err(error) => self.not_rejoined(&error.to_string()),
            },
            Err(error) => self.not_rejoined(&error.to_string()),
        }
    }

    fn ask_to_rejoin(&mut self) {
        let Some(path) = self.link.home() else {
            return;
        };
        let used = self.pager.with_credit(|credit| credit.used());
        let used = used.min(self.spec.allocation.size);
        let asked = Link::connect_now(path).and_then(|link| {
            link.send_first(&hello(self.spec, used, None), self.pool.as_fd())?;
            Ok(link)
        });
        match asked {
            Ok(link) => self.rejoining = Some(link),
            Err(error) => log::debug!("{}: cannot join again: {error}", self.spec.name),
        }
    }

    fn not_rejoined(&mut self, why: &str) {
        if self.refused.as_deref() != Some(why) {
            log::warn!("{}: cannot join again: {why}", self.spec.name);
            self.refused = Some(why.to_owned());
        }
    }

    fn rejoined(&mut self, link: Link, welcome: Welcome, pool: PoolView) {
        if welcome.adopted {
            self.pager.begin_claims();
        } else {
            self.pager.orphan_frames();
        }
        self.claiming = welcome.adopted;
        let (credit, batch) = (welcome.credit, welcome.credit_batch);
        self.pager
            .with_credit(|account| account.restart(credit, batch));
        self.scanner = Scanner::new(welcome.key_seed);
        self.pool = pool;
        self.link = link;
        self.joined = true;
        self.refused = None;
        let how = match welcome.adopted {
            true => "which knows its frames",
            false => "to which it is new",
        };
        log::warn!("{}: joined a host manager again, {how}", self.spec.name);
    }

    /// Tells the host manager which frames the VM maps, a part at a time.
    fn claim(&mut self) {
        for _ in 0..CLAIMS_A_TURN {
            if !self.claiming || !self.has_room() {
                return;
            }
            match self.pager.next_claims(LIST_MAX / 2) {
                // All of them, before any of them can be released.
                Some(frames) => frames.chunks(LIST_MAX).for_each(|part| {
                    let frames = part.to_vec();
                    self.send(&ToHost::Claim { frames });
                }),
                None => {
                    self.send(&ToHost::Claimed);
                    self.claiming = false;
                }
            }
        }
    }

    /// Pages that the orders want out of memory. A guest that waits at the most it may use gets its
    /// page for others of its own: nobody owes it credit, so it would wait for ever.
    fn excess(&self) -> Pages {
        let Some(most) = self.orders.private_max else {
            return Pages::ZERO;
        };
        let waits = self.pager.held_faults() > 0;
        let room = if waits { BATCH_PAGES as u64 } else { 0 };
        self.pager
            .with_credit(|credit| credit.excess(most, Pages(room)))
    }

    fn reclaim(&mut self, now: Instant) -> Result<(), mem::Error> {
        if now < self.due.swap {
            return Ok(());
        }
        for _ in 0..BATCHES_A_TURN {
            let excess = self.excess();
            if excess == Pages::ZERO {
                break;
            }
            let wanted = usize::try_from(excess.0)
                .unwrap_or(usize::MAX)
                .min(BATCH_PAGES);
            let done = self.reclaimer.step(&self.pager, wanted)?;
            self.pager.measure()?;
            self.pager.retry_held()?;
            if let Some(error) = done.failure {
                log::error!(
                    "{}: pages stay in memory: swap file: {error}",
                    self.spec.name
                );
                self.due.swap = now + SWAP_PAUSE;
                break;
            }
            if done.pages == 0 {
                self.due.swap = now + MEASURE_BUSY;
                break;
            }
        }
        Ok(())
    }

    fn measure(&mut self, now: Instant) -> Result<(), mem::Error> {
        let before = self.pager.with_credit(|credit| credit.used());
        self.pager.measure()?;
        let used = self.pager.with_credit(|credit| credit.used());
        let quiet = used <= before && self.orders.state == MemState::High;
        self.due.quiet = if quiet {
            (self.due.quiet * 2).min(MEASURE_QUIET)
        } else {
            MEASURE_BUSY
        };
        self.due.measure = now + self.due.quiet;
        // Pages that were filled and not written are free again: they may serve a held fault.
        self.pager.retry_held()
    }

    /// Tells the host manager what the credit account wants. What the account has told counts as
    /// heard, so it tells nothing that would have to wait.
    fn settle(&mut self) {
        let most = self.orders.private_max;
        while self.has_room()
            && let Some(step) = self.pager.with_credit(|credit| credit.settle(most))
        {
            match step {
                CreditMove::Request(pages) => self.send(&ToHost::CreditRequest { pages }),
                CreditMove::Return(pages) => self.send(&ToHost::CreditReturn { pages }),
            }
        }
    }

    /// Holds the vCPUs while the host manager says so, or while the guest is over its credit.
    fn hold(&mut self, machine: Option<&Machine>) {
        let Some(machine) = machine else { return };
        let over = self.joined && self.pager.with_credit(|credit| credit.is_over());
        let hold = over || self.orders.run == Run::Block;
        match (self.held, hold) {
            (false, true) => machine.gate().close(Hold::Blocked),
            (true, false) => machine.gate().open(Hold::Blocked),
            _ => {}
        }
        self.held = hold;
        self.active.hold(hold);
    }

    fn share(&mut self) -> Result<(), mem::Error> {
        if self.candidates.is_empty() {
            return Ok(());
        }
        let count = self.candidates.len().min(MERGES_A_TURN);
        let mut batch: Vec<_> = self.candidates.drain(..count).collect();
        let merged = merge(&self.pager, &self.pool, &mut batch)?;
        self.released.extend(merged.rejected);
        Ok(())
    }

    /// Gives references back. Not one may get lost: what finds no room waits here.
    fn release(&mut self) {
        self.released.extend(self.pager.take_released());
        if !self.joined {
            // There is nobody who lent them.
            self.released.clear();
        }
        while self.has_room() && !self.released.is_empty() {
            let rest = self.released.len().saturating_sub(LIST_MAX);
            let frames = self.released.split_off(rest);
            self.send(&ToHost::Release { frames });
        }
    }

    fn scan(&mut self, now: Instant) -> Result<(), mem::Error> {
        let rate = self.orders.scan_pages_per_second;
        // An offer that nobody hears is not worth its scan.
        if rate == 0 || now < self.due.scan || !self.has_room() {
            return Ok(());
        }
        // A turn's worth in one go, then as long a pause as the rate asks for.
        let pages = (rate / 20).clamp(64, SCAN_A_TURN);
        let start = Instant::now();
        let found = self.scanner.step(&self.pager, pages)?;
        self.due.scan = now + scan_period(found.pages, rate, start.elapsed());
        for part in found.offers.chunks(OFFER_PAGES_MAX) {
            self.send(&ToHost::Offer {
                pages: part.to_vec(),
            });
        }
        Ok(())
    }

    fn report(&mut self, machine: Option<&Machine>) -> Result<(), mem::Error> {
        let mut report = self.pager.report()?;
        report.take_path = Some(self.pager.path());
        let shared = report.shared + report.orphaned;
        if let Some(estimate) = self
            .active
            .estimate(self.spec.allocation.size.saturating_sub(shared))
        {
            report.active = Some(estimate.active);
            report.active_error = estimate.error;
        }
        if let Some(machine) = machine {
            let balloon = machine.balloon();
            report.balloon_driver = balloon.driver_up();
            report.balloon_actual = balloon.actual();
            report.guest_memory = balloon.stats();
            report.guest = machine.console().report();
            report.start_us = machine
                .first_run()
                .and_then(|at| at.duration_since(self.started).as_micros().try_into().ok());
        }
        self.send(&ToHost::Report(Box::new(report)));
        Ok(())
    }

    /// The last words.
    fn end(mut self, machine: Option<Machine>, ended: Exit) -> Exit {
        if let Some(machine) = &machine {
            machine.console().flush();
        }
        // A report that cannot be made is no reason to be silent about the end.
        if let Err(error) = self.report(machine.as_ref()) {
            log::warn!("{}: no last report: {error}", self.spec.name);
        }
        if self.joined {
            let last = ToHost::Exited(ended.clone());
            self.check_sent(self.link.send_last(&last, LAST_WORDS));
        }
        // The machine is not dismantled: a vCPU may wait for a page for ever. The process ends.
        std::mem::forget(machine);
        ended
    }
}

/// Closes the way back, then lets the guest run. The last files to be opened are the accounts of its
/// `cpus` vCPUs, which exist once their threads do.
fn start(mut machine: Machine, cpus: u8) -> Result<(Machine, Vec<File>), super::Error> {
    machine.gate().close(Hold::Paused);
    machine.start()?;
    let accounts = active::accounts(cpus);
    sandbox::enter()?;
    machine.gate().open(Hold::Paused);
    Ok((machine, accounts))
}

/// From one turn of the scan to the next, when one of `pages` took so long.
fn scan_period(pages: u32, pages_per_second: u32, took: Duration) -> Duration {
    let by_rate = Duration::from_secs(1) * pages / pages_per_second;
    by_rate.max(took * SCAN_TIME_PART)
}

fn no_orders() -> Orders {
    Orders {
        state: MemState::High,
        balloon_target: Pages::ZERO,
        private_max: None,
        run: Run::Go,
        scan_pages_per_second: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_keeps_its_rate_where_it_can_and_never_takes_all_the_time() {
        let ms = Duration::from_millis;
        assert_eq!(scan_period(400, 8000, ms(1)), ms(50));
        assert_eq!(scan_period(400, 8000, ms(60)), ms(240));
        assert_eq!(scan_period(0, 8000, ms(1)), ms(4));
    }
}
