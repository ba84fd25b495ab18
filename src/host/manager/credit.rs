//! Credit: who is granted how much of what is free, and in which order.

use super::Manager;
use crate::link::message::ToVm;
use crate::policy::grant::{CreditRequest, grant};
use crate::policy::types::VmId;
use crate::units::Pages;

impl Manager {
    /// What a VM is charged, and its part of the frames.
    fn charged(&self, id: VmId) -> Pages {
        self.ledger.charge(id) + Pages::in_bytes(self.shares.frame_part(id).bytes)
    }

    /// What the grant rule gives a VM now.
    pub(super) fn affordable(&self, id: VmId, asked: Pages) -> Pages {
        let vm = &self.vms[&id];
        let request = CreditRequest {
            asked,
            held: self.charged(id),
            credit: self.ledger.charge(id),
            allocation: &vm.allocation,
            plan: vm.plan.as_ref(),
        };
        let thresholds = self.policy.thresholds(self.ledger.budget());
        grant(
            &request,
            self.unleased(),
            &thresholds,
            self.policy.mem_state(),
        )
    }

    /// Grants to those who wait: first who is at or below its target, then in order of asking.
    /// With `only`, to that VM alone, unless others wait before it.
    pub(super) fn serve(&mut self, only: Option<VmId>) {
        let mut waiting: Vec<(bool, u64, VmId)> = self
            .vms
            .iter()
            .filter(|(_, vm)| vm.asked > Pages::ZERO)
            .map(|(&id, vm)| (self.charged(id) > vm.target(), vm.asked_since, id))
            .collect();
        if only.is_some() && waiting.len() > 1 {
            // Someone waits already because nothing more could be granted; nothing was returned
            // since, but this one may be entitled where they are not.
            waiting.retain(|&(above, _, id)| Some(id) == only && !above);
            self.urgent = true;
        }
        waiting.sort_unstable();
        for (_, _, id) in waiting {
            let asked = self.vms[&id].asked;
            let pages = self.affordable(id, asked);
            if pages > Pages::ZERO {
                self.ledger.grant(id, pages);
                self.send(id, ToVm::Credit { pages });
            }
            self.vms.get_mut(&id).expect("waiting VMs are live").asked -= pages;
            self.urgent |= pages < asked;
        }
    }
}
