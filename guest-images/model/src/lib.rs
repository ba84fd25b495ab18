//! The pure parts of the test guests: no ports, no devices, no guest memory. Tested on the host.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod cmdline;
pub mod content;
pub mod frames;
pub mod histogram;
pub mod layout;
pub mod meter;
pub mod order;
pub mod ring;
pub mod rng;
pub mod work;
