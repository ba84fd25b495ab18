//! (see ARCHITECTURE.md)
pub mod simulate;
