//! What the host manager knows of its VMs, for people and tests.

use super::{Manager, Vm};
use crate::host::accounts::{Figures, HostFigures, Peaks, VmFigures, VmMemory, VmState};
use crate::policy::types::VmId;
use crate::words::{Gauges, Measured};

impl Manager {
    /// All figures at this moment; of ended VMs, how they ended and their counters.
    pub fn figures(&mut self) -> Figures {
        self.shares.split_frames();
        let live = self.vms.iter().map(|(&id, vm)| self.vm_figures(id, vm));
        let vms: Vec<VmFigures> = self.ended.iter().cloned().chain(live).collect();
        let overhead_bytes = self.ledger.overhead().bytes();
        let consumed_bytes =
            vms.iter().map(|vm| vm.memory.consumed_bytes).sum::<u64>() + overhead_bytes;
        self.history.consumes(consumed_bytes);
        let (late, late_peak) = self.history.lateness();
        let host = HostFigures {
            memory_bytes: self.ledger.budget().bytes(),
            consumed_bytes,
            consumed_bytes_peak: self.history.peak_bytes(),
            overhead_bytes,
            free_bytes: self.ledger.free().bytes(),
            leased_bytes: self.leases.reserved().bytes(),
            state: self.policy.mem_state(),
            state_seconds: self.history.state_seconds(),
            tick_late_ms: late.as_secs_f64() * 1e3,
            tick_late_ms_peak: late_peak.as_secs_f64() * 1e3,
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
            let Some(measured) = &vm.measured else {
                continue;
            };
            let frames = self.shares.frame_part(id);
            let held = self.ledger.holding(id).total();
            vm.peak.raise(&Peaks {
                consumed_bytes: held.bytes() + frames.bytes,
                saved_bytes: frames.references.bytes() - frames.bytes,
                ballooned_bytes: measured.gauges.ballooned.bytes(),
                swapped_bytes: measured.gauges.taken_out().bytes(),
            });
        }
        self.history.consumes(self.consumed().bytes());
    }

    /// Figures of a VM that has ended and whose accounts are closed: its memory is back, and only
    /// its counters are left of what it measured.
    pub(super) fn ended_figures(&self, id: VmId, vm: &Vm) -> VmFigures {
        let figures = self.vm_figures(id, vm);
        VmFigures {
            state: VmState::Ended,
            exit: vm.exit.clone(),
            memory: VmMemory {
                gauges: Gauges::default(),
                process_bytes: 0,
                active_bytes: 0,
                active_error_bytes: 0,
                ..figures.memory
            },
            ..figures
        }
    }

    fn vm_figures(&self, id: VmId, vm: &Vm) -> VmFigures {
        let measured = vm.measured.clone().unwrap_or_default();
        VmFigures {
            name: vm.name.clone(),
            state: vm.state(),
            exit: None,
            memory_bytes: vm.allocation.size.bytes(),
            admission: vm.admission.clone(),
            memory: self.vm_memory(id, vm, &measured),
            memory_management: (!vm.managed).then_some(false),
            take_path: measured.take_path,
            counters: measured.counters,
            peak: vm.peak,
            start_ms: measured.start_us.map(|start| f64::from(start) / 1e3),
            boot_ms: None,
            guest: measured.guest,
            guest_memory: Some(measured.guest_memory).filter(|said| *said != Default::default()),
        }
    }

    fn vm_memory(&self, id: VmId, vm: &Vm, measured: &Measured) -> VmMemory {
        let holding = self.ledger.holding(id);
        // By our own index, which is what the frames are split by: a VM's report is a little older,
        // and the figures would not add up.
        let frames = self.shares.frame_part(id);
        let plan = vm.plan.as_ref();
        VmMemory {
            target_bytes: vm.target().bytes(),
            target_why: plan.map(|plan| plan.why.to_string()).unwrap_or_default(),
            consumed_bytes: holding.total().bytes() + frames.bytes,
            private_bytes: (holding.private + holding.orphaned).bytes(),
            shared_bytes: frames.references.bytes(),
            saved_bytes: frames.references.bytes() - frames.bytes,
            gauges: measured.gauges,
            active_bytes: measured.active.unwrap_or_default().bytes(),
            active_error_bytes: measured.active_error.bytes(),
            balloon: plan.map(|plan| plan.conduct).unwrap_or_default(),
            overhead_bytes: self.ledger.vm_overhead(id).bytes(),
            kept_bytes: self.ledger.kept(id).bytes(),
            credit_bytes: self.ledger.charge(id).bytes(),
            process_bytes: vm.watch.memory().unwrap_or_default().bytes(),
        }
    }
}
