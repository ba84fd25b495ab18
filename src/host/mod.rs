//! The host manager: budget, ledger, frame pool, share index, policy tick, control API.

pub mod ledger;
pub mod pool;
pub mod share;
