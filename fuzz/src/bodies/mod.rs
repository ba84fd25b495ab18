//! What each target does with an input, and how far an input gets.
//!
//! An input is a program: bytes choose what a driver, a VM process, a person or a file says next,
//! most of it right, so that the hostile part meets something that runs. A body panics when what it
//! watches breaks a rule. It returns whether the input got to what the target is about.
//!
//! `tests/fuzz.rs` plays these bodies without a fuzzer.

mod balloon;
mod block;
mod console;
mod control;
mod driver;
mod fleet;
mod groups;
mod input;
mod kernel;
mod link;
mod manager;
mod messages;
mod mmio;
mod scenario;
mod toml;

/// One thing that is fuzzed. Its seeds are in `fuzz/seeds`.
pub struct Target {
    pub name: &'static str,
    /// Plays one input; whether it got to what the target is about.
    pub body: fn(&[u8]) -> bool,
    /// Of the inputs that `tests/fuzz.rs` makes, at least so many in a hundred get there.
    pub reach_percent: u64,
    /// And so many are made.
    pub inputs: u64,
    /// Whether an input can only be text; then each is made of a seed.
    pub is_text: bool,
    /// A folder of this repository with further inputs.
    pub examples: Option<&'static str>,
}

const fn program(name: &'static str, body: fn(&[u8]) -> bool, inputs: u64) -> Target {
    Target {
        name,
        body,
        reach_percent: 50,
        inputs,
        is_text: false,
        examples: None,
    }
}

/// All of them.
pub const TARGETS: &[Target] = &[
    program("balloon", balloon::body, 8000),
    program("block", block::body, 6000),
    program("mmio", mmio::body, 8000),
    program("console", console::body, 6000),
    program("link", link::body, 10_000),
    program("manager", manager::body, 3000),
    Target {
        reach_percent: 25,
        ..program("kernel", kernel::body, 4000)
    },
    Target {
        reach_percent: 20,
        is_text: true,
        ..program("control", control::body, 4000)
    },
    Target {
        reach_percent: 10,
        examples: Some("examples"),
        ..program("fleet", fleet::body, 6000)
    },
    Target {
        reach_percent: 10,
        examples: Some("examples/scenarios"),
        ..program("scenario", scenario::body, 600)
    },
];
