//! Everything that needs `unsafe`: mappings, userfaultfd, memslots.

pub mod inherited;
pub mod ram;
