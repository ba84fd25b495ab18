//! The fleet of a round: a host manager with VMs that may be killed, and a `tidemark run` beside it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tidemark::host::control::{Request, call};

use crate::common::fleet::{
    Fleet, Folder, MIB, Process, SOON, check_sums, describe, number, rss_anon_bytes,
};
use crate::common::wait_for;
use crate::diary::Diary;
use crate::script::{Action, Cast, Target};
use crate::swap_room::SwapRoom;

/// Who plays in a round.
pub const CAST: Cast = Cast { vms: 4, run_vms: 2 };
/// Memory of a VM of the host manager, and of its host: half of what its VMs were promised.
const VM_MIB: u64 = 64;
const HOST_MIB: u64 = VM_MIB * CAST.vms as u64 / 2;
/// The same of the run.
const RUN_VM_MIB: u64 = 48;
const RUN_MIB: u64 = RUN_VM_MIB * CAST.run_vms as u64 / 2;
/// What the guests say of a page that does not hold what they wrote.
const CORRUPT: &str = "corrupt: kind=";
/// Time between two looks at the figures.
const LOOK_PERIOD: Duration = Duration::from_millis(200);
/// How soon after the last event every guest must have got on.
const PROGRESS_LIMIT: Duration = Duration::from_secs(5);
/// What takes longer than this is worth a line.
const SLOW: Duration = Duration::from_secs(1);
/// A VM that never joined may be started again this often: the host manager was away just then.
const STARTS_MAX: u32 = 5;

/// A VM of the host manager. The next one in its place has another name.
struct Vm {
    name: String,
    process: Process,
    /// Seen in the figures.
    joined: bool,
    starts: u32,
    stopped: bool,
}

/// What a round came to.
#[derive(Debug, Default)]
pub struct Outcome {
    pub events: BTreeMap<&'static str, u32>,
    pub verified: u64,
    /// The most that was consumed while the budget had to be kept: of the host, of the run.
    pub peaks: [u64; 2],
}

/// The budgets that belong to [`Outcome::peaks`].
pub const BUDGETS: [u64; 2] = [HOST_MIB * MIB, RUN_MIB * MIB];

/// See the module documentation. The fields end in this order.
pub struct World {
    vms: Vec<Option<Vm>>,
    /// VMs that were killed and may not have ended yet.
    dying: Vec<Vm>,
    compaction: Option<JoinHandle<()>>,
    host: Option<Process>,
    run: Fleet,
    swap: SwapRoom,
    folder: Folder,
    pub diary: Diary,
    seed: u64,
    take: Option<&'static str>,
    generation: u32,
    host_stopped: bool,
    run_stopped: bool,
    /// How long a new host manager must have ruled before the budget is kept again.
    grace: Duration,
    /// How long it has ruled, nothing being in its way; `None` for the first one.
    ruled: Option<Duration>,
    looked: Instant,
    /// Pages verified by every VM there ever was.
    verified: BTreeMap<String, u64>,
    outcome: Outcome,
}

impl World {
    /// Starts everything and waits until all guests are at work.
    pub fn start(seed: u64, take: Option<&'static str>, grace: Duration) -> World {
        let folder = Folder::new();
        let swap = SwapRoom::new(folder.path().join("swap"));
        let run = start_run(&swap, seed, take);
        let mut world = World {
            vms: (0..CAST.vms).map(|_| None).collect(),
            dying: Vec::new(),
            compaction: None,
            host: None,
            run,
            swap,
            folder,
            diary: Diary::new(format!("seed {seed}, take {}", take.unwrap_or("default"))),
            seed,
            take,
            generation: 0,
            host_stopped: false,
            run_stopped: false,
            grace,
            ruled: None,
            looked: Instant::now(),
            verified: BTreeMap::new(),
            outcome: Outcome::default(),
        };
        world.start_host();
        for place in 0..CAST.vms {
            world.start_vm(place, 1);
        }
        world.until_working("all guests at work", SOON);
        world
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("tidemark/host.sock")
    }

    fn start_host(&mut self) {
        let socket = self.socket();
        let socket = socket.to_str().unwrap();
        let memory = format!("{HOST_MIB}M");
        let command = self
            .folder
            .command(&["host", "--memory", &memory, "--socket", socket]);
        let host = Process::start(command);
        wait_for("the host manager", SOON, || {
            host.log().contains("listens at")
        });
        self.host = Some(host);
        self.host_stopped = false;
    }

    fn start_vm(&mut self, place: usize, starts: u32) {
        self.generation += 1;
        let name = format!("vm{place}-{}", self.generation);
        let seed = self.seed.wrapping_add(u64::from(self.generation));
        // Half of them share much, so that a host manager's end leaves many shared pages.
        let duplicate = if place.is_multiple_of(2) { 15 } else { 35 };
        let cmdline = format!("fill=85 dup={duplicate} seed={}", seed % 1_000_000);
        let (socket, memory) = (self.socket(), format!("{VM_MIB}M"));
        let mut command = self.folder.command(&["vm", "--guest", "verify"]);
        command
            .args(["--host", socket.to_str().unwrap()])
            .args(["--name", &name, "--memory", &memory, "--share-group", "g"])
            .args(["--cmdline", &cmdline, "--swap-dir"])
            .arg(self.swap.path())
            .env("TIDEMARK_SEED", seed.to_string())
            .envs(self.take.map(|take| ("TIDEMARK_TAKE", take)));
        self.diary.note(&format!("{name} starts"));
        self.vms[place] = Some(Vm {
            name,
            process: Process::start(command),
            joined: false,
            starts,
            stopped: false,
        });
    }

    /// Plays one action.
    pub fn perform(&mut self, action: &Action) {
        let start = Instant::now();
        self.diary.note(&format!("{action:?}"));
        self.carry_out(action);
        if start.elapsed() > SLOW {
            self.diary.note(&format!("that took {:?}", start.elapsed()));
        }
    }

    fn carry_out(&mut self, action: &Action) {
        if let Some(kind) = action.kind() {
            *self.outcome.events.entry(kind).or_default() += 1;
        }
        match action {
            Action::Stop(target) => self.signal(*target, Signal::STOP, true),
            Action::Continue(target) => self.signal(*target, Signal::CONT, false),
            Action::KillHost => {
                let mut host = self.host.take().expect("one that was started");
                host.signal(Signal::KILL);
                host.wait(SOON);
                self.ruled = Some(Duration::ZERO);
            }
            Action::StartHost => self.start_host(),
            Action::ReplaceVm(place) => {
                if let Some(vm) = self.vms[*place].take() {
                    vm.process.signal(Signal::KILL);
                    self.dying.push(vm);
                }
            }
            Action::Compact => self.compact(),
            Action::FillSwap => {
                let pids = self.swapping();
                self.swap.fill(&pids);
            }
            Action::FreeSwap => {
                let pids = self.swapping();
                self.swap.free(&pids);
            }
            Action::Set { target, key, value } => self.set(*target, key, value),
        }
    }

    /// Takes seconds on a busy machine: it happens beside the script, one at a time.
    fn compact(&mut self) {
        let at_work = |it: &JoinHandle<()>| !it.is_finished();
        if !self.compaction.as_ref().is_some_and(at_work) {
            // Who may not write it has been told so.
            let write = || drop(fs::write(COMPACT, "1"));
            self.compaction = Some(std::thread::spawn(write));
        }
    }

    /// Hears the last words of VMs that were killed.
    fn bury(&mut self) {
        for mut vm in std::mem::take(&mut self.dying) {
            match vm.process.status() {
                Some(_) => {
                    vm.process.wait(SOON);
                    self.check_said(&vm);
                }
                None => self.dying.push(vm),
            }
        }
    }

    /// Process ids of all VMs.
    fn swapping(&mut self) -> Vec<u32> {
        let mut pids: Vec<u32> = self
            .vms
            .iter()
            .flatten()
            .map(|vm| vm.process.pid())
            .collect();
        pids.extend(self.run.process.vms().into_iter().map(|(_, pid)| pid));
        pids
    }

    fn signal(&mut self, target: Target, signal: Signal, stopped: bool) {
        match target {
            Target::Host => {
                self.host.as_ref().expect("it runs").signal(signal);
                self.host_stopped = stopped;
            }
            Target::Run => {
                self.run.process.signal(signal);
                self.run_stopped = stopped;
            }
            Target::Vm(place) => {
                // One that waits for a host manager to join is left alone.
                if let Some(vm) = &mut self.vms[place] {
                    vm.process.signal(signal);
                    vm.stopped = stopped;
                }
            }
            Target::RunVm(place) => {
                let pid = self.run.process.vm_pid(&run_vm(place));
                let pid = Pid::from_raw(pid.cast_signed()).unwrap();
                kill_process(pid, signal).unwrap();
            }
        }
    }

    fn set(&mut self, target: Target, key: &str, value: &str) {
        let (name, socket) = match target {
            Target::Vm(place) if self.host_answers() => match &self.vms[place] {
                Some(vm) => (vm.name.clone(), self.socket()),
                None => return,
            },
            Target::RunVm(place) if !self.run_stopped => (run_vm(place), self.run_socket()),
            _ => return,
        };
        let changes = BTreeMap::from([(key.to_owned(), value.to_owned())]);
        if let Err(error) = call(&socket, &Request::Set { vm: name, changes }) {
            self.diary.note(&format!("set is refused: {error}"));
        }
    }

    fn run_socket(&self) -> PathBuf {
        let pid = self.run.process.pid();
        let name = format!("tidemark/run-{pid}.sock");
        self.run.folder.path().join(name)
    }

    fn host_answers(&self) -> bool {
        self.host.is_some() && !self.host_stopped
    }

    /// Looks at everything until `at`.
    pub fn watch_until(&mut self, at: Instant) {
        while Instant::now() < at {
            self.look();
            let left = at.saturating_duration_since(Instant::now());
            std::thread::sleep(left.min(LOOK_PERIOD));
        }
    }

    /// One look: nobody ended, nothing is corrupt, the figures add up and the budget is kept.
    /// Missing VMs are started.
    fn look(&mut self) {
        self.bury();
        for place in 0..CAST.vms {
            self.look_at_process(place);
        }
        if let Some(host) = &mut self.host {
            let ended = host.status().map(describe);
            self.check(ended.is_none(), || {
                format!("the host manager ended: {ended:?}")
            });
        }
        let ended = self.run.process.status().map(describe);
        self.check(ended.is_none(), || format!("the run ended: {ended:?}"));
        let passed = self.looked.elapsed();
        self.looked = Instant::now();
        if !self.host_answers() || self.swap.is_full() || self.any_stopped() {
            // Nobody can be held to a budget whose memory cannot be taken back.
        } else if let Some(ruled) = &mut self.ruled {
            *ruled += passed;
        }
        if let Some(figures) = self.host_figures() {
            self.look_at_figures(&figures, 0);
        }
        if let Some(figures) = self.run_figures() {
            self.look_at_figures(&figures, 1);
        }
        self.look_at_memory();
    }

    fn any_stopped(&self) -> bool {
        self.vms.iter().flatten().any(|vm| vm.stopped)
    }

    fn look_at_process(&mut self, place: usize) {
        let answers = self.host_answers();
        let Some(vm) = &mut self.vms[place] else {
            if answers {
                self.start_vm(place, 1);
            }
            return;
        };
        let Some(status) = vm.process.status() else {
            return;
        };
        let starts = vm.starts;
        let may_try_again = !vm.joined && starts < STARTS_MAX;
        let what = format!(
            "{} ended: {}; it said {}",
            vm.name,
            describe(status),
            vm.process.log()
        );
        self.check(may_try_again, || what.clone());
        self.diary.note(&what);
        if answers {
            self.start_vm(place, starts + 1);
        }
    }

    fn host_figures(&mut self) -> Option<Value> {
        let answers = self.host_answers();
        let socket = self.socket();
        answers.then(|| self.figures(&socket)).flatten()
    }

    fn run_figures(&mut self) -> Option<Value> {
        let socket = self.run_socket();
        (!self.run_stopped).then(|| self.figures(&socket)).flatten()
    }

    fn figures(&mut self, socket: &Path) -> Option<Value> {
        let start = Instant::now();
        let figures = call(socket, &Request::Ps);
        if start.elapsed() > SLOW {
            let took = start.elapsed();
            self.diary.note(&format!("the figures took {took:?}"));
        }
        match figures {
            Ok(figures) => Some(figures),
            Err(error) => {
                self.diary.note(&format!("no figures: {error}"));
                None
            }
        }
    }

    /// Figures of the host (0) or of the run (1).
    fn look_at_figures(&mut self, figures: &Value, which: usize) {
        check_sums(figures);
        for vm in figures["vms"].as_array().unwrap() {
            let name = vm["name"].as_str().unwrap();
            let Some(verified) = vm["guest"]["pages_verified"].as_u64() else {
                continue;
            };
            // Another host manager may not have heard of it yet.
            let most = self.verified.entry(name.to_owned()).or_default();
            *most = verified.max(*most);
            let corrupt = number(vm, "guest.pages_corrupt");
            self.check(corrupt == 0, || format!("corrupt pages: {vm}"));
            self.check(which == 0 || vm["state"] != "ended", || {
                format!("ended: {vm}")
            });
            if let Some(ours) = self.vms.iter_mut().flatten().find(|it| it.name == name) {
                ours.joined = true;
            }
        }
        let host = &figures["host"];
        // What it has seen of the time in which its budget was kept.
        let consumed = match (which, self.ruled) {
            (0, Some(ruled)) if ruled < self.grace => return,
            (0, Some(_)) => number(host, "consumed_bytes"),
            _ => number(host, "consumed_bytes_peak"),
        };
        self.outcome.peaks[which] = self.outcome.peaks[which].max(consumed);
        self.check(consumed <= number(host, "memory_bytes"), || {
            format!("the budget is exceeded: {figures}")
        });
    }

    /// The kernel's own count; the frames that VMs share are not anonymous.
    fn look_at_memory(&mut self) {
        if self.ruled.is_some_and(|ruled| ruled < self.grace) {
            return;
        }
        let vms = self.vms.iter().flatten().map(|vm| vm.process.pid());
        let pids: Vec<u32> = vms.chain(self.host.as_ref().map(Process::pid)).collect();
        let anonymous: u64 = pids.into_iter().filter_map(rss_anon_bytes).sum();
        self.check(anonymous <= BUDGETS[0], || {
            format!("the kernel counts {anonymous} bytes of {}", BUDGETS[0])
        });
    }

    /// What a VM of the host manager wrote about its pages, up to its end.
    fn check_said(&self, vm: &Vm) {
        let said = vm.process.stdout();
        self.check(!said.contains(CORRUPT), || {
            format!("{} said: {said}", vm.name)
        });
    }

    fn check(&self, condition: bool, what: impl FnOnce() -> String) {
        assert!(condition, "{}", self.diary.failure(&what()));
    }

    /// Waits until each VM has verified something it had not at the start of the wait: within
    /// `limit`, or soon where a guest has only begun and fills its memory first. The time in which the
    /// machine does not even bring the figures is nobody's, as long as that too is soon over.
    fn until_working(&mut self, what: &str, limit: Duration) {
        let before = self.verified.clone();
        let start = Instant::now();
        let mut waited = Duration::ZERO;
        loop {
            let look = Instant::now();
            self.look();
            waited += look.elapsed();
            let mut names: Vec<String> = (0..CAST.run_vms).map(run_vm).collect();
            let place =
                |vm: &Option<Vm>| vm.as_ref().map_or("none yet".into(), |vm| vm.name.clone());
            names.extend(self.vms.iter().map(place));
            let seen =
                |from: &BTreeMap<String, u64>, name: &str| from.get(name).copied().unwrap_or(0);
            names.retain(|name| seen(&self.verified, name) <= seen(&before, name));
            if names.is_empty() {
                return;
            }
            let fills = names.iter().all(|name| seen(&before, name) == 0);
            let limit = if fills {
                SOON
            } else {
                SOON.min(limit + waited)
            };
            self.check(start.elapsed() < limit, || {
                let figures = call(&self.socket(), &Request::Ps);
                format!("{what}: not {names:?} within {limit:?}; {figures:?}")
            });
            std::thread::sleep(LOOK_PERIOD / 4);
        }
    }

    /// After the last event: everybody gets on, everybody ends well, nothing is left.
    pub fn finish(mut self) -> Outcome {
        // What the next look finds is news of after the last event.
        self.look();
        self.until_working("progress after the last event", PROGRESS_LIMIT);
        for place in 0..CAST.vms {
            let mut vm = self.vms[place].take().expect("all are at work");
            let answer = call(
                &self.socket(),
                &Request::Stop {
                    vm: vm.name.clone(),
                },
            );
            self.check(answer.is_ok(), || format!("{}: {answer:?}", vm.name));
            let status = vm.process.wait(SOON);
            self.check(status.success(), || end_of(&vm, status));
            self.check_said(&vm);
        }
        for mut vm in std::mem::take(&mut self.dying) {
            vm.process.wait(SOON);
            self.check_said(&vm);
        }
        let mut host = self.host.take().expect("it runs");
        host.signal(Signal::TERM);
        let status = host.wait(SOON);
        self.check(status.success(), || {
            format!("host manager: {}", describe(status))
        });
        let World {
            run,
            folder,
            swap,
            diary,
            verified,
            mut outcome,
            ..
        } = self;
        run.process.signal(Signal::INT);
        let end = run.end(SOON);
        assert_eq!(end.status.code(), Some(0), "{}", diary.failure(&end.log));
        assert!(!end.log.contains(CORRUPT), "{}", diary.failure(&end.log));
        for place in 0..CAST.run_vms {
            end.check_guest(end.vm(&run_vm(place)));
        }
        end.check_sums();
        let left = folder.files();
        assert!(
            left.is_empty(),
            "{}",
            diary.failure(&format!("{left:?} are left"))
        );
        drop(swap);
        outcome.verified = verified.values().sum();
        outcome
    }
}

fn end_of(vm: &Vm, status: ExitStatus) -> String {
    format!("{}: {}; {}", vm.name, describe(status), vm.process.log())
}

/// Name of a VM of the run.
fn run_vm(place: usize) -> String {
    format!("run-{place}")
}

fn start_run(swap: &SwapRoom, seed: u64, take: Option<&str>) -> Fleet {
    let toml = format!(
        "[host]\nmemory = \"{RUN_MIB}M\"\nswap_dir = \"{}\"\nseed = {}\n\
         [[vm]]\nname = \"run\"\ncount = {}\nmemory = \"{RUN_VM_MIB}M\"\nguest = \"verify\"\n\
         cmdline = \"fill=85\"\nshare_group = \"g\"\n",
        swap.path().display(),
        seed % 1_000_000,
        CAST.run_vms,
    );
    Fleet::start_with(&toml, &[], |command| {
        command.envs(take.map(|take| ("TIDEMARK_TAKE", take)));
    })
}

/// Whether the kernel can be told to move pages.
pub fn can_compact() -> bool {
    fs::OpenOptions::new().write(true).open(COMPACT).is_ok()
}

const COMPACT: &str = "/proc/sys/vm/compact_memory";
