//! Devices. They know nothing of the pager: what they find out goes to sink traits.
//!
//! A device is reached through a [`bus::Bus`] by the vCPU thread that touched it, raises an
//! [`interrupt::Interrupt`] and reads or writes guest memory only through [`crate::sys::guest_range`] checked
//! ranges. Everything a guest says is hostile: malformed input is counted, logged at a limited rate
//! and stops the one device that met it.

pub mod bus;
pub mod console;
pub mod idle;
pub mod interrupt;
pub mod ports;
pub mod serial;
pub mod sink;
pub mod virtio;

use std::time::Duration;

/// Shortest time between two lines that one device logs.
const LOG_INTERVAL: Duration = Duration::from_secs(5);
