//! The command line from outside: bad input, and the verbs against a host manager. Needs no KVM.
#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers are tests too: a panic is their way to fail"
)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn tidemark(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tidemark"))
        .args(args)
        .env("XDG_RUNTIME_DIR", folder)
        .env_remove("TIDEMARK_SOCKET")
        .current_dir(folder)
        .output()
        .unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The command fails with this status and one line that holds all of `words`.
fn fails(folder: &Path, args: &[&str], status: i32, words: &[&str]) {
    let output = tidemark(folder, args);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(status), "{args:?}: {said}");
    assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{args:?}: no {word:?} in {said}");
    }
    assert!(output.stdout.is_empty(), "{args:?}");
}

#[test]
fn bad_fleets_are_one_line_and_status_2() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let head = if text.starts_with("[[vm]]") {
            "[host]\n"
        } else {
            ""
        };
        std::fs::write(folder.path().join(name), format!("{head}{text}")).unwrap();
    };
    write(
        "key.toml",
        "[[vm]]\nname = \"a\"\nguest = \"hello\"\ncolour = \"red\"\n",
    );
    write(
        "reservation.toml",
        "[[vm]]\nname = \"a\"\nguest = \"hello\"\nmemory = \"64M\"\nlimit = \"32M\"\nreservation = \"48M\"\n",
    );
    write(
        "kernel.toml",
        "[[vm]]\nname = \"a\"\nkernel = \"nowhere\"\n",
    );
    write("text", "no kernel at all");
    write("elf.toml", "[[vm]]\nname = \"a\"\nkernel = \"text\"\n");
    write("guest.toml", "[[vm]]\nname = \"a\"\nguest = \"nobody\"\n");
    write(
        "policy.toml",
        "[host]\npolicy = \"magic\"\n[[vm]]\nname = \"a\"\nguest = \"hello\"\n",
    );
    let cases: [(&str, &[&str]); 7] = [
        ("missing.toml", &["missing.toml"]),
        ("key.toml", &["key.toml", "colour"]),
        ("reservation.toml", &["reservation.toml", "48M", "32"]),
        ("kernel.toml", &["kernel.toml", "nowhere"]),
        ("elf.toml", &["elf.toml", "text"]),
        ("guest.toml", &["guest.toml", "nobody", "hello"]),
        ("policy.toml", &["policy.toml", "magic", "esx"]),
    ];
    for (file, words) in cases {
        for verb in ["run", "check"] {
            fails(folder.path(), &[verb, file], 2, words);
        }
    }
}

#[test]
fn bad_flags_are_one_line_and_status_2() {
    let folder = tempfile::tempdir().unwrap();
    let none = folder.path();
    fails(none, &["run"], 2, &["nothing to run", "--kernel"]);
    fails(
        none,
        &["run", "--guest", "hello", "--memory", "lots"],
        2,
        &["memory", "lots", "512M"],
    );
    fails(
        none,
        &["run", "--guest", "hello", "--count", "0"],
        2,
        &["count"],
    );
    fails(
        none,
        &["run", "x.toml", "--guest", "hello"],
        2,
        &["do not go together"],
    );
    fails(
        none,
        &["vm", "--guest", "hello", "--link-fd=77"],
        2,
        &["--link-fd"],
    );
    fails(none, &["set", "a", "limit"], 2, &["KEY=VALUE"]);
    fails(none, &["host", "--memory", "none"], 2, &["memory", "none"]);
    let usage = tidemark(none, &["run", "--for", "soon", "--guest", "hello"]);
    assert_eq!(usage.status.code(), Some(2));
    assert!(stderr(&usage).contains("500ms"));
    let usage = tidemark(none, &["run", "--guest", "hello", "--user", "root"]);
    assert_eq!(usage.status.code(), Some(2));
    assert!(stderr(&usage).contains("must not be root"));
}

#[test]
fn without_a_host_manager_the_verbs_say_how_to_get_one() {
    let folder = tempfile::tempdir().unwrap();
    for args in [&["ps"][..], &["stop", "a"], &["set", "a", "limit=1M"]] {
        fails(folder.path(), args, 1, &["no host manager", "--socket"]);
    }
    let gone = ["ps", "--socket", "gone.sock"];
    fails(folder.path(), &gone, 1, &["gone.sock", "No such file"]);
}

#[test]
fn check_reports_in_json() {
    let folder = tempfile::tempdir().unwrap();
    let output = tidemark(folder.path(), &["check", "--json"]);
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(found["kvm"]["usable"].is_boolean());
    let mappings = found["max_map_count"].as_u64().unwrap();
    let advice = found["advice"].as_array().unwrap();
    let proposed = advice.iter().any(|line| {
        let line = line.as_str().unwrap();
        line.contains("sudo sysctl -w vm.max_map_count=1048576")
    });
    assert_eq!(proposed, mappings < 1_048_576, "{found}");
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    assert_eq!(found["host_swap"], swaps.lines().count() > 1);
    let text = tidemark(folder.path(), &["check"]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert_eq!(
        text.contains("vm.max_map_count=1048576"),
        proposed,
        "{text}"
    );
    for line in ["host swap      ", "shmem pages    "] {
        assert!(text.contains(line), "{text}");
    }
    let missing = found["missing"].as_array().unwrap();
    assert_eq!(output.status.success(), missing.is_empty());
}

/// A host manager that is ended with the test.
struct Host {
    process: Child,
    socket: PathBuf,
}

impl Host {
    fn start(folder: &Path, name: &str) -> Host {
        let socket = folder.join("tidemark").join(name);
        let mut process = Command::new(env!("CARGO_BIN_EXE_tidemark"))
            .args(["host", "--memory", "64M", "--socket"])
            .arg(&socket)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It says where it listens once it does.
        let mut line = String::new();
        let mut said = BufReader::new(process.stderr.take().unwrap());
        said.read_line(&mut line).unwrap();
        assert!(
            line.contains("listens at") && line.contains("seed"),
            "{line}"
        );
        Host { process, socket }
    }

    /// SIGTERM, then its status within five seconds.
    fn terminate(&mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn the_verbs_find_the_only_host_manager_and_ask_when_there_are_two() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut first = Host::start(folder, "host.sock");
    let figures = tidemark(folder, &["ps", "--json"]);
    let figures: serde_json::Value = serde_json::from_slice(&figures.stdout).unwrap();
    assert_eq!(figures["host"]["memory_bytes"], 64 << 20);
    assert_eq!(figures["vms"], serde_json::json!([]));
    fails(folder, &["stop", "a"], 1, &["no VM \"a\"", "none runs"]);
    fails(
        folder,
        &["set", "host", "policy=magic"],
        1,
        &["magic", "esx"],
    );
    assert!(
        tidemark(folder, &["set", "host", "memory=32M"])
            .status
            .success()
    );
    let line = tidemark(folder, &["ps"]).stdout;
    assert!(
        String::from_utf8(line)
            .unwrap()
            .contains("of 32.0 MiB consumed")
    );
    // Nobody can listen where somebody listens.
    fails(
        folder,
        &[
            "host",
            "--memory",
            "64M",
            "--socket",
            first.socket.to_str().unwrap(),
        ],
        1,
        &["already"],
    );
    let second = Host::start(folder, "other.sock");
    fails(folder, &["ps"], 1, &["several", "host.sock", "other.sock"]);
    assert!(
        tidemark(folder, &["ps", "--socket", second.socket.to_str().unwrap()])
            .status
            .success()
    );
    assert_eq!(first.terminate(), Some(0));
    assert!(!first.socket.exists());
    // One that was killed leaves its socket file; it is not taken for a host manager.
    drop(second);
    fails(folder, &["ps"], 1, &["no host manager"]);
    let third = Host::start(folder, "other.sock");
    assert!(third.socket.exists());
}

#[test]
fn plain_memory_and_what_contradicts_it_are_status_2() {
    let folder = tempfile::tempdir().unwrap();
    let off = ["--memory-management", "off"];
    let run = |flags: &[&'static str]| [&["run", "--guest", "hello"], flags].concat();
    let cases: [(Vec<&str>, &[&str]); 6] = [
        (
            run(&["--memory-management", "no"]),
            &["memory_management", "on or off"],
        ),
        (run(&["--advise", "hugepage"]), &["advise", "not managed"]),
        (
            run(&[&off[..], &["--advise", "big"]].concat()),
            &["advise", "nohugepage"],
        ),
        (
            run(&[&off[..], &["--reservation", "1M"]].concat()),
            &["reservation", "all of"],
        ),
        (
            run(&[&off[..], &["--limit", "1M"]].concat()),
            &["limit", "all of"],
        ),
        (
            run(&[&off[..], &["--share-group", "g"]].concat()),
            &["share_group", "not shared"],
        ),
    ];
    for (args, words) in cases {
        fails(folder.path(), &args, 2, words);
    }
}

/// A pipe that nobody reads any more, and a disk that is full, as standard output.
#[test]
fn a_reader_who_has_gone_is_no_error_and_a_full_disk_is_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let _host = Host::start(folder, "host.sock");
    let scenario = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/examples/scenarios/cache-is-enough.toml"
    );
    let with_stdout = |args: &[&str], stdout: Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidemark"));
        command.args(args).env("XDG_RUNTIME_DIR", folder);
        let command = command.env_remove("TIDEMARK_SOCKET").stdout(stdout);
        let output = command.stderr(Stdio::piped()).output().unwrap();
        (output.status.code(), stderr(&output))
    };
    for args in [
        &["ps"][..],
        &["ps", "--json"],
        &["check"],
        &["check", "--json"],
        &["reserve", "1M", "--for", "10ms"],
        &["simulate", scenario],
    ] {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        drop(reader);
        let (status, said) = with_stdout(args, writer.into());
        assert_eq!(status, Some(0), "{args:?}: {said}");
        // How the lease ended.
        let lines = usize::from(args[0] == "reserve");
        assert_eq!(said.lines().count(), lines, "{args:?}: {said}");
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full");
        let (status, said) = with_stdout(args, full.unwrap().into());
        assert_eq!(status, Some(1), "{args:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
        assert!(
            said.contains("write to standard output"),
            "{args:?}: {said}"
        );
    }
}

#[test]
fn no_vm_is_called_host() {
    let folder = tempfile::tempdir().unwrap();
    let run = ["run", "--guest", "hello", "--name", "host"];
    fails(folder.path(), &run, 2, &["name", "host", "must be"]);
}
