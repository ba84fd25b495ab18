//! Everything that needs `unsafe`: mappings, userfaultfd, memslots; and what the kernel says in /proc.

pub mod event;
pub mod guest_range;
pub mod host_swap;
pub mod inherited;
pub mod ksm;
pub mod kvm;
pub mod pagemap;
pub mod peer;
pub mod pool_view;
pub mod proc;
pub mod ram;
pub mod signals;
pub mod space;
pub mod staging;
pub mod take_path;
mod transfer;
pub mod uffd;
