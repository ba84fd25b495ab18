//! (see ARCHITECTURE.md)

pub mod key;
