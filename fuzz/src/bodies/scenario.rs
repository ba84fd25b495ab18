//! Scenario files: any text is a scenario or a mistake in one line; short ones are played under
//! every policy.

use std::path::Path;

use tidemark::policy::PolicyKind;
use tidemark::policy::safeguard::Safeguard;
use tidemark::sim;

use super::input::Input;
use super::toml::{self, Key, SIZES, SMALL, TIMES};

/// Steps of all model guests together that are played.
const GUEST_STEPS_MAX: u64 = 400;

const HOST: &[Key] = &[
    ("overhead", SMALL),
    ("idle_tax", &["0", "75", "99"]),
    ("min_free", &["'percent'", "'sliding'", "'6%'"]),
    ("sample_period", TIMES),
];
const VM: &[Key] = &[
    ("count", &["1", "2", "3"]),
    ("overhead", SMALL),
    ("start", TIMES),
    ("guest", GUESTS),
    ("wants", SIZES),
    ("cache", SMALL),
    ("active", SMALL),
    ("upper", SIZES),
    ("misses", SMALL),
    ("reports", &["'truth'", "'nothing'", "'lies'"]),
];
/// Each with what it needs.
const GUESTS: &[&str] = &[
    "'prompt'",
    "'idle'",
    "'liar'",
    "'slow'",
    "'slow'\nrate = '1M'",
    "'stuck'",
    "'sometimes-stuck'\nworks = '200ms'\nperiod = '500ms'",
    "'sometimes-stuck'\nworks = '0s'\nperiod = '0s'",
    "'trickle'",
    "'refuses'\nbelow = '32M'",
    "'greedy'",
    "'dies'\nat = '500ms'",
    "'sleeper'\nat = '300ms'",
    "'sudden-need'\nat = '300ms'\nthen = '200M'",
];
const EXPECT: &[Key] = &[
    ("free_min", SMALL),
    ("state_worst", &["'high'", "'soft'", "'hard'", "'low'"]),
    ("after", TIMES),
    ("state_changes_max", &["0", "3"]),
    ("guaranteed", &["true", "false"]),
];

/// A scenario of up to five guests for at most two seconds.
fn written(input: &mut Input<'_>) -> String {
    let mut text = "name = 'x'\nwhy = 'y'\n".to_owned();
    let duration = input.pick(&["1s", "500ms", "2s", "100ms"]);
    text.push_str(&format!("duration = '{duration}'\n"));
    if input.u8() < 64 {
        let guard = input.pick(Safeguard::ALL).name();
        text.push_str(&format!("without = [{guard:?}]\n"));
    }
    let memory = match input.u8() {
        0..=7 => format!("{}", input.number(1 << 28)),
        other => SIZES[usize::from(other) % SIZES.len()].to_owned(),
    };
    text.push_str(&format!("[host]\nmemory = {memory}\n"));
    toml::write(&mut text, HOST, input);
    if input.u8() < 16 {
        let seed = input.u16();
        text.push_str(&format!("[fleet]\nhosts = 2\nseed = {seed}\nvms_max = 5\n"));
        return text;
    }
    let guests = 1 + input.below(5);
    for number in 0..guests {
        text.push_str(&format!("[[vm]]\nname = 'vm-{number}'\n"));
        toml::write(&mut text, VM, input);
        toml::write(&mut text, toml::ALLOCATION, input);
    }
    for _ in 0..input.below(3) {
        let (at, vm) = (input.pick(TIMES), input.below(guests));
        text.push_str(&format!("[[change]]\nat = {at}\nvm = 'vm-{vm}'\n"));
        toml::write(&mut text, &toml::ALLOCATION[1..], input);
    }
    if input.bool() {
        text.push_str("[[expect]]\n");
        toml::write(&mut text, EXPECT, input);
    }
    text
}

/// Whether it was played.
pub fn body(data: &[u8]) -> bool {
    if toml::is_program(data) {
        return check(&written(&mut Input::new(&data[1..])));
    }
    str::from_utf8(data).is_ok_and(check)
}

fn check(text: &str) -> bool {
    let scenario = match sim::parse(text, Path::new("/nowhere/scenario.toml")) {
        Ok(scenario) => scenario,
        Err(mistake) => {
            let line = mistake.to_string();
            assert!(!line.is_empty() && !line.contains('\n'), "{line:?}");
            return false;
        }
    };
    if scenario.guest_steps() > GUEST_STEPS_MAX {
        return false;
    }
    for kind in PolicyKind::ALL {
        let outcome = sim::run(&scenario, *kind);
        assert!(!outcome.why.is_empty());
        serde_json::to_string(&outcome).expect("an outcome is JSON");
    }
    true
}
