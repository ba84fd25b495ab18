//! Memory cgroups that `tidemark run` makes for its VMs, in one that was given to it: version 1 on Linux
//! 6.1, version 2 on later ones.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{XattrFlags, setxattr};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tidemark::host::control::{Request, call};
use tidemark::sys::cgroup::{Cgroup, Version};
use tidemark::sys::proc::private_memory;
use tidemark::units::Pages;

use super::fleet::program;
use super::kernel::run;
use super::list::check;
use super::rig::Failure;

const SOCKET: &str = "cgroups.sock";
const VMS: usize = 2;
const MEMORY: Pages = Pages::mib(64);
/// How long the guests may take to be there, and to be gone.
const LIMIT: Duration = Duration::from_secs(120);
/// Of a host manager that did not clean up.
const LEFT: &str = "tidemark-vm-2147483647";

/// What names it: the file of its bound, and the root of its hierarchy.
fn hierarchy() -> Result<(&'static str, PathBuf), Failure> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    if !release.starts_with("6.1.") {
        let root = Path::new("/sys/fs/cgroup");
        if !root.join("cgroup.procs").exists() {
            run("mount", &["-t", "cgroup2", "cgroup2", "/sys/fs/cgroup"])?;
        }
        fs::write(root.join("cgroup.subtree_control"), "+memory")?;
        return Ok(("memory.max", root.into()));
    }
    let root = "/tmp/memory-cgroups";
    fs::create_dir_all(root)?;
    run("mount", &["-t", "cgroup", "-o", "memory", "cgroup", root])?;
    Ok(("memory.limit_in_bytes", root.into()))
}

/// A fleet in its cgroup.
struct Fleet {
    process: Child,
}

impl Fleet {
    fn start(home: &Path) -> Result<Fleet, Failure> {
        let memory = format!("{}M", MEMORY.0 >> 8);
        let process = Command::new("/bin/busybox")
            .args(["sh", "-c", "echo $$ >$0/cgroup.procs && exec \"$@\""])
            .arg(home)
            .arg(program()?)
            .args(["run", "--guest", "verify", "--cmdline", "fill=60"])
            .args(["--count", &VMS.to_string(), "--memory", &memory])
            .args(["--host-memory", "256M", "--swap-dir", "."])
            .args(["--socket", SOCKET, "--json"])
            .stdin(Stdio::null())
            .stdout(File::create("cgroups.json")?)
            .stderr(File::create("cgroups.log")?)
            .spawn()?;
        Ok(Fleet { process })
    }

    fn until<T>(
        &mut self,
        what: &str,
        mut seen: impl FnMut() -> Result<Option<T>, Failure>,
    ) -> Result<T, Failure> {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(seen) = seen()? {
                return Ok(seen);
            }
            let ended = self.process.try_wait()?;
            if ended.is_some() || Instant::now() >= deadline {
                let log = fs::read_to_string("cgroups.log")?;
                return Err(format!("no {what}, {ended:?}: {log}").into());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The processes whose cgroups are in `home`.
fn vms(home: &Path) -> Result<Vec<i32>, Failure> {
    let mut pids = Vec::new();
    for entry in fs::read_dir(home)? {
        let name = entry?.file_name();
        let name = name.to_str().unwrap_or_default();
        let pid = name.strip_prefix("tidemark-vm-");
        pids.extend(pid.and_then(|pid| pid.parse::<i32>().ok()));
    }
    Ok(pids)
}

pub fn memory_cgroups(_guest: &Path) -> Result<(), Failure> {
    if !Path::new("/lab_runner").exists() {
        println!("  does not apply: this machine's cgroups are somebody's");
        return Ok(());
    }
    let (bound, root) = hierarchy()?;
    let home = root.join("fleet");
    fs::create_dir(&home)?;
    setxattr(&home, "trusted.delegate", b"1", XattrFlags::empty())?;
    fs::create_dir(home.join(LEFT))?;
    let mut fleet = Fleet::start(&home)?;
    let figures = fleet.until("figures", || {
        let figures: Option<Value> = call(Path::new(SOCKET), &Request::Ps).ok();
        let list = figures
            .as_ref()
            .and_then(|figures| figures["vms"].as_array());
        let bytes = |vm: &Value, key: &str| vm[key].as_u64().unwrap_or(0);
        let works = |vm: &Value| {
            bytes(vm, "process_bytes") > MEMORY.bytes() / 2
                && bytes(&vm["guest"], "pages_verified") > 0
        };
        let ready = list.is_some_and(|vms| vms.len() == VMS && vms.iter().all(works));
        Ok(figures.filter(|_| ready))
    })?;
    let pids = vms(&home)?;
    check(pids.len() == VMS && !home.join(LEFT).exists(), || {
        format!("cgroups of {pids:?}")
    })?;
    for &pid in &pids {
        let cgroup = Cgroup::of(pid).ok_or("a VM without a cgroup")?;
        let folder = home.join(format!("tidemark-vm-{pid}"));
        check(cgroup.folder() == folder && cgroup.holds_only(pid), || {
            format!("{pid} is in {cgroup:?}")
        })?;
        let (charged, private) = (cgroup.used(), private_memory(pid));
        let (charged, private) = (charged.ok_or("no account")?, private.ok_or("no process")?);
        let most = fs::read_to_string(folder.join(bound))?
            .trim()
            .parse::<u64>()?;
        println!(
            "  {bound} {} MiB; charged {charged}, private by /proc {private}",
            most >> 20
        );
        check(most > MEMORY.bytes() && most < 4 * MEMORY.bytes(), || {
            format!("{bound} is {most}")
        })?;
        // Its program and first pages were charged before it was there; the kernel's memory is seen here
        // alone.
        check(charged + Pages::mib(8) > private, || {
            "too little is charged".into()
        })?;
        if cgroup.version() == Version::V2 {
            let swap = fs::read_to_string(folder.join("memory.swap.max"))?;
            check(swap.trim() == "0", || format!("memory.swap.max is {swap}"))?;
        }
    }
    println!(
        "  process_bytes {}, {}",
        figures["vms"][0]["process_bytes"], figures["vms"][1]["process_bytes"]
    );
    kill_process(Pid::from_child(&fleet.process), Signal::TERM)?;
    let status = fleet.process.wait()?;
    let log = fs::read_to_string("cgroups.log")?;
    check(status.success(), || format!("{status}: {log}"))?;
    // Nothing is left, and what was moved aside has come back.
    fs::remove_dir(&home).map_err(|error| format!("{}: {error}: {log}", home.display()))?;
    if root.starts_with("/tmp") {
        run("umount", &["/tmp/memory-cgroups"])?;
    }
    Ok(())
}
