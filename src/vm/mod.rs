//! (see ARCHITECTURE.md)

pub mod process;
