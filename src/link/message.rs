//! The messages between a VM process and the host manager.
//!
//! One message is one SOCK_SEQPACKET datagram: a version byte, then the postcard encoding of
//! [`ToHost`] or [`ToVm`]. Both sides treat the other as hostile: decoding is bounded by
//! [`MESSAGE_BYTES_MAX`], every list has its own bound (checked by [`ToHost::check`] and
//! [`ToVm::check`]), and a message that breaks a bound ends the link.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::units::{FrameId, Gfn, PAGE_SIZE, Pages};
use crate::words::{Exit, Key, MemState, Report, Run, Sampling, Token};

/// Version of the messages below; a peer of another version is refused at its first word.
pub const VERSION: u8 = 9;
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
    /// First message of a new VM. Who joins, and what it is entitled to, its launcher has said.
    Hello,
    /// The answer to a [`ToVm::Knock`], with the descriptor of the VM's frame pool.
    Again {
        /// The VM's token.
        token: Token,
        /// Memory that it holds.
        held: Pages,
    },
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
    /// First message over a connection to a VM's [door](super::door): a host manager, mostly a new one,
    /// asks it to join again.
    Knock {
        /// The VM's token, by which it knows its host manager.
        token: Token,
    },
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
    /// The secret by which the VM and the next host manager will know each other, where it has a door.
    pub token: Option<Token>,
    /// Every page of the share group that is offered gets a frame: what maps one may have to be swapped,
    /// and counts as what [`Orders::private_max`] is about.
    pub hardened: bool,
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
    /// How often the guest was asked for the memory that it has free: one time more is once more.
    pub hint_rounds: u32,
    /// Compress or swap until the VM's private pages and its compressed store together, which is
    /// what its credit account calls used, are at most this, in a hardened group ([`Welcome::hardened`])
    /// with the pages that map a frame; `None`: do not swap.
    pub private_max: Option<Pages>,
    /// Whether the vCPUs may run.
    pub run: Run,
    /// Share scan rate in pages a second; zero: do not scan.
    pub scan_pages_per_second: u32,
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
            ToHost::Hello
            | ToHost::Again { .. }
            | ToHost::CreditRequest { .. }
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
            ToVm::Welcome(_)
            | ToVm::Credit { .. }
            | ToVm::Orders(_)
            | ToVm::Stop
            | ToVm::Knock { .. } => Ok(()),
        }
    }
}
