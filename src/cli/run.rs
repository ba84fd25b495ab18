//! `tidemark run`: a fleet of VM processes and a host manager, in the foreground.
//!
//! The host manager runs in this process's main thread, beside which one only writes what is shown; each
//! VM is a child of its own. Ctrl-C,
//! SIGTERM and `--for` ask all VMs to stop and kill those that have not after [`GRACE`]; a second
//! Ctrl-C kills at once. A lone VM without a console file gets the terminal, if there is one: its
//! process reads the keys and writes the guest's bytes there, and this one shows no table.

mod child;
mod screen;

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;

use self::child::{Child, Stdout};
use self::screen::Screen;
use super::host::{note_priority, prepare, signal_pipe};
use super::jail::JailArgs;
use super::{Error, before, folder, resources, stdout, table};
use crate::config::{COMMAND_LINE, FleetSpec, HostArgs, VmArgs};
use crate::host::accounts::{Figures, VmState};
use crate::host::manager::{Settings, TICK, VMS_MAX};
use crate::host::server::{Event, Server};
use crate::out::Out;
use crate::sys::{priority, signals};
use crate::vm::terminal::Terminal;
use crate::words::size::parse_duration;
use crate::words::{Exit, ExitReason};

/// How long VMs may take to stop before they are killed.
const GRACE: Duration = Duration::from_secs(5);
/// Time between lines or redrawings.
const REDRAW: Duration = Duration::from_secs(1);
/// Number under which the signal pipe is watched; children have the numbers behind it.
const SIGNALS: u64 = 0;

/// Flags of `tidemark run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Fleet file; or describe the VMs with flags
    fleet: Option<PathBuf>,
    #[command(flatten)]
    vm: VmArgs,
    /// Number of VMs of this description [default: 1]
    #[arg(long, value_name = "N")]
    count: Option<String>,
    #[command(flatten)]
    host: HostArgs,
    #[command(flatten)]
    jail: JailArgs,
    /// Stop all VMs after this time
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration)]
    time: Option<Duration>,
    /// Refuse a fleet that may have to swap more than swap_dir has room for, instead of a warning
    #[arg(long)]
    strict: bool,
    /// Print one JSON object on standard output at the end
    #[arg(long)]
    json: bool,
    /// Where to listen for `ps`, `set` and `stop` [default: run-<pid>.sock in the runtime folder]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl RunArgs {
    /// Where the VMs are described, for messages.
    fn origin(&self) -> String {
        let file = self.fleet.as_ref().map(|path| path.display().to_string());
        file.unwrap_or_else(|| COMMAND_LINE.to_owned())
    }

    fn spec(&self) -> Result<FleetSpec, Error> {
        let count = self.count.as_deref();
        match &self.fleet {
            Some(_) if self.vm != VmArgs::default() || count.is_some() => Err(Error::Usage(
                "a fleet file and flags that describe a VM do not go together".to_owned(),
            )),
            Some(_) if self.host != HostArgs::default() => Err(Error::Usage(
                "with a fleet file, memory and policy stand in its [host] table".to_owned(),
            )),
            Some(path) => resources::with(|resources| Ok(FleetSpec::load(path, resources)?)),
            None if !self.vm.names_boot() => Err(Error::Usage(
                "nothing to run: name a fleet file, --kernel FILE or --guest NAME".to_owned(),
            )),
            None => resources::with(|resources| {
                Ok(FleetSpec::from_args(
                    &self.host, &self.vm, count, resources,
                )?)
            }),
        }
    }
}

/// Runs the fleet; status 0 when every VM ended as it should.
pub fn run(args: RunArgs, out: &Out) -> Result<ExitCode, Error> {
    let started = Instant::now();
    let spec = args.spec()?;
    let jail = args.jail.jail()?;
    prepare(&[SIGXFSZ])?;
    let looked = before::look(&spec, &args.origin(), jail, args.strict)?;
    let settings = Settings {
        budget: spec.host.memory,
        policy: spec.host.policy,
        policy_settings: spec.host.settings,
        sampling: spec.host.sampling,
        seed: spec.host.seed,
    };
    // Dropped when the VM is gone, however it went.
    let terminal = match spec.vms.as_slice() {
        [vm] if vm.console.is_none() && !args.json => Terminal::open(),
        _ => None,
    };
    let console = match terminal {
        Some(_) => Stdout::Terminal,
        None => Stdout::Lines,
    };
    // The VMs' processes, which this thread starts, do not run ahead.
    note_priority(priority::run_ahead());
    let mut server = Server::new(settings)?;
    // The VMs' processes open and lock the files themselves.
    drop(looked);
    let (vms, most) = (spec.vms.len(), server.manager().vms_max());
    if vms > most {
        return Err(Error::Missing(format!(
            "the fleet has {vms} VMs, and there are descriptors for {most} of them: raise the limit of \
             open files (ulimit -n), or have several fleets; one has {VMS_MAX} VMs at most"
        )));
    }
    if let Err(absent) = server.use_cgroups() {
        log::info!("VM processes get no memory cgroups of their own: {absent}");
    }
    listen(&mut server, args.socket.as_ref())?;
    let signals = signal_pipe()?;
    server.watch(&signals, SIGNALS)?;
    log::info!("budget {}, seed {}", settings.budget, settings.seed);
    let mut fleet = Fleet {
        server,
        signals,
        children: Vec::new(),
        screen: Screen::new(console, args.json, out),
        deadline: args.time.map(|time| started + time),
        kill_at: None,
        stopping: false,
        gone: None,
        last: None,
    };
    let result = fleet
        .start(&spec, args.jail, console)
        .and_then(|()| fleet.serve());
    if result.is_err() {
        fleet.kill_all();
    }
    result?;
    let figures = fleet.close();
    // Nothing hears the signals any more, and whoever reads the result may let us wait.
    for signal in [SIGINT, SIGTERM] {
        let ends = flag::register_conditional_shutdown(signal, 1, Arc::new(true.into()));
        ends.map_err(super::io("register a signal handler"))?;
    }
    print(&figures, args.json)?;
    Ok(
        match figures.vms.iter().all(|vm| is_good(vm.exit.as_ref())) {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        },
    )
}

/// The control socket is a convenience: without a folder for it the fleet runs all the same.
fn listen(server: &mut Server, given: Option<&PathBuf>) -> Result<(), Error> {
    match given {
        Some(path) => Ok(server.listen(path)?),
        None => {
            if let Err(error) = server.listen(&folder::run_socket()) {
                log::warn!("{error}: `ps`, `set` and `stop` will not find this run");
            }
            Ok(())
        }
    }
}

fn is_good(exit: Option<&Exit>) -> bool {
    exit.is_some_and(|exit| match exit.reason {
        ExitReason::GuestExit => exit.code == 0,
        ExitReason::Shutdown | ExitReason::Reset => true,
        // With words if it could not get on.
        ExitReason::Stopped => exit.message.is_none(),
        ExitReason::Killed | ExitReason::Error => false,
    })
}

fn print(figures: &Figures, json: bool) -> Result<(), Error> {
    let mut text = match json {
        true => serde_json::to_string(figures).expect("figures have string keys only"),
        false => table::closing(figures).join("\n"),
    };
    for vm in figures.vms.iter().filter(|_| !json) {
        if let Some(message) = vm.exit.as_ref().and_then(|exit| exit.message.as_ref()) {
            text.push_str(&format!("\n{}: {message}", vm.name));
        }
    }
    stdout::print(&text)
}

/// A running fleet.
struct Fleet {
    server: Server,
    signals: UnixStream,
    children: Vec<Child>,
    screen: Screen,
    /// When `--for` is over.
    deadline: Option<Instant>,
    /// When what has not stopped is killed; set once stopping has begun.
    kill_at: Option<Instant>,
    /// A VM was seen that was told to stop.
    stopping: bool,
    /// When the last child had gone.
    gone: Option<Instant>,
    /// The figures before the fleet stopped: those of the closing table.
    last: Option<Figures>,
}

impl Fleet {
    fn start(&mut self, spec: &FleetSpec, jail: JailArgs, console: Stdout) -> Result<(), Error> {
        for (n, vm) in (0..).zip(&spec.vms) {
            let seed = spec.host.seed.wrapping_add(n);
            let number = SIGNALS + 1 + 2 * n;
            let child = Child::start(vm, seed, jail, console, number, &mut self.server)?;
            self.children.push(child);
        }
        Ok(())
    }

    /// Serves until every child is gone and was heard.
    fn serve(&mut self) -> Result<(), Error> {
        let mut redraw = Instant::now();
        let mut sample = redraw;
        while self.is_anybody_left() {
            let now = Instant::now();
            let wait = match self.is_quiet() {
                // Nothing can have changed before then.
                true => self
                    .deadline
                    .map_or(redraw, |deadline| deadline.min(redraw)),
                false => sample,
            };
            for event in self.server.turn(wait.saturating_duration_since(now))? {
                self.event(event);
            }
            let now = Instant::now();
            if self.deadline.is_some_and(|deadline| now >= deadline) {
                self.stop();
            }
            if now < sample {
                continue;
            }
            sample = now + TICK;
            let figures = self.server.manager().figures();
            self.mind_stragglers(&figures, now);
            self.stopping = figures.vms.iter().any(|vm| vm.state == VmState::Stopping);
            if now >= redraw {
                redraw = now + REDRAW;
                self.screen.draw(&figures);
            }
            self.remember(figures);
        }
        Ok(())
    }

    /// Whether there is nothing to look at again before something comes.
    fn is_quiet(&mut self) -> bool {
        let ends = self.kill_at.is_some() || self.gone.is_some() || self.stopping;
        !ends && self.server.manager().rests()
    }

    /// Whether a child is there, or a link whose end was not heard: how a VM ended may stand behind
    /// much that was not read yet, if this process did not run for a while.
    fn is_anybody_left(&mut self) -> bool {
        if self.children.iter().any(|child| !child.is_gone()) {
            return true;
        }
        let gone = *self.gone.get_or_insert_with(Instant::now);
        self.server.manager().live() > 0 && gone.elapsed() < GRACE
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Ready(SIGNALS) => {
                for _ in 0..signals::drain(&self.signals) {
                    match self.kill_at {
                        None => self.stop(),
                        Some(_) => self.kill_all(),
                    }
                }
            }
            Event::Ready(number) => {
                let place = usize::try_from((number - SIGNALS - 1) / 2).unwrap_or(usize::MAX);
                if let Some(child) = self.children.get_mut(place) {
                    child.ready(number, &self.server, &self.screen);
                }
            }
            Event::Refused(name, reason) => {
                if let Some(child) = self.children.iter_mut().find(|child| child.name() == name) {
                    child.refused(reason);
                }
            }
            Event::Joined(_) | Event::Ended(_) => {}
        }
    }

    /// Keeps the figures for the closing table, until the fleet begins to stop.
    fn remember(&mut self, figures: Figures) {
        if self.kill_at.is_none() && self.server.manager().live() > 0 {
            self.last = Some(figures);
        }
    }

    /// Asks every VM to stop. Those that have not joined yet cannot be asked.
    fn stop(&mut self) {
        self.deadline = None;
        if self.kill_at.is_some() {
            return;
        }
        let figures = self.server.manager().figures();
        self.remember(figures);
        self.kill_at = Some(Instant::now() + GRACE);
        for child in &mut self.children {
            match self.server.manager().find(child.name()) {
                Some(id) => self.server.manager().stop(id),
                None => child.kill_unjoined(),
            }
        }
    }

    /// Kills what does not stop in time, whoever asked it to.
    fn mind_stragglers(&mut self, figures: &Figures, now: Instant) {
        if self.kill_at.is_some_and(|kill_at| now >= kill_at) {
            self.kill_all();
        }
        let stopping = figures
            .vms
            .iter()
            .filter(|vm| vm.state == VmState::Stopping);
        for vm in stopping {
            if let Some(child) = self
                .children
                .iter_mut()
                .find(|child| child.name() == vm.name)
            {
                child.kill_after(GRACE, now);
            }
        }
    }

    fn kill_all(&mut self) {
        for child in &mut self.children {
            child.kill();
        }
    }

    /// The closing figures: memory as it was before the fleet stopped, counters and exits as they
    /// are now.
    fn close(mut self) -> Figures {
        self.screen.clear();
        let end = self.server.manager().figures();
        let mut figures = self.last.take().unwrap_or_else(|| end.clone());
        figures.host.consumed_bytes_peak = end.host.consumed_bytes_peak;
        figures.host.state_seconds = end.host.state_seconds;
        let mut vms = Vec::with_capacity(self.children.len());
        for child in &self.children {
            let of_child = |figures: &Figures| {
                let found = figures.vms.iter().find(|vm| vm.name == child.name());
                found.cloned()
            };
            let last = of_child(&figures);
            let end = of_child(&end).or(last.clone());
            let stalled = last.as_ref().is_some_and(|vm| vm.state == VmState::Stalled);
            let mut vm = end.unwrap_or_else(|| child.blank());
            if let Some(last) = last {
                vm.memory = last.memory;
                vm.guest = vm.guest.or(last.guest);
            }
            child.complete(&mut vm);
            if let (Some(exit), true) = (&mut vm.exit, stalled) {
                let why = || "stalled: its swap folder was full".to_owned();
                exit.message.get_or_insert_with(why);
            }
            vms.push(vm);
        }
        figures.vms = vms;
        figures
    }
}
