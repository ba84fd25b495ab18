//! What the host manager's books say, for people and tests.

use super::{Manager, Vm};
use crate::host::accounts::{Figures, FramePart, HostFigures, Peaks, VmFigures, VmState};
use crate::policy::types::VmId;
use crate::units::Pages;

/// Whether a VM's memory counts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    Live,
    Ended,
}

impl Manager {
    /// All figures at this moment; of ended VMs, how they ended and their counters.
    pub fn figures(&mut self) -> Figures {
        self.shares.split_frames();
        let live = self
            .vms
            .iter()
            .map(|(&id, vm)| self.vm_figures(id, vm, Life::Live));
        let vms: Vec<VmFigures> = self.ended.iter().cloned().chain(live).collect();
        let overhead_bytes = self.ledger.overhead().bytes();
        let consumed_bytes = vms.iter().map(|vm| vm.consumed_bytes).sum::<u64>() + overhead_bytes;
        self.history.consumes(consumed_bytes);
        let host = HostFigures {
            memory_bytes: self.ledger.budget().bytes(),
            consumed_bytes,
            consumed_bytes_peak: self.history.peak_bytes(),
            overhead_bytes,
            free_bytes: self.ledger.free().bytes(),
            leased_bytes: self.leases.reserved().bytes(),
            state: self.policy.mem_state(),
            state_seconds: self.history.state_seconds(),
            frames_shared: self.shares.frames(),
            pages_sharing: self.shares.references(),
            seed: self.settings.seed,
            policy: self.policy.kind().name().to_owned(),
        };
        Figures { host, vms }
    }

    /// Raises the peaks: by numbers alone, since it is done in every decision.
    pub(super) fn observe(&mut self) {
        self.shares.split_frames();
        for (&id, vm) in &mut self.vms {
            let Some(report) = &vm.report else { continue };
            let frames = self.shares.frame_part(id);
            vm.peak.raise(&Peaks {
                consumed_bytes: report.own().bytes() + frames.bytes,
                saved_bytes: frames.references.bytes() - frames.bytes,
                ballooned_bytes: report.ballooned.bytes(),
                swapped_bytes: (report.swapped + report.compressed).bytes(),
            });
        }
        self.history.consumes(self.consumed().bytes());
    }

    pub(super) fn vm_figures(&self, id: VmId, vm: &Vm, life: Life) -> VmFigures {
        let report = vm.report.clone().unwrap_or_default();
        // The memory of an ended VM is back: only its counters are left.
        let held = |pages: Pages| if life == Life::Live { pages.bytes() } else { 0 };
        // By our own index, which is what the frames are split by: a VM's report is a little older,
        // and the figures would not add up.
        let frames = match life {
            Life::Live => self.shares.frame_part(id),
            Life::Ended => FramePart::default(),
        };
        VmFigures {
            name: vm.name.clone(),
            state: if life == Life::Live {
                vm.state()
            } else {
                VmState::Ended
            },
            exit: vm.exit.clone().filter(|_| life == Life::Ended),
            memory_bytes: vm.allocation.size.bytes(),
            target_bytes: vm.target().bytes(),
            admission: vm.admission.clone(),
            target_why: vm
                .plan
                .as_ref()
                .map(|plan| plan.why.to_string())
                .unwrap_or_default(),
            consumed_bytes: held(report.own()) + frames.bytes,
            private_bytes: held(report.private + report.orphaned),
            shared_bytes: frames.references.bytes(),
            saved_bytes: frames.references.bytes() - frames.bytes,
            zero_bytes: held(report.zero),
            ballooned_bytes: held(report.ballooned),
            compressed_bytes: held(report.compressed),
            swapped_bytes: held(report.swapped),
            active_bytes: held(report.active.unwrap_or_default()),
            active_error_bytes: held(report.active_error),
            take_path: report.take_path,
            balloon: vm
                .plan
                .as_ref()
                .map(|plan| plan.conduct)
                .unwrap_or_default(),
            overhead_bytes: held(self.ledger.vm_overhead(id)),
            credit_bytes: held(self.ledger.charge(id)),
            swap_in_pages: report.swap_in_pages,
            swap_out_pages: report.swap_out_pages,
            cow_breaks: report.cow_breaks,
            swap_errors: report.swap_errors,
            peak: vm.peak,
            start_ms: report.start_us.map(|start| f64::from(start) / 1e3),
            boot_ms: None,
            guest: report.guest,
        }
    }
}
