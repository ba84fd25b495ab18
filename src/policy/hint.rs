//! Who is asked for free memory that its guest knows of and the host still backs.
//!
//! It is the first that is taken on the way to soft, before a balloon is inflated: the guest loses
//! nothing by it. But it is not cheap. The guest's driver allocates all its free memory for a
//! moment, and a kernel that clears what it allocates (Debian's do) writes all of it. And Linux
//! from 5.7 on reports what it has freed by itself, some two seconds later; a round comes before
//! that, or brings nothing. In the emulated host of `tests/lab`, where writing is slow, a round of
//! 100 MiB took 5 s: reporting was there before it. So who is asked has at least a worthwhile part
//! of its memory to give, as far as is known, and is left alone for a while then. In the lab's
//! overcommitted fleet nobody was asked: from a driver without reporting, or where much is freed
//! at once on fast memory, more is to be expected (not measured).
//!
//! What there is to give, at least: `free - (size - private - ballooned)`. The subtrahend is what
//! has no memory of its own, shared and swapped pages among it: of free pages there can be no more
//! of that kind. (The compressed store is in `private`, and makes the difference a little too
//! large.) A guest that lies works for nothing.

use std::time::Duration;

use super::state::Thresholds;
use super::types::{Snapshot, VmSnapshot};
use crate::units::Pages;

/// The part of a VM's memory that is worth asking for. Chosen: what a balloon is asked for at a
/// time.
const WORTH_DIVISOR: u64 = 16;
/// And at least this, four of the blocks that Linux hints at. Chosen.
const WORTH_MIN: Pages = Pages::mib(16);
/// For so long a VM is not asked again. Chosen: statistics are up to a second old, and a guest
/// reports what it frees within some seconds.
const PERIOD: Duration = Duration::from_secs(10);

/// What is remembered about one VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct HintRecord {
    /// How often it was asked.
    rounds: u32,
    /// When it was asked last.
    asked: Option<Duration>,
}

impl HintRecord {
    /// How often the VM was asked, this decision included.
    pub(super) fn round(
        &mut self,
        vm: &VmSnapshot,
        snapshot: &Snapshot,
        thresholds: &Thresholds,
    ) -> u32 {
        let now = snapshot.now;
        let rested = self
            .asked
            .is_none_or(|asked| now.saturating_sub(asked) >= PERIOD);
        let worth = Pages(vm.allocation.size.0 / WORTH_DIVISOR).max(WORTH_MIN);
        if vm.balloon_driver
            && rested
            && thresholds.falls_to_soft(snapshot.free)
            && to_give(vm) >= worth
        {
            self.rounds = self.rounds.wrapping_add(1).max(1);
            self.asked = Some(now);
        }
        self.rounds
    }
}

/// Free memory of the guest that is backed, at least.
fn to_give(vm: &VmSnapshot) -> Pages {
    let free = Pages::in_bytes(vm.guest.free_bytes.unwrap_or(0));
    let held = Pages(vm.private.0.saturating_add(vm.ballooned.0));
    free.saturating_sub(vm.allocation.size.saturating_sub(held))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::tests::{allocation, vm};
    use crate::policy::types::VmId;

    const SECOND: Duration = Duration::from_secs(1);

    /// A VM of 256 MiB on a host of 1 GiB, of which `host_free_percent` are free; the VM holds
    /// `private`, and its guest says that `free` are free.
    fn host(host_free_percent: u64, private: u64, free: u64) -> Snapshot {
        let size = Pages::mib(256);
        let mut vm = vm(1, Pages::mib(private).0, allocation(size.0, 0, size.0, 10));
        vm.guest.free_bytes = Some(Pages::mib(free).bytes());
        Snapshot {
            now: Duration::ZERO,
            budget: Pages(1 << 18),
            free: Pages((1 << 18) * host_free_percent / 100),
            overhead: Pages::ZERO,
            vms: vec![vm],
        }
    }

    fn asked(record: &mut HintRecord, snapshot: &Snapshot) -> u32 {
        let thresholds = Thresholds::of_budget(snapshot.budget);
        record.round(&snapshot.vms[0], snapshot, &thresholds)
    }

    #[test]
    fn only_on_the_way_to_soft_and_only_for_what_is_worth_it() {
        // (host free %, private, guest free, asked)
        let table = [
            (50, 256, 200, 0),
            (9, 256, 200, 0),
            (7, 256, 200, 1),
            (1, 256, 200, 1),
            // All that is free may be what nothing backs.
            (7, 56, 200, 0),
            (7, 71, 200, 0),
            (7, 72, 200, 1),
            (7, 256, 15, 0),
        ];
        for (percent, private, free, rounds) in table {
            let snapshot = host(percent, private, free);
            let found = asked(&mut HintRecord::default(), &snapshot);
            assert_eq!(found, rounds, "{percent} % {private} {free}");
        }
    }

    #[test]
    fn who_does_not_say_is_not_asked() {
        let mut snapshot = host(7, 72, 200);
        snapshot.vms[0].guest.free_bytes = None;
        assert_eq!(asked(&mut HintRecord::default(), &snapshot), 0);
        let mut snapshot = host(7, 256, u64::MAX >> 20);
        snapshot.vms[0].ballooned = Pages(u64::MAX);
        assert_eq!(
            asked(&mut HintRecord::default(), &snapshot),
            1,
            "no overflow"
        );
    }

    #[test]
    fn a_vm_is_left_alone_for_a_while() {
        let mut record = HintRecord::default();
        let mut snapshot = host(7, 256, 200);
        let mut rounds = Vec::new();
        for second in 0..21 {
            snapshot.now = second * SECOND;
            rounds.push(asked(&mut record, &snapshot));
        }
        assert_eq!((rounds[0], rounds[9], rounds[10], rounds[20]), (1, 1, 2, 3));
        assert_eq!(snapshot.vms[0].id, VmId(1));
    }
}
