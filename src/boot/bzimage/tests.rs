use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::sys::ram::Layout;
use crate::units::Pages;

const LOAD: u64 = 0x100_0000;
const KERNEL_BYTES: usize = 100;

fn ram(mib: u64) -> Arc<GuestRam> {
    GuestRam::new(Layout::new(Pages::mib(mib))).unwrap()
}

/// A kernel of one setup sector whose header says what a 64-bit kernel's says.
fn kernel() -> Vec<u8> {
    let mut file = vec![0; 2 * 512 + KERNEL_BYTES];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1f4, &7u32.to_le_bytes());
    put(0x1fe, &BOOT_FLAG.to_le_bytes());
    put(0x200, &[0xeb, 0x66]);
    put(0x202, MAGIC);
    put(0x206, &0x20fu16.to_le_bytes());
    put(0x211, &[LOADED_HIGH]);
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x236, &HAS_64BIT_ENTRY.to_le_bytes());
    put(0x258, &LOAD.to_le_bytes());
    put(0x260, &0x20_0000u32.to_le_bytes());
    put(2 * 512, &[0x90; KERNEL_BYTES]);
    file
}

fn with(at: usize, bytes: &[u8]) -> Image {
    let mut file = kernel();
    file[at..at + bytes.len()].copy_from_slice(bytes);
    Image::Owned(file)
}

#[test]
fn the_zero_page_tells_the_kernel_what_it_was_given() {
    let ram = ram(32);
    let image = Image::Owned(kernel());
    assert!(is_bzimage(&image).unwrap());
    let header = load(&image, &ram).unwrap();
    let initrd = Image::Owned(vec![7; 5000]);
    let state = prepare(&ram, &header, "quiet", Some(&initrd), 0xe_0000).unwrap();
    assert_eq!((state.regs.rip, state.regs.rsi), (LOAD + 0x200, ZERO_PAGE));
    let word = |at: u64| -> u32 { ram.memory().read_obj(GuestAddress(at)).unwrap() };
    assert_eq!(word(LOAD), 0x9090_9090);
    assert_eq!(word(ZERO_PAGE + 0x218), (32 << 20) - 0x2000);
    assert_eq!(word(ZERO_PAGE + 0x21c), 5000);
    assert_eq!(word(ZERO_PAGE + 0x070), 0xe_0000);
    assert_eq!(word(ZERO_PAGE + 0x202), u32::from_le_bytes(*MAGIC));
    assert_eq!(word(ZERO_PAGE + 0x1e8) & 0xff, 3);
    assert_eq!(
        word(word(ZERO_PAGE + 0x228).into()),
        u32::from_le_bytes(*b"quie")
    );
}

#[test]
fn unsuitable_kernels_are_refused_for_what_they_are() {
    let ram = ram(32);
    let old = load(&with(0x206, &0x20bu16.to_le_bytes()), &ram).unwrap_err();
    assert!(old.to_string().contains("protocol is 2.11"), "{old}");
    let narrow = load(&with(0x236, &[0, 0]), &ram).unwrap_err();
    assert!(matches!(narrow, Error::WrongMachine(_)));
    let short = load(&with(0x1f4, &8u32.to_le_bytes()), &ram).unwrap_err();
    assert!(matches!(short, Error::Truncated { .. }));
    let cut = Image::Owned(kernel()[..700].to_vec());
    assert!(matches!(load(&cut, &ram), Err(Error::Truncated { .. })));
    let cut = Image::Owned(kernel()[..0x210].to_vec());
    assert!(matches!(load(&cut, &ram), Err(Error::Truncated { .. })));
    let far = load(&with(0x258, &u64::MAX.to_le_bytes()), &ram).unwrap_err();
    assert!(matches!(far, Error::SegmentOutsideRam { .. }));
    let big = load(&with(0x260, &u32::MAX.to_le_bytes()), &ram).unwrap_err();
    assert!(matches!(big, Error::SegmentOutsideRam { .. }));
    for (at, byte) in [(0x1fe, 0), (0x211, 0), (0x201, 0)] {
        let broken = load(&with(at, &[byte]), &ram).unwrap_err();
        assert!(matches!(broken, Error::Broken(_)), "{at:#x}: {broken}");
    }
}

#[test]
fn an_initrd_that_meets_the_kernel_is_refused() {
    let ram = ram(32);
    let header = load(&Image::Owned(kernel()), &ram).unwrap();
    let fits = |bytes: usize| {
        let initrd = Image::Owned(vec![7; bytes]);
        prepare(&ram, &header, "", Some(&initrd), 0).map(|_| ())
    };
    fits(14 << 20).unwrap();
    let error = fits((14 << 20) + 1).unwrap_err();
    assert!(matches!(error, Error::Initrd { .. }));
}
