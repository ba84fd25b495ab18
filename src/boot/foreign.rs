//! Files that are taken for kernels and cannot be booted, by their magic numbers, so that the user
//! is told what they are.

use super::Error;
use super::image::Image;

/// Offset, bytes, and what a file with them there is. The first that matches counts.
const MAGICS: &[(usize, &[u8], &str)] = &[
    // Documentation/arch/arm64/booting.rst and arch/riscv/boot-image-header.rst.
    (0x38, b"ARM\x64", "a Linux image for arm64"),
    (0x38, b"RSC\x05", "a Linux image for RISC-V"),
    (4, b"zimg", "an EFI image with a compressed kernel in it"),
    (
        0,
        b"MZ",
        "an EFI program or the beginning of a bzImage: it has no boot header for x86",
    ),
    (0, b"\x1f\x8b", GZIP),
    (0, b"\xfd7zXZ\0", "compressed with xz: unpack it first"),
    (
        0,
        b"\x28\xb5\x2f\xfd",
        "compressed with zstd: unpack it first",
    ),
    (0, b"BZh", "compressed with bzip2: unpack it first"),
    (
        0,
        b"\x02\x21\x4c\x18",
        "compressed with lz4: unpack it first",
    ),
    (
        0,
        b"\x04\x22\x4d\x18",
        "compressed with lz4: unpack it first",
    ),
    (0, b"070701", "a cpio archive: an initrd?"),
    (0, b"\x27\x05\x19\x56", "an image for U-Boot"),
];
const GZIP: &str = "compressed with gzip: unpack it first, or is it an initrd?";
/// Bytes of the file that are looked at.
const HEAD_BYTES: u64 = 0x3c;

/// Why an image without the magic numbers of a bzImage or an ELF file is refused.
pub(super) fn error(image: &Image) -> Error {
    let mut head = vec![0; usize::try_from(image.length().min(HEAD_BYTES)).unwrap_or(0)];
    if let Err(error) = image.read("the first bytes", 0, &mut head) {
        return error;
    }
    let is = |at: usize, magic: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(magic));
    let found = MAGICS.iter().find(|(at, magic, _)| is(*at, magic));
    found.map_or(Error::NotElf, |(_, _, what)| Error::Foreign(what))
}

/// The name of an ELF machine (System V ABI, chapter 4 "ELF header").
pub(super) fn machine(number: u16) -> String {
    let name = match number {
        3 => "32-bit x86 (i386)",
        8 => "MIPS",
        20 | 21 => "PowerPC",
        22 => "S/390",
        40 => "32-bit Arm",
        183 => "AArch64",
        243 => "RISC-V",
        258 => "LoongArch",
        number => return format!("machine {number}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_called_by_their_names() {
        let mut arm = vec![0; 64];
        arm[..2].copy_from_slice(b"MZ");
        arm[0x38..0x3c].copy_from_slice(b"ARM\x64");
        for (bytes, word) in [
            (arm, "arm64"),
            (b"\x1f\x8b\x08".to_vec(), "gzip"),
            (b"MZ".to_vec(), "no boot header"),
            (b"#!/bin/sh".to_vec(), "neither"),
            (Vec::new(), "neither"),
        ] {
            let said = error(&Image::Owned(bytes)).to_string();
            assert!(said.contains(word), "{said}");
        }
    }
}
