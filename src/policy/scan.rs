//! How fast each VM looks for pages to share: at most so many pages a second.
//!
//! A VM looks at a chunk as often as the chunk changes (the VM process's part), and so seldom uses what
//! it may. This rule bounds what it may, by what its scan has yielded:
//!
//! | VM | pages a second |
//! |---|---|
//! | *keen*: came less than a minute ago, or merged `KEEN_PAGES` in the last window | its part of [`HOST_PAGES`], in which it counts eight times, at most [`VM_PAGES_MAX`] |
//! | any other | an eighth of that |
//! | *wasteful*: in the last windows the guest has written at least half as many shared pages as were merged | halved for each such window, doubled again for each other |
//! | any | at least its size in [`SCAN_TIME`] |
//!
//! Of the names that ESX has: `Mem.ShareScanTime` is [`SCAN_TIME`] (ESX: 60 minutes for a whole VM),
//! `Mem.ShareScanGHz` (4 MB/s for each GHz of the host) is [`HOST_PAGES`], `Mem.ShareRateMax` (1024
//! pages a second) is [`VM_PAGES_MAX`]; ESX too lowers the rate of a VM that yields little ("Memory
//! Resource Management in VMware ESX Server 3" names the first three). Their values are for a scan at
//! random that hashes in the background for hours; here a look costs about 0.4 us a page, and a fleet
//! that was just started is to share within seconds.

use std::collections::BTreeMap;
use std::time::Duration;

use super::types::VmId;
use crate::units::Pages;

/// Of all VMs together. Chosen: a twentieth of a CPU at 0.4 us a page.
pub const HOST_PAGES: u32 = 131_072;
/// Of one VM at most. Chosen: a guest of 128 MiB is looked at in a second.
pub const VM_PAGES_MAX: u32 = 32_768;
/// In which the whole of a VM is looked at once, at the least.
pub const SCAN_TIME: Duration = Duration::from_secs(600);
/// A VM is young so long.
const YOUTH: Duration = Duration::from_secs(60);
/// Time over which the yield is looked at.
const WINDOW: Duration = Duration::from_secs(5);
/// Merged in a window, they make a VM keen: 1 MiB.
const KEEN_PAGES: u64 = 256;
/// Written shared pages below which a VM is not wasteful in a window, whatever it merged.
const WASTE_PAGES_MIN: u64 = 256;
/// A wasteful VM's rate is halved so often at most.
const HALVINGS_MAX: u32 = 5;
/// How many other VMs count as much as a keen one.
const WEIGHT: u32 = 8;

/// What a VM's scan has come to since the VM's start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Yield {
    /// Pages mapped over a frame.
    pub merged: u64,
    /// Shared pages that the guest wrote.
    pub broken: u64,
}

/// A VM at one instant.
#[derive(Debug, Clone, Copy)]
pub struct Scanned {
    /// Which.
    pub id: VmId,
    /// Its configured memory.
    pub size: Pages,
    /// As last reported.
    pub yielded: Yield,
}

/// What is known of a VM.
#[derive(Debug, Clone, Copy)]
struct Record {
    /// When it was first seen.
    since: Duration,
    /// When its window began, and the counters then.
    window: Duration,
    before: Yield,
    keen: bool,
    halvings: u32,
}

impl Record {
    fn update(&mut self, now: Duration, yielded: Yield) {
        if now.saturating_sub(self.window) < WINDOW {
            return;
        }
        // The counters of a VM process that was started anew begin at zero.
        let merged = yielded.merged.saturating_sub(self.before.merged);
        let broken = yielded.broken.saturating_sub(self.before.broken);
        let wasteful = broken >= WASTE_PAGES_MIN && broken.saturating_mul(2) >= merged;
        self.halvings = match wasteful {
            true => (self.halvings + 1).min(HALVINGS_MAX),
            false => self.halvings.saturating_sub(1),
        };
        self.keen = merged >= KEEN_PAGES;
        (self.window, self.before) = (now, yielded);
    }

    fn is_keen(&self, now: Duration) -> bool {
        self.keen || now.saturating_sub(self.since) < YOUTH
    }
}

/// The rates of all VMs, and what they follow from.
#[derive(Debug, Default)]
pub struct ScanRates {
    of_vm: BTreeMap<VmId, Record>,
}

impl ScanRates {
    /// The rates of these VMs from `now` on, the time since the host manager's start: pages a second,
    /// in their order. Others are forgotten. Rates are powers of two, but for the least that a VM
    /// gets, so that they do not change with every VM that comes or goes.
    pub fn decide(&mut self, now: Duration, vms: &[Scanned]) -> Vec<u32> {
        let mut of_vm = BTreeMap::new();
        for vm in vms {
            let mut record = self.of_vm.get(&vm.id).copied().unwrap_or(Record {
                since: now,
                window: now,
                before: vm.yielded,
                keen: false,
                halvings: 0,
            });
            record.update(now, vm.yielded);
            of_vm.insert(vm.id, record);
        }
        self.of_vm = of_vm;
        let weight = |vm: &Record| if vm.is_keen(now) { WEIGHT } else { 1 };
        let weights: u32 = self.of_vm.values().map(weight).sum();
        let part = HOST_PAGES * WEIGHT / weights.max(1);
        let part = power_of_two(part.min(VM_PAGES_MAX));
        vms.iter().map(|vm| self.rate(now, vm, part)).collect()
    }

    fn rate(&self, now: Duration, vm: &Scanned, part: u32) -> u32 {
        let record = &self.of_vm[&vm.id];
        let rate = match record.is_keen(now) {
            true => part,
            false => part / WEIGHT,
        };
        let least = vm.size.0.div_ceil(SCAN_TIME.as_secs());
        (rate >> record.halvings).max(u32::try_from(least).unwrap_or(VM_PAGES_MAX))
    }
}

/// The largest power of two that is not more; of zero, one.
fn power_of_two(number: u32) -> u32 {
    1 << number.max(1).ilog2()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const MIB_256: Pages = Pages(65_536);

    fn vm(id: u32, merged: u64, broken: u64) -> Scanned {
        Scanned {
            id: VmId(id),
            size: MIB_256,
            yielded: Yield { merged, broken },
        }
    }

    /// Rates of VMs whose counters are what `counters` says of a second.
    fn after(seconds: u32, counters: impl Fn(u32) -> Vec<(u64, u64)>) -> Vec<u32> {
        let mut rates = ScanRates::default();
        let mut last = Vec::new();
        for second in 0..=seconds {
            let vms: Vec<Scanned> = (0..)
                .zip(counters(second))
                .map(|(id, (merged, broken))| vm(id, merged, broken))
                .collect();
            last = rates.decide(SECOND * second, &vms);
        }
        last
    }

    #[test]
    fn young_vms_share_the_hosts_rate() {
        for (vms, rate) in [
            (1, 32_768),
            (4, 32_768),
            (5, 16_384),
            (8, 16_384),
            (100, 1024),
        ] {
            assert_eq!(after(10, |_| vec![(0, 0); vms]), vec![rate; vms]);
        }
        // Of two thousand each gets the least, which is the whole of it in ten minutes.
        assert_eq!(after(10, |_| vec![(0, 0); 2000])[0], 110);
    }

    #[test]
    fn old_vms_leave_it_to_those_that_merge() {
        let old = after(70, |_| vec![(0, 0); 8]);
        assert_eq!(old, vec![4096; 8]);
        let merges = after(70, |second| {
            let mut vms = vec![(0, 0); 8];
            vms[0].0 = 100 * u64::from(second);
            vms
        });
        assert_eq!(merges[0], 32_768);
        assert_eq!(merges[1..], vec![4096; 7]);
        // One that has merged enough is as the others again.
        let done = after(90, |second| vec![(100 * u64::from(second.min(70)), 0)]);
        assert_eq!(done, [4096]);
    }

    #[test]
    fn who_breaks_what_was_merged_slows_down_and_comes_back() {
        let storm = |second: u32| vec![(100 * u64::from(second), 60 * u64::from(second.min(40)))];
        let rates: Vec<u32> = [4, 5, 10, 15, 25, 40, 45, 50, 65]
            .map(|seconds| after(seconds, storm)[0])
            .into();
        let full = 32_768;
        let expected = [0, 1, 2, 3, 5, 5, 4, 3, 0].map(|halvings| full >> halvings);
        assert_eq!(rates, expected);
        // A few breaks are no waste, nor are many beside more merges.
        assert_eq!(
            after(30, |second| vec![(0, 50 * u64::from(second))])[0],
            full
        );
        let worth = |second: u32| vec![(1000 * u64::from(second), 400 * u64::from(second))];
        assert_eq!(after(30, worth)[0], full);
    }

    #[test]
    fn a_process_that_starts_anew_is_no_surprise() {
        let counters = |second: u32| vec![(if second < 20 { 9999 } else { 0 }, 0)];
        assert_eq!(after(70, counters), [4096]);
    }

    proptest! {
        /// Whatever the VMs do: beyond the least that each gets, all together stay within the host's
        /// rate, and no VM's is more than the bound of one.
        #[test]
        fn every_bound_holds(
            history in prop::collection::vec(
                prop::collection::vec((1..200_u64, 0..5000_u64, 0..5000_u64), 1..40),
                1..30,
            )
        ) {
            let mut rates = ScanRates::default();
            let mut sums = vec![Yield::default(); 40];
            for (turn, vms) in (0..).zip(history) {
                let vms: Vec<Scanned> = (0..).zip(&vms).zip(&mut sums).map(|((id, vm), sum)| {
                    sum.merged += vm.1;
                    sum.broken += vm.2;
                    Scanned { id: VmId(id), size: Pages(vm.0 * 1000), yielded: *sum }
                }).collect();
                let rates = rates.decide(SECOND * 3 * turn, &vms);
                prop_assert_eq!(rates.len(), vms.len());
                let mut beyond = 0;
                for (rate, vm) in rates.iter().zip(&vms) {
                    let least = u32::try_from(vm.size.0.div_ceil(600)).unwrap();
                    prop_assert!(*rate >= least && *rate <= VM_PAGES_MAX.max(least));
                    beyond += u64::from(*rate - least);
                }
                prop_assert!(beyond <= u64::from(HOST_PAGES));
            }
        }
    }
}
