//! One VM's books: which state every guest frame is in, and which swap slots are taken.
//!
//! Plain data, no system calls, no locks, no clock: the pager ([`crate::mem`]) owns one of each and
//! carries out what the books say. [`state`] is the table of legal transitions, [`pmap`] the table
//! gfn -> state, [`swapmap`] the slots of the swap file, [`key`] the function that maps a page's
//! content to its sharing key.

pub mod key;
pub mod pmap;
pub mod state;
pub mod swapmap;
