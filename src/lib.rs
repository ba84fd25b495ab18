//! tidemark: a small KVM virtual machine monitor and host manager with memory overcommit.

pub mod boot;
pub mod cli;
pub mod config;
pub mod devices;
pub mod host;
pub mod link;
pub mod mem;
pub mod page;
pub mod policy;
pub mod sim;
pub mod sys;
pub mod units;
pub mod vm;
