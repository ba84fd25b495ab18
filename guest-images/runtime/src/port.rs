//! Port I/O, and the ports a guest ends and idles through.

use core::arch::asm;

use tidemark_guest_protocol::{PORT_EXIT, PORT_IDLE};

/// Writes a byte to a port.
pub fn write_u8(port: u16, value: u8) {
    // SAFETY: the ports used are devices that touch no memory of this program.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) }
}

/// Reads a byte from a port.
pub fn read_u8(port: u16) -> u8 {
    let value;
    // SAFETY: the ports used are devices that touch no memory of this program.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) }
    value
}

/// Writes 32 bits to a port. The device behind it may read and change memory.
pub fn write_u32(port: u16, value: u32) {
    // SAFETY: as above; memory counts as changed, since the VMM may do so meanwhile.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack)) }
}

/// Ends the VM with a code.
pub fn exit(code: u32) -> ! {
    write_u32(PORT_EXIT, code);
    // Nobody listens on the port: end by a fault that nothing handles.
    // SAFETY: raises an invalid-opcode fault and never returns.
    unsafe { asm!("ud2", options(noreturn)) }
}

/// Lets the vCPU sleep for at most that long. Returns at once where nobody listens.
pub fn sleep_at_most_ms(milliseconds: u32) {
    write_u32(PORT_IDLE, milliseconds);
}
