//! Memory promised before its VM exists.
//!
//! Between the decision to start a VM and its first message somebody else could take the memory that
//! was counted on. So a start begins with a lease: it counts as reserved from then on, and ends in
//! exactly one way:
//!
//! | end | by | the memory |
//! |---|---|---|
//! | redeemed | its owner, when the VM joins | is the VM's own reservation from then on |
//! | cancelled | its owner | is free |
//! | expired | the clock | is free |
//! | orphaned | the end of its owner's connection | is free |
//!
//! The book knows no clock and no VM. The host manager calls [`LeaseBook::expire`] in every tick,
//! [`LeaseBook::owner_gone`] when a connection closes, adds [`LeaseBook::reserved`] to the overhead of
//! each snapshot and takes it off the free memory (so that policies squeeze for it), and counts a
//! redeemed lease's VM in its ledger in the same step. The sum of all reservations, overheads and
//! leases never exceeds the budget, because every lease passes [`admit`] with all others counted.
//!
//! Source: squeezed's `reserve_memory`, `reserve_memory_range`, `transfer_reservation_to_domain`,
//! `delete_reservation`; its cure for leaks, deleting a client's reservations when it logs in again,
//! is the owner here.

use std::collections::BTreeMap;
use std::time::Duration;

use super::admission::{Promises, Refusal, Request, admit};
use crate::units::Pages;

/// Leases at a time, at most.
pub const LEASES_MAX: usize = 10_000;

/// Names a lease; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

/// Who takes leases: one connection to the host manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OwnerId(pub u64);

/// Memory promised to a VM that does not exist yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Who took it.
    pub owner: OwnerId,
    /// Name of the VM to come.
    pub name: String,
    /// What the VM is promised.
    pub reservation: Pages,
    /// Estimated memory of its process.
    pub overhead: Pages,
    /// When it ends by itself.
    pub expires_at: Duration,
}

impl Lease {
    /// Everything that it keeps from others.
    pub fn pages(&self) -> Pages {
        self.reservation + self.overhead
    }
}

/// Why there is no lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// The memory cannot be promised.
    #[error(transparent)]
    Refused(#[from] Box<Refusal>),
    /// Another lease is for a VM of this name.
    #[error("memory for a VM named {name:?} is leased already")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// It was never taken, has expired, was used, or belongs to somebody else.
    #[error("no such lease: never taken, expired, used, or another owner's")]
    Unknown,
    /// There are [`LEASES_MAX`] leases.
    #[error("there are {LEASES_MAX} leases already")]
    TooMany,
}

/// All leases of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeaseBook {
    leases: BTreeMap<LeaseId, Lease>,
    next: u64,
}

impl LeaseBook {
    /// What all leases keep from others.
    pub fn reserved(&self) -> Pages {
        self.leases.values().map(Lease::pages).sum()
    }

    /// All leases, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (LeaseId, &Lease)> {
        self.leases.iter().map(|(id, lease)| (*id, lease))
    }

    /// The promises with the leases counted: what admission must see.
    #[must_use]
    pub fn counted_in(&self, promises: &Promises) -> Promises {
        Promises {
            reserved: promises.reserved + self.leases.values().map(|l| l.reservation).sum(),
            overhead: promises.overhead + self.leases.values().map(|l| l.overhead).sum(),
            vms: promises.vms + self.leases.len(),
            free: promises.free.saturating_sub(self.reserved()),
            ..*promises
        }
    }

    /// Takes a lease until `expires_at`; `promises` without leases.
    ///
    /// # Errors
    /// When the memory cannot be promised (with the arithmetic), or the name is leased already.
    pub fn take(
        &mut self,
        promises: &Promises,
        request: &Request,
        owner: OwnerId,
        expires_at: Duration,
    ) -> Result<LeaseId, LeaseError> {
        let taken = self.leases.values().any(|lease| lease.name == request.name);
        if taken {
            let name = request.name.clone();
            return Err(LeaseError::NameTaken { name });
        }
        if self.leases.len() >= LEASES_MAX {
            return Err(LeaseError::TooMany);
        }
        admit(&self.counted_in(promises), request).map_err(Box::new)?;
        let id = LeaseId(self.next);
        self.next += 1;
        self.leases.insert(
            id,
            Lease {
                owner,
                name: request.name.clone(),
                reservation: request.reservation,
                overhead: request.overhead,
                expires_at,
            },
        );
        Ok(id)
    }

    /// Takes a lease over at least the request's reservation and at most `most`: as much as can be
    /// promised. The lease says how much it is.
    ///
    /// # Errors
    /// As [`LeaseBook::take`].
    pub fn take_range(
        &mut self,
        promises: &Promises,
        request: &Request,
        most: Pages,
        owner: OwnerId,
        expires_at: Duration,
    ) -> Result<LeaseId, LeaseError> {
        let counted = self.counted_in(promises);
        let can = counted
            .budget
            .saturating_sub(counted.reserved)
            .saturating_sub(counted.overhead)
            .saturating_sub(request.overhead);
        let request = Request {
            reservation: most.min(can).max(request.reservation),
            ..request.clone()
        };
        self.take(promises, &request, owner, expires_at)
    }

    /// The lease of that owner.
    pub fn get(&self, id: LeaseId, owner: OwnerId) -> Option<&Lease> {
        self.leases.get(&id).filter(|lease| lease.owner == owner)
    }

    /// Ends a lease because its VM has come: the caller counts the VM from now on.
    ///
    /// # Errors
    /// When there is no such lease, or it has expired.
    pub fn redeem(
        &mut self,
        id: LeaseId,
        owner: OwnerId,
        now: Duration,
    ) -> Result<Lease, LeaseError> {
        match self.get(id, owner) {
            Some(lease) if now < lease.expires_at => {
                self.leases.remove(&id).ok_or(LeaseError::Unknown)
            }
            _ => Err(LeaseError::Unknown),
        }
    }

    /// Ends a lease that is not needed.
    ///
    /// # Errors
    /// When there is no such lease.
    pub fn cancel(&mut self, id: LeaseId, owner: OwnerId) -> Result<Lease, LeaseError> {
        if self.get(id, owner).is_none() {
            return Err(LeaseError::Unknown);
        }
        self.leases.remove(&id).ok_or(LeaseError::Unknown)
    }

    /// Ends the leases that have expired at `now`, and tells which.
    pub fn expire(&mut self, now: Duration) -> Vec<Lease> {
        self.end(|lease| lease.expires_at <= now)
    }

    /// Ends the leases of an owner that has gone, and tells which.
    pub fn owner_gone(&mut self, owner: OwnerId) -> Vec<Lease> {
        self.end(|lease| lease.owner == owner)
    }

    fn end(&mut self, ends: impl Fn(&Lease) -> bool) -> Vec<Lease> {
        let (ended, rest) = std::mem::take(&mut self.leases)
            .into_iter()
            .partition::<BTreeMap<_, _>, _>(|(_, lease)| ends(lease));
        self.leases = rest;
        ended.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OWNER: OwnerId = OwnerId(7);
    const MINUTE: Duration = Duration::from_secs(60);

    fn promises() -> Promises {
        Promises {
            budget: Pages::mib(512),
            reserved: Pages::mib(300),
            overhead: Pages::mib(12),
            vms: 3,
            free: Pages::mib(100),
        }
    }

    fn request(name: &str, mib: u64) -> Request {
        Request {
            name: name.into(),
            reservation: Pages::mib(mib),
            overhead: Pages::mib(4),
        }
    }

    #[test]
    fn leases_count_against_each_other_until_they_end() {
        let mut book = LeaseBook::default();
        let first = book.take(&promises(), &request("a", 150), OWNER, MINUTE);
        let first = first.expect("200 MiB can be promised");
        assert_eq!(book.reserved(), Pages::mib(154));
        let second = book.take(&promises(), &request("b", 50), OWNER, MINUTE);
        let refusal = second.expect_err("46 MiB are left").to_string();
        assert!(refusal.contains("46.0 MiB can be promised"), "{refusal}");
        book.cancel(first, OWNER).expect("it is there");
        book.take(&promises(), &request("b", 50), OWNER, MINUTE)
            .expect("the lease has ended");
    }

    #[test]
    fn a_range_gets_what_there_is() {
        let mut book = LeaseBook::default();
        let id = book.take_range(
            &promises(),
            &request("a", 32),
            Pages::mib(400),
            OWNER,
            MINUTE,
        );
        let id = id.expect("200 MiB can be promised");
        assert_eq!(
            book.get(id, OWNER).map(|lease| lease.reservation),
            Some(Pages::mib(196))
        );
        let small = book.take_range(&promises(), &request("b", 1), Pages::mib(2), OWNER, MINUTE);
        assert!(matches!(small, Err(LeaseError::Refused(_))));
    }

    #[test]
    fn a_lease_ends_once_and_only_for_its_owner() {
        let mut book = LeaseBook::default();
        let mut take = |name: &str| {
            let id = book.take(&promises(), &request(name, 10), OWNER, MINUTE);
            id.expect("it fits")
        };
        let (a, b, c) = (take("a"), take("b"), take("c"));
        assert!(matches!(
            book.take(&promises(), &request("a", 1), OWNER, MINUTE),
            Err(LeaseError::NameTaken { .. })
        ));
        assert_eq!(
            book.redeem(a, OwnerId(8), Duration::ZERO),
            Err(LeaseError::Unknown)
        );
        assert!(book.redeem(a, OWNER, Duration::ZERO).is_ok());
        assert_eq!(book.cancel(a, OWNER), Err(LeaseError::Unknown));
        assert_eq!(book.redeem(b, OWNER, MINUTE), Err(LeaseError::Unknown));
        assert_eq!(book.expire(MINUTE).len(), 2);
        assert_eq!(
            book.redeem(c, OWNER, Duration::ZERO),
            Err(LeaseError::Unknown)
        );
        assert_eq!(book.reserved(), Pages::ZERO);
    }

    #[test]
    fn leases_die_with_their_owner() {
        let mut book = LeaseBook::default();
        for (name, owner) in [("a", OWNER), ("b", OwnerId(8)), ("c", OWNER)] {
            book.take(&promises(), &request(name, 10), owner, MINUTE)
                .expect("it fits");
        }
        let names: Vec<_> = book.owner_gone(OWNER).into_iter().map(|l| l.name).collect();
        assert_eq!(names, ["a", "c"]);
        assert_eq!(book.reserved(), Pages::mib(14));
    }

    proptest! {
        /// Whatever is taken, redeemed and dropped in whatever order: what is promised is payable.
        #[test]
        fn the_promises_never_exceed_the_budget(
            steps in proptest::collection::vec((0..6_u8, 0..40_u64, 0..3_u64, 0..100_u64), 1..60),
        ) {
            let mut book = LeaseBook::default();
            let mut promises = Promises { reserved: Pages::ZERO, overhead: Pages::mib(4), vms: 0, ..promises() };
            let mut now = Duration::ZERO;
            for (index, (kind, mib, owner, pick)) in steps.into_iter().enumerate() {
                now += Duration::from_secs(1);
                let owner = OwnerId(owner);
                let name = format!("vm-{index}");
                let expires_at = now + Duration::from_secs(pick);
                let some = book.iter().nth(usize::try_from(pick % 7)?).map(|(id, _)| id);
                match (kind, some) {
                    (0 | 1, _) => drop(book.take(&promises, &request(&name, mib * 4), owner, expires_at)),
                    (2, _) => drop(book.take_range(&promises, &request(&name, mib), Pages::mib(mib * 9), owner, expires_at)),
                    (3, Some(id)) => if let Ok(lease) = book.redeem(id, owner, now) {
                        promises.reserved += lease.reservation;
                        promises.overhead += lease.overhead;
                        promises.vms += 1;
                    },
                    (4, _) => drop(book.owner_gone(owner)),
                    _ => drop(book.expire(now)),
                }
                prop_assert!(promises.reserved + promises.overhead + book.reserved() <= promises.budget);
            }
        }
    }
}
