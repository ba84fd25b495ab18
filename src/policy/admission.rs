//! Whether a VM may start.
//!
//! What is promised must be payable at the same time: the sum of all reservations and overheads,
//! the new VM's included, is at most the budget (Waldspurger, section 5.2: "reservation + overhead"
//! must be unreserved at power-on; squeezed: the sum of all dynamic minimums). What counts as
//! reserved depends on the policy: [`PolicyKind::entitlement`](super::PolicyKind::entitlement).
//! What is promised before a VM exists stands in the [`LeaseBook`](super::lease::LeaseBook).
//!
//! A VM that is admitted need not find its memory free: [`assess`] says from whom it will come. A
//! guest that does not cooperate is named, but is no reason to refuse: it is swapped instead. Under
//! `pref` nobody is squeezed below what it prefers for a start ([`Squeeze::Surplus`]).

use std::fmt;

use super::types::Conduct;
use crate::units::Pages;

/// What the host has promised already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promises {
    /// Memory for all guests and overheads.
    pub budget: Pages,
    /// Sum of the reservations of all VMs.
    pub reserved: Pages,
    /// Overhead of the host manager and all VM processes: for each VM the larger of what was
    /// estimated and what is measured.
    pub overhead: Pages,
    /// Number of VMs.
    pub vms: usize,
    /// Memory that nobody holds at present. For the message only: what is held without a
    /// reservation can be reclaimed.
    pub free: Pages,
}

/// The VM that wants to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Its name, for the message.
    pub name: String,
    /// Its guaranteed minimum.
    pub reservation: Pages,
    /// Estimated memory of its process beside its guest's RAM.
    pub overhead: Pages,
}

impl Request {
    /// What must be promised to it.
    pub fn needed(&self) -> Pages {
        self.reservation + self.overhead
    }
}

/// Why it may not. Displays the arithmetic in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Who wanted to start.
    pub request: Request,
    /// The promises at that time.
    pub promises: Promises,
    /// Whom memory could be taken from, if asked about.
    pub holders: Vec<Holder>,
    /// Set when the promises would fit, but the holders can give no more than this.
    pub surplus: Option<Pages>,
}

/// How far the others are squeezed for a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Squeeze {
    /// Down to what they are promised: then whatever is promised to the new VM will come free.
    Promises,
    /// By what they have to spare, as qmemman: if that is too little, the VM may not start.
    Surplus,
}

/// A VM that runs already: what it holds, and what of it can be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its name.
    pub name: String,
    /// What it consumes.
    pub consumed: Pages,
    /// What it is left.
    pub keeps: Pages,
    /// How its balloon behaves.
    pub conduct: Conduct,
}

impl Holder {
    /// What can be taken from it.
    pub fn reclaimable(&self) -> Pages {
        self.consumed.saturating_sub(self.keeps)
    }
}

/// A VM may start; how its memory is come by. Displays as one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    /// Reservation and overhead.
    pub needed: Pages,
    /// Free now.
    pub free: Pages,
    /// Who gives how much of the difference, in proportion to what can be taken from it.
    pub squeezed: Vec<(String, Pages)>,
    /// Those of them whose balloons do not answer: they are swapped.
    pub stubborn: Vec<String>,
}

impl Refusal {
    /// What could have been reserved.
    pub fn unreserved(&self) -> Pages {
        unreserved(&self.promises)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Refusal {
            request, promises, ..
        } = self;
        write!(
            f,
            "cannot admit {:?}: needs {} (reservation {} + overhead {})",
            request.name,
            request.needed(),
            request.reservation,
            request.overhead,
        )?;
        match self.surplus {
            Some(surplus) => write!(
                f,
                ", but {} is free, and the others have only {surplus} above what they prefer",
                promises.free,
            )?,
            None => write!(
                f,
                ", but of {} {} are reserved by {} {} and {} are overhead, so {} can be promised \
                 ({} is free now)",
                promises.budget,
                promises.reserved,
                promises.vms,
                if promises.vms == 1 { "VM" } else { "VMs" },
                promises.overhead,
                self.unreserved(),
                promises.free,
            )?,
        }
        write_holders(f, &self.holders)
    }
}

fn write_holders(f: &mut fmt::Formatter<'_>, holders: &[Holder]) -> fmt::Result {
    let given = holders.iter().filter(|h| h.reclaimable() > Pages::ZERO);
    for (index, holder) in given.enumerate() {
        let before = if index == 0 { "; reclaimable: " } else { ", " };
        write!(f, "{before}{} from {}", holder.reclaimable(), holder.name)?;
        if holder.conduct != Conduct::Cooperative {
            write!(f, " ({})", holder.conduct.name())?;
        }
    }
    Ok(())
}

impl fmt::Display for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "needs {}, {} is free", self.needed, self.free)?;
        for (index, (name, pages)) in self.squeezed.iter().enumerate() {
            let before = if index == 0 { "; squeezes " } else { ", " };
            write!(f, "{before}{name} by {pages}")?;
            if self.stubborn.contains(name) {
                write!(f, " (does not cooperate: swapped)")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {}

fn unreserved(promises: &Promises) -> Pages {
    promises
        .budget
        .saturating_sub(promises.reserved)
        .saturating_sub(promises.overhead)
}

/// Whether the VM may start.
///
/// # Errors
/// The arithmetic, when its reservation and overhead cannot be covered.
pub fn admit(promises: &Promises, request: &Request) -> Result<(), Refusal> {
    if request.needed() <= unreserved(promises) {
        Ok(())
    } else {
        Err(Refusal {
            request: request.clone(),
            promises: *promises,
            holders: Vec::new(),
            surplus: None,
        })
    }
}

/// Whether the VM may start, and from whom its memory comes.
///
/// # Errors
/// The arithmetic, with what could be reclaimed from whom.
pub fn assess(
    promises: &Promises,
    request: &Request,
    holders: &[Holder],
    squeeze: Squeeze,
) -> Result<Admission, Refusal> {
    let needed = request.needed();
    let missing = needed.saturating_sub(promises.free);
    let total: Pages = holders.iter().map(Holder::reclaimable).sum();
    let refused = |refusal: Refusal| Refusal {
        holders: holders.to_vec(),
        ..refusal
    };
    admit(promises, request).map_err(refused)?;
    if squeeze == Squeeze::Surplus && missing > total {
        return Err(Refusal {
            request: request.clone(),
            promises: *promises,
            holders: holders.to_vec(),
            surplus: Some(total),
        });
    }
    let part = |holder: &Holder| {
        let part = u128::from(missing.0) * u128::from(holder.reclaimable().0);
        let part = part.div_ceil(u128::from(total.0.max(1)));
        Pages(u64::try_from(part).unwrap_or(u64::MAX)).min(holder.reclaimable())
    };
    let squeezed: Vec<(&Holder, Pages)> = holders
        .iter()
        .map(|holder| (holder, part(holder)))
        .filter(|(_, part)| *part > Pages::ZERO)
        .collect();
    Ok(Admission {
        needed,
        free: promises.free,
        stubborn: squeezed
            .iter()
            .filter(|(holder, _)| holder.conduct != Conduct::Cooperative)
            .map(|(holder, _)| holder.name.clone())
            .collect(),
        squeezed: squeezed
            .into_iter()
            .map(|(holder, part)| (holder.name.clone(), part))
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn promises(reserved: u64) -> Promises {
        Promises {
            budget: Pages::mib(512),
            reserved: Pages::mib(reserved),
            overhead: Pages::mib(12),
            vms: 3,
            free: Pages::mib(20),
        }
    }

    fn request() -> Request {
        Request {
            name: "web-3".into(),
            reservation: Pages::mib(96),
            overhead: Pages::mib(4),
        }
    }

    #[test]
    fn exactly_covered_is_admitted_and_one_page_less_is_not() {
        assert_eq!(admit(&promises(400), &request()), Ok(()));
        let mut promises = promises(400);
        promises.overhead += Pages(1);
        assert!(admit(&promises, &request()).is_err());
    }

    #[test]
    fn a_refusal_shows_the_arithmetic() {
        let refusal = admit(&promises(420), &request()).expect_err("80 MiB are left");
        assert_eq!(
            refusal.to_string(),
            "cannot admit \"web-3\": needs 100.0 MiB (reservation 96.0 MiB + overhead 4.0 MiB), but \
             of 512.0 MiB 420.0 MiB are reserved by 3 VMs and 12.0 MiB are overhead, so 80.0 MiB \
             can be promised (20.0 MiB is free now)"
        );
        assert_eq!(refusal.unreserved(), Pages::mib(80));
    }

    fn holders() -> Vec<Holder> {
        let holder = |name: &str, consumed, conduct| Holder {
            name: name.into(),
            consumed: Pages::mib(consumed),
            keeps: Pages::mib(40),
            conduct,
        };
        vec![
            holder("web-0", 140, Conduct::Cooperative),
            holder("web-1", 40, Conduct::Cooperative),
            holder("web-2", 340, Conduct::Stuck),
        ]
    }

    #[test]
    fn an_admission_says_who_is_squeezed_and_who_does_not_cooperate() {
        let admission =
            assess(&promises(300), &request(), &holders(), Squeeze::Promises).expect("it fits");
        assert_eq!(
            admission.to_string(),
            "needs 100.0 MiB, 20.0 MiB is free; squeezes web-0 by 20.0 MiB, web-2 by 60.0 MiB \
             (does not cooperate: swapped)"
        );
        let refusal = assess(&promises(420), &request(), &holders(), Squeeze::Promises)
            .expect_err("80 MiB are left");
        let line = refusal.to_string();
        assert!(
            line.ends_with("; reclaimable: 100.0 MiB from web-0, 300.0 MiB from web-2 (stuck)"),
            "{line}"
        );
    }

    #[test]
    fn who_lives_on_the_surplus_of_others_is_refused_when_there_is_none() {
        // 80 MiB are missing.
        let give = |mib: u64| {
            let mut holders = holders();
            holders.truncate(1);
            holders[0].consumed = Pages::mib(40 + mib);
            holders
        };
        assert!(assess(&promises(300), &request(), &give(80), Squeeze::Surplus).is_ok());
        let refusal = assess(&promises(300), &request(), &give(79), Squeeze::Surplus);
        assert_eq!(
            refusal.expect_err("a MiB is missing").to_string(),
            "cannot admit \"web-3\": needs 100.0 MiB (reservation 96.0 MiB + overhead 4.0 MiB), but \
             20.0 MiB is free, and the others have only 79.0 MiB above what they prefer; \
             reclaimable: 79.0 MiB from web-0"
        );
        assert!(assess(&promises(300), &request(), &give(79), Squeeze::Promises).is_ok());
    }
}
