//! Everything that needs `unsafe`: mappings, userfaultfd, memslots; and what the kernel says in /proc.
//!
//! # Traps of the kernel, each met
//!
//! - **EAGAIN while a mapping moves.** While one thread mremaps a registered mapping, every
//!   userfaultfd transfer of the process answers EAGAIN until somebody has read the event; and
//!   whoever makes transfers holds the lock that the fault threads wait for. So each thread that
//!   meets EAGAIN reads the events itself and leaves them in a backlog for the fault threads
//!   (`sys/uffd.rs`).
//! - **One kernel mapping.** Transfers work within one of the kernel's mappings only, and the kernel
//!   merges neighbours when it likes. A refused range is tried again in halves (`over_mappings` in
//!   `sys/transfer.rs`).
//! - **F_SEAL_FUTURE_WRITE** would make the pool read-only for others in one call, but forbids hole
//!   punching too, so freed frames would never return to the host. Hence the read-only descriptor
//!   and the sandbox.
//! - **Large pages of memory files.** With `shmem_enabled` = always, within_size or force one
//!   written frame is backed with 2 MiB; the pool punches out what is no frame, and charges what is
//!   left.
//! - **A missing fault leaves a page table**, and a large page that is moved there becomes 512 small
//!   ones. Dropping what is not there frees the table, from Linux 6.14 on (CONFIG_PT_RECLAIM); before,
//!   the chunk must be mapped afresh (`sys/space/renew.rs`). Only a mapping advised to have large pages
//!   would have none, for which the kernel clears a large page in each first fault and throws it away.
//! - **An `anon_vma` is for good.** A mapping that is filled before the kernel has joined it to its neighbours
//!   gets one of its own, and is never joined.
//! - **Dropping a part of a large page frees nothing**: the kernel keeps all of it until memory is
//!   short everywhere, while its count of this process's memory falls. It is split first
//!   (`GuestSpace::split`).
//! - **A stale write protection.** A writer that met the protection of a page which was taken out
//!   meanwhile must be woken, or it sleeps for ever; and its event may arrive when the page is
//!   something else (`Pager::fault`, `unprotect`).
//! - **UFFDIO_MOVE on Linux 6.18 moves pages that it does not report.** Where it first has to wait
//!   for a page under migration it moves the page, stays at it, and answers EEXIST. Seen in one
//!   oracle run of eight beside compaction, as "stage slot is in use" and "cannot give back: File
//!   exists". What is at the destination and not at its source was moved (`GuestSpace::relocate`,
//!   `transfer::moved`); whoever waits for it is woken by hand.
//! - **UFFDIO_MOVE** is refused at the API handshake before Linux 6.8 (EINVAL for the feature bit):
//!   ask for the features first, then open with those that are there.
//! - **A page that reads as zero may be written at any moment**, by the kernel's own copy on write
//!   and unseen. Whoever drops one protects it first and looks again (`GuestSpace::discard_zero`);
//!   sampling did not, and lost the write.
//! - **The zero page in pagemap** has no exclusive bit, which tells it from a private page without
//!   privileges. A page that KSM has merged has none either, whatever it holds.
//! - **A page under migration in pagemap** has the swap bit, a file's page too; compaction and NUMA
//!   balancing migrate memfd pages. Taken for a written page, it lost guests their code.
//! - **A KSM page does not move** (EBUSY), into the staging area or out of it: such a page is left,
//!   or copied back. KSM is switched off for the process at start.
//! - **mremap and the mapping limit.** mremap counts before it unmaps its target, so a refusal
//!   changes nothing; but pages rearmed at different times may lie in mappings that the kernel does
//!   not merge again (their anon_vma differ), so that it has more of them than the page map counts.

pub mod cgroup;
pub mod cpu_time;
pub mod event;
pub mod guest_range;
pub mod host_swap;
pub mod inherited;
pub mod kernel_swap;
pub mod ksm;
pub mod kvm;
pub mod landlock;
pub mod large;
pub mod namespaces;
pub mod pagemap;
pub mod peer;
pub mod pinned;
pub mod pool_view;
pub mod priority;
pub mod proc;
pub mod ram;
pub mod signals;
pub mod space;
pub mod staging;
pub mod take_path;
mod transfer;
pub mod uffd;
mod zeros;
