//! The VM's own hand in its memory: carries out the host manager's orders, keeps the credit
//! account, runs the tasks, reports.
//!
//! One loop on the process's main thread. It decides nothing about how much the VM may hold; it
//! only keeps to it. Everything is level-triggered: a lost or late message delays, and never
//! confuses. While the host manager does not read, the agent tells it nothing that can wait: it does
//! not scan, asks for no credit, and keeps the references that it would give back. When the host
//! manager goes away the guest goes on without limits until another comes to its door, which the agent
//! lets in a step at a time between its other work; under `tidemark run`, whose end nobody else would notice, the VM ends
//! with it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::active::Threads;
use super::building::Building;
use super::contents::Contents;
use super::failure::Failure;
use super::join::LAST_WORDS;
use super::launch::Launch;
use super::references::References;
use super::report::{Reports, report};
use super::schedule::Schedule;
use super::stillness::{Stillness, Watch};
use super::tasks::Tasks;
use super::terminal::Terminal;
use super::uplink::{Heard, Uplink};
use super::wait::wait;
use crate::config::VmSpec;
use crate::link::message::{OFFER_PAGES_MAX, Orders, ToHost, ToVm, Welcome};
use crate::machine::Machine;
use crate::machine::gate::Hold;
use crate::mem::credit::CreditMove;
use crate::mem::{self, Pager};
use crate::out::Out;
use crate::sys::pool_view::PoolView;
use crate::sys::signals;
use crate::units::Pages;
use crate::words::{Exit, ExitReason, MemState, Run};

/// A guest that has waited for so long while its swap file is full is stalled. Chosen.
const STALLED_AFTER: Duration = Duration::from_secs(2);

/// See the module documentation.
pub(super) struct Agent<'a> {
    spec: &'a VmSpec,
    host: Uplink,
    pager: Arc<Pager>,
    failure: Arc<Failure>,
    /// Readable when the VM was asked to stop: by a signal, or by whoever writes to `asks`.
    signals: UnixStream,
    asks: UnixStream,
    orders: Orders,
    tasks: Tasks,
    schedule: Schedule,
    references: References,
    contents: Contents,
    reports: Reports,
    stillness: Stillness,
    stopping: bool,
    /// The vCPUs are held at the gate.
    blocked: bool,
    /// The guest is over its credit, or a fault waits for some.
    waits: bool,
    /// The swap file was full when that was looked at last.
    swap_full: bool,
    /// Since when the guest has waited for room in it.
    stalled_since: Option<Instant>,
    /// When the program was started.
    started: Instant,
}

impl<'a> Agent<'a> {
    pub fn new(
        spec: &'a VmSpec,
        host: Uplink,
        welcome: &Welcome,
        pool: PoolView,
        pager: Arc<Pager>,
        failure: Arc<Failure>,
        seed: u64,
    ) -> io::Result<Agent<'a>> {
        let (signals, asks) = signals::pipe(&[libc::SIGINT, libc::SIGTERM, libc::SIGHUP])?;
        // A limit on the size of files is an error of the swap file, not the end of the VM.
        signals::outlive(&[libc::SIGXFSZ])?;
        let now = Instant::now();
        Ok(Agent {
            spec,
            host,
            tasks: Tasks::new(&pager, welcome, pool, seed),
            pager,
            failure,
            signals,
            asks,
            orders: no_orders(),
            schedule: Schedule::new(now),
            references: References::default(),
            contents: Contents::default(),
            reports: Reports::new(now),
            stillness: Stillness::new(now)?,
            stopping: false,
            blocked: false,
            waits: false,
            swap_full: false,
            stalled_since: None,
            started: now,
        })
    }

    /// Confines the process, waits for the machine to be built, starts it with `terminal` as its console
    /// if there is one, which shows what is written to the [`Out`], and serves it until it ends.
    /// `threads` are those of this process, and `started` is when the program was.
    pub fn run(
        mut self,
        building: Building,
        terminal: Option<(&Terminal, &Out)>,
        threads: &Threads,
        started: Instant,
    ) -> Exit {
        self.started = started;
        let mut launch = match Launch::prepare(self.spec.cpus, terminal, threads, &self.asks) {
            Ok(launch) => {
                building.begin();
                Some(launch)
            }
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
            if machine.is_none() {
                let start = |machine| {
                    let launch = launch.take().expect("a machine is built once");
                    launch.start(machine)
                };
                match building.take().map(|built| built.and_then(start)) {
                    Some(Ok((built, accounts))) => {
                        // Orders may have come before there was a balloon.
                        built.balloon().set_target(self.orders.balloon_target);
                        self.stillness.start(&accounts);
                        self.tasks.sample.start(accounts);
                        machine = Some(built);
                    }
                    Some(Err(error)) => self.failure.set(&error),
                    None if self.stopping => break Exit::plain(ExitReason::Stopped),
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

    fn wait(&mut self, machine: Option<&Machine>, building: &Building) {
        let now = Instant::now();
        let rests = self.stillness.rest(Watch::of(&self.orders), now);
        building.statistics().set_resting(rests);
        if !self.pager.set_resting(rests) {
            return;
        }
        let claims = self.references.is_claiming() && self.host.has_room();
        let next = [
            // Whoever rests looks when it wakes up for something else.
            (!rests).then(|| self.reports.due()),
            claims.then_some(now),
            self.schedule
                .next(&self.tasks.ranked(), self.orders.state, now),
        ];
        let next = next.into_iter().flatten().min().unwrap_or(now);
        let read = |fd| (fd, PollFlags::IN);
        let built = machine.is_none().then(|| building.as_fd());
        let own = [
            Some(read(self.failure.event())),
            Some(read(self.signals.as_fd())),
            Some(read(self.pager.starved())),
            Some(read(self.stillness.alarms())),
            machine.map(AsFd::as_fd).map(read),
            built.map(read),
        ];
        let fds: Vec<(BorrowedFd<'_>, PollFlags)> =
            own.into_iter().flatten().chain(self.host.fds()).collect();
        wait(&fds, next.saturating_duration_since(now));
    }

    /// One round of everything that is due.
    fn turn(&mut self, machine: Option<&Machine>) -> Result<(), mem::Error> {
        self.hear_signals(machine);
        self.hear_host(machine)?;
        self.host.flush();
        self.contents.tell(&self.host, &self.pager)?;
        self.rejoin();
        if self.pager.drain_starved() {
            self.tasks.measure.hurry();
        }
        self.look();
        let claiming = self.references.is_claiming();
        self.tasks.merge.pause(claiming);
        self.tasks.set_heard(self.host.has_room() && !claiming);
        let (state, now) = (self.orders.state, Instant::now());
        self.schedule.turn(&mut self.tasks.ranked(), state, now)?;
        self.settle();
        self.hold(machine);
        self.tell(machine)
    }

    /// For how long nothing has happened; the tasks hear of it.
    fn look(&mut self) {
        let now = Instant::now();
        // A VM that waits is not still, whatever it does.
        if self.pager.take_touched() || self.waits || !self.host.is_joined() {
            self.stillness.stir(now);
        }
        let still = self.stillness.look(Watch::of(&self.orders), now);
        self.tasks.rest(still, now);
        self.reports.set_still(still);
    }

    fn hear_signals(&mut self, machine: Option<&Machine>) {
        if signals::drain(&self.signals) > 0 {
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
        loop {
            match self.host.hear() {
                Heard::Nothing => return Ok(()),
                Heard::Message(message) => {
                    self.stillness.stir(Instant::now());
                    self.obey(message, machine)?;
                }
                Heard::Lost(why) => self.lose_host(&why, machine)?,
            }
        }
    }

    fn obey(&mut self, message: ToVm, machine: Option<&Machine>) -> Result<(), mem::Error> {
        match message {
            ToVm::Credit { pages } => {
                self.pager.with_credit(|credit| credit.grant(pages));
                self.pager.retry_starving()?;
            }
            ToVm::Orders(orders) => self.set_orders(orders, machine)?,
            ToVm::Candidates { pages } => self.tasks.merge.propose(pages),
            ToVm::Want { gfns } => self.contents.want(gfns),
            ToVm::Stop => self.stop(machine),
            ToVm::Welcome(_) | ToVm::Refused { .. } | ToVm::Knock { .. } => {
                log::warn!(
                    "{}: the host manager answers where nobody asked",
                    self.spec.name
                );
            }
        }
        Ok(())
    }

    fn set_orders(&mut self, orders: Orders, machine: Option<&Machine>) -> Result<(), mem::Error> {
        if let Some(machine) = machine {
            let balloon = machine.balloon();
            // Before the target: what is free anyway is taken first.
            if orders.hint_rounds > self.orders.hint_rounds {
                balloon.begin_hints();
            }
            balloon.set_target(orders.balloon_target);
        }
        self.tasks.obey(&orders);
        let plenty = orders.state == MemState::High && orders.private_max.is_none();
        self.orders = orders;
        self.pager.set_plenty(plenty)
    }

    /// Nobody limits the VM any more, and nobody would unblock it.
    fn lose_host(&mut self, why: &str, machine: Option<&Machine>) -> Result<(), mem::Error> {
        let name = &self.spec.name;
        if self.host.may_return() {
            log::warn!("{name}: the host manager {why}; the guest goes on");
        } else {
            log::error!("{name}: the host manager {why}; the VM ends with it");
            self.stop(machine);
        }
        let orders = Orders {
            balloon_target: self.orders.balloon_target,
            ..no_orders()
        };
        self.set_orders(orders, machine)?;
        self.tasks.merge.forget();
        self.contents.forget();
        self.references.forget();
        self.pager.with_credit(|credit| credit.unlimit());
        self.pager.retry_starving()
    }

    fn rejoin(&mut self) {
        let (pager, size) = (&self.pager, self.spec.allocation.size);
        let held = || pager.with_credit(|credit| credit.used()).min(size);
        let pool = self.tasks.merge.pool();
        let Some((welcome, pool)) = self.host.rejoin(held, pool) else {
            return;
        };
        // A host manager that knows the VM's frame pool is told which frames of it the VM maps.
        if welcome.adopted {
            self.references.begin_claims(&self.pager);
        } else {
            self.pager.orphan_frames();
        }
        let (credit, batch) = (welcome.credit, welcome.credit_batch);
        self.pager
            .with_credit(|account| account.restart(credit, batch));
        self.reports.forget();
        self.tasks.scan.restart(welcome.key_seed);
        self.tasks.merge.set_pool(pool);
        let how = match welcome.adopted {
            true => "which knows its frames",
            false => "to which it is new",
        };
        log::warn!("{}: joined a host manager again, {how}", self.spec.name);
    }

    /// Tells the host manager what the credit account wants. What the account has told counts as
    /// heard, so it tells nothing that would have to wait.
    fn settle(&mut self) {
        // What is mapped takes no credit.
        let mapped = self.tasks.swap.mapped();
        let most = self.orders.private_max;
        let most = most.map(|most| most.saturating_sub(mapped));
        while self.host.has_room()
            && let Some(step) = self.pager.with_credit(|credit| credit.settle(most))
        {
            match step {
                CreditMove::Request(pages) => self.host.send(&ToHost::CreditRequest { pages }),
                CreditMove::Return(pages) => self.host.send(&ToHost::CreditReturn { pages }),
            }
        }
    }

    /// Holds the vCPUs while the host manager says so, or while the guest is over its credit.
    fn hold(&mut self, machine: Option<&Machine>) {
        let Some(machine) = machine else { return };
        let over = self.host.is_joined() && self.pager.with_credit(|credit| credit.is_over());
        let block = over || self.orders.run == Run::Block;
        match (self.blocked, block) {
            (false, true) => machine.gate().close(Hold::Blocked),
            (true, false) => machine.gate().open(Hold::Blocked),
            _ => {}
        }
        self.blocked = block;
        self.waits = over || self.pager.starving_faults() > 0;
        let now = Instant::now();
        let stalls = (self.waits || block) && self.tasks.swap.is_full(now);
        self.stalled_since = stalls.then(|| self.stalled_since.unwrap_or(now));
        self.tasks.census.press(self.waits);
        self.tasks.sample.block(block);
    }

    /// Tells the host manager what the tasks have found, and how the VM is.
    fn tell(&mut self, machine: Option<&Machine>) -> Result<(), mem::Error> {
        for part in self.tasks.take_offers().chunks(OFFER_PAGES_MAX) {
            let pages = part.to_vec();
            self.host.send(&ToHost::Offer { pages });
        }
        let now = Instant::now();
        let was_full = std::mem::replace(&mut self.swap_full, self.tasks.swap.is_full(now));
        let name = &self.spec.name;
        match self.tasks.swap.take_failure() {
            // It is tried again every second.
            Some(failure) if !was_full => {
                log::error!("{name}: pages stay in memory: swap file: {failure}");
            }
            None if was_full && !self.swap_full => {
                log::warn!(
                    "{name}: the swap file is not full any more, or nothing is to be swapped"
                );
            }
            _ => {}
        }
        if now >= self.reports.due() {
            self.reports.look(now);
            self.report(machine)?;
        }
        let rejected = self.tasks.merge.take_rejected();
        self.references.release(rejected);
        self.references.tell(&self.host, &self.pager);
        Ok(())
    }

    fn report(&mut self, machine: Option<&Machine>) -> Result<(), mem::Error> {
        let mut report = report(&self.pager, &self.tasks.sample, machine, self.started)?;
        report.measured.swap_full = self.swap_full;
        let since = self.stalled_since;
        report.measured.stalled = since.is_some_and(|since| since.elapsed() >= STALLED_AFTER);
        if let Some(news) = self.reports.news(report) {
            self.host.send(&ToHost::Report(Box::new(news)));
        }
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
        let last = ToHost::Exited(ended.clone());
        self.host.send_last(&last, LAST_WORDS);
        // The machine is not dismantled: a vCPU may wait for a page for ever. The process ends.
        std::mem::forget(machine);
        ended
    }
}

fn no_orders() -> Orders {
    Orders {
        state: MemState::High,
        balloon_target: Pages::ZERO,
        hint_rounds: 0,
        private_max: None,
        run: Run::Go,
        scan_pages_per_second: 0,
    }
}
