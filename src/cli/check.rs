//! `tidemark check`: what this host offers, what will be used, what is missing and the command
//! that grants it.

mod advice;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{fmt, fs};

use clap::Args;
use rustix::fs::{Mode, OFlags};
use serde::Serialize;

use super::stdout::print;
use super::{Error, before, resources, table};
use crate::config::FleetSpec;
use crate::sys::cgroup::{Absent, Cgroup, Home};
use crate::sys::host_swap::HostFacts;
use crate::sys::landlock;
use crate::sys::priority;
use crate::sys::proc;
use crate::sys::uffd;
use crate::threads::jail::{self, Jail};
use crate::words::TakePath;

/// The only version of the KVM API there is; anything else is another device under its name.
/// Source: Documentation/virt/kvm/api.rst, KVM_GET_API_VERSION.
const KVM_API_VERSION: i32 = 12;

/// Flags of `tidemark check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Fleet file: say whether it could be run, instead of what the host offers
    fleet: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Folder of the swap files
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/tmp",
        conflicts_with = "fleet"
    )]
    swap_dir: PathBuf,
}

/// What was found.
#[derive(Debug, Serialize)]
pub struct Findings {
    kernel: String,
    kvm: Kvm,
    userfaultfd: Uffd,
    /// How pages are taken out of a guest: `move` (UFFDIO_MOVE), `copy` (write-protect and copy), or
    /// unknown.
    take_path: &'static str,
    max_map_count: u64,
    /// Whether the host has swap on.
    host_swap: bool,
    /// When the kernel gives memory files large pages, as `shmem_enabled` says.
    shmem_enabled: Option<String>,
    /// Niceness of a host manager; none where it may not run ahead of its VMs.
    host_niceness: Option<i32>,
    sandbox: Sandbox,
    /// Whether the host manager can see for itself what VM processes have, in /proc/PID/status.
    vms_measured: bool,
    /// Where `tidemark run` makes each VM process a memory cgroup of its own, if it may.
    vm_cgroups: Option<PathBuf>,
    /// Why it may not.
    #[serde(skip_serializing_if = "Option::is_none")]
    vm_cgroups_problem: Option<String>,
    memory_cgroup: Option<PathBuf>,
    memory_cgroup_max_bytes: Option<u64>,
    memory_available_bytes: u64,
    swap_dir: SwapDir,
    /// What must be mended before a VM can run, each with the command that does.
    missing: Vec<String>,
    /// What would make it run better.
    advice: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Kvm {
    usable: bool,
    /// `vmx`, `svm`, `pvm`, or `none`.
    kind: &'static str,
    api_version: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

#[derive(Debug, Serialize)]
struct Uffd {
    usable: bool,
    features: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

/// What this host grants of what holds a VM process. Filters of system calls are everywhere.
#[derive(Debug, Serialize)]
struct Sandbox {
    /// None where there is no Landlock.
    landlock_abi: Option<u32>,
    /// Whether a process without privileges may make user namespaces.
    user_namespaces: bool,
    /// Whether VM processes can have users of their own.
    own_users: bool,
    /// Which namespaces VM processes can have.
    namespaces: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
struct SwapDir {
    path: PathBuf,
    unlinked_files: bool,
    direct_io: bool,
}

/// Says what `tidemark run` would say of a fleet file before its first VM starts.
fn run_on_fleet(path: &Path, json: bool) -> Result<ExitCode, Error> {
    let spec = resources::with(|resources| FleetSpec::load(path, resources))?;
    before::look(&spec, &path.display().to_string(), Jail::default(), false)?;
    let (vms, memory, budget) = (spec.vms.len(), spec.memory(), spec.host.memory);
    print(&match json {
        true => serde_json::json!({
            "vms": vms,
            "memory_bytes": memory.bytes(),
            "budget_bytes": budget.bytes(),
        })
        .to_string(),
        false => format!(
            "{}: {vms} VMs with {memory} together, in a budget of {budget}: nothing is wrong with it",
            path.display()
        ),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the findings; status 1 when something is missing.
pub fn run(args: &CheckArgs) -> Result<ExitCode, Error> {
    if let Some(path) = &args.fleet {
        return run_on_fleet(path, args.json);
    }
    let findings = look(&args.swap_dir);
    if args.json {
        let json = serde_json::to_string(&findings);
        print(&json.expect("findings have string keys only"))?;
    } else {
        let mut text = String::new();
        write(&mut text, &findings).expect("a text takes any text");
        print(text.trim_end())?;
    }
    Ok(match findings.missing.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Checks that a VM can run here at all.
///
/// # Errors
/// What is missing and the command that grants it.
pub fn require() -> Result<(), Error> {
    let (kvm, uffd) = (look_kvm(), look_uffd().0);
    let missing = missing(&kvm, &uffd);
    match missing.is_empty() {
        true => Ok(()),
        false => Err(Error::Missing(missing.join("; "))),
    }
}

fn look(swap_dir: &Path) -> Findings {
    let kvm = look_kvm();
    let (uffd, bits) = look_uffd();
    let missing = missing(&kvm, &uffd);
    let max_map_count = number("/proc/sys/vm/max_map_count").unwrap_or(0);
    let swap_dir = look_swap_dir(swap_dir);
    let kernel = read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let swaps = read("/proc/swaps").unwrap_or_default();
    let shmem = read("/sys/kernel/mm/transparent_hugepage/shmem_enabled").unwrap_or_default();
    let niceness = priority::run_ahead();
    let cgroup = Cgroup::of(std::process::id().cast_signed());
    let home = Home::find();
    let vms_measured = proc::private_memory(std::process::id().cast_signed()).is_some();
    let sandbox = look_sandbox();
    let is_root = rustix::process::geteuid().is_root();
    let known = [
        niceness.as_ref().err().map(advice::on_priority),
        advice::on_mappings(max_map_count),
        advice::on_swap(&kernel, &swaps),
        advice::on_large_pages(&shmem),
        advice::on_landlock(sandbox.landlock_abi),
        advice::on_user(is_root),
        advice::on_namespaces(&sandbox.namespaces),
        home.as_ref()
            .err()
            .map(|why| advice::on_cgroups(why, is_root)),
    ];
    let mut advice: Vec<String> = known.into_iter().flatten().collect();
    if !swap_dir.unlinked_files {
        advice.push(format!(
            "{} takes no unlinked files (O_TMPFILE): choose a folder on ext4, xfs, btrfs or tmpfs \
             with swap_dir",
            swap_dir.path.display()
        ));
    }
    Findings {
        kernel,
        kvm,
        take_path: bits.map_or("unknown", |bits| take_path(bits, &mut advice)),
        userfaultfd: uffd,
        max_map_count,
        host_swap: advice::is_on(&swaps),
        shmem_enabled: advice::chosen(&shmem).map(str::to_owned),
        host_niceness: niceness.ok(),
        sandbox,
        vms_measured,
        vm_cgroups_problem: home.as_ref().err().map(Absent::to_string),
        vm_cgroups: home.ok().map(|home| home.cgroup().folder().to_owned()),
        memory_cgroup_max_bytes: cgroup.as_ref().and_then(Cgroup::most),
        memory_cgroup: cgroup.map(|cgroup| cgroup.folder().to_owned()),
        memory_available_bytes: proc::meminfo("MemAvailable").bytes(),
        swap_dir,
        missing,
        advice,
    }
}

/// What a VM process started in this environment will use.
fn take_path(features: u64, advice: &mut Vec<String>) -> &'static str {
    let forced = std::env::var(TakePath::VARIABLE).ok();
    match TakePath::choose_on(HostFacts::read(), features, forced.as_deref()) {
        Ok((path, avoided)) => {
            advice.extend(avoided);
            path.name()
        }
        Err(wrong) => {
            advice.push(wrong);
            "unknown"
        }
    }
}

fn missing(kvm: &Kvm, uffd: &Uffd) -> Vec<String> {
    [&kvm.problem, &uffd.problem]
        .into_iter()
        .flatten()
        .cloned()
        .collect()
}

fn look_kvm() -> Kvm {
    let kind = kvm_kind();
    let opened = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm");
    let mut problem = match &opened {
        Ok(_) => None,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Some(
            "/dev/kvm: permission denied; `sudo usermod -aG kvm $USER` and log in again".to_owned(),
        ),
        Err(error) if error.kind() == ErrorKind::NotFound => Some(match kind {
            "vmx" => "/dev/kvm is missing; `sudo modprobe kvm_intel`".to_owned(),
            "svm" => "/dev/kvm is missing; `sudo modprobe kvm_amd`".to_owned(),
            _ => "/dev/kvm is missing: this CPU offers no virtualization (enable it in the \
                  firmware, or nested virtualization in the outer hypervisor)"
                .to_owned(),
        }),
        Err(error) => Some(format!("/dev/kvm: {error}; `ls -l /dev/kvm`")),
    };
    drop(opened);
    let mut api_version = None;
    if problem.is_none() {
        api_version = kvm_ioctls::Kvm::new().ok().map(|kvm| kvm.get_api_version());
        if api_version != Some(KVM_API_VERSION) {
            problem = Some("/dev/kvm is no KVM device; `sudo modprobe kvm`".to_owned());
            api_version = None;
        }
    }
    Kvm {
        usable: problem.is_none(),
        kind,
        api_version,
        problem,
    }
}

/// What is behind /dev/kvm. The software KVM shows no CPU flag but its module.
fn kvm_kind() -> &'static str {
    if Path::new("/sys/module/kvm_pvm").exists() {
        return "pvm";
    }
    let cpuinfo = read("/proc/cpuinfo").unwrap_or_default();
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
    let has = |flag| flags.is_some_and(|flags| flags.split_whitespace().any(|word| word == flag));
    match (has("vmx"), has("svm")) {
        (true, _) => "vmx",
        (_, true) => "svm",
        _ => "none",
    }
}

/// And its feature bits.
fn look_uffd() -> (Uffd, Option<u64>) {
    let grant = "`sudo sysctl -w vm.unprivileged_userfaultfd=1`, or access to /dev/userfaultfd \
                 (`sudo setfacl -m u:$USER:rw /dev/userfaultfd`)";
    match uffd::probe() {
        Ok(bits) => {
            let names = uffd::FEATURE_NAMES.iter();
            let set = names.filter(|(bit, _)| bits & bit != 0);
            let found = Uffd {
                usable: true,
                features: set.map(|(_, name)| *name).collect(),
                problem: None,
            };
            (found, Some(bits))
        }
        Err(error) => {
            let found = Uffd {
                usable: false,
                features: Vec::new(),
                problem: Some(format!("{error}; {grant}")),
            };
            (found, None)
        }
    }
}

fn look_sandbox() -> Sandbox {
    let limit = |name| read(&format!("/proc/sys/{name}"));
    let user_namespaces = advice::allows_user_namespaces(
        limit("user/max_user_namespaces").as_deref(),
        limit("kernel/unprivileged_userns_clone").as_deref(),
        limit("kernel/apparmor_restrict_unprivileged_userns").as_deref(),
    );
    let is_root = rustix::process::geteuid().is_root();
    let namespaces = match is_root {
        // Tried last of all: this process only prints from here on.
        true => jail::leave_each(),
        false if user_namespaces => vec!["user", "mount", "ipc", "net"],
        false => Vec::new(),
    };
    Sandbox {
        landlock_abi: landlock::abi(),
        user_namespaces,
        own_users: is_root && jail::has_users(&read("/proc/self/uid_map").unwrap_or_default()),
        namespaces,
    }
}

fn look_swap_dir(path: &Path) -> SwapDir {
    let mode = Mode::RUSR | Mode::WUSR;
    let open = |more| rustix::fs::open(path, OFlags::TMPFILE | OFlags::RDWR | more, mode).is_ok();
    SwapDir {
        path: path.to_owned(),
        unlinked_files: open(OFlags::CLOEXEC),
        direct_io: open(OFlags::CLOEXEC | OFlags::DIRECT),
    }
}

fn read(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn number(path: &str) -> Option<u64> {
    read(path)?.parse().ok()
}

fn write(out: &mut impl fmt::Write, findings: &Findings) -> fmt::Result {
    let yes_no = |yes| if yes { "yes" } else { "no" };
    let Findings {
        kvm, userfaultfd, ..
    } = findings;
    writeln!(out, "kernel         {}", findings.kernel)?;
    let api = kvm
        .api_version
        .map_or_else(String::new, |version| format!(", API version {version}"));
    writeln!(
        out,
        "KVM            {} ({}{api})",
        if kvm.usable { "usable" } else { "not usable" },
        kvm.kind
    )?;
    writeln!(
        out,
        "userfaultfd    {} {}",
        if userfaultfd.usable {
            "usable"
        } else {
            "not usable"
        },
        userfaultfd.features.join(" ")
    )?;
    writeln!(out, "take path      {}", findings.take_path)?;
    writeln!(out, "max_map_count  {}", findings.max_map_count)?;
    writeln!(
        out,
        "host swap      {}",
        if findings.host_swap { "on" } else { "off" }
    )?;
    writeln!(
        out,
        "shmem pages    {}",
        findings.shmem_enabled.as_deref().unwrap_or("unknown")
    )?;
    let niceness = findings.host_niceness;
    writeln!(
        out,
        "host manager   {}",
        niceness.map_or_else(
            || "may not run ahead of its VMs".to_owned(),
            |niceness| format!("niceness {niceness}")
        )
    )?;
    writeln!(
        out,
        "sandbox        system call filters, {}",
        findings.sandbox.landlock_abi.map_or_else(
            || "no Landlock".to_owned(),
            |abi| format!("Landlock ABI {abi}")
        )
    )?;
    writeln!(
        out,
        "jail           own users: {}; namespaces: {} (--user, --hardened)",
        yes_no(findings.sandbox.own_users),
        match findings.sandbox.namespaces.as_slice() {
            [] => "none".to_owned(),
            kinds => kinds.join(", "),
        }
    )?;
    writeln!(
        out,
        "VM processes   {}",
        match (&findings.vm_cgroups, findings.vms_measured) {
            (Some(folder), true) => format!(
                "measured by /proc/PID/status and memory cgroups of their own in {}",
                folder.display()
            ),
            (None, true) => "measured by /proc/PID/status, not by memory cgroups".to_owned(),
            (_, false) => "not measured: /proc shows no process's memory".to_owned(),
        }
    )?;
    writeln!(
        out,
        "cgroup         {}, limit {}",
        findings
            .memory_cgroup
            .as_ref()
            .map_or_else(|| "none".to_owned(), |folder| folder.display().to_string()),
        findings
            .memory_cgroup_max_bytes
            .map_or_else(|| "none".to_owned(), table::mib_of),
    )?;
    writeln!(
        out,
        "memory         {} available",
        table::mib_of(findings.memory_available_bytes)
    )?;
    writeln!(
        out,
        "swap folder    {} (unlinked files: {}, direct I/O: {})",
        findings.swap_dir.path.display(),
        yes_no(findings.swap_dir.unlinked_files),
        yes_no(findings.swap_dir.direct_io)
    )?;
    for line in &findings.missing {
        writeln!(out, "MISSING        {line}")?;
    }
    for line in &findings.advice {
        writeln!(out, "advice         {line}")?;
    }
    Ok(())
}
