//! Every shipped scenario ends as expected under every policy it names, and every safeguard has a
//! scenario that fails without it.

use std::path::PathBuf;

use tidemark::policy::safeguard::Safeguard;
use tidemark::sim;

/// The shipped scenario files with their text.
fn files() -> Vec<(PathBuf, String)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples/scenarios");
    let entries = std::fs::read_dir(&folder).expect("the folder is shipped");
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .collect();
    files.sort();
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).expect("a readable file");
        (path, text)
    };
    files.into_iter().map(read).collect()
}

#[test]
fn every_shipped_scenario_ends_as_expected() {
    let mut wrong = Vec::new();
    for (path, text) in files() {
        // A tenth of the fleet is enough for a test.
        let text = text.replace("hosts = 1000", "hosts = 100");
        let scenario = match sim::parse(&text, &path) {
            Ok(scenario) => scenario,
            Err(mistake) => panic!("{mistake}"),
        };
        for &policy in &scenario.policies {
            let outcome = sim::run(&scenario, policy);
            if !outcome.ok {
                let file = path.file_name().unwrap_or_default().display().to_string();
                wrong.push(format!("{file} {}: {}", outcome.policy, outcome.why));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_safeguard_has_a_scenario_that_fails_without_it() {
    let files = files();
    for guard in Safeguard::ALL {
        let switch = format!("without = [\"{}\"]", guard.name());
        let shown = files
            .iter()
            .any(|(_, text)| text.contains(&switch) && text.contains("fails = ["));
        assert!(shown, "{}", guard.name());
    }
}

/// A scenario that must fail and does not is a failure: the test of the test.
#[test]
fn a_scenario_that_should_fail_and_does_not_is_not_ok() {
    let text = "name = 'easy'\nwhy = 'test'\nduration = '2s'\nfails = ['esx']\n\
                fails_with = 'never'\n[host]\nmemory = '1G'\n[[vm]]\nname = 'a'\nmemory = '64M'\n";
    let scenario = sim::parse(text, &PathBuf::from("easy.toml")).expect("a good scenario");
    let outcome = sim::run(&scenario, tidemark::policy::PolicyKind::Esx);
    assert!(!outcome.ok);
    assert!(
        outcome.why.contains("should have failed"),
        "{}",
        outcome.why
    );
}

#[test]
fn mistakes_name_the_file_the_key_and_the_reason() {
    let head = "name = 'x'\nwhy = 'y'\n[host]\nmemory = '1G'\n";
    let vm = "[[vm]]\nname = 'a'\nmemory = '64M'\n";
    // (text, the whole line)
    let table = [
        (
            format!("{head}{vm}guest = 'lazy'"),
            "x.toml: vm \"a\": `guest = \"lazy\"`: must be one of prompt, slow, stuck, \
             sometimes-stuck, trickle, refuses, greedy, liar, dies, sleeper, sudden-need, idle",
        ),
        (
            format!("{head}{vm}guest = 'refuses'"),
            "x.toml: vm \"a\": `below` is missing: this guest needs it",
        ),
        (
            format!("{head}{vm}limit = '65M'"),
            "x.toml: vm \"a\": `limit = \"65M\"`: must be at most `memory = \"64M\"`",
        ),
        (
            format!("{head}{vm}[[expect]]\nvm = 'b'"),
            "x.toml: expect 1: `vm = \"b\"`: no VM of this file has this name",
        ),
        (
            head.to_owned(),
            "x.toml: no VM: must have [[vm]] tables, or [fleet]",
        ),
        (
            format!("without = ['luck']\n{head}{vm}"),
            "x.toml: `without = \"luck\"`: must be one of two-phase, inaccuracy, \
             stuck-detection, trickle-rule, hysteresis, guest-minimum, measured, floors, admission, sleep-decay",
        ),
        (
            format!("fails = ['esx']\n{head}{vm}"),
            "x.toml: `fails` without `fails_with`, words of the reason",
        ),
    ];
    for (text, line) in table {
        let mistake = sim::parse(&text, &PathBuf::from("x.toml")).expect_err(line);
        assert_eq!(mistake.to_string(), line);
    }
    let syntax = sim::parse(&format!("{head}memroy = 1\n{vm}"), &PathBuf::from("x.toml"));
    let syntax = syntax.expect_err("an unknown key").to_string();
    assert!(
        syntax.starts_with("x.toml:5: memroy: unknown field"),
        "{syntax}"
    );
}
