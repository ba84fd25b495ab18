//! Devices. They know nothing of the pager: what they find out goes to sink traits.

pub mod sink;
