//! The simulator: a scenario in, an outcome out. No clock, no file, no process: the real host manager
//! without its sockets ([`Manager`](crate::host::manager::Manager)), and model guests that answer it as
//! VM processes do.
//!
//! A scenario is a host, model guests, events and an expected end. [`run`] plays it under one policy
//! in steps of 100 ms: starts and changes, then every guest obeys its orders, touches memory out of
//! its credit and reports, then the host manager decides. At each decision the laws are checked, which
//! hold in every scenario; at the end the scenario's own expectations. A scenario that switches a
//! safeguard off must fail, and says with which words.
//!
//! | file | job |
//! |---|---|
//! | `scenario` | what a scenario is, checked |
//! | `file` | from the text of a scenario file to a scenario, with file, key and reason of a mistake |
//! | `guest` | one model guest and its VM process |
//! | `host` | drives the host manager: starts, events, messages to and fro, one step |
//! | `groups` | the share groups, which nobody uses |
//! | `laws` | what must hold at every decision |
//! | `outcome` | expectations, what comes out |
//! | `fleet` | many hosts from a seed |
//! | `plot` | an SVG picture of an outcome |
//!
//! What is not simulated: sharing, compression, lost links, decisions between two ticks, the time that
//! anything takes. A model guest's active memory is known, unless the host has a `sample_period`: then
//! it is estimated as on a live host. Inspired by squeezed's `test/squeeze_test.ml`.

mod file;
mod fleet;
mod groups;
mod guest;
mod host;
mod laws;
mod outcome;
mod plot;
mod scenario;

pub use file::{Mistake, parse};
pub use outcome::{Outcome, VmOutcome};
pub use plot::svg;
pub use scenario::Scenario;

use crate::policy::PolicyKind;

/// Plays a scenario under one policy.
pub fn run(scenario: &Scenario, policy: PolicyKind) -> Outcome {
    match &scenario.fleet {
        Some(fleet) => fleet::run(scenario, fleet, policy),
        None => host::run(scenario, policy),
    }
}
