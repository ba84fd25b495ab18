//! Page numbers as the guest's driver lists them, made safe.

use crate::sys::ram::Layout;
use crate::units::Gfn;

/// Sorts the listed pages, drops duplicates and what is not RAM; returns how many entries were
/// not RAM.
pub(super) fn compact(layout: &Layout, pfns: &mut Vec<Gfn>) -> u64 {
    let listed = pfns.len();
    pfns.retain(|gfn| layout.contains_gfn(*gfn));
    let dropped = listed - pfns.len();
    pfns.sort_unstable();
    pfns.dedup();
    dropped as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    use super::*;
    use crate::units::Pages;

    proptest! {
        #[test]
        fn sorted_unique_ram_and_none_lost(
            pfns in prop::collection::vec(prop_oneof![0u32..64, any::<u32>()], 0..300)
        ) {
            let layout = Layout::new(Pages(48));
            let mut gfns: Vec<Gfn> = pfns.iter().copied().map(Gfn).collect();
            let dropped = compact(&layout, &mut gfns);
            let expected: BTreeSet<Gfn> = pfns.iter().copied().filter(|pfn| *pfn < 48).map(Gfn).collect();
            prop_assert_eq!(gfns, expected.into_iter().collect::<Vec<_>>());
            prop_assert_eq!(dropped, pfns.iter().filter(|pfn| **pfn >= 48).count() as u64);
        }
    }
}
