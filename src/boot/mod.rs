//! (see ARCHITECTURE.md)

pub mod builtin;
