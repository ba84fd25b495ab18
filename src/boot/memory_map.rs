//! The map of memory that a guest is told (e820).

use super::{acpi, low_ram_end};
use crate::sys::ram::{GuestRam, HIGH_RAM_START};

/// The BIOS' data lie from here to 1 MiB on a PC; kernels keep out of it anyway.
pub(super) const CONVENTIONAL_END: u64 = 0x9_fc00;
/// First byte after a PC's firmware area.
pub(super) const EXTENDED_START: u64 = 0x10_0000;

/// What a range is; the numbers are e820's, which PVH shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Ram = 1,
    AcpiTables = 3,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub start: u64,
    pub length: u64,
    pub kind: Kind,
}

/// RAM without the firmware area and the hole below 4 GiB, in ascending order.
pub(super) fn of(ram: &GuestRam) -> Vec<Range> {
    let low_end = low_ram_end(ram.layout());
    let high = ram.layout().size().bytes() - low_end;
    let extended = low_end.saturating_sub(EXTENDED_START);
    let tables = if extended > 0 { acpi::TABLES_BYTES } else { 0 };
    let ranges = [
        (0, low_end.min(CONVENTIONAL_END), Kind::Ram),
        (acpi::TABLES_GPA, tables, Kind::AcpiTables),
        (EXTENDED_START, extended, Kind::Ram),
        (HIGH_RAM_START, high, Kind::Ram),
    ];
    let ranges = ranges.map(|(start, length, kind)| Range {
        start,
        length,
        kind,
    });
    ranges
        .into_iter()
        .filter(|range| range.length > 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::ram::{LOW_RAM_END, Layout};
    use crate::units::Pages;

    #[test]
    fn a_large_guest_has_the_hole() {
        let ram = GuestRam::new(Layout::new(Pages::mib(5 << 10))).unwrap();
        let map = of(&ram);
        let told: u64 = map.iter().map(|range| range.length).sum();
        assert!(told <= ram.layout().size().bytes());
        assert_eq!(map[2].start + map[2].length, LOW_RAM_END);
        assert_eq!((map[3].start, map[3].length), (HIGH_RAM_START, 2 << 30));
    }
}
