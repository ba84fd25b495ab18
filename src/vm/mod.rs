//! One VM process, from its first message to its last.
//!
//! [`process::run`] joins the host manager, builds the machine around memory that the pager serves,
//! and leaves the rest to the agent: orders, credit, sharing, swapping, reports. It connects what
//! does not know each other: the machine and the pager. Its threads are in [`crate::threads`].
//!
//! | file | job |
//! |---|---|
//! | `files` | what the VM boots from, opened before anything is started |
//! | `inspect` | whether that can be booted, asked of a process that can do nothing else |
//! | `process` | the order of things, from the hello to the end |
//! | `join` | the first messages of a link, and its last |
//! | `outside` | what it takes from outside before it leaves that |
//! | `building`, `launch` | the machine under construction; its last steps before it runs |
//! | `agent` | the main thread's loop while the guest runs: orders and credit |
//! | `plain` | the main thread's loop of a VM whose memory is not managed |
//! | `uplink` | the link to the host manager, and joining again |
//! | `tasks`, `schedule` | what is done for the guest's memory now and then; what runs when |
//! | `references`, `contents`, `report` | what the host manager is told: frames, pages it wants, figures |
//! | `stillness` | for how long nothing has happened, so that the process may rest |
//! | `active` | the task that finds out how much of its memory the VM uses |
//! | `pager_sink` | what the balloon says, to the pager |
//! | `statistics` | asks the guest for its statistics |
//! | `console`, `terminal` | where the guest's text goes; a person at its serial port |
//! | `failure`, `panic`, `error` | what went wrong: in a thread, by a panic, before the guest ran |
//! | `wait` | waiting for descriptors |

mod active;
mod agent;
mod building;
mod console;
mod contents;
mod error;
mod failure;
pub mod files;
pub mod inspect;
pub mod join;
mod launch;
mod outside;
mod pager_sink;
mod panic;
mod plain;
pub mod process;
mod references;
mod report;
mod schedule;
mod statistics;
mod stillness;
mod tasks;
pub mod terminal;
mod uplink;
mod wait;

pub use self::error::Error;
