//! tidemark: a small KVM virtual machine monitor and host manager with memory overcommit.
//!
//! One process per guest owns its KVM VM, its guest-physical map, its devices and its swap file. One
//! host manager owns the budget, the ledger, the share groups with their frame pools and the policy. They
//! talk over one SOCK_SEQPACKET socket, and neither trusts the other. ARCHITECTURE.md has the whole
//! picture, with its invariants and known gaps; in brief, in dependency order (each module uses only
//! those above it, which `tests/tidy.rs` checks):
//!
//! | module | what it is |
//! |---|---|
//! | [`units`] | addresses and quantities; the only shifts and masks |
//! | [`words`] | values that several layers speak of: how a VM ended, a page's key, the host's memory state |
//! | [`sys`] | everything that needs `unsafe`: guest RAM, userfaultfd, page tables, memslots |
//! | [`threads`] | the threads of a VM process as data, how they start, their sandbox |
//! | [`out`] | text to terminals, pipes and files, without waiting for them |
//! | [`policy`] | pure: a snapshot of numbers in, a plan out |
//! | [`config`] | fleet file and flags to checked specs |
//! | [`link`] | the messages between a VM process and the host manager |
//! | [`page`] | one VM's books: page states, the table gfn -> state, swap slots |
//! | [`mem`] | the pager: faults, sharing, swapping, measuring, credit |
//! | [`devices`] | bus, serial, virtio-mmio, balloon; what they learn goes to sink traits |
//! | [`boot`] | kernel files, entry states, the built-in test guests |
//! | [`machine`] | the virtual machine: KVM, vCPU threads, the gate before them, which device is where |
//! | [`vm`] | one VM process: joins, builds its machine, obeys orders, ends |
//! | [`host`] | the host manager: ledger, share groups and their frame pools, leases, decisions, control API |
//! | [`sim`] | scenarios: the host manager with model guests |
//! | [`cli`] | text in, calls to [`host`] or [`vm`], text out |
//!
//! The way of a page: a guest's first touch is a page fault that [`mem`] serves, if the VM's credit
//! covers it; a scan offers the page's key to the host manager; equal pages of one share group map one
//! frame of its pool, copy-on-write by the kernel; the balloon drops what the guest gives up; and what
//! must go beyond that is taken out of the guest at random, compressed or written to a swap file, and
//! brought back when it is touched.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

pub mod units;

pub mod words;

pub mod sys;

pub mod threads;

pub mod out;

pub mod policy;

pub mod config;

pub mod link;

pub mod page;

pub mod mem;

pub mod devices;

pub mod boot;

pub mod machine;

pub mod vm;

pub mod host;

pub mod sim;

pub mod cli;
