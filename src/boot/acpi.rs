//! ACPI tables: how an ordinary kernel learns about vCPUs, the serial port and virtio devices.
//!
//! Hardware-reduced ACPI (ACPI 6.5, section 4.1): no fixed hardware but a sleep and a reset port.
//! Distribution kernels find virtio-mmio windows through the DSDT alone, as `LNRO0005` devices.
//!
//! ```text
//! 0xe0000  RSDP -> XSDT -> FADT -> DSDT
//!                       -> MADT
//! 0xffff0  the firmware's entry, which resets
//! ```
//!
//! On hardware-reduced ACPI, Linux asks UEFI for the reset and, where there is none, jumps to the
//! firmware's entry in real mode; it does not try the reset register before.

use acpi_tables::Aml;
use acpi_tables::aml::ResourceTemplate;
use acpi_tables::aml::{Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use super::{Error, put};
use crate::sys::ram::GuestRam;

/// Where the tables lie: in a PC's firmware area, which no kernel takes for ordinary memory.
pub const TABLES_GPA: u64 = 0xe_0000;
/// Room for them and for the firmware's entry.
pub const TABLES_BYTES: u64 = 0x2_0000;
/// Where a PC's firmware is entered in real mode: f000:fff0.
const FIRMWARE_ENTRY_GPA: u64 = 0xf_fff0;

/// Sleep type of the state "soft off" (S5), as our DSDT names it (chosen).
pub const SLEEP_TYPE_OFF: u8 = 5;
/// Value of the reset register that resets (chosen).
pub const RESET_VALUE: u8 = 1;

const OEM: [u8; 6] = *b"TDMARK";
const OEM_TABLE: [u8; 8] = *b"TIDEMARK";
/// Addresses of the local and the I/O APIC on every PC.
const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;
/// Boot architecture flags: no VGA, no CMOS clock; and, by its absence, no keyboard controller.
const BOOT_ARCH: u16 = 1 << 2 | 1 << 5;
/// From revision 2 on, integers have 64 bits.
const DSDT_REVISION: u8 = 2;

/// A virtio-mmio window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtioWindow {
    /// Guest-physical start.
    pub gpa: u32,
    /// Length in bytes.
    pub length: u32,
    /// Its interrupt.
    pub gsi: u32,
}

/// What the tables describe.
#[derive(Debug, Clone)]
pub struct Hardware {
    /// vCPUs, APIC ids from zero.
    pub cpus: u8,
    /// Virtio windows that hold a device.
    pub virtio: Vec<VirtioWindow>,
    /// First port and interrupt of the serial line.
    pub serial: (u16, u32),
    /// Port of the sleep control register; the sleep status register is the next one.
    pub sleep_port: u16,
    /// Port of the reset register.
    pub reset_port: u16,
}

/// Writes the tables; returns the address of the RSDP.
///
/// # Errors
/// When the guest is too small for them.
pub fn write(ram: &GuestRam, hardware: &Hardware) -> Result<u64, Error> {
    let mut next = TABLES_GPA + 64;
    let mut place = |table: Vec<u8>| -> Result<u64, Error> {
        let gpa = next;
        put(ram, gpa, &table)?;
        next = (gpa + table.len() as u64).next_multiple_of(64);
        assert!(next <= FIRMWARE_ENTRY_GPA, "ACPI tables are small");
        Ok(gpa)
    };
    let dsdt = place(dsdt(hardware))?;
    let fadt = place(bytes(&fadt(hardware, dsdt).finalize()))?;
    let madt = place(bytes(&madt(hardware.cpus)))?;
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, 1);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = place(bytes(&xsdt))?;
    put(ram, TABLES_GPA, &bytes(&Rsdp::new(OEM, xsdt)))?;
    put(ram, FIRMWARE_ENTRY_GPA, &reset_code(hardware.reset_port))?;
    Ok(TABLES_GPA)
}

/// All the firmware there is, in 16-bit code: writes the reset value to the reset register.
fn reset_code(port: u16) -> [u8; 9] {
    let [low, high] = port.to_le_bytes();
    // mov al, value; mov dx, port; out dx, al; again: hlt; jmp again
    [0xb0, RESET_VALUE, 0xba, low, high, 0xee, 0xf4, 0xeb, 0xfd]
}

fn port(address: u16) -> GAS {
    GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        address.into(),
    )
}

fn fadt(hardware: &Hardware, dsdt: u64) -> FADTBuilder {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, 1)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.reset_reg = port(hardware.reset_port);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = port(hardware.sleep_port);
    fadt.sleep_status_reg = port(hardware.sleep_port + 1);
    fadt
}

fn madt(cpus: u8) -> MADT {
    let local = LocalInterruptController::Address(LOCAL_APIC);
    let mut madt = MADT::new(OEM, OEM_TABLE, 1, local);
    for cpu in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IO_APIC, 0));
    madt
}

fn dsdt(hardware: &Hardware) -> Vec<u8> {
    let mut aml = Vec::new();
    for (n, window) in (0u8..).zip(&hardware.virtio) {
        aml.extend(virtio_device(n, window));
    }
    aml.extend(serial_device(hardware.serial));
    let off = Package::new(vec![&SLEEP_TYPE_OFF]);
    Name::new(Path::new("_S5_"), &off).to_aml_bytes(&mut aml);
    let mut table = Sdt::new(*b"DSDT", 36, DSDT_REVISION, OEM, OEM_TABLE, 1);
    table.append_slice(&aml);
    table.update_checksum();
    table.as_slice().to_vec()
}

/// A device's AML. Made at once: the crate's types borrow their parts.
fn virtio_device(n: u8, window: &VirtioWindow) -> Vec<u8> {
    let memory = Memory32Fixed::new(true, window.gpa, window.length);
    device(&format!("VR{n:02}"), &"LNRO0005", n, &memory, window.gsi)
}

fn serial_device((first_port, gsi): (u16, u32)) -> Vec<u8> {
    let ports = IO::new(first_port, first_port, 1, 8);
    device("COM1", &EISAName::new("PNP0501"), 0, &ports, gsi)
}

/// A device with an identity, a unit number, one resource and an edge-triggered interrupt of its
/// own.
fn device(name: &str, id: &dyn Aml, unit: u8, resource: &dyn Aml, gsi: u32) -> Vec<u8> {
    let interrupt = Interrupt::new(true, true, false, false, gsi);
    let resources = ResourceTemplate::new(vec![resource, &interrupt]);
    let id = Name::new(Path::new("_HID"), id);
    let unit = Name::new(Path::new("_UID"), &unit);
    let resources = Name::new(Path::new("_CRS"), &resources);
    let scope = format!("_SB_.{name}");
    bytes(&Device::new(
        Path::new(&scope),
        vec![&id, &unit, &resources],
    ))
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut sink = Vec::new();
    table.to_aml_bytes(&mut sink);
    sink
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::sys::ram::Layout;
    use crate::units::Pages;

    fn table(ram: &GuestRam, gpa: u64) -> Vec<u8> {
        let length: u32 = ram.memory().read_obj(GuestAddress(gpa + 4)).unwrap();
        let mut bytes = vec![0; length as usize];
        ram.memory()
            .read_slice(&mut bytes, GuestAddress(gpa))
            .unwrap();
        let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(sum, 0, "checksum of {gpa:#x}");
        bytes
    }

    fn address(table: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(table[offset..offset + 8].try_into().unwrap())
    }

    #[test]
    fn every_table_is_found_from_the_root() {
        let ram = GuestRam::new(Layout::new(Pages::mib(2))).unwrap();
        let window = |n: u32| VirtioWindow {
            gpa: 0xd000_0000 + n * 0x1000,
            length: 0x1000,
            gsi: 5 + n,
        };
        let hardware = Hardware {
            cpus: 3,
            virtio: (0..8).map(window).collect(),
            serial: (0x3f8, 4),
            sleep_port: 0x600,
            reset_port: 0x602,
        };
        let root = write(&ram, &hardware).unwrap();
        assert_eq!(root % 16, 0);
        let xsdt: u64 = ram.memory().read_obj(GuestAddress(root + 24)).unwrap();
        let xsdt = table(&ram, xsdt);
        assert_eq!(&xsdt[..4], b"XSDT");
        let (fadt, madt) = (address(&xsdt, 36), address(&xsdt, 44));
        let (fadt, madt) = (table(&ram, fadt), table(&ram, madt));
        assert_eq!((&fadt[..4], &madt[..4]), (&b"FACP"[..], &b"APIC"[..]));
        // Three processors of 8 bytes and an I/O APIC of 12.
        assert_eq!(madt.len(), 44 + 3 * 8 + 12);
        let dsdt = table(&ram, address(&fadt, 140));
        let devices = dsdt.windows(8).filter(|id| id == b"LNRO0005").count();
        assert_eq!((&dsdt[..4], devices), (&b"DSDT"[..], 8));
        let entry: [u8; 9] = ram.memory().read_obj(GuestAddress(0xf_fff0)).unwrap();
        assert_eq!(entry, [0xb0, 1, 0xba, 2, 6, 0xee, 0xf4, 0xeb, 0xfd]);
    }
}
