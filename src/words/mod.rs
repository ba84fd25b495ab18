//! Words that several layers speak: plain values, without rules about them.
//!
//! A type stands here when modules use it that do not use each other, such as the pager and the
//! link. What a value means is said here; what follows from it is said where that is decided.

mod exit;
mod figures;
mod guest;
mod host_state;
mod key;
mod report;
mod sampling;
mod take_path;

pub use self::exit::{Exit, ExitReason};
pub use self::figures::{Counters, Gauges, Holding};
pub use self::guest::{GuestMemoryStats, GuestReport};
pub use self::host_state::{MemState, Run};
pub use self::key::Key;
pub use self::report::{Measured, Report};
pub use self::sampling::Sampling;
pub use self::take_path::TakePath;
