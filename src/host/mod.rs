//! The host manager: budget, ledger, frame pool, share index, policy tick, control API.
//!
//! | file | owns |
//! |---|---|
//! | [`ledger`] | who holds how much of the budget |
//! | [`pool`] | the shared frames' memory |
//! | [`share`] | keys, hints, references |
//! | [`accounts`] | figures for people and programs |
//! | [`manager`] | all of these, and the policy: messages and time in, messages out |
//! | [`server`] | descriptors and the clock: the event loop |
//! | [`control`] | `ps`, `set`, `stop`, `version` |
//!
//! Single-threaded throughout. No VM process is trusted: see [`manager::Violation`].

pub mod accounts;
pub mod control;
pub mod ledger;
pub mod manager;
pub mod pool;
mod rate_limit;
pub mod server;
pub mod share;
