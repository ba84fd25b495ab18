//! Several guests, run by the program itself as a user runs it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::rig::Failure;

/// The program: beside the runner, or where cargo puts it, one folder above the examples.
fn program() -> Result<PathBuf, Failure> {
    let runner = std::env::current_exe()?;
    let mut places = runner.ancestors().skip(1).take(2);
    let found = places.find_map(|folder| Some(folder.join("tidemark")).filter(|it| it.exists()));
    Ok(found.ok_or("no tidemark program beside the runner")?)
}

/// Two guests that fill and check memory, in less than they were promised.
pub fn overcommit(guest: &Path) -> Result<(), Failure> {
    let fleet = Fleet {
        host_memory: "200M",
        count: 2,
        memory: "144M",
        cmdline: "tidemark.fill=56",
        for_time: "150s",
    };
    let figures = fleet.run(guest)?;
    let host = &figures["host"];
    let peak = host["consumed_bytes_peak"].as_u64().ok_or("no peak")?;
    println!(
        "  peak {} MiB of 200, promised 288; {}",
        peak >> 20,
        host["state_seconds"]
    );
    for vm in list(&figures)? {
        println!(
            "  {} swapped out {} pages",
            vm["name"], vm["swap_out_pages"]
        );
        if vm["exit"]["reason"] != "shutdown" {
            return Err(format!("{} ended with {}", vm["name"], vm["exit"]).into());
        }
    }
    for n in 0..fleet.count {
        let log = std::fs::read_to_string(format!("/tmp/sister-{n}.log"))?;
        if !log.contains("checked 56 MiB") || log.contains("CORRUPT") {
            return Err(format!("guest {n} said: {log}").into());
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
        for_time: if count == 2 { "40s" } else { "75s" },
    };
    let figures = fleet.run(guest)?;
    let sum = |key: &str| -> Result<u64, Failure> {
        let values = list(&figures)?.iter().map(|vm| vm[key].as_u64());
        Ok(values.sum::<Option<u64>>().ok_or("a figure is missing")?)
    };
    let (saved, zero) = (sum("saved_bytes")?, sum("zero_bytes")?);
    let (consumed, shared) = (sum("consumed_bytes")?, sum("shared_bytes")?);
    println!(
        "TABLE {count} sisters: shared_kib={} saved_kib={} zero_kib={} consumed_kib={}",
        shared >> 10,
        saved >> 10,
        zero >> 10,
        consumed >> 10
    );
    if saved < 4 << 20 {
        return Err(format!("only {saved} bytes saved: {figures}").into());
    }
    Ok(())
}

struct Fleet {
    host_memory: &'static str,
    count: u32,
    memory: &'static str,
    cmdline: &'static str,
    for_time: &'static str,
}

impl Fleet {
    fn run(&self, guest: &Path) -> Result<Value, Failure> {
        let mut file = format!("[host]\nmemory = \"{}\"\n", self.host_memory);
        for n in 0..self.count {
            let guest = guest.display();
            write!(
                file,
                "[[vm]]\nname = \"sister-{n}\"\nmemory = \"{}\"\nshare_group = \"sisters\"\n\
                 kernel = \"{guest}/vmlinuz\"\ninitrd = \"{guest}/initrd.gz\"\n\
                 cmdline = \"console=ttyS0 quiet {}\"\nconsole = \"/tmp/sister-{n}.log\"\n",
                self.memory, self.cmdline
            )?;
        }
        std::fs::write("/tmp/fleet.toml", file)?;
        let output = Command::new(program()?)
            .args(["run", "/tmp/fleet.toml", "--json", "--for", self.for_time])
            .stdin(Stdio::null())
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            return Err(format!("tidemark run: {}: {said}", output.status).into());
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

fn list(figures: &Value) -> Result<&Vec<Value>, Failure> {
    Ok(figures["vms"].as_array().ok_or("no VMs in the figures")?)
}
