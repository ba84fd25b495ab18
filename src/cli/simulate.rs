//! `tidemark simulate`: plays scenario files and compares policies.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use super::{Error, stdout};
use crate::config::read_text;
use crate::policy::PolicyKind;
use crate::sim::{self, Outcome, Scenario};

/// Replays scenarios with model guests on the live policy code.
#[derive(Debug, Clone, clap::Args)]
pub struct SimulateArgs {
    /// Scenario files
    #[arg(required = true, value_name = "SCENARIO")]
    pub scenarios: Vec<PathBuf>,
    /// Play under this policy; may be repeated [default: those the scenario names, or all]
    #[arg(long, value_name = "P")]
    pub policy: Vec<String>,
    /// Print one JSON object for each scenario and policy
    #[arg(long)]
    pub json: bool,
    /// Draw what each VM holds over time
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
}

/// Runs the command: prints results to standard output.
///
/// The exit code is 0 when every scenario ended as expected under every policy, 1 when one did
/// not, and 2 for a mistake (then nothing is played).
pub fn run(args: &SimulateArgs) -> Result<ExitCode, Error> {
    match play(args, &mut io::stdout().lock()) {
        Ok(Verdict::AllOk) => Ok(ExitCode::SUCCESS),
        Ok(Verdict::SomeFailed) => Ok(ExitCode::FAILURE),
        Err(Failed::Mistake(mistake)) => Err(Error::Usage(mistake)),
        Err(Failed::Write(error)) => stdout::written(Err(error)).map(|()| ExitCode::SUCCESS),
        Err(Failed::Plot(path, error)) => Err(super::io(format!("write {path}"))(error)),
    }
}

/// Why scenarios were not played to the end.
#[derive(Debug)]
enum Failed {
    /// In a scenario, or on the command line.
    Mistake(String),
    Write(io::Error),
    Plot(String, io::Error),
}

/// What all scenarios together came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    AllOk,
    SomeFailed,
}

fn play(args: &SimulateArgs, out: &mut impl Write) -> Result<Verdict, Failed> {
    let asked = policies(&args.policy).map_err(Failed::Mistake)?;
    let scenarios: Vec<Scenario> = args
        .scenarios
        .iter()
        .map(|path| load(path))
        .collect::<Result<_, _>>()
        .map_err(Failed::Mistake)?;
    let mut verdict = Verdict::AllOk;
    let mut outcomes = Vec::new();
    for scenario in &scenarios {
        if !args.json {
            writeln!(out, "{}: {}", scenario.name, scenario.why).map_err(Failed::Write)?;
        }
        let kinds = if asked.is_empty() {
            &scenario.policies
        } else {
            &asked
        };
        for &kind in kinds {
            let begun = Instant::now();
            let outcome = sim::run(scenario, kind);
            let seconds = begun.elapsed().as_secs_f64();
            if !outcome.ok {
                verdict = Verdict::SomeFailed;
            }
            if args.json {
                let line = serde_json::to_string(&outcome).expect("it has string keys only");
                writeln!(out, "{line}").map_err(Failed::Write)?;
            } else {
                write!(out, "{}", table(&outcome, seconds)).map_err(Failed::Write)?;
            }
            outcomes.push(outcome);
        }
    }
    if let Some(path) = &args.plot {
        std::fs::write(path, sim::svg(&outcomes))
            .map_err(|error| Failed::Plot(path.display().to_string(), error))?;
    }
    Ok(verdict)
}

fn policies(names: &[String]) -> Result<Vec<PolicyKind>, String> {
    let known = PolicyKind::names();
    let parse = |name: &String| {
        name.parse()
            .map_err(|_| format!("--policy {name:?}: must be one of {known}"))
    };
    names.iter().map(parse).collect()
}

fn load(path: &Path) -> Result<Scenario, String> {
    let text = read_text(path)
        .map_err(|error| format!("{}: cannot read the scenario: {error}", path.display()))?;
    sim::parse(&text, path).map_err(|mistake| mistake.to_string())
}

/// The VMs of an outcome that a table shows, at most.
const ROWS_MAX: usize = 40;

fn table(outcome: &Outcome, seconds: f64) -> String {
    let verdict = if outcome.ok { "ok" } else { "FAILED" };
    let mut text = format!(
        "  {:<13} {verdict}: {}\n    least free {} MiB, worst state {}, {} changes; {} VM decisions \
         in {seconds:.2} s\n",
        outcome.policy,
        outcome.why,
        outcome.free_bytes_min >> 20,
        outcome.state_worst.name(),
        outcome.state_changes,
        outcome.vm_decisions,
    );
    let mib = |bytes: u64| bytes >> 20;
    text.push_str("    name           target    held swapped balloon (MiB)\n");
    for vm in outcome.vms.iter().take(ROWS_MAX) {
        text.push_str(&format!(
            "    {:<14} {:>6} {:>7} {:>7} {:>7}  {} {}: {}\n",
            vm.name,
            mib(vm.target_bytes),
            mib(vm.held_bytes),
            mib(vm.swapped_bytes),
            mib(vm.ballooned_bytes),
            vm.end,
            vm.conduct.name(),
            vm.why
        ));
    }
    if outcome.vms.len() > ROWS_MAX {
        text.push_str(&format!(
            "    ... and {} more\n",
            outcome.vms.len() - ROWS_MAX
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(scenario: PathBuf, policy: &str) -> SimulateArgs {
        SimulateArgs {
            scenarios: vec![scenario],
            policy: vec![policy.into()],
            json: true,
            plot: None,
        }
    }

    const SCENARIO: &str = "name = 'small'\nwhy = 'a test'\nduration = '2s'\n[host]\nmemory = '1G'\n\
                            [[vm]]\nname = 'a'\nmemory = '128M'\n";

    fn file(folder: &tempfile::TempDir, text: &str) -> PathBuf {
        let path = folder.path().join("scenario.toml");
        std::fs::write(&path, text).expect("a writable folder");
        path
    }

    #[test]
    fn json_has_one_object_a_scenario_and_policy() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut args = args(file(&folder, SCENARIO), "esx");
        args.policy.push("self".into());
        args.plot = Some(folder.path().join("out.svg"));
        let mut out = Vec::new();
        assert!(matches!(play(&args, &mut out), Ok(Verdict::AllOk)));
        let text = String::from_utf8(out).expect("text");
        assert_eq!(text.lines().count(), 2);
        for line in text.lines() {
            let object: serde_json::Value = serde_json::from_str(line).expect("JSON");
            assert_eq!(object["scenario"], "small");
            assert_eq!(object["ok"], true);
            assert!(object["policy"].is_string() && object["why"].is_string());
            assert_eq!(object["vms"][0]["name"], "a");
            assert!(object["vms"][0]["held_bytes"].as_u64() > Some(50 << 20));
            assert!(object["vms"][0]["target_bytes"].is_u64());
        }
        let svg = std::fs::read_to_string(folder.path().join("out.svg")).expect("the picture");
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    }

    fn mistake_of(scenario: PathBuf, policy: &str) -> String {
        match play(&args(scenario, policy), &mut Vec::new()) {
            Err(Failed::Mistake(mistake)) => mistake,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn mistakes_name_file_key_and_reason() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = file(&folder, &SCENARIO.replace("'128M'", "'many'"));
        let mistake = mistake_of(path, "esx");
        assert!(
            mistake.contains("scenario.toml: vm \"a\": `memory = \"many\"`"),
            "{mistake}"
        );
        let mistake = mistake_of(file(&folder, SCENARIO), "best");
        assert!(
            mistake.contains("must be one of esx, proportional"),
            "{mistake}"
        );
        let missing = folder.path().join("nosuch.toml");
        assert!(mistake_of(missing, "esx").contains("nosuch.toml"));
    }
}
