//! The one place where guest-given addresses and lengths become ranges of guest RAM.
//!
//! A range is checked as a whole, with overflow checks: a start inside RAM proves nothing about the
//! end. Reports of balloons that checked only the start have let guests discard host memory.

use crate::sys::ram::Layout;
use crate::units::{Gfn, GfnRange, PAGE_SIZE};

/// A guest-given range that is not RAM from its first to its last byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("guest range {gpa:#x}+{length:#x} is not RAM")]
pub struct NotRam {
    /// First guest-physical address.
    pub gpa: u64,
    /// Length in bytes.
    pub length: u64,
}

/// The frames that hold the bytes `gpa .. gpa + length`; `None` for an empty range.
///
/// # Errors
/// When the range wraps or one of its bytes is not RAM.
pub fn frames_touched(layout: &Layout, gpa: u64, length: u64) -> Result<Option<GfnRange>, NotRam> {
    let error = NotRam { gpa, length };
    let Some(last_offset) = length.checked_sub(1) else {
        return Ok(None);
    };
    let last = gpa.checked_add(last_offset).ok_or(error)?;
    let first = Gfn::containing(gpa).ok_or(error)?;
    let last = Gfn::containing(last).ok_or(error)?;
    let count = last.0 - first.0;
    // Both numbers are at most u32::MAX, so only count + 1 and the end can overflow.
    let count = count.checked_add(1).ok_or(error)?;
    if first.0.checked_add(count).is_none() {
        return Err(error);
    }
    let range = GfnRange::new(first, count);
    if layout.contains(range) {
        Ok(Some(range))
    } else {
        Err(error)
    }
}

/// The whole frames inside `gpa .. gpa + length`: a frame at an edge that is only partly covered
/// stays out. `None` when no whole frame is covered.
///
/// # Errors
/// As [`frames_touched`]: the range as given must be RAM, not only its inner part.
pub fn frames_inside(layout: &Layout, gpa: u64, length: u64) -> Result<Option<GfnRange>, NotRam> {
    let Some(touched) = frames_touched(layout, gpa, length)? else {
        return Ok(None);
    };
    let page = PAGE_SIZE as u64;
    let cut_first = u32::from(!gpa.is_multiple_of(page));
    let cut_last = u32::from(!(gpa + length).is_multiple_of(page));
    let count = touched.count.saturating_sub(cut_first + cut_last);
    let start = Gfn(touched.start.0 + cut_first);
    Ok((count > 0).then(|| GfnRange::new(start, count)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sys::ram::{HIGH_RAM_START, LOW_RAM_END};
    use crate::units::Pages;

    fn range(start: u32, count: u32) -> Option<GfnRange> {
        Some(GfnRange::new(Gfn(start), count))
    }

    #[test]
    fn the_end_is_checked_as_well_as_the_start() {
        let layout = Layout::new(Pages(16));
        assert_eq!(frames_touched(&layout, 0, 0x10000), Ok(range(0, 16)));
        assert_eq!(frames_touched(&layout, 0xfff, 2), Ok(range(0, 2)));
        assert_eq!(frames_touched(&layout, u64::MAX, 0), Ok(None));
        for (gpa, length) in [
            (0xffff, 2),
            (0x10000, 1),
            (0x1000, u64::MAX),
            (u64::MAX, 1),
            (u64::MAX, 2),
            (0x1000, u64::MAX - 0xfff),
            (0, 1 << 44),
            ((1 << 44) - 1, 1),
            ((1 << 44) - 0x2000, 0x2000),
        ] {
            assert_eq!(
                frames_touched(&layout, gpa, length),
                Err(NotRam { gpa, length })
            );
        }
    }

    #[test]
    fn no_range_spans_the_hole() {
        let layout = Layout::new(Pages::mib(4096));
        assert!(frames_touched(&layout, LOW_RAM_END - 1, 1).is_ok());
        assert!(frames_touched(&layout, LOW_RAM_END - 1, 2).is_err());
        let span = HIGH_RAM_START - LOW_RAM_END + 2;
        assert!(frames_touched(&layout, LOW_RAM_END - 1, span).is_err());
    }

    #[test]
    fn partly_covered_frames_stay_out() {
        let layout = Layout::new(Pages(16));
        assert_eq!(frames_inside(&layout, 0x1000, 0x2000), Ok(range(1, 2)));
        assert_eq!(frames_inside(&layout, 0x1001, 0x2000), Ok(range(2, 1)));
        assert_eq!(frames_inside(&layout, 0x1000, 0x1fff), Ok(range(1, 1)));
        assert_eq!(frames_inside(&layout, 0x1001, 0xffe), Ok(None));
        assert_eq!(frames_inside(&layout, 0xffff, 1), Ok(None));
        assert!(frames_inside(&layout, 0xf000, 0x1001).is_err());
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_is_ram(gpa: u64, length: u64, small in 0u64..0x12000) {
            let layout = Layout::new(Pages(16));
            for (gpa, length) in [(gpa, length), (small, length % 0x12000), (gpa, small)] {
                if let Ok(Some(range)) = frames_touched(&layout, gpa, length) {
                    prop_assert!(u128::from(gpa) + u128::from(length) <= 0x10000);
                    prop_assert!(layout.contains(range));
                    if let Ok(Some(inner)) = frames_inside(&layout, gpa, length) {
                        prop_assert!(inner.start.gpa() >= gpa && inner.end().gpa() <= gpa + length);
                    }
                }
            }
        }
    }
}
