//! The pager: the one owner of a VM's page states, and the mechanisms that move pages.
//!
//! [`Pager`] joins the books ([`crate::page`]) with the address space ([`crate::sys::space`]). Who
//! calls what:
//!
//! | thread | calls |
//! |---|---|
//! | fault thread | [`Pager::fault`] for every userfaultfd event, and nothing that waits for it |
//! | vCPU threads | the balloon sink: inflate, deflate, report free |
//! | worker | measuring, scanning, sharing, reclaiming, credit |
//!
//! **Lock order**: there is one lock, the books'. Nobody who holds it touches guest memory through
//! a mapping that may fault, does disk I/O, or calls [`GuestSpace::rearm`], which waits for the
//! fault thread. A page under such an operation is *staged* or *busy* meanwhile, and is looked at
//! again afterwards.
//!
//! [`credit`] is the account of what the VM may hold, [`swapfile`] and [`store`] are where content
//! goes, [`reclaim`] takes it there, [`share`] merges pages with the host manager's frames,
//! [`census`] counts what really backs the guest, and [`sample`] finds out how much of it is in use.
//!
//! [`GuestSpace::rearm`]: crate::sys::space::GuestSpace::rearm

pub mod census;
pub mod credit;
mod discard;
pub mod pager;
pub mod reclaim;
pub mod sample;
pub mod share;
pub mod store;
pub mod swapfile;

pub use pager::{Error, Pager};
