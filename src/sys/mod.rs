//! Everything that needs `unsafe`: mappings, userfaultfd, memslots.

pub mod event;
pub mod host_swap;
pub mod inherited;
pub mod kvm;
pub mod pagemap;
pub mod pool_view;
pub mod ram;
pub mod space;
mod transfer;
pub mod uffd;
