//! The loop of one vCPU's thread.

use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Instant;

use kvm_bindings::{KVM_MP_STATE_UNINITIALIZED, Msrs, kvm_mp_state, kvm_msr_entry};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::exit::ExitCell;
use super::gate::{Gate, Pass};
use crate::boot::StartState;
use crate::devices::bus::Bus;
use crate::devices::idle::IdlePort;
use crate::devices::ports::{EndRequest, EndSink};
use crate::sys::kvm::{GuestVm, KickableVcpu};
use crate::words::{Exit, ExitReason};

/// How a triple fault of the guest is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TripleFault {
    /// A test guest without IDT: any fault ends there.
    Fault,
    /// An operating system: its last way to reset.
    Reset,
}

/// What ends the machine and who must hear of it.
pub(super) struct Ending {
    pub exit: ExitCell,
    pub gate: Gate,
    pub idle: Arc<IdlePort>,
}

impl Ending {
    /// Ends the machine for `exit`, unless it has ended already.
    pub fn finish(&self, exit: Exit) {
        self.exit.set(exit);
        self.gate.end();
        self.idle.stop();
    }
}

impl EndSink for Arc<Ending> {
    fn end(&self, request: EndRequest) {
        self.finish(match request {
            EndRequest::Exit(code) => Exit {
                code,
                ..Exit::plain(ExitReason::GuestExit)
            },
            EndRequest::Reset => Exit::plain(ExitReason::Reset),
            EndRequest::Shutdown => Exit::plain(ExitReason::Shutdown),
        });
    }
}

/// What all vCPUs of a machine share.
pub(super) struct Shared {
    pub ending: Arc<Ending>,
    pub ports: Bus,
    pub memory: Bus,
    pub triple_fault: TripleFault,
    /// When the first vCPU first entered the guest.
    pub first_run: OnceLock<Instant>,
    /// Last, so that it outlives the devices: the VM and the memory behind it.
    pub guest: GuestVm,
}

/// Sets the registers of the first vCPU.
pub(super) fn start_at(vcpu: &VcpuFd, start: &StartState) -> Result<(), kvm_ioctls::Error> {
    let mut sregs = vcpu.get_sregs()?;
    let [code, data, tr] = start.segments;
    sregs.cs = code;
    sregs.ds = data;
    sregs.es = data;
    sregs.ss = data;
    sregs.fs = data;
    sregs.gs = data;
    sregs.tr = tr;
    (sregs.gdt.base, sregs.gdt.limit) = start.gdt;
    (sregs.idt.base, sregs.idt.limit) = (0, 0);
    sregs.cr0 = start.cr0;
    sregs.cr3 = start.cr3;
    sregs.cr4 = start.cr4;
    sregs.efer = start.efer;
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&start.regs)
}

/// Default memory type register: enabled, write-back, fixed ranges on. Kernels expect firmware to
/// have set it and leave their page attributes off otherwise.
const MSR_MTRR_DEFAULT: (u32, u64) = (0x2ff, 0xc06);
/// Miscellaneous features: fast string operations.
const MSR_MISC_ENABLE: (u32, u64) = (0x1a0, 1);

/// What firmware would have left in the model-specific registers; KVMs that lack one keep theirs.
pub(super) fn set_firmware_registers(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    for (index, data) in [MSR_MTRR_DEFAULT, MSR_MISC_ENABLE] {
        let entry = kvm_msr_entry {
            index,
            data,
            ..Default::default()
        };
        let entries = Msrs::from_entries(&[entry]).expect("one entry fits");
        if vcpu.set_msrs(&entries)? == 0 {
            log::debug!("KVM does not take {data:#x} in MSR {index:#x}");
        }
    }
    Ok(())
}

/// Makes a further vCPU wait for the first one's INIT and start-up interrupts.
pub(super) fn wait_for_startup(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    vcpu.set_mp_state(kvm_mp_state {
        mp_state: KVM_MP_STATE_UNINITIALIZED,
    })
}

/// Runs the vCPU until the machine ends; the body of its thread.
pub(super) fn run(fd: VcpuFd, shared: &Shared) {
    let mut vcpu = KickableVcpu::new(fd);
    let ending = &shared.ending;
    loop {
        // Kicks before this line had reasons that the gate shows; later ones make `run` return.
        vcpu.clear_kick();
        if ending.gate.enter() == Pass::End {
            return;
        }
        shared.first_run.get_or_init(Instant::now);
        let outcome = vcpu.fd().run();
        ending.gate.leave();
        let stopped = match outcome {
            Ok(VcpuExit::IoIn(port, data)) => {
                shared.ports.read(port.into(), data);
                continue;
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                shared.ports.write(port.into(), data);
                continue;
            }
            Ok(VcpuExit::MmioRead(gpa, data)) => {
                shared.memory.read(gpa, data);
                continue;
            }
            Ok(VcpuExit::MmioWrite(gpa, data)) => {
                shared.memory.write(gpa, data);
                continue;
            }
            Ok(VcpuExit::Intr) => continue,
            Ok(VcpuExit::Shutdown) => Stop::TripleFault,
            Ok(VcpuExit::Hlt) => Stop::Halted,
            Ok(VcpuExit::InternalError) => Stop::Internal,
            Ok(VcpuExit::SystemEvent(kind, _)) => Stop::System(kind),
            Ok(VcpuExit::FailEntry(reason, _)) => Stop::Entry(reason),
            Ok(other) => Stop::Other(format!("{other:?}")),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => continue,
            Err(error) => Stop::Run(error),
        };
        ending.finish(explain(stopped, &mut vcpu, shared.triple_fault));
        return;
    }
}

/// Why a vCPU cannot go on.
enum Stop {
    TripleFault,
    Halted,
    Internal,
    System(u32),
    Entry(u64),
    Other(String),
    Run(kvm_ioctls::Error),
}

/// Shutdown by KVM's system events (include/uapi/linux/kvm.h).
const SYSTEM_EVENT_SHUTDOWN: u32 = 1;
/// Reset by KVM's system events.
const SYSTEM_EVENT_RESET: u32 = 2;

fn explain(stop: Stop, vcpu: &mut KickableVcpu, triple_fault: TripleFault) -> Exit {
    match stop {
        Stop::TripleFault if triple_fault == TripleFault::Reset => Exit::plain(ExitReason::Reset),
        Stop::System(SYSTEM_EVENT_SHUTDOWN) => Exit::plain(ExitReason::Shutdown),
        Stop::System(SYSTEM_EVENT_RESET) => Exit::plain(ExitReason::Reset),
        Stop::TripleFault => Exit::error(format!("the guest faulted at {}", place(vcpu))),
        Stop::Halted => Exit::error(format!("the guest halted for good at {}", place(vcpu))),
        Stop::Internal => {
            let suberror = vcpu
                .internal_suberror()
                .map_or("unknown".into(), |suberror| suberror.to_string());
            let place = place(vcpu);
            Exit::error(format!("KVM internal error {suberror} at {place}"))
        }
        Stop::System(kind) => Exit::error(format!("KVM system event {kind}")),
        Stop::Entry(reason) => Exit::error(format!("the CPU refused the guest: {reason:#x}")),
        Stop::Other(what) => Exit::error(format!("unexpected KVM exit {what}")),
        Stop::Run(error) => Exit::error(format!("KVM_RUN failed at {}: {error}", place(vcpu))),
    }
}

/// "rip 0x100000 (cr2 0x0)".
fn place(vcpu: &mut KickableVcpu) -> String {
    /// Where a vCPU is after a reset: AMD hosts reset it on a triple fault.
    const RESET_RIP: u64 = 0xfff0;
    let fd = vcpu.fd();
    match (fd.get_regs(), fd.get_sregs()) {
        (Ok(regs), _) if regs.rip == RESET_RIP => "an unknown rip (the CPU was reset)".into(),
        (Ok(regs), Ok(sregs)) => format!("rip {:#x} (cr2 {:#x})", regs.rip, sregs.cr2),
        _ => "an unknown rip".into(),
    }
}
