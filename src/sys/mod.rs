//! Everything that needs `unsafe`: mappings, userfaultfd, memslots.

pub mod kvm;
pub mod ram;
