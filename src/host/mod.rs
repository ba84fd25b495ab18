//! The host manager: budget, ledger, share groups with their frame pools, policy tick, control API.
//!
//! | file | owns |
//! |---|---|
//! | [`ledger`] | who holds how much of the budget |
//! | [`share`] | the share groups, and who is in which |
//! | `group` | one group: its pool, keys, hints, references |
//! | `member` | one VM in its group, and its bounds |
//! | `tables` | hash tables that are dense and grow without a pause |
//! | [`pool`] | the memory of a group's frames |
//! | [`split`] | the frames of a group divided among those who refer to them |
//! | [`accounts`] | figures for people and programs |
//! | [`registration`] | what a launcher says of a VM |
//! | [`manager`] | all of these, and the policy: messages and time in, messages out |
//! | [`server`] | descriptors and the clock: the event loop |
//! | [`control`] | `ps`, `set`, `stop`, `reserve`, `join`, `version` |
//!
//! Single-threaded throughout. No VM process is trusted: see [`manager::Violation`].

pub mod accounts;
pub mod control;
mod group;
pub mod ledger;
pub mod manager;
mod member;
pub mod pool;
pub mod process;
pub mod record;
pub mod registration;
pub mod server;
pub mod share;
pub mod split;
mod tables;
