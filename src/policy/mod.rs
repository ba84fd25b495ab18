//! Policy: a snapshot of numbers in, a plan out. No I/O, no clock, no threads, no logging.

pub mod types;
