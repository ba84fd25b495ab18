//! Why the host manager does not do what it is asked for: values with their operands, worded here and
//! nowhere else.

use crate::host::share::JoinError;
use crate::policy::PolicyKind;
use crate::policy::admission::{Promises, Refusal};
use crate::policy::lease::LeaseError;
use crate::units::{PAGES_MAX, Pages};
use crate::words::allocation::AllocationError;

use super::VMS_MAX;
use super::leases::LEASES_MAX;

/// A request that changed nothing. Displays as one line; where memory lacks, with the arithmetic.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// No live VM has this identity any more.
    #[error("the VM has ended")]
    Ended,
    /// The VM's process lives and has sent its last message.
    #[error("the VM has said that it ended")]
    Exited,
    /// Another process runs a VM of this name.
    #[error("a VM named {name:?} runs already")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// The process runs another VM.
    #[error("process {pid} runs the VM {name:?} already")]
    ProcessTaken {
        /// The process.
        pid: i32,
        /// Its VM.
        name: String,
    },
    /// The door at which the VM listens is another's.
    #[error("the VM {name:?} listens there already")]
    DoorTaken {
        /// Whose it is.
        name: String,
    },
    /// There are as many VMs as there may be.
    #[error("{most} VMs run already; at most {VMS_MAX} may, and as `ulimit -n` allows")]
    TooManyVms {
        /// How many there may be here.
        most: usize,
    },
    /// A name that cannot stand in paths and messages.
    #[error("name {name:?}: must be {forms}")]
    Name {
        /// The name.
        name: String,
        /// What it may be.
        forms: &'static str,
    },
    /// The allocation breaks a rule, or was not written as one.
    #[error(transparent)]
    Allocation(#[from] AllocationError),
    /// Keys of a VM whose memory is not managed: nothing can be taken from it.
    #[error("the memory of {name:?} is not managed: nothing but its shares can be changed")]
    Unmanaged {
        /// The VM.
        name: String,
    },
    /// A VM whose memory is not managed is promised less than all of it.
    #[error("memory that is not managed must be reserved: {reserved} of {size} are")]
    NotReserved {
        /// What it wants to be promised.
        reserved: Pages,
        /// Configured memory.
        size: Pages,
    },
    /// A VM process says that it holds more than its VM has, or than it has resident.
    #[error("holds {held} of {size}")]
    HeldTooMuch {
        /// What it says.
        held: Pages,
        /// Configured memory of the VM.
        size: Pages,
    },
    /// Who joins again does not know the VM's token.
    #[error("joins again with another token")]
    Token,
    /// A record of a frame pool that cannot be one.
    #[error("a pool of {frames} frames")]
    PoolSize {
        /// Its length.
        frames: u32,
    },
    /// What is asked for cannot be promised.
    #[error(transparent)]
    Promise(Box<Refusal>),
    /// The new budget would not cover what is promised; the promises have the new budget.
    #[error(
        "host memory {} is less than what is promised: {} are reserved by {} VMs and leases and {} are \
         overhead",
        .0.budget, .0.reserved, .0.vms, .0.overhead
    )]
    Budget(Promises),
    /// The new policy would promise more than the budget; the promises are those under it.
    #[error(
        "policy {} would promise {} to {} VMs and leases, and {} are overhead: more than the {} that the \
         host has",
        .policy.name(), .promises.reserved, .promises.vms, .promises.overhead, .promises.budget
    )]
    Policy {
        /// The policy.
        policy: PolicyKind,
        /// What would be promised of which budget.
        promises: Promises,
    },
    /// A lease of no memory, or of more than any VM's.
    #[error(
        "a lease of {least} to {most}: must be 4 KiB to {}, the least first",
        Pages(PAGES_MAX)
    )]
    LeaseSize {
        /// The least that was asked for.
        least: Pages,
        /// The most.
        most: Pages,
    },
    /// There are as many leases as there may be.
    #[error("there are {LEASES_MAX} leases already")]
    TooManyLeases,
    /// There is no lease of the token that a launcher names.
    #[error("no lease of that token: never taken, over, or used")]
    NoLease,
    /// The book of leases refuses.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// The VM's share group has no pool for it.
    #[error(transparent)]
    Pool(#[from] JoinError),
}

/// What a refusal means to whoever asked, as a REST interface would tell it by its status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The request can never be carried out (400).
    Invalid,
    /// There is no such VM or lease (404).
    NotFound,
    /// The request contradicts what is there (409).
    Conflict,
    /// There is not enough memory, or room in a table (507).
    Exhausted,
    /// The host manager failed (500).
    Failed,
}

impl Refused {
    /// What it means to whoever asked.
    pub fn kind(&self) -> Kind {
        match self {
            Refused::Name { .. }
            | Refused::Allocation(_)
            | Refused::HeldTooMuch { .. }
            | Refused::NotReserved { .. }
            | Refused::PoolSize { .. }
            | Refused::LeaseSize { .. } => Kind::Invalid,
            Refused::Ended | Refused::NoLease | Refused::Lease(LeaseError::Unknown) => {
                Kind::NotFound
            }
            Refused::Exited
            | Refused::NameTaken { .. }
            | Refused::ProcessTaken { .. }
            | Refused::DoorTaken { .. }
            | Refused::Token
            | Refused::Unmanaged { .. }
            | Refused::Lease(LeaseError::NameTaken { .. }) => Kind::Conflict,
            Refused::TooManyVms { .. }
            | Refused::Promise(_)
            | Refused::Budget(_)
            | Refused::Policy { .. }
            | Refused::TooManyLeases
            | Refused::Lease(LeaseError::Refused(_) | LeaseError::TooMany) => Kind::Exhausted,
            Refused::Pool(JoinError::Sharing { .. }) => Kind::Conflict,
            Refused::Pool(_) => Kind::Failed,
        }
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Refused {
        Refused::Promise(Box::new(refusal))
    }
}
