//! Building one machine: the guest's files into its memory, its devices at their places, its vCPUs.

use std::sync::{Arc, OnceLock};

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use tidemark_guest_protocol::{PORT_EXIT, PORT_IDLE};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::exit::ExitCell;
use super::gate::Gate;
use super::seats::Seats;
use super::vcpu::{self, Ending, Shared, TripleFault};
use super::{Error, Machine, platform};
use crate::boot::cpuid::{self, DeadlineTimer};
use crate::boot::image::Image;
use crate::boot::{Entry, StartState, acpi, bzimage, direct, elf, pvh};
use crate::devices::bus::{Bus, BusDevice};
use crate::devices::console::Console;
use crate::devices::idle::IdlePort;
use crate::devices::interrupt::{Interrupt, IrqFd, NoInterrupt};
use crate::devices::ports::{self, ExitPort, PORT_RESET, PowerPorts, ResetPort};
use crate::devices::serial::{self, Serial};
use crate::devices::sink::BalloonSink;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::block::{self, Disk};
use crate::devices::virtio::mmio::WINDOW_BYTES;
use crate::devices::virtio::rng;
use crate::sys::kvm::{GuestVm, install_kick_handler};
use crate::sys::ram::GuestRam;

/// Guest-physical address of the three pages that some Intel CPUs need for real mode, below the
/// area of the interrupt controllers.
const TSS_GPA: usize = 0xfffb_d000;

/// What the guest is made of, beside its memory.
#[derive(Debug)]
pub struct MachineSpec {
    /// A bzImage, or an ELF file with tidemark's ring-3 note or a PVH note.
    pub kernel: Image,
    /// The initial RAM disk of an operating system.
    pub initrd: Option<Image>,
    /// The command line; a test guest's gets its devices appended.
    pub cmdline: String,
    /// Its disks, in order: /dev/vda is the first.
    pub disks: Vec<Disk>,
    /// Whether it has a balloon.
    pub balloon: bool,
    /// Number of vCPUs. In a ring-3 guest only the first one runs.
    pub cpus: u8,
}

/// KVM, of which machines are asked.
///
/// # Errors
/// When there is no /dev/kvm, or it is not ours to open.
pub fn open_kvm() -> Result<Kvm, Error> {
    Kvm::new().map_err(|source| Error::OpenKvm { source })
}

impl MachineSpec {
    /// How many virtio devices it has: balloon, entropy, disks.
    fn devices(&self) -> usize {
        usize::from(self.balloon) + 1 + self.disks.len()
    }
}

impl Machine {
    /// Builds a machine around `ram` and loads the guest into it; nothing runs yet.
    ///
    /// Writes guest memory, so whoever serves its faults must be at work already. `sink` hears of
    /// the balloon, `console` of the guest's output.
    ///
    /// # Errors
    /// When KVM refuses something or the guest's files do not fit.
    pub fn new(
        spec: MachineSpec,
        ram: Arc<GuestRam>,
        sink: Arc<dyn BalloonSink>,
        console: Arc<Console>,
    ) -> Result<Machine, Error> {
        Machine::build(&open_kvm()?, spec, ram, sink, console)
    }

    /// The same with the `kvm` of [`open_kvm`]: opens nothing.
    ///
    /// # Errors
    /// As [`Machine::new`].
    pub fn build(
        kvm: &Kvm,
        spec: MachineSpec,
        ram: Arc<GuestRam>,
        sink: Arc<dyn BalloonSink>,
        console: Arc<Console>,
    ) -> Result<Machine, Error> {
        install_kick_handler()?;
        let allowed = kvm.get_max_vcpus();
        if spec.cpus == 0 || usize::from(spec.cpus) > allowed {
            let cpus = spec.cpus;
            return Err(Error::Cpus { cpus, allowed });
        }
        let windows_used = u32::try_from(spec.devices()).unwrap_or(u32::MAX);
        if windows_used > platform::VIRTIO_WINDOWS {
            return Err(Error::Disks {
                count: spec.disks.len(),
                allowed: platform::VIRTIO_WINDOWS - 2,
            });
        }
        let (start, who) = load(&spec, &ram, windows_used)?;
        let vm = kvm.create_vm().map_err(failed("create a VM"))?;
        let wiring = match who {
            // No IDT, so no interrupt can be taken: no controllers, no timer, a faster start.
            Guest::Program => Wiring::None,
            Guest::System => Wiring::InKernel,
        };
        wiring.create_controllers(&vm)?;
        let ending = Arc::new(Ending {
            exit: ExitCell::new().map_err(|source| Error::EventFd { source })?,
            gate: Gate::default(),
            idle: Arc::new(IdlePort::default()),
        });
        let irq = |window| wiring.line(&vm, platform::virtio_irq(window));
        let idle = || Arc::clone(&ending.idle);
        let mut devices = Vec::new();
        let mut lines = 0..;
        let mut next_irq = || irq(lines.next().expect("windows were counted"));
        // One that is on no bus is never found by a driver.
        let balloon_irq: Arc<dyn Interrupt> = match spec.balloon {
            true => next_irq()?,
            false => Arc::new(NoInterrupt),
        };
        let balloon = Balloon::new(Arc::clone(&ram), sink, balloon_irq, idle());
        devices.extend(spec.balloon.then(|| balloon.bus_device()));
        devices.push(rng::bus_device(Arc::clone(&ram), next_irq()?, idle()));
        for disk in spec.disks {
            let disk = block::bus_device(disk, Arc::clone(&ram), next_irq()?, idle());
            devices.push(disk);
        }
        let serial_irq = wiring.line(&vm, serial::IRQ)?;
        let serial = Arc::new(Serial::new(serial_irq, idle(), console.clone()));
        let shared = Shared {
            ports: port_bus(&ending, &serial)?,
            memory: windows(devices)?,
            triple_fault: match who {
                Guest::Program => TripleFault::Fault,
                Guest::System => TripleFault::Reset,
            },
            ending,
            first_run: OnceLock::new(),
            guest: GuestVm::new(vm, ram)?,
        };
        let vcpus = create_vcpus(kvm, &shared.guest, spec.cpus, who, &start)?;
        Ok(Machine {
            shared: Arc::new(shared),
            balloon,
            serial,
            console,
            vcpus,
            spare: Seats::default(),
        })
    }
}

/// Whether the guest can take interrupts.
#[derive(Clone, Copy)]
enum Wiring {
    None,
    InKernel,
}

impl Wiring {
    fn create_controllers(self, vm: &VmFd) -> Result<(), Error> {
        if let Wiring::None = self {
            return Ok(());
        }
        vm.set_tss_address(TSS_GPA)
            .map_err(failed("place the real-mode task state"))?;
        vm.create_irq_chip()
            .map_err(failed("create interrupt controllers"))?;
        let pit = kvm_pit_config {
            // Port 0x61 answers too: kernels calibrate their clock with it.
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        vm.create_pit2(pit).map_err(failed("create a timer"))
    }

    fn line(self, vm: &VmFd, gsi: u32) -> Result<Arc<dyn Interrupt>, Error> {
        if let Wiring::None = self {
            return Ok(Arc::new(NoInterrupt));
        }
        let event =
            EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(|source| Error::EventFd { source })?;
        vm.register_irqfd(&event, gsi)
            .map_err(failed("wire an interrupt line"))?;
        Ok(Arc::new(IrqFd(event)))
    }
}

fn failed(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    move |source| Error::Kvm { what, source }
}

/// Who runs in the guest.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Guest {
    /// One of tidemark's own programs, in ring 3.
    Program,
    /// An operating system's kernel.
    System,
}

/// Loads the guest's files; nothing of KVM is needed for that.
fn load(spec: &MachineSpec, ram: &GuestRam, windows: u32) -> Result<(StartState, Guest), Error> {
    let initrd = spec.initrd.as_ref();
    let hardware = platform::hardware(spec.cpus, windows);
    if bzimage::is_bzimage(&spec.kernel)? {
        let header = bzimage::load(&spec.kernel, ram)?;
        let rsdp = acpi::write(ram, &hardware)?;
        let start = bzimage::prepare(ram, &header, &spec.cmdline, initrd, rsdp)?;
        return Ok((start, Guest::System));
    }
    let loaded = elf::load(&spec.kernel, ram)?;
    match loaded.entry {
        Entry::Ring3 { gpa } => {
            // The balloon, the only device that test guests drive.
            let windows = u32::from(spec.balloon);
            let cmdline = platform::cmdline_with_devices(&spec.cmdline, windows);
            let start = direct::prepare(ram, &loaded, gpa, &cmdline, platform::VIRTIO_START)?;
            Ok((start, Guest::Program))
        }
        Entry::Pvh { gpa } => {
            let rsdp = acpi::write(ram, &hardware)?;
            let start = pvh::prepare(ram, loaded.end, gpa, &spec.cmdline, initrd, rsdp)?;
            Ok((start, Guest::System))
        }
    }
}

fn port_bus(ending: &Arc<Ending>, serial: &Arc<Serial>) -> Result<Bus, Error> {
    let mut bus = Bus::default();
    bus.insert(serial::PORT.into(), serial::PORTS.into(), serial.clone())?;
    bus.insert(PORT_EXIT.into(), 1, Arc::new(ExitPort(ending.clone())))?;
    bus.insert(PORT_RESET.into(), 1, Arc::new(ResetPort(ending.clone())))?;
    bus.insert(PORT_IDLE.into(), 1, ending.idle.clone())?;
    let power = PowerPorts {
        sink: ending.clone(),
        sleep_type_off: acpi::SLEEP_TYPE_OFF,
        reset_value: acpi::RESET_VALUE,
    };
    let (first, count) = (ports::PORT_POWER, ports::POWER_PORTS);
    bus.insert(first.into(), count.into(), Arc::new(power))?;
    Ok(bus)
}

fn windows(devices: Vec<Arc<dyn BusDevice>>) -> Result<Bus, Error> {
    let mut windows = Bus::default();
    for (n, device) in (0..).zip(devices) {
        windows.insert(platform::virtio_window(n), WINDOW_BYTES, device)?;
    }
    Ok(windows)
}

fn create_vcpus(
    kvm: &Kvm,
    guest: &GuestVm,
    cpus: u8,
    who: Guest,
    start: &StartState,
) -> Result<Vec<VcpuFd>, Error> {
    let supported = kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(failed("list CPU features"))?;
    let deadline = guest.vm().check_extension(Cap::TscDeadlineTimer);
    let (cpus, timer) = match who {
        // Nobody could start the others: a ring-3 guest has no interrupt controllers.
        Guest::Program => (1, DeadlineTimer::Absent),
        Guest::System if deadline => (cpus, DeadlineTimer::Present),
        Guest::System => (cpus, DeadlineTimer::Absent),
    };
    let mut vcpus = Vec::new();
    for cpu in 0..cpus {
        let vcpu = guest
            .vm()
            .create_vcpu(cpu.into())
            .map_err(failed("create a vCPU"))?;
        vcpu.set_cpuid2(&cpuid::adapt(&supported, cpu, cpus, timer))
            .map_err(failed("set CPU features"))?;
        if who == Guest::System {
            vcpu::set_firmware_registers(&vcpu).map_err(failed("set registers"))?;
        }
        if cpu == 0 {
            vcpu::start_at(&vcpu, start).map_err(failed("set registers"))?;
        } else {
            vcpu::wait_for_startup(&vcpu).map_err(failed("park a vCPU"))?;
        }
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}
