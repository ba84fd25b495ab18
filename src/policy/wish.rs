//! Fits what guests would like to have into what the host has.
//!
//! The policies that follow the guest (`self`, `pref`, `pressure`) compute a wish for each VM without a
//! look at the others. Each wish stands between a floor (comfort, not entitlement) and the VM's
//! limit:
//!
//! | the host has | a VM gets |
//! |---|---|
//! | at least the sum of the wishes | its wish |
//! | less, at least the sum of the floors | its part by shares, between its floor and its wish |
//! | less than the floors | its part by shares, between its reservation and its floor |
//!
//! Each row begins where the one above ends, so more memory never means a smaller target. By shares,
//! not in proportion to the wishes: a guest that refuses to shrink holds more, so it seems to use
//! more, so it would wish for more than its neighbours and keep it.

use super::Target;
use super::fair::{self, Claim};
use super::safeguard::{Safeguard, Safeguards};
use super::settings::IdleTax;
use super::types::VmSnapshot;
use super::why::{Fit, Rule, Why};
use crate::units::Pages;

/// What one VM would like to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wish {
    /// It is left this much as long as the host has it.
    floor: Pages,
    pages: Pages,
    reservation: Pages,
    shares: u64,
    why: Why,
}

impl Wish {
    /// `pages`, at least `floor`, both between the VM's reservation and limit.
    pub(super) fn new(vm: &VmSnapshot, pages: Pages, floor: Pages, rule: Rule) -> Wish {
        let ceiling = vm.allocation.ceiling();
        let reservation = vm.allocation.reservation.min(ceiling);
        let floor = floor.min(ceiling).max(reservation);
        Wish {
            floor,
            pages: pages.min(ceiling).max(floor),
            reservation,
            shares: vm.allocation.shares,
            why: Why::new(rule),
        }
    }

    pub(super) fn pages(&self) -> Pages {
        self.pages
    }

    pub(super) fn why(&self) -> Why {
        self.why
    }

    pub(super) fn reservation(&self) -> Pages {
        self.reservation
    }
}

impl Wish {
    /// The least and the most that the VM gets in one row of the table.
    fn claim(&self, floor: Pages, ceiling: Pages) -> Claim {
        Claim {
            floor,
            ceiling,
            weight: self.shares,
            active: Pages::ZERO,
        }
    }
}

/// The targets, in the order of the wishes.
pub(super) fn fit(total: Pages, wishes: Vec<Wish>, guards: Safeguards) -> Vec<Target> {
    let wanted: Pages = wishes.iter().map(|wish| wish.pages).sum();
    let floors: Pages = wishes.iter().map(|wish| wish.floor).sum();
    if wanted <= total {
        let full = |wish: Wish| Target {
            pages: wish.pages,
            floor: wish.floor,
            why: wish.why,
        };
        return wishes.into_iter().map(full).collect();
    }
    let keep_floors = floors <= total;
    let claims: Vec<Claim> = wishes
        .iter()
        .map(|wish| match (keep_floors, guards.has(Safeguard::Floors)) {
            (true, true) => wish.claim(wish.floor, wish.pages),
            (false, true) => wish.claim(wish.reservation, wish.floor),
            (_, false) => wish.claim(Pages::ZERO, wish.pages),
        })
        .collect();
    let fit = if keep_floors {
        Fit::Cut { total, wanted }
    } else {
        Fit::BelowFloors { total, floors }
    };
    fair::split(total, &claims, IdleTax::NONE)
        .into_iter()
        .zip(wishes)
        .map(|(pages, wish)| Target {
            pages,
            floor: wish.floor.min(pages),
            why: Why { fit, ..wish.why },
        })
        .collect()
}
