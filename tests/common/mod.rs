//! What integration tests share: capability checks, and a small machine with a deadline.
#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(
    clippy::allow_attributes,
    reason = "an `expect` fails where all of it is used"
)]
#![allow(clippy::unwrap_used, reason = "a test's helper may fail the test")]
#![allow(clippy::cast_possible_truncation, reason = "test figures are small")]

pub mod asm;
pub mod fleet;

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tidemark::boot::image::Image;
use tidemark::devices::console::Console;
use tidemark::devices::sink::BalloonSink;
use tidemark::machine::{Machine, MachineSpec};
use tidemark::sys::ram::{GuestRam, Layout};
use tidemark::units::{Gfn, GfnRange, Pages};
use tidemark::words::Exit;

/// Longest time any guest of these tests may take; far above what it needs, because the machine
/// may be busy.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// What a test needs of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capability {
    /// /dev/kvm can be opened and used.
    Kvm,
    /// userfaultfd can be had.
    Uffd,
    /// The test is root: it looks into other processes.
    Root,
}

impl Capability {
    fn missing(self) -> Option<String> {
        match self {
            Capability::Kvm => kvm_ioctls::Kvm::new()
                .err()
                .map(|error| format!("cannot open /dev/kvm: {error}")),
            Capability::Uffd => tidemark::sys::uffd::probe()
                .err()
                .map(|error| error.to_string()),
            Capability::Root => {
                let root = rustix::process::geteuid().is_root();
                (!root).then(|| "only root can look into a VM process".into())
            }
        }
    }
}

/// Proof that [`require`] found everything.
#[derive(Debug, Clone, Copy)]
pub struct Host(());

/// `None`, after a visible line, when this host lacks something; with TIDEMARK_REQUIRE=1 that is
/// a failure.
pub fn require(capabilities: &[Capability]) -> Option<Host> {
    let missing = capabilities.iter().find_map(|one| one.missing());
    let Some(missing) = missing else {
        return Some(Host(()));
    };
    skip(&missing);
    None
}

/// Says visibly that the calling test does not run, and why; with TIDEMARK_REQUIRE=1 that is a
/// failure.
///
/// # Panics
/// With TIDEMARK_REQUIRE=1.
pub fn skip(missing: &str) {
    assert!(
        std::env::var_os("TIDEMARK_REQUIRE").is_none_or(|value| value != "1"),
        "TIDEMARK_REQUIRE=1 and {missing}"
    );
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("test");
    // The print macros of a passing test are swallowed; the raw handle is not.
    let _ = writeln!(
        std::io::stderr(),
        "SKIP {name}: {missing} (set TIDEMARK_REQUIRE=1 to fail instead)"
    );
}

/// Says something on the raw standard error, which a passing test does not swallow.
pub fn note(text: &str) {
    let thread = std::thread::current();
    let _ = writeln!(
        std::io::stderr(),
        "NOTE {}: {text}",
        thread.name().unwrap_or("test")
    );
}

/// Seed of a randomised test: `TIDEMARK_SEED`, or a fixed one. Tests print it when they fail.
pub fn seed() -> u64 {
    match std::env::var("TIDEMARK_SEED") {
        Ok(text) => text.parse().expect("TIDEMARK_SEED is a number"),
        Err(_) => 20_261_121,
    }
}

/// Polls `condition` until it holds.
///
/// # Panics
/// When it does not within `limit`.
pub fn wait_for(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {limit:?} for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A writer whose text can be looked at.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// What was written so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// One call of the balloon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    Inflate(Vec<Gfn>),
    Deflate(Vec<Gfn>),
    ReportFree(GfnRange),
}

/// A pager that only remembers.
#[derive(Default)]
pub struct RecordingSink(Mutex<Vec<Call>>);

impl RecordingSink {
    /// All calls so far.
    pub fn calls(&self) -> Vec<Call> {
        self.0.lock().unwrap().clone()
    }
}

impl BalloonSink for RecordingSink {
    fn inflate(&self, gfns: &[Gfn]) {
        self.0.lock().unwrap().push(Call::Inflate(gfns.to_vec()));
    }

    fn deflate(&self, gfns: &[Gfn]) {
        self.0.lock().unwrap().push(Call::Deflate(gfns.to_vec()));
    }

    fn report_free(&self, range: GfnRange) {
        self.0.lock().unwrap().push(Call::ReportFree(range));
    }
}

/// A machine with plain memory, its log and its recorded balloon.
pub struct TestVm {
    pub machine: Machine,
    pub ram: Arc<GuestRam>,
    pub sink: Arc<RecordingSink>,
    pub log: Log,
}

impl TestVm {
    /// Builds and starts a guest with `mib` of memory.
    pub fn start(_: Host, kernel: Image, cmdline: &str, mib: u64) -> TestVm {
        let mut vm = TestVm::build(kernel, cmdline, mib);
        vm.machine.start().unwrap();
        vm
    }

    /// Builds a guest that has not been started, with one vCPU.
    pub fn build(kernel: Image, cmdline: &str, mib: u64) -> TestVm {
        TestVm::build_smp(kernel, cmdline, mib, 1)
    }

    /// Builds a guest with several vCPUs that has not been started.
    pub fn build_smp(kernel: Image, cmdline: &str, mib: u64, cpus: u8) -> TestVm {
        let ram = GuestRam::new(Layout::new(Pages::mib(mib))).unwrap();
        let (sink, log) = (Arc::new(RecordingSink::default()), Log::default());
        let console = Arc::new(Console::new("", Box::new(log.clone())));
        let spec = MachineSpec {
            kernel,
            initrd: None,
            cmdline: cmdline.to_string(),
            disks: Vec::new(),
            balloon: true,
            cpus,
        };
        let machine = Machine::new(spec, ram.clone(), sink.clone(), console).unwrap();
        TestVm {
            machine,
            ram,
            sink,
            log,
        }
    }

    /// Waits for the guest's end.
    ///
    /// # Panics
    /// When it does not end before [`DEADLINE`].
    pub fn wait(&self) -> Exit {
        let Some(exit) = self.machine.wait(DEADLINE) else {
            panic!("the guest does not end; its log:\n{}", self.log.text());
        };
        assert!(self.machine.join(DEADLINE), "a vCPU thread does not end");
        self.machine.console().flush();
        exit
    }

    /// How often each page went in minus how often it came out, summed: what the balloon holds.
    pub fn ballooned(&self) -> i64 {
        let held = |call: &Call| match call {
            Call::Inflate(gfns) => gfns.len() as i64,
            Call::Deflate(gfns) => -(gfns.len() as i64),
            Call::ReportFree(_) => 0,
        };
        self.sink.calls().iter().map(held).sum()
    }

    /// Polls until `condition` holds.
    ///
    /// # Panics
    /// When it does not hold before [`DEADLINE`].
    pub fn until(&self, what: &str, condition: impl Fn(&TestVm) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !condition(self) {
            assert!(
                Instant::now() < deadline,
                "{what} does not come true; exit {:?}; log:\n{}",
                self.machine.exit(),
                self.log.text()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
