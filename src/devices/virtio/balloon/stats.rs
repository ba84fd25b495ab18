//! The guest's memory statistics (virtio 1.2, section 5.5.6.4; tags 10 to 15 are newer than the
//! specification: `include/uapi/linux/virtio_balloon.h` of Linux 6.12).

use crate::words::GuestMemoryStats;

/// Bytes of one packed entry: a 16-bit tag and a 64-bit value.
pub(super) const ENTRY_BYTES: usize = 10;
/// Entries read of one buffer; Linux sends at most 16.
pub(super) const ENTRIES_MAX: usize = 64;

/// Reads entries in order; unknown tags and a trailing partial entry are ignored, of a tag that
/// comes twice the last value counts.
pub(super) fn parse(bytes: &[u8]) -> GuestMemoryStats {
    let mut stats = GuestMemoryStats::default();
    for entry in bytes.chunks_exact(ENTRY_BYTES).take(ENTRIES_MAX) {
        let (tag, value) = entry.split_at(2);
        let tag = u16::from_le_bytes(tag.try_into().expect("split at 2"));
        let value = u64::from_le_bytes(value.try_into().expect("8 of 10 bytes"));
        let field = match tag {
            0 => &mut stats.swap_in_bytes,
            1 => &mut stats.swap_out_bytes,
            2 => &mut stats.major_faults,
            3 => &mut stats.minor_faults,
            4 => &mut stats.free_bytes,
            5 => &mut stats.total_bytes,
            6 => &mut stats.available_bytes,
            7 => &mut stats.caches_bytes,
            10 => &mut stats.oom_kills,
            11 => &mut stats.alloc_stalls,
            12 => &mut stats.async_scan_bytes,
            13 => &mut stats.direct_scan_bytes,
            14 => &mut stats.async_reclaim_bytes,
            15 => &mut stats.direct_reclaim_bytes,
            _ => continue,
        };
        *field = Some(value);
    }
    stats
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(tag: u16, value: u64) -> Vec<u8> {
        [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()
    }

    #[test]
    fn known_tags_are_taken_and_others_ignored() {
        let mut bytes = [entry(4, 77), entry(0xffff, 1), entry(8, 2), entry(4, 78)].concat();
        bytes.push(1);
        let stats = parse(&bytes);
        assert_eq!(stats.free_bytes, Some(78));
        assert_eq!(
            stats,
            GuestMemoryStats {
                free_bytes: Some(78),
                ..Default::default()
            }
        );
        assert_eq!(parse(&[]), GuestMemoryStats::default());
    }

    #[test]
    fn the_tags_of_linux_6_12_are_told_apart() {
        let bytes: Vec<u8> = (8..17)
            .flat_map(|tag| entry(tag, 100 + u64::from(tag)))
            .collect();
        let expected = GuestMemoryStats {
            oom_kills: Some(110),
            alloc_stalls: Some(111),
            async_scan_bytes: Some(112),
            direct_scan_bytes: Some(113),
            async_reclaim_bytes: Some(114),
            direct_reclaim_bytes: Some(115),
            ..Default::default()
        };
        assert_eq!(parse(&bytes), expected);
    }

    #[test]
    fn the_number_of_entries_is_bounded() {
        let mut bytes = entry(0xffff, 0).repeat(ENTRIES_MAX);
        bytes.extend(entry(5, 1));
        assert_eq!(parse(&bytes).total_bytes, None);
    }
}
