//! Each frame split evenly among its references, as running sums.
//!
//! A VM's part of a frame with `n` references is `4096 * held / n` bytes. Frames with the same `n`
//! are one *class*, and a class needs no frames, only how many there are and how many of their
//! references each VM holds:
//!
//! ```text
//! part(VM) = sum over the classes n of 4096 * references(VM, n) / n
//! ```
//!
//! **Exact to the byte.** Within a class each VM gets the whole bytes of its part. The bytes that are
//! left, fewer than there are VMs, go to the largest remainders, one each. So the parts of a class
//! add up to its frames, and each is within a byte of the fraction.
//!
//! **Cost.** A reference that comes or goes moves one frame from class to class: as many steps as
//! the frame has holders. Splitting takes as many as the classes have holders, whatever the number of
//! frames: sister VMs have one class for each number of sisters. `n` different classes need about
//! `n * n / 2` references, so a hostile VM of 16 GiB makes three thousand of them at most.

use std::collections::{BTreeMap, HashMap};

use super::accounts::FramePart;
use crate::policy::types::VmId;
use crate::units::{PAGE_SIZE, Pages};

/// Frames that have the same number of references.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Class {
    frames: u64,
    /// Who holds how many of these frames' references, in ascending order; never zero ones.
    held: Vec<(VmId, u64)>,
}

/// The frames of one share group by their number of references.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FrameSplit {
    classes: BTreeMap<u64, Class>,
}

impl FrameSplit {
    /// Counts a frame that has these holders. One without holders counts nothing.
    pub fn add(&mut self, holders: &[(VmId, u32)]) {
        if holders.is_empty() {
            return;
        }
        let class = self.classes.entry(references(holders)).or_default();
        class.frames += 1;
        for &(vm, count) in holders {
            match class.held.binary_search_by_key(&vm, |&(vm, _)| vm) {
                Ok(place) => class.held[place].1 += u64::from(count),
                Err(place) => class.held.insert(place, (vm, u64::from(count))),
            }
        }
    }

    /// Takes back what [`FrameSplit::add`] counted for a frame that had these holders.
    ///
    /// # Panics
    /// When no such frame was counted: a bug.
    pub fn remove(&mut self, holders: &[(VmId, u32)]) {
        if holders.is_empty() {
            return;
        }
        let references = references(holders);
        let class = self.classes.get_mut(&references);
        let class = class.unwrap_or_else(|| panic!("no frame has {references} references"));
        class.frames -= 1;
        for &(vm, count) in holders {
            let place = class.held.binary_search_by_key(&vm, |&(vm, _)| vm);
            let place = place.unwrap_or_else(|_| panic!("{vm:?} holds none of them"));
            class.held[place].1 -= u64::from(count);
            if class.held[place].1 == 0 {
                class.held.remove(place);
            }
        }
        if class.frames == 0 {
            self.classes.remove(&references);
        }
    }

    /// Each holder's part of all frames.
    pub fn parts(&self) -> HashMap<VmId, FramePart> {
        let mut parts: HashMap<VmId, FramePart> = HashMap::new();
        let mut remainders = Vec::new();
        for (&references, class) in &self.classes {
            let mut left = class.frames * PAGE_SIZE as u64;
            remainders.clear();
            for &(vm, held) in &class.held {
                let bytes = u128::from(held) * PAGE_SIZE as u128;
                let whole = bytes / u128::from(references);
                let whole = u64::try_from(whole).expect("at most the frames' own bytes");
                let part = parts.entry(vm).or_default();
                part.bytes += whole;
                part.references += Pages(held);
                left -= whole;
                remainders.push((bytes % u128::from(references), vm));
            }
            // The largest first; of equal ones the VM that came first.
            remainders.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
            let left = usize::try_from(left).expect("fewer bytes than holders");
            for &(_, vm) in &remainders[..left] {
                parts.entry(vm).or_default().bytes += 1;
            }
        }
        parts
    }
}

fn references(holders: &[(VmId, u32)]) -> u64 {
    holders.iter().map(|&(_, count)| u64::from(count)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Frames = Vec<Vec<(VmId, u32)>>;

    /// The same from all frames, one by one, as fractions: slow, and nothing to go wrong.
    fn slow(frames: &Frames) -> HashMap<VmId, FramePart> {
        let mut parts: HashMap<VmId, FramePart> = HashMap::new();
        let sizes: std::collections::BTreeSet<u64> = frames.iter().map(|f| references(f)).collect();
        for size in sizes.into_iter().filter(|&size| size > 0) {
            let class = || frames.iter().filter(|f| references(f) == size);
            let mut held: BTreeMap<VmId, u64> = BTreeMap::new();
            for &(vm, count) in class().flatten() {
                *held.entry(vm).or_default() += u64::from(count);
            }
            let mut left = class().count() as u64 * PAGE_SIZE as u64;
            let mut rest: Vec<(u64, VmId)> = Vec::new();
            for (&vm, &held) in &held {
                let bytes = held * PAGE_SIZE as u64;
                let part = parts.entry(vm).or_default();
                part.references += Pages(held);
                part.bytes += bytes / size;
                left -= bytes / size;
                rest.push((bytes % size, vm));
            }
            rest.sort_by_key(|&(remainder, vm)| (std::cmp::Reverse(remainder), vm));
            for (_, vm) in rest.into_iter().take(usize::try_from(left).unwrap()) {
                parts.get_mut(&vm).unwrap().bytes += 1;
            }
        }
        parts
    }

    /// One VM takes or gives back a reference to one of the frames.
    fn steps() -> impl Strategy<Value = Vec<(usize, u32, bool)>> {
        prop::collection::vec((0..30_usize, 0..9_u32, prop::bool::weighted(0.6)), 0..400)
    }

    proptest! {
        #[test]
        fn the_running_sums_are_the_split_of_all_frames(steps in steps()) {
            let mut frames: Frames = vec![Vec::new(); 30];
            let mut split = FrameSplit::default();
            for (frame, vm, take) in steps {
                let holders = &mut frames[frame];
                split.remove(holders);
                let place = holders.iter().position(|&(holder, _)| holder == VmId(vm));
                match (place, take) {
                    (Some(place), true) => holders[place].1 += 1,
                    (None, true) => holders.push((VmId(vm), 1)),
                    (Some(place), false) if holders[place].1 > 1 => holders[place].1 -= 1,
                    (Some(place), false) => {
                        holders.swap_remove(place);
                    }
                    (None, false) => {}
                }
                split.add(holders);
            }
            let parts = split.parts();
            prop_assert_eq!(&parts, &slow(&frames));
            let live = frames.iter().filter(|holders| !holders.is_empty()).count();
            let bytes: u64 = parts.values().map(|part| part.bytes).sum();
            prop_assert_eq!(bytes, (live * PAGE_SIZE) as u64);
            for (vm, part) in &parts {
                prop_assert!(part.bytes <= part.references.bytes());
                let exact: f64 = frames
                    .iter()
                    .flat_map(|holders| holders.iter().map(move |held| (held, references(holders))))
                    .filter(|((holder, _), _)| holder == vm)
                    .map(|((_, count), all)| PAGE_SIZE as f64 * f64::from(*count) / all as f64)
                    .sum();
                let off = (part.bytes as f64 - exact).abs();
                prop_assert!(off <= split.classes.len() as f64, "{off} bytes off");
            }
            for holders in &frames {
                split.remove(holders);
            }
            prop_assert_eq!(split, FrameSplit::default());
        }
    }

    #[test]
    fn references_weigh_alike() {
        let mut split = FrameSplit::default();
        split.add(&[(VmId(1), 3), (VmId(2), 1)]);
        let parts = split.parts();
        let bytes = |vm| parts[&VmId(vm)].bytes;
        assert_eq!((bytes(1), bytes(2)), (3072, 1024));
    }

    #[test]
    fn what_does_not_divide_is_given_away_once() {
        let mut split = FrameSplit::default();
        split.add(&[(VmId(1), 1), (VmId(2), 1), (VmId(3), 1)]);
        let parts = split.parts();
        let bytes = |vm| parts[&VmId(vm)].bytes;
        assert_eq!((bytes(1), bytes(2), bytes(3)), (1366, 1365, 1365));
    }

    #[test]
    #[should_panic(expected = "no frame has 2 references")]
    fn taking_back_what_was_not_counted_is_a_bug() {
        FrameSplit::default().remove(&[(VmId(1), 2)]);
    }
}
