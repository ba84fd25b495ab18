//! The two entries of a guest's image, and the way from each into `start`.
//!
//! Ring 0 is the hand-written code below and nothing else: a software KVM interprets it, and the
//! precompiled `core` uses SSE, which such a KVM does not interpret. It builds what the VMM builds
//! itself for the direct entry, then leaves ring 0 for good with `iretq`. No interrupt or fault ever
//! comes back: there is no IDT, so a wild access ends in a triple fault, that is in a shutdown.

use core::arch::global_asm;
use core::ffi::{CStr, c_char};

use crate::boot::{self, BootInfo};

global_asm!(
    r#"
    .section .note.guest, "a", @note
    .balign 4
    .long 4, 8, 18              # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_start
    .balign 4
    .long 9, 8, {ring3_type}    # protocol::NOTE_NAME, NOTE_TYPE_RING3
    .asciz "tidemark"
    .balign 4
    .quad direct_start
    .balign 4

    # PVH: 32-bit protected mode, paging off, flat segments, ebx = hvm_start_info.
    .section .text.pvh_start, "ax"
    .code32
    .global pvh_start
pvh_start:
    cli
    cld
    # 2048 pages of 2 MiB: the first 4 GiB, present, writable, user.
    mov $pvh_page_directories, %edi
    mov $0x87, %eax
    mov $2048, %ecx
2:  mov %eax, (%edi)
    movl $0, 4(%edi)
    add $8, %edi
    add $0x200000, %eax
    dec %ecx
    jnz 2b
    movl $pvh_page_directories + 0x0007, pvh_page_directory_pointers
    movl $pvh_page_directories + 0x1007, pvh_page_directory_pointers + 8
    movl $pvh_page_directories + 0x2007, pvh_page_directory_pointers + 16
    movl $pvh_page_directories + 0x3007, pvh_page_directory_pointers + 24
    movl $pvh_page_directory_pointers + 7, pvh_page_map
    # The task state segment: its I/O bitmap, all clear, allows every port; a byte of ones ends it.
    movw $104, pvh_tss + 102
    movb $0xff, pvh_tss + 104 + 8192
    mov $pvh_tss, %eax
    mov %ax, pvh_gdt + 0x28 + 2
    shr $16, %eax
    mov %al, pvh_gdt + 0x28 + 4
    mov %ah, pvh_gdt + 0x28 + 7
    lgdt pvh_gdt_pointer
    # PAE, OSFXSR, OSXMMEXCPT; long mode; PG, WP, NE, ET, MP, PE.
    mov $0x620, %eax
    mov %eax, %cr4
    mov $pvh_page_map, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx
    rdmsr
    or $0x100, %eax
    wrmsr
    mov $0x80010033, %eax
    mov %eax, %cr0
    ljmp $0x08, $pvh_long_mode

    .code64
pvh_long_mode:
    mov $0x28, %eax
    ltr %ax
    mov $0x23, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %fs
    mov %eax, %gs
    mov $0x10, %eax
    mov %eax, %ss
    mov $stack_top, %esp
    mov %ebx, %edi
    push $0x23                  # ss
    push $stack_top             # rsp
    push $0x3002                # rflags: IOPL 3
    push $0x1b                  # cs: 64-bit code, ring 3
    push $pvh_ring3
    iretq

pvh_ring3:
    xor %ebp, %ebp
    call enter_pvh
    ud2

    # Direct: 64-bit ring 3 on tables of the VMM, rdi = command line, rsi = bytes of RAM.
    .section .text.direct_start, "ax"
    .global direct_start
direct_start:
    cld
    mov $stack_top, %esp
    xor %ebp, %ebp
    call enter_direct
    ud2

    .section .data.pvh_gdt, "aw"
    .balign 8
pvh_gdt:
    .quad 0
    .quad 0x00af9b000000ffff    # 0x08 code, 64-bit, ring 0
    .quad 0x00cf93000000ffff    # 0x10 data, ring 0
    .quad 0x00affb000000ffff    # 0x18 code, 64-bit, ring 3
    .quad 0x00cff3000000ffff    # 0x20 data, ring 3
    .quad 0x0000890000002068    # 0x28 task state segment, limit 104 + 8192
    .quad 0
pvh_gdt_pointer:
    .word 55
    .quad pvh_gdt

    .section .bss.stack, "aw", @nobits
    .balign 16
    .skip {stack_bytes}
stack_top:

    .section .pvh_bss, "aw", @nobits
    .balign 4096
pvh_page_directories:
    .skip 4 * 4096
pvh_page_directory_pointers:
    .skip 4096
pvh_page_map:
    .skip 4096
pvh_tss:
    .skip 104 + 8192 + 1
    .text
"#,
    ring3_type = const tidemark_guest_protocol::NOTE_TYPE_RING3,
    stack_bytes = const 16384,
    options(att_syntax)
);

unsafe extern "Rust" {
    /// The behaviour, defined by [`crate::guest!`] in each program.
    safe fn guest_main(boot: BootInfo) -> u32;
}

#[unsafe(no_mangle)]
extern "C" fn enter_pvh(start_info: u64) -> ! {
    // SAFETY: the PVH boot protocol passes the address of a start info in identity-mapped memory.
    let (command_line, ram_end) = unsafe { boot::read_start_info(start_info) };
    start(command_line, ram_end)
}

#[unsafe(no_mangle)]
extern "C" fn enter_direct(command_line: u64, ram_bytes: u64) -> ! {
    start(command_line, ram_bytes)
}

fn start(command_line: u64, ram_end: u64) -> ! {
    let line = if command_line == 0 {
        c""
    } else {
        // SAFETY: both entries pass a NUL-terminated string that lies in identity-mapped memory.
        unsafe { CStr::from_ptr(command_line as *const c_char) }
    };
    crate::port::exit(guest_main(BootInfo::new(line, ram_end)))
}
