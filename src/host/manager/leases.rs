//! Leases in the host manager: memory promised before its VM exists.
//!
//! A lease belongs to the control connection that took it and ends with it, by its time-out, or when
//! a VM is registered with its token, which its owner alone was told. It ends with its host manager as well,
//! since its owner's connection does. From the taking on it counts in admission, and the policy sees its memory
//! as overhead that is not free, so that the others are squeezed for it. A VM that redeems one is
//! promised at least what was leased (as far as its limit goes); what it needs beyond that must be
//! admitted like any other. A refused VM leaves the lease as it was.

use std::time::Duration;

use super::admission::overhead_estimate;
use super::{Manager, Outgoing, Refused};
use crate::policy::admission::Request;
use crate::policy::lease::{Lease, LeaseBook, LeaseId, OwnerId};
use crate::units::{PAGES_MAX, Pages};
use crate::words::{Allocation, Token};

/// Leases of connections, at most: each keeps a descriptor. Chosen.
pub(super) const LEASES_MAX: usize = 256;

/// How a lease ended, for its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseEnd {
    /// The VM of that name has it.
    Redeemed(String),
    /// Its time is over.
    Expired,
}

impl Manager {
    /// Promises `least` to a VM to come, or as much up to `most` as there is. Whoever knows the token
    /// redeems it.
    ///
    /// # Errors
    /// Why not; with the arithmetic when there is not enough.
    pub fn reserve(
        &mut self,
        least: Pages,
        most: Option<Pages>,
        owner: OwnerId,
        expires_at: Duration,
    ) -> Result<(LeaseId, Token, Lease), Refused> {
        let most = most.unwrap_or(least);
        if least == Pages::ZERO || least > most || most > Pages(PAGES_MAX) {
            return Err(Refused::LeaseSize { least, most });
        }
        if self.leases.iter().count() >= LEASES_MAX {
            return Err(Refused::TooManyLeases);
        }
        let request = Request {
            name: format!("lease {}", owner.0),
            reservation: least,
            overhead: overhead_estimate(most),
        };
        let token = self.shares.token()?;
        let promises = self.promises_to_vms(None);
        self.assess(&self.leases.counted_in(&promises), &request)?;
        let id = self
            .leases
            .take_range(&promises, &request, most, owner, expires_at)?;
        let lease = self.leases.get(id, owner).expect("just taken").clone();
        let leases = &self.leases;
        let lives = |id: LeaseId| leases.iter().any(|(other, _)| other == id);
        self.lease_tokens.retain(|(id, _)| lives(*id));
        self.lease_tokens.push((id, token));
        self.urgent = true;
        Ok((id, token, lease))
    }

    /// Whether that connection has a lease.
    pub fn has_lease(&self, owner: OwnerId) -> bool {
        self.leases.iter().any(|(_, lease)| lease.owner == owner)
    }

    /// A connection has closed: its leases end.
    pub fn owner_gone(&mut self, owner: OwnerId) {
        if !self.leases.owner_gone(owner).is_empty() {
            self.serve(None);
            self.urgent = true;
        }
    }

    /// Ends the leases whose time is over.
    pub(super) fn expire_leases(&mut self, now: Duration) {
        for lease in self.leases.expire(now) {
            self.outgoing
                .push(Outgoing::LeaseEnded(lease.owner, LeaseEnd::Expired));
        }
    }

    /// The leases without the one of that token, which raises the VM's reservation, and whose it was.
    pub(super) fn redeemed(
        &self,
        token: Option<Token>,
        allocation: &mut Allocation,
    ) -> Result<(LeaseBook, Option<OwnerId>), Refused> {
        let mut leases = self.leases.clone();
        let Some(token) = token else {
            return Ok((leases, None));
        };
        let named = self.lease_tokens.iter().find(|(_, known)| *known == token);
        let id = named.map(|(id, _)| *id).ok_or(Refused::NoLease)?;
        let owner = leases.iter().find(|(other, _)| *other == id);
        let owner = owner.map(|(_, lease)| lease.owner);
        let owner = owner.ok_or(Refused::NoLease)?;
        let lease = leases
            .redeem(id, owner, self.decided)
            .map_err(|_| Refused::NoLease)?;
        let promised = lease.reservation.min(allocation.limit);
        allocation.reservation = allocation.reservation.max(promised);
        Ok((leases, Some(owner)))
    }

    /// Memory that is neither held nor leased.
    pub(super) fn unleased(&self) -> Pages {
        self.ledger.free().saturating_sub(self.leases.reserved())
    }
}
