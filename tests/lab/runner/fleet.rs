//! Several guests, run by the program itself as a user runs it.

use std::fmt::Write as _;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tidemark::host::control::{Request, call};

use super::rig::Failure;

/// Limit of one fleet; far above what it needs.
const LIMIT: Duration = Duration::from_secs(300);
/// Sharing is complete when this long nothing was added to speak of,
const QUIET: Duration = Duration::from_secs(8);
/// which is this much.
const NOISE_BYTES: u64 = 512 << 10;
/// What sharing saves each of two guests with the same kernel, at least.
const SAVED_MIN_BYTES: u64 = 2 << 20;
/// Where the fleet's host manager listens, in the working folder.
const SOCKET: &str = "fleet.sock";

/// The program: beside the runner, or where cargo puts it, one folder above the examples.
pub fn program() -> Result<PathBuf, Failure> {
    let runner = std::env::current_exe()?;
    let mut places = runner.ancestors().skip(1).take(2);
    let found = places.find_map(|folder| Some(folder.join("tidemark")).filter(|it| it.exists()));
    Ok(found.ok_or("no tidemark program beside the runner")?)
}

/// Two guests that nobody prepared fill and check memory, in less than they were promised, and share what
/// they have in common.
pub fn overcommit(guest: &Path) -> Result<(), Failure> {
    let fleet = Fleet {
        host_memory: "200M",
        count: 2,
        memory: "144M",
        cmdline: "tidemark.fill=56",
    };
    let figures = fleet.start(guest)?.finish()?;
    let host = &figures["host"];
    let peak = host["consumed_bytes_peak"].as_u64().ok_or("no peak")?;
    println!(
        "  peak {} MiB of 200, promised 288; {}",
        peak >> 20,
        host["state_seconds"]
    );
    for (n, vm) in (0..).zip(list(&figures)?) {
        println!(
            "  {} saved {} MiB, swapped out {} pages, {} large pages, hinted at {}, ballooned {} MiB",
            vm["name"],
            vm["peak"]["saved_bytes"].as_u64().unwrap_or(0) >> 20,
            vm["swap_out_pages"],
            vm["large_fills"],
            vm["hinted_pages"],
            vm["peak"]["ballooned_bytes"].as_u64().unwrap_or(0) >> 20
        );
        let log = console(n)?;
        if vm["exit"]["reason"] != "shutdown" {
            return Err(format!("{} ended with {}, it said: {log}", vm["name"], vm["exit"]).into());
        }
        if !log.contains("checked 56 MiB") || log.contains("CORRUPT") {
            return Err(format!("guest {n} said: {log}").into());
        }
        let saved = vm["peak"]["saved_bytes"].as_u64().ok_or("no peak")?;
        if saved < SAVED_MIN_BYTES {
            return Err(format!("{} saved only {saved} bytes", vm["name"]).into());
        }
    }
    if peak > 200 << 20 {
        return Err("the budget was exceeded".into());
    }
    Ok(())
}

/// What two stock guests that nobody prepared have in common.
pub fn two_sisters(guest: &Path) -> Result<(), Failure> {
    sisters(guest, 2)
}

/// The same with four.
pub fn four_sisters(guest: &Path) -> Result<(), Failure> {
    sisters(guest, 4)
}

fn sisters(guest: &Path, count: u32) -> Result<(), Failure> {
    let fleet = Fleet {
        host_memory: "1G",
        count,
        memory: "128M",
        cmdline: "tidemark.commands",
    };
    let mut run = fleet.start(guest)?;
    run.wait_settled(count)?;
    run.interrupt()?;
    let figures = run.finish()?;
    for n in 0..count {
        ready(&console(n)?)?;
    }
    let (saved, zero) = (sum(&figures, "saved_bytes")?, sum(&figures, "zero_bytes")?);
    let (consumed, shared) = (
        sum(&figures, "consumed_bytes")?,
        sum(&figures, "shared_bytes")?,
    );
    println!(
        "TABLE {count} sisters: shared_kib={} saved_kib={} zero_kib={} consumed_kib={}",
        shared >> 10,
        saved >> 10,
        zero >> 10,
        consumed >> 10
    );
    if saved < u64::from(count) * SAVED_MIN_BYTES {
        return Err(format!("only {saved} bytes saved: {figures}").into());
    }
    Ok(())
}

struct Fleet {
    host_memory: &'static str,
    count: u32,
    memory: &'static str,
    cmdline: &'static str,
}

impl Fleet {
    fn start(&self, guest: &Path) -> Result<Run, Failure> {
        let mut file = format!("[host]\nmemory = \"{}\"\n", self.host_memory);
        for n in 0..self.count {
            let guest = guest.display();
            write!(
                file,
                "[[vm]]\nname = \"sister-{n}\"\nmemory = \"{}\"\nshare_group = \"sisters\"\n\
                 kernel = \"{guest}/vmlinuz\"\ninitrd = \"{guest}/initrd.gz\"\n\
                 cmdline = \"console=ttyS0 quiet {}\"\nconsole = \"sister-{n}.log\"\n",
                self.memory, self.cmdline
            )?;
            // The log of an earlier test says nothing of this guest.
            File::create(format!("sister-{n}.log"))?;
        }
        std::fs::write("fleet.toml", file)?;
        let process = Command::new(program()?)
            .args(["run", "fleet.toml", "--json", "--socket", SOCKET, "--for"])
            .arg(format!("{}s", LIMIT.as_secs()))
            .stdin(Stdio::null())
            .stdout(File::create("fleet.out")?)
            .stderr(File::create("fleet.err")?)
            .spawn()?;
        Ok(Run {
            process,
            deadline: Instant::now() + LIMIT,
        })
    }
}

/// A fleet at work.
struct Run {
    process: Child,
    deadline: Instant,
}

impl Run {
    /// Waits until all guests are up and what they save by sharing has stopped to grow.
    fn wait_settled(&mut self, count: u32) -> Result<(), Failure> {
        let (mut most, mut since) = (0, Instant::now());
        loop {
            std::thread::sleep(Duration::from_millis(500));
            if self.process.try_wait()?.is_some() {
                return Err(self.complaint("ended early"));
            }
            if Instant::now() > self.deadline {
                return Err(self.complaint("sharing does not settle"));
            }
            // Nobody listens in the first moments.
            let Ok(figures) = call(Path::new(SOCKET), &Request::Ps) else {
                continue;
            };
            if list(&figures)?.iter().any(|vm| !vm["exit"].is_null()) {
                return Err(self.complaint("a guest ended"));
            }
            let saved = sum(&figures, "saved_bytes")?;
            let up = (0..count).all(|n| console(n).is_ok_and(|log| ready(&log).is_ok()));
            if !up || saved > most + NOISE_BYTES {
                (most, since) = (saved, Instant::now());
            } else if saved > 0 && since.elapsed() >= QUIET {
                return Ok(());
            }
        }
    }

    /// Ctrl-C.
    fn interrupt(&self) -> Result<(), Failure> {
        let pid = i32::try_from(self.process.id())?;
        let pid = Pid::from_raw(pid).ok_or("no process")?;
        Ok(kill_process(pid, Signal::INT)?)
    }

    /// The closing figures of a fleet that ends by itself.
    fn finish(mut self) -> Result<Value, Failure> {
        if !self.process.wait()?.success() {
            return Err(self.complaint("failed"));
        }
        Ok(serde_json::from_slice(&std::fs::read("fleet.out")?)?)
    }

    fn complaint(&self, what: &str) -> Failure {
        let said = |file| std::fs::read_to_string(file).unwrap_or_default();
        let (errors, figures) = (said("fleet.err"), said("fleet.out"));
        let consoles: String = (0..4).filter_map(|n| console(n).ok()).collect();
        format!("tidemark run: {what}: {errors}{figures}; the consoles:\n{consoles}").into()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Of a test that failed; its VMs end with it. One that was waited for is left alone.
        if let Ok(None) = self.process.try_wait() {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

fn console(n: u32) -> Result<String, Failure> {
    Ok(std::fs::read_to_string(format!("sister-{n}.log"))?)
}

/// Whether a guest is up and has its drivers.
fn ready(log: &str) -> Result<(), Failure> {
    if log.contains("does not load") || !log.contains("tidemark-guest: ready") {
        return Err(format!("a guest said: {log}").into());
    }
    Ok(())
}

fn list(figures: &Value) -> Result<&Vec<Value>, Failure> {
    Ok(figures["vms"].as_array().ok_or("no VMs in the figures")?)
}

fn sum(figures: &Value, key: &str) -> Result<u64, Failure> {
    let values = list(figures)?.iter().map(|vm| vm[key].as_u64());
    Ok(values.sum::<Option<u64>>().ok_or("a figure is missing")?)
}
