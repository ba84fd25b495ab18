use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::sys::ram::Layout;
use crate::units::Pages;

fn note(name: &[u8], kind: u32, descriptor: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [name.len(), descriptor.len(), kind as usize] {
        note.extend_from_slice(&u32::try_from(word).unwrap().to_le_bytes());
    }
    for part in [name, descriptor] {
        note.extend_from_slice(part);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

fn ring3_note() -> Vec<u8> {
    note(NOTE_NAME, NOTE_TYPE_RING3, &0x10_0010u64.to_le_bytes())
}

fn pvh_note() -> Vec<u8> {
    note(XEN_NAME, XEN_NOTE_PHYS32_ENTRY, &0x10_0020u32.to_le_bytes())
}

/// One loaded segment `(gpa, bytes in memory)` that holds "tide", and one note segment.
fn file(gpa: u64, memory_bytes: u64, notes: &[u8]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(64, 0);
    file[18] = 62;
    file[32] = 64;
    file[54] = 56;
    file[56] = 2;
    let data = 64 + 2 * 56;
    let notes_bytes = notes.len() as u64;
    for (kind, values) in [
        (1u64, [data, gpa, gpa, 4, memory_bytes, 1]),
        (4, [data + 4, 0, 0, notes_bytes, notes_bytes, 4]),
    ] {
        file.extend_from_slice(&kind.to_le_bytes());
        for value in values {
            file.extend_from_slice(&value.to_le_bytes());
        }
    }
    file.extend_from_slice(b"tide");
    file.extend_from_slice(notes);
    file
}

fn ram() -> std::sync::Arc<GuestRam> {
    GuestRam::new(Layout::new(Pages::mib(4))).unwrap()
}

fn load_bytes(bytes: Vec<u8>) -> Result<Loaded, Error> {
    load(&Image::Owned(bytes), &ram())
}

#[test]
fn the_ring_3_note_wins_over_pvh() {
    let ram = ram();
    for notes in [[pvh_note(), ring3_note()], [ring3_note(), pvh_note()]] {
        let image = Image::Owned(file(0x10_0000, 0x3000, &notes.concat()));
        let loaded = load(&image, &ram).unwrap();
        assert_eq!(loaded.entry, Entry::Ring3 { gpa: 0x10_0010 });
        assert_eq!(loaded.end, 0x10_3000);
    }
    let mut back = [0; 4];
    ram.memory()
        .read_slice(&mut back, GuestAddress(0x10_0000))
        .unwrap();
    assert_eq!(&back, b"tide");
    let other = note(b"GNU\0", 3, &[0; 20]);
    let image = file(0x10_0000, 4, &[other, pvh_note()].concat());
    let loaded = load_bytes(image).unwrap();
    assert_eq!(loaded.entry, Entry::Pvh { gpa: 0x10_0020 });
}

#[test]
fn a_file_on_disk_loads_as_well() {
    use std::io::Write;
    let mut disk = tempfile::tempfile().unwrap();
    disk.write_all(&file(0x10_0000, 4, &pvh_note())).unwrap();
    assert!(load(&Image::file(disk).unwrap(), &ram()).is_ok());
}

#[test]
fn each_unsuitable_file_has_its_error() {
    let good = file(0x10_0000, 4, &ring3_note());
    let with = |at: usize, bytes: &[u8]| {
        let mut bad = good.clone();
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        load_bytes(bad).unwrap_err()
    };
    assert!(matches!(load_bytes(vec![]), Err(Error::NotElf)));
    assert!(matches!(with(0, b"MZ"), Error::Foreign(_)));
    assert!(matches!(with(4, &[1]), Error::WrongMachine(_)));
    assert!(matches!(with(18, &[183]), Error::WrongMachine(_)));
    assert!(matches!(with(54, &[32]), Error::Broken(_)));
    assert!(matches!(with(57, &[1]), Error::Broken(_)));
    assert!(matches!(with(32, &[0xff; 8]), Error::Truncated { .. }));
    assert!(matches!(
        load_bytes(good[..70].to_vec()),
        Err(Error::Truncated { .. })
    ));
    let cut = good[..good.len() - 1].to_vec();
    assert!(matches!(load_bytes(cut), Err(Error::Truncated { .. })));
    assert!(matches!(
        load_bytes(file(0x10_0000, 4, &[])),
        Err(Error::NoEntry)
    ));
    assert!(matches!(
        load_bytes(file(0x10_0000, 3, &pvh_note())),
        Err(Error::Broken(_))
    ));
    assert!(matches!(
        load_bytes(file(0xf_f000, 4, &ring3_note())),
        Err(Error::SegmentInLowMemory { .. })
    ));
    for (gpa, length) in [
        (0x40_0000, 4),
        (0x3f_ffff, 4),
        (0x10_0000, u64::MAX),
        (u64::MAX, 4),
    ] {
        assert!(matches!(
            load_bytes(file(gpa, length, &pvh_note())),
            Err(Error::SegmentOutsideRam { .. })
        ));
    }
    let outside = note(NOTE_NAME, NOTE_TYPE_RING3, &u64::MAX.to_le_bytes());
    assert!(matches!(
        load_bytes(file(0x10_0000, 4, &outside)),
        Err(Error::EntryOutsideRam { gpa: u64::MAX })
    ));
    let short = note(NOTE_NAME, NOTE_TYPE_RING3, &[1; 7]);
    assert!(matches!(
        load_bytes(file(0x10_0000, 4, &short)),
        Err(Error::Broken(_))
    ));
}

#[test]
fn notes_that_lie_about_their_length_end_the_walk() {
    for (name, descriptor) in [(u32::MAX, 0), (4, u32::MAX), (u32::MAX - 2, u32::MAX - 2)] {
        let mut lie = pvh_note();
        lie[..4].copy_from_slice(&name.to_le_bytes());
        lie[4..8].copy_from_slice(&descriptor.to_le_bytes());
        assert!(matches!(
            load_bytes(file(0x10_0000, 4, &lie)),
            Err(Error::NoEntry)
        ));
    }
}

proptest! {
    #[test]
    fn random_damage_never_panics(damage in prop::collection::vec((0usize..220, any::<u8>()), 1..12)) {
        let mut bytes = file(0x10_0000, 0x1000, &[pvh_note(), ring3_note()].concat());
        for (at, value) in damage {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        let _ = load_bytes(bytes);
    }
}
