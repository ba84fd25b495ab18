//! Words that several layers speak: plain values, and how users write them.
//!
//! A type stands here when modules use it that do not use each other, such as the pager and the
//! link. What a value means, and what it may be, is said here; what follows from it is said where
//! that is decided.

pub mod allocation;
pub mod budget;
mod exit;
mod figures;
mod guest;
mod host_state;
mod key;
mod management;
pub mod names;
mod report;
mod sampling;
mod sharing;
pub mod size;
mod take_path;
mod token;
mod written;

pub use self::allocation::{Allocation, AllocationKey, AllocationKeys};
pub use self::exit::{Exit, ExitReason};
pub use self::figures::{Counters, Gauges, Holding};
pub use self::guest::{GuestMemoryStats, GuestReport};
pub use self::host_state::{MemState, Run};
pub use self::key::Key;
pub use self::management::{Advice, Management};
pub use self::report::{Measured, Report};
pub use self::sampling::Sampling;
pub use self::sharing::Sharing;
pub use self::take_path::TakePath;
pub use self::token::{Token, TokenError};
pub use self::written::Written;
