//! The pager: the one owner of a VM's memory, and the mechanisms that move pages.
//!
//! [`Pager`] joins the books ([`crate::page`]) with the address space ([`crate::sys::space`]) behind
//! one lock. `memory` is what a holder of the lock has: each step does the kernel's half and the
//! books' half of one transition, and no other module can do either. `pool_pages` has the steps on
//! pages in pool mappings, `stored_pages` those on compressed and swapped ones; `stage` hands out the slots for pages that are out of the guest, as tokens
//! that return by themselves. Who calls what:
//!
//! | thread | calls |
//! |---|---|
//! | fault threads | [`Pager::serve_faults`], and nothing that waits for them |
//! | vCPU threads | the balloon sink: inflate, deflate, report free (`discard`) |
//! | worker | the [`tasks`], credit, claims |
//!
//! **Lock order**: the sample's lock, the memory's, then those of the userfaultfd's backlog, of the
//! tickets for swap reads and of the returned stage slots. Nobody who holds the memory touches guest
//! memory through a mapping that may fault, does disk I/O, or calls [`GuestSpace::rearm`], which waits
//! for a fault thread. A page under such an operation is *staged* or *busy* meanwhile, and is looked
//! at again afterwards.
//!
//! [`credit`] is the account of what the VM may hold, [`swapfile`] ([`encrypted`] on request) and [`store`] are
//! where content goes, [`reclaim`] takes it there from where `victims` finds it, [`share`] merges pages with the
//! host manager's frames, [`claims`] tells a host manager which frames are mapped, [`census`] counts
//! what really backs the guest, [`sample`] finds out how much of it is in use, and an [`observe`]r
//! hears of every step.
//!
//! [`GuestSpace::rearm`]: crate::sys::space::GuestSpace::rearm

mod audit;
pub mod census;
pub mod claims;
pub mod credit;
mod discard;
pub mod encrypted;
pub mod faults;
mod first_touch;
mod frame_refs;
mod large;
mod memory;
pub mod observe;
pub mod pager;
mod pool_pages;
pub mod read_ahead;
pub mod reclaim;
pub mod returns;
mod runs;
pub mod sample;
pub mod share;
mod stage;
mod stirred;
mod stock;
pub mod store;
mod stored_pages;
mod swap_in;
pub mod swapfile;
pub mod tasks;
#[cfg(test)]
mod test_guest;
mod victims;

pub use pager::{Error, Pager};
