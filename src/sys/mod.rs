//! Everything that needs `unsafe`: mappings, userfaultfd, memslots.

pub mod event;
pub mod host_swap;
pub mod inherited;
pub mod ksm;
pub mod kvm;
pub mod pagemap;
pub mod peer;
pub mod pool_view;
pub mod ram;
pub mod space;
pub mod staging;
mod transfer;
pub mod uffd;
