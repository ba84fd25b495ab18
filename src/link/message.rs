//! The messages between a VM process and the host manager.
//!
//! One message is one SOCK_SEQPACKET datagram: a version byte, then the postcard encoding of
//! [`ToHost`] or [`ToVm`]. Both sides treat the other as hostile: decoding is bounded by
//! [`MESSAGE_BYTES_MAX`], every list has its own bound (checked by [`ToHost::check`] and
//! [`ToVm::check`]), and a message that breaks a bound ends the link.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::units::{FrameId, Gfn, PAGE_SIZE, Pages};
use crate::words::{
    Allocation, Exit, GuestMemoryStats, GuestReport, Key, MemState, Run, Sampling, TakePath,
};

/// Version of the messages below; a peer of another version is refused at `Hello`.
pub const VERSION: u8 = 3;
/// Largest datagram either side sends or accepts, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 96 * 1024;
/// Pages offered in one [`ToHost::Offer`], at most.
pub const OFFER_PAGES_MAX: usize = 512;
/// Page contents in one [`ToHost::Content`], at most (16 pages = 64 KiB).
pub const CONTENT_PAGES_MAX: usize = 16;
/// Entries of any other list, at most.
pub const LIST_MAX: usize = 1024;
/// Bytes of a name, reason or other text, at most.
pub const TEXT_BYTES_MAX: usize = 1024;

/// What a VM process says to the host manager.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ToHost {
    /// First message: who joins and what it is entitled to. A VM that joins again hands the
    /// descriptor of its frame pool back with it.
    Hello(Hello),
    /// Frames that this VM maps, one entry a page: all of them, in any number of messages, after a
    /// `Welcome` with [`Welcome::adopted`].
    Claim {
        /// At most [`LIST_MAX`].
        frames: Vec<FrameId>,
    },
    /// The claims are complete: they are all the references that this VM has.
    Claimed,
    /// The VM needs `pages` more credit than it has (see [`ToVm::Credit`]).
    CreditRequest {
        /// Further pages wanted.
        pages: Pages,
    },
    /// The VM gives `pages` of its credit back.
    CreditReturn {
        /// Pages given back.
        pages: Pages,
    },
    /// Measured state of the VM, sent about every 100 ms and before `Exited`.
    Report(Box<Report>),
    /// Keys of private pages, in ascending gfn order.
    Offer {
        /// (gfn, key), at most [`OFFER_PAGES_MAX`].
        pages: Vec<(Gfn, Key)>,
    },
    /// Copies of the pages that the host manager wanted.
    Content {
        /// (gfn, 4096 bytes), at most [`CONTENT_PAGES_MAX`].
        pages: Vec<(Gfn, ByteBuf)>,
    },
    /// References given back: frames that this VM no longer maps, or candidates it did not map.
    Release {
        /// One entry a reference, at most [`LIST_MAX`]; a frame may stand in it several times.
        frames: Vec<FrameId>,
    },
    /// The VM has ended; the last message.
    Exited(Exit),
}

/// Who joins, and its allocation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Name, unique on the host: 1 to 64 of `[A-Za-z0-9._-]`.
    pub name: String,
    /// What it is entitled to.
    pub allocation: Allocation,
    /// VMs of one group may share pages; `None`: this VM shares only with itself.
    pub share_group: Option<String>,
    /// Memory held already: zero for a new VM, what it holds when it joins again after the host
    /// manager was restarted.
    pub held: Pages,
    /// The lease that it redeems: see [`crate::policy::lease`].
    pub lease: Option<u64>,
}

/// What the host manager says to a VM process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ToVm {
    /// The VM is admitted. Carries one descriptor: the frame pool, read-only.
    Welcome(Welcome),
    /// The VM is not admitted; the link ends.
    Refused {
        /// One line with the arithmetic.
        reason: String,
    },
    /// The VM may hold `pages` more private pages than before.
    Credit {
        /// Further pages granted.
        pages: Pages,
    },
    /// What the VM shall do until the next orders.
    Orders(Orders),
    /// Frames whose content probably equals the VM's page. Each entry lends the VM one reference,
    /// which it keeps while it maps the frame and gives back with `Release` otherwise.
    Candidates {
        /// (gfn, frame), at most [`LIST_MAX`].
        pages: Vec<(Gfn, FrameId)>,
    },
    /// The content of these pages is wanted for new frames.
    Want {
        /// At most [`LIST_MAX`].
        gfns: Vec<Gfn>,
    },
    /// End the guest now.
    Stop,
}

/// The terms on which a VM was admitted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// Seed of the share group's keys: a secret of the host manager and the group's VMs.
    pub key_seed: u64,
    /// Length of the frame pool file in frames.
    pub pool_frames: u32,
    /// Private pages the VM may hold from the start.
    pub credit: Pages,
    /// How much credit to ask for at a time, and how much unused credit to keep.
    pub credit_batch: Pages,
    /// How its working set is estimated.
    pub sampling: Sampling,
    /// The frame pool is the one that the VM handed back: the VM goes on mapping its frames, and
    /// has to say which they are ([`ToHost::Claim`]). No candidates come before it has.
    pub adopted: bool,
}

/// Level-triggered orders: they hold until the next ones arrive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orders {
    /// State of the host.
    pub state: MemState,
    /// Pages that the balloon should hold.
    pub balloon_target: Pages,
    /// Compress or swap until the VM's private pages and its compressed store together, which is
    /// what its credit account calls used, are at most this; `None`: do not swap.
    pub private_max: Option<Pages>,
    /// Whether the vCPUs may run.
    pub run: Run,
    /// Share scan rate in pages a second; zero: do not scan.
    pub scan_pages_per_second: u32,
}

/// Measured state of one VM. Pages unless the name says otherwise; counters count from the start.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Anonymous pages that back the guest, those in flight included.
    pub private: Pages,
    /// Guest pages that map a pool frame, unbroken.
    pub shared: Pages,
    /// Pages that map a frame of an earlier host manager: nobody else accounts for them.
    pub orphaned: Pages,
    /// Guest pages that were found to be all zero and discarded, and are still unbacked.
    pub zero: Pages,
    /// Guest pages that the balloon holds.
    pub ballooned: Pages,
    /// Guest pages in the compressed store.
    pub compressed: Pages,
    /// Memory of the compressed store.
    pub compressed_store: Pages,
    /// Guest pages in the swap file.
    pub swapped: Pages,
    /// Memory of the VM process beside its guest's RAM: private memory and page tables.
    pub overhead: Pages,
    /// How its pages are taken out.
    pub take_path: Option<TakePath>,
    /// Estimated working set, once sampled.
    pub active: Option<Pages>,
    /// The estimate is within this of the truth 19 times of 20.
    pub active_error: Pages,
    /// Counter: pages read or decompressed back on touch or need.
    pub swap_in_pages: u64,
    /// Counter: pages written to the swap file or compressed.
    pub swap_out_pages: u64,
    /// Counter: shared pages that the guest wrote.
    pub cow_breaks: u64,
    /// Counter: swap writes that failed; the pages stayed in memory.
    pub swap_errors: u64,
    /// Whether the guest's balloon driver is up.
    pub balloon_driver: bool,
    /// What the guest says its balloon holds. For display only: `ballooned` is measured.
    pub balloon_actual: Pages,
    /// The guest's own memory statistics, if its driver sends them. Never trusted.
    pub guest_memory: GuestMemoryStats,
    /// Microseconds from the start of the VM process's program to the guest's first instruction;
    /// `None` before that.
    pub start_us: Option<u32>,
    /// What a built-in test guest reported on its console. Never trusted.
    pub guest: Option<GuestReport>,
}

impl Report {
    /// Memory that the VM holds out of its own credit: everything but its part of live frames.
    pub fn own(&self) -> Pages {
        self.private + self.compressed_store + self.orphaned
    }

    /// The same report with figures that a VM of `size` can have: a VM process can report what it
    /// likes, is charged for it, and shall not be charged for more than it was admitted with.
    ///
    /// A guest page is private, orphaned or compressed, never two of them, and a compressed page
    /// takes less than a page of the store: so `own()` is at most the size, and what is too much is
    /// cut off the store first. The overhead is bounded apart, since it is charged apart.
    #[must_use]
    pub fn within(self, size: Pages) -> Report {
        // Without `..`: a new figure must be given its bound here.
        let Report {
            private,
            shared,
            orphaned,
            zero,
            ballooned,
            compressed,
            compressed_store,
            swapped,
            overhead,
            take_path,
            active,
            active_error,
            swap_in_pages,
            swap_out_pages,
            cow_breaks,
            swap_errors,
            balloon_driver,
            balloon_actual,
            guest_memory,
            start_us,
            guest,
        } = self;
        let private = private.min(size);
        let orphaned = orphaned.min(size - private);
        let compressed = compressed.min(size);
        let count = |counter: u64| counter.min(COUNTER_MAX);
        Report {
            private,
            shared: shared.min(size),
            orphaned,
            zero: zero.min(size),
            ballooned: ballooned.min(size),
            compressed,
            compressed_store: compressed_store
                .min(size - private - orphaned)
                .min(compressed),
            swapped: swapped.min(size - compressed),
            overhead: overhead.min(overhead_max(size)),
            take_path,
            active: active.map(|active| active.min(size)),
            active_error: active_error.min(size),
            swap_in_pages: count(swap_in_pages),
            swap_out_pages: count(swap_out_pages),
            cow_breaks: count(cow_breaks),
            swap_errors: count(swap_errors),
            balloon_driver,
            balloon_actual: balloon_actual.min(size),
            // In bytes, of the guest's own: whoever reads them expects anything.
            guest_memory,
            start_us,
            guest: guest.map(|guest| GuestReport {
                pages_verified: count(guest.pages_verified),
                pages_corrupt: count(guest.pages_corrupt),
            }),
        }
    }
}

/// Counters end here, so that sums over all VMs of a host stay far from overflow.
const COUNTER_MAX: u64 = u64::MAX >> 16;

/// Memory of a VM process beside its guest's RAM, at most. Chosen: 32 times what admission expects,
/// since page tables and books of a guest that is swapped and shared to and fro grow.
fn overhead_max(size: Pages) -> Pages {
    Pages::mib(64) + Pages(size.0 / 4)
}

/// A message that breaks a bound.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} has {found} entries or bytes, {allowed} are allowed")]
pub struct BoundError {
    /// What was too long.
    pub field: &'static str,
    /// Its length.
    pub found: usize,
    /// The bound.
    pub allowed: usize,
}

fn bound(field: &'static str, found: usize, allowed: usize) -> Result<(), BoundError> {
    if found <= allowed {
        Ok(())
    } else {
        Err(BoundError {
            field,
            found,
            allowed,
        })
    }
}

impl ToHost {
    /// Checks the length of every list and text.
    ///
    /// # Errors
    /// The first one that is too long, or a page whose content is not 4096 bytes.
    pub fn check(&self) -> Result<(), BoundError> {
        match self {
            ToHost::Hello(hello) => {
                bound("name", hello.name.len(), 64)?;
                bound(
                    "share_group",
                    hello.share_group.as_ref().map_or(0, String::len),
                    64,
                )
            }
            ToHost::Offer { pages } => bound("offer", pages.len(), OFFER_PAGES_MAX),
            ToHost::Content { pages } => {
                bound("content", pages.len(), CONTENT_PAGES_MAX)?;
                match pages.iter().find(|(_, bytes)| bytes.len() != PAGE_SIZE) {
                    Some((_, bytes)) => Err(BoundError {
                        field: "page content",
                        found: bytes.len(),
                        allowed: PAGE_SIZE,
                    }),
                    None => Ok(()),
                }
            }
            ToHost::Release { frames } => bound("release", frames.len(), LIST_MAX),
            ToHost::Claim { frames } => bound("claim", frames.len(), LIST_MAX),
            ToHost::Exited(exit) => bound(
                "message",
                exit.message.as_ref().map_or(0, String::len),
                TEXT_BYTES_MAX,
            ),
            ToHost::CreditRequest { .. }
            | ToHost::CreditReturn { .. }
            | ToHost::Report(_)
            | ToHost::Claimed => Ok(()),
        }
    }
}

impl ToVm {
    /// Checks the length of every list and text.
    ///
    /// # Errors
    /// The first one that is too long.
    pub fn check(&self) -> Result<(), BoundError> {
        match self {
            ToVm::Refused { reason } => bound("reason", reason.len(), TEXT_BYTES_MAX),
            ToVm::Candidates { pages } => bound("candidates", pages.len(), LIST_MAX),
            ToVm::Want { gfns } => bound("want", gfns.len(), LIST_MAX),
            ToVm::Welcome(_) | ToVm::Credit { .. } | ToVm::Orders(_) | ToVm::Stop => Ok(()),
        }
    }
}
