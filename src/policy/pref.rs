//! Policy `pref`: each VM's preferred memory, balanced between donors and acceptors, as Qubes' qmemman.
//!
//! ```text
//! pref  = clamp(used * 1.3, 200 MiB, limit)          need = pref - actual
//! avail = host memory - sum(pref)
//! plenty (avail >= 0):  target = 0.999 * (pref + avail * pref / sum(pref)), at most the limit;
//!                       what a limit leaves goes to the others
//! scarce:               donors (need < 0) get pref, acceptors share the rest
//! ```
//!
//! qmemman's acceptors share in proportion to pref; here by shares up to pref, for a reason told in
//! `wish`: who refuses to shrink must not gain by it.
//!
//! `used` of qmemman's meminfo-writer is `total - free - buffers - caches + swapped`; what stands for it
//! is told in `guest`. Donors shrink before acceptors grow: `deflate`.
//! Small imbalances are left alone, and a start that the donors cannot pay for is refused
//! ([`Squeeze::Surplus`](super::admission::Squeeze)).
//!
//! Source: Qubes `qubes/qmemman/algo.py` and `systemstate.py`. Their 50 MiB of free host memory is the
//! high threshold here; their 150 MiB dead band is bounded by a part of the budget, for hosts with
//! small guests.

use super::Target;
use super::fair::{self, Claim};
use super::guest::usage;
use super::settings::{IdleTax, PolicySettings};
use super::state::Thresholds;
use super::supply::distributable;
use super::types::{Snapshot, VmId, VmSnapshot};
use super::why::{Fit, Rule, Why};
use super::wish::{self, Wish};
use crate::units::Pages;

/// `pref` for each tenth of `used` (qmemman CACHE_FACTOR 1.3).
const CACHE_TENTHS: u64 = 13;
/// The least `pref` (qmemman MIN_PREFMEM).
pub const PREF_MIN: Pages = Pages::mib(200);
/// Of what there is plenty of, so many per mille are given away (qmemman 0.999).
const PLENTY_PER_MILLE: u64 = 999;
/// Balances that move less than this in all are not worth it (qmemman: 150 MiB)...
const BALANCE_MIN: Pages = Pages::mib(150);
/// ... nor less than budget / this, on small hosts. Chosen.
const BALANCE_MIN_DIVISOR: u64 = 32;
/// ... unless a VM is below its pref by more than this (qmemman: 15 MiB).
const NEED_MAX: Pages = Pages::mib(15);
/// Donors with a smaller surplus are left alone (qmemman: 10 MiB).
const DONATION_MIN: Pages = Pages::mib(10);

/// The targets of the last balance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    last: Vec<(VmId, Pages)>,
}

fn preferred(vm: &VmSnapshot, settings: &PolicySettings) -> Wish {
    let usage = usage(vm, settings.safeguards);
    let pref = Pages((usage.pages.0.saturating_mul(CACHE_TENTHS) / 10).max(PREF_MIN.0));
    let rule = Rule::Preferred {
        used: usage.pages,
        source: usage.source,
    };
    // 200 MiB is nobody's floor: small guests live with less when the host is full.
    Wish::new(vm, pref, vm.allocation.reservation, rule)
}

/// One target for each VM, in the order of the snapshot.
pub fn targets(
    snapshot: &Snapshot,
    thresholds: &Thresholds,
    settings: &PolicySettings,
    record: &mut Record,
) -> Vec<Target> {
    let total = distributable(snapshot, thresholds);
    let wishes: Vec<Wish> = snapshot
        .vms
        .iter()
        .map(|vm| preferred(vm, settings))
        .collect();
    let wanted: Pages = wishes.iter().map(Wish::pages).sum();
    let mut targets = if wanted <= total {
        plenty(snapshot, total, wishes)
    } else {
        scarce(snapshot, total, wishes, settings)
    };
    settle(snapshot, total, &mut targets, record);
    targets
}

/// Everybody its preferred memory, and the rest in proportion to it.
fn plenty(snapshot: &Snapshot, total: Pages, wishes: Vec<Wish>) -> Vec<Target> {
    let total = Pages(total.0 / 1000 * PLENTY_PER_MILLE);
    let claims: Vec<Claim> = wishes
        .iter()
        .zip(&snapshot.vms)
        .map(|(wish, vm)| Claim {
            floor: wish.pages(),
            ceiling: vm.allocation.ceiling(),
            weight: wish.pages().0,
            active: Pages::ZERO,
        })
        .collect();
    let parts = fair::split(total, &claims, IdleTax::NONE);
    let target = |(pages, wish): (Pages, Wish)| Target {
        pages,
        floor: wish.reservation(),
        why: Why {
            fit: Fit::Plenty,
            ..wish.why()
        },
    };
    parts.into_iter().zip(wishes).map(target).collect()
}

/// Donors their preferred memory, acceptors the rest.
fn scarce(
    snapshot: &Snapshot,
    total: Pages,
    wishes: Vec<Wish>,
    settings: &PolicySettings,
) -> Vec<Target> {
    let donates: Vec<bool> = wishes
        .iter()
        .zip(&snapshot.vms)
        .map(|(wish, vm)| vm.consumed > wish.pages())
        .collect();
    let reserved: Pages = of(&wishes, &donates, false).map(Wish::reservation).sum();
    let donors = of(&wishes, &donates, true).cloned().collect();
    let for_donors = total.saturating_sub(reserved);
    let mut donors = wish::fit(for_donors, donors, settings.safeguards).into_iter();
    let given: Pages = donors.as_slice().iter().map(|target| target.pages).sum();
    let acceptors = of(&wishes, &donates, false).cloned().collect();
    let for_acceptors = total.saturating_sub(given);
    let mut acceptors = wish::fit(for_acceptors, acceptors, settings.safeguards).into_iter();
    donates
        .iter()
        .map(|&donates| {
            let next = if donates {
                donors.next()
            } else {
                acceptors.next()
            };
            next.expect("each VM is a donor or an acceptor")
        })
        .collect()
}

fn of<'a>(wishes: &'a [Wish], donates: &'a [bool], donors: bool) -> impl Iterator<Item = &'a Wish> {
    let wanted = move |(_, donates): &(&Wish, &bool)| **donates == donors;
    wishes
        .iter()
        .zip(donates)
        .filter(wanted)
        .map(|(wish, _)| wish)
}

/// Keeps the last targets when the new ones differ too little to be worth moving balloons.
fn settle(snapshot: &Snapshot, total: Pages, targets: &mut [Target], record: &mut Record) {
    let same_vms = record.last.len() == targets.len()
        && (record.last.iter().zip(&snapshot.vms)).all(|((id, _), vm)| *id == vm.id);
    let kept = || record.last.iter().map(|(_, pages)| *pages);
    if same_vms && kept().sum::<Pages>() <= total {
        let moved: u64 = kept()
            .zip(targets.iter())
            .map(|(kept, target)| kept.0.abs_diff(target.pages.0))
            .sum();
        let needy = kept()
            .zip(targets.iter())
            .any(|(kept, target)| target.pages.saturating_sub(kept) > NEED_MAX);
        let allowed = kept().zip(&snapshot.vms).all(|(kept, vm)| {
            let limit = vm.allocation.ceiling();
            (vm.allocation.reservation.min(limit)..=limit).contains(&kept)
        });
        let little = BALANCE_MIN.0.min(snapshot.budget.0 / BALANCE_MIN_DIVISOR);
        if allowed && !needy && moved < little {
            for (target, (_, kept)) in targets.iter_mut().zip(&record.last) {
                target.pages = *kept;
                target.floor = target.floor.min(*kept);
            }
            return;
        }
    }
    record.last = snapshot
        .vms
        .iter()
        .zip(targets.iter())
        .map(|(vm, target)| (vm.id, target.pages))
        .collect();
}

/// What the start of another VM leaves this one: what it prefers, or all it holds when it has too
/// little to spare.
pub(super) fn keeps(vm: &VmSnapshot, settings: &PolicySettings) -> Pages {
    let pref = preferred(vm, settings).pages();
    if vm.consumed.saturating_sub(pref) < DONATION_MIN {
        vm.consumed
    } else {
        pref
    }
}
