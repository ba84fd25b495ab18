//! QEMU as a peer: one virtual machine with a virtio balloon, driven over its machine protocol (QMP).
//!
//! Source: docs/interop/qmp-spec.rst and qapi/machine.json (`balloon`, `query-balloon`) of QEMU.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use super::program::Program;
use super::{Bench, Error};

/// The program.
const QEMU: &str = "qemu-system-x86_64";
/// How long it may take to answer.
const ANSWERED: Duration = Duration::from_secs(30);

/// What its virtual machine is made of.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub kernel: &'a Path,
    pub initrd: &'a Path,
    pub cmdline: &'a str,
    /// A multiple of a MiB.
    pub memory_bytes: u64,
    /// Image of its disk, which it may only read.
    pub disk: &'a Path,
}

impl Plan<'_> {
    /// The nearest to our machine: virtio over MMIO, a serial port, one CPU, a balloon with the same
    /// features.
    fn command(&self, socket: &Path) -> Command {
        let option = |path: &Path| path.display().to_string().replace(',', ",,");
        let mut command = Command::new(QEMU);
        command
            .args(["-machine", "microvm,accel=kvm", "-cpu", "host"])
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-serial", "stdio"])
            .arg("-m")
            .arg(format!("{}M", self.memory_bytes >> 20))
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.initrd)
            .args(["-append", self.cmdline])
            .arg("-drive")
            .arg(format!(
                "file={},format=raw,if=none,id=disk,readonly=on",
                option(self.disk)
            ))
            .args(["-device", "virtio-blk-device,drive=disk"])
            .arg("-device")
            .arg("virtio-balloon-device,deflate-on-oom=on,free-page-reporting=on")
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", option(socket)));
        command
    }
}

/// A running QEMU. Dropping it ends it.
pub(super) struct Qemu<'a> {
    program: Program<'a>,
    qmp: Qmp,
    errors: PathBuf,
}

impl<'a> Qemu<'a> {
    /// Its version, in its own words.
    ///
    /// # Errors
    /// Why it cannot be had, for people.
    pub fn version() -> Result<String, String> {
        let output = Command::new(QEMU).arg("--version").output();
        let output = output.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => format!("{QEMU} is not installed"),
            _ => format!("{QEMU}: {error}"),
        })?;
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().next().unwrap_or(QEMU).to_owned())
    }

    /// Starts a virtual machine.
    pub fn start(bench: &'a Bench<'a>, plan: &Plan<'_>) -> Result<Qemu<'a>, Error> {
        let socket = bench.scratch.file("qmp");
        // Of a virtual machine before this one.
        let _none_yet = fs::remove_file(&socket);
        let errors = bench.scratch.file("qemu.err");
        let file = File::create(&errors).map_err(super::io("create QEMU's file of errors"))?;
        let mut command = plan.command(&socket);
        command.stderr(file);
        let mut program = Program::of(bench, command, QEMU)?;
        // It listens before it is ready to be spoken to, and not at once.
        let connected = program.watch(|_| Qmp::connect(&socket).ok())?;
        let qmp = connected.ok_or_else(|| failed("its start", &errors))?;
        Ok(Qemu {
            program,
            qmp,
            errors,
        })
    }

    /// Its number.
    pub fn pid(&self) -> i32 {
        self.program.pid()
    }

    /// The file with what its guest has written.
    pub fn console(&self) -> &Path {
        self.program.console()
    }

    /// Has the guest's balloon leave it so much.
    pub fn leave(&mut self, bytes: u64) -> Result<(), Error> {
        let answer = self.qmp.execute("balloon", &json!({ "value": bytes }));
        answer.map(drop).map_err(|error| Error::Fleet {
            what: "QEMU's balloon".to_owned(),
            why: error.to_string(),
        })
    }

    /// Looks until `look` has seen it.
    pub fn until<T>(
        &mut self,
        what: &str,
        mut look: impl FnMut() -> Option<T>,
    ) -> Result<T, Error> {
        let seen = self.program.watch(|_| look())?;
        seen.ok_or_else(|| failed(what, &self.errors))
    }
}

fn failed(what: &str, errors: &Path) -> Error {
    let text = fs::read_to_string(errors).unwrap_or_default();
    Error::Fleet {
        what: format!("QEMU: {what}"),
        why: match text.trim().lines().last() {
            Some(last) => last.to_owned(),
            None => "not in time".to_owned(),
        },
    }
}

/// The protocol: a line of JSON each way. Events are passed over.
struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    fn connect(socket: &Path) -> io::Result<Qmp> {
        Qmp::over(UnixStream::connect(socket)?)
    }

    fn over(stream: UnixStream) -> io::Result<Qmp> {
        stream.set_read_timeout(Some(ANSWERED))?;
        stream.set_write_timeout(Some(ANSWERED))?;
        let mut qmp = Qmp {
            stream: BufReader::new(stream),
        };
        while qmp.line()?.get("QMP").is_none() {}
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    fn line(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        match self.stream.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(serde_json::from_str(&line)?),
        }
    }

    fn execute(&mut self, command: &str, arguments: &Value) -> io::Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.stream.get_mut(), "{request}")?;
        loop {
            let mut answer = self.line()?;
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
            if let Some(error) = answer.get("error") {
                return Err(io::Error::other(error.to_string()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_protocol_passes_over_events_and_names_errors() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || {
            let mut stream = BufReader::new(theirs);
            let mut asked = Vec::new();
            for answer in [
                "{\"return\": {}}\n",
                "{\"event\": \"BALLOON_CHANGE\"}\n{\"return\": {\"actual\": 5}}\n",
                "{\"error\": {\"desc\": \"no balloon\"}}\n",
            ] {
                if asked.is_empty() {
                    stream.get_mut().write_all(b"{\"QMP\": {}}\n").unwrap();
                }
                let mut line = String::new();
                stream.read_line(&mut line).unwrap();
                asked.push(line);
                stream.get_mut().write_all(answer.as_bytes()).unwrap();
            }
            asked
        });
        let mut qmp = Qmp::over(ours).unwrap();
        let actual = qmp.execute("query-balloon", &json!({})).unwrap();
        assert_eq!(actual["actual"], 5);
        let error = qmp.execute("balloon", &json!({ "value": 7 })).unwrap_err();
        assert!(error.to_string().contains("no balloon"), "{error}");
        let asked = server.join().unwrap();
        assert!(asked[0].contains("qmp_capabilities"), "{asked:?}");
        assert!(asked[2].contains("{\"value\":7}"), "{asked:?}");
        // Nobody is there any more.
        assert!(qmp.execute("query-balloon", &json!({})).is_err());
    }

    #[test]
    fn a_comma_in_a_path_ends_no_option() {
        let plan = Plan {
            kernel: Path::new("vmlinuz"),
            initrd: Path::new("initrd.gz"),
            cmdline: "quiet",
            memory_bytes: 64 << 20,
            disk: Path::new("/a,b"),
        };
        let command = plan.command(Path::new("/c,d"));
        let line = format!("{command:?}");
        assert!(line.contains("file=/a,,b,format=raw") && line.contains("unix:/c,,d,"));
        assert!(line.contains("\"64M\""), "{line}");
    }
}
