//! One VM process: the order of things.

use std::sync::Arc;
use std::time::Instant;

use super::active::Threads;
use super::agent::Agent;
use super::building::Building;
use super::console;
use super::error::{Error, os};
use super::failure::Failure;
use super::files::Files;
use super::join::{self, LAST_WORDS};
use super::outside::Outside;
use super::pager_sink::PagerSink;
use super::panic::stop_on_panic;
use super::plain::{self, Plain};
use super::terminal::Terminal;
use super::uplink::Uplink;
use crate::config::VmSpec;
use crate::link::door::Door;
use crate::link::message::{ToHost, Welcome};
use crate::link::socket::Link;
use crate::mem::credit::CreditBook;
use crate::mem::encrypted::Encrypted;
use crate::mem::pager::{self, Settings};
use crate::mem::swapfile::{SwapFile, SwapStore};
use crate::mem::{Pager, faults};
use crate::out::{self, Out};
use crate::sys::ksm;
use crate::sys::ram::{GuestRam, Layout};
use crate::sys::uffd;
use crate::threads::jail::Jail;
use crate::threads::{FAULTS, sandbox};
use crate::words::{Exit, ExitReason, Management, TakePath};

/// Runs the VM of `spec`, which boots from `files`, until it ends; the host manager is at the other
/// end of `link`, over which hello was said ([`say_hello`](join::say_hello)). A later one comes to `door`, if
/// there is one. The time to the guest's first instruction is reported from `started` on. The
/// process is its only thread's alone until it is in `jail`; its own words go to `out`.
///
/// # Errors
/// When the VM was not admitted. Whatever happens later is in its [`Exit`], and the host manager
/// was told.
pub fn run(
    spec: &VmSpec,
    files: Files,
    link: Link,
    mut door: Option<Door>,
    started: Instant,
    jail: Jail,
    out: &Out,
) -> Result<Exit, Error> {
    stop_on_panic(out.clone());
    sandbox::begin()?;
    ksm::switch_off().map_err(|errno| os("switch KSM off for this process")(errno.into()))?;
    let (welcome, pool) = join::join(&link)?;
    // From here on its file is the host manager's.
    door.iter_mut().for_each(Door::keep);
    let uplink = |link| Uplink::new(&spec.name, link, door, welcome.token);
    let failure = Arc::new(Failure::new().map_err(os("create an eventfd"))?);
    // Dropped when the guest has ended.
    let terminal = match spec.console {
        None => Terminal::open(),
        Some(_) => None,
    };
    if let Management::Plain(advice) = spec.management {
        return Ok(
            match plain::prepare(spec, advice, files, terminal.as_ref(), jail, out) {
                Ok(prepared) => {
                    let host = uplink(link);
                    let vm = Plain::new(spec, prepared, host, &welcome, pool, failure, started);
                    vm.run(terminal.as_ref())
                }
                Err(error) => unprepared(spec, &link, &failure, &error),
            },
        );
    }
    let shared = (&welcome, &failure);
    match prepare(spec, files, terminal.as_ref(), shared, jail, out) {
        Ok((pager, building, threads, seed, console)) => {
            let host = uplink(link);
            let agent = Agent::new(spec, host, &welcome, pool, pager, failure, seed)
                .map_err(os("wait for signals"))?;
            let terminal = terminal.as_ref().map(|terminal| (terminal, &console));
            let ended = agent.run(building, terminal, &threads, started);
            // What its place does not take by now is lost.
            let _ = console.finish(out::FINISH);
            Ok(ended)
        }
        Err(error) => Ok(unprepared(spec, &link, &failure, &error)),
    }
}

/// How a VM ended of which nothing ever ran.
fn unprepared(spec: &VmSpec, link: &Link, failure: &Failure, error: &Error) -> Exit {
    failure.set(error);
    let ended = Exit {
        message: failure.get(),
        ..Exit::plain(ExitReason::Error)
    };
    // The process says it as well, on standard error and by its status.
    if let Err(error) = link.send_last(&ToHost::Exited(ended.clone()), LAST_WORDS) {
        log::warn!("{}: the host manager does not hear it: {error}", spec.name);
    }
    ended
}

/// Everything up to the first look at the guest's files, which waits for the agent.
fn prepare(
    spec: &VmSpec,
    files: Files,
    terminal: Option<&Terminal>,
    (welcome, failure): (&Welcome, &Arc<Failure>),
    jail: Jail,
    log: &Out,
) -> Result<(Arc<Pager>, Building, Threads, u64, Out), Error> {
    let seed = seed_of(spec);
    let forced = std::env::var(TakePath::VARIABLE).ok();
    let path = TakePath::choose(uffd::probe()?, forced.as_deref()).map_err(Error::TakePath)?;
    log::info!("{}: takes pages by {}, seed {seed}", spec.name, path.name());
    let swap = swap_store(spec)?;
    let ram = GuestRam::new(Layout::new(spec.allocation.size))?;
    let credit = CreditBook::new(welcome.credit, welcome.credit_batch);
    let pager = Arc::new(Pager::new(
        ram.clone(),
        Settings {
            path,
            swap,
            readers: faults::threads(spec.cpus) - 1,
            credit,
            large_pages: spec.large_pages,
            mappings_max: pager::mappings_max(),
            observer: None,
        },
    )?);
    let outside = Outside::leave(spec, jail, log)?;
    for number in 0..faults::threads(spec.cpus) {
        serve_faults(number, pager.clone(), failure.clone())?;
    }
    let sink = Arc::new(PagerSink {
        pager: pager.clone(),
        failure: failure.clone(),
    });
    let (console, out) = console::start(outside.console, terminal)?;
    let building = Building::prepare(spec, files, outside.kvm, Arc::new(console), ram, sink)?;
    Ok((pager, building, outside.threads, seed, out))
}

fn swap_store(spec: &VmSpec) -> Result<Box<dyn SwapStore>, Error> {
    let file = SwapFile::create(&spec.swap_dir)?;
    Ok(match spec.encrypt_swap {
        true => Box::new(Encrypted::new(file).map_err(Error::SwapKey)?),
        false => Box::new(file),
    })
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

fn serve_faults(number: usize, pager: Arc<Pager>, failure: Arc<Failure>) -> Result<(), Error> {
    // Whoever waits for a page after a failure waits until the process ends, which is at once.
    let serve = move || pager.serve_faults(None, || false, |error| failure.set(error));
    let started = FAULTS.spawn_nth(number, serve).map(|_detached| ());
    started.map_err(os("start a thread"))
}
