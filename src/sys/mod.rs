//! Everything that needs `unsafe`: mappings, userfaultfd, memslots.

pub mod ram;
