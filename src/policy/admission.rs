//! Whether a VM may start.
//!
//! What is promised must be payable at the same time: the sum of all reservations and overheads,
//! the new VM's included, is at most the budget (Waldspurger, section 5.2: "reservation + overhead"
//! must be unreserved at power-on).

use std::fmt;

use crate::units::Pages;

/// What the host has promised already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostBooks {
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

/// Why it may not. Displays the arithmetic in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Who wanted to start.
    pub request: Request,
    /// The books at that time.
    pub books: HostBooks,
}

impl Refusal {
    /// What could have been reserved.
    pub fn unreserved(&self) -> Pages {
        unreserved(&self.books)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Refusal { request, books } = self;
        write!(
            f,
            "cannot admit {:?}: needs {} (reservation {} + overhead {}), but of {} {} are reserved \
             by {} {} and {} are overhead, so {} can be promised ({} is free now)",
            request.name,
            request.reservation + request.overhead,
            request.reservation,
            request.overhead,
            books.budget,
            books.reserved,
            books.vms,
            if books.vms == 1 { "VM" } else { "VMs" },
            books.overhead,
            self.unreserved(),
            books.free,
        )
    }
}

impl std::error::Error for Refusal {}

fn unreserved(books: &HostBooks) -> Pages {
    books
        .budget
        .saturating_sub(books.reserved)
        .saturating_sub(books.overhead)
}

/// Whether the VM may start.
///
/// # Errors
/// The arithmetic, when its reservation and overhead cannot be covered.
pub fn admit(books: &HostBooks, request: &Request) -> Result<(), Refusal> {
    if request.reservation + request.overhead <= unreserved(books) {
        Ok(())
    } else {
        Err(Refusal {
            request: request.clone(),
            books: *books,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn books(reserved: u64) -> HostBooks {
        HostBooks {
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
        assert_eq!(admit(&books(400), &request()), Ok(()));
        let mut books = books(400);
        books.overhead += Pages(1);
        assert!(admit(&books, &request()).is_err());
    }

    #[test]
    fn a_refusal_shows_the_arithmetic() {
        let refusal = admit(&books(420), &request()).expect_err("80 MiB are left");
        assert_eq!(
            refusal.to_string(),
            "cannot admit \"web-3\": needs 100.0 MiB (reservation 96.0 MiB + overhead 4.0 MiB), but \
             of 512.0 MiB 420.0 MiB are reserved by 3 VMs and 12.0 MiB are overhead, so 80.0 MiB \
             can be promised (20.0 MiB is free now)"
        );
        assert_eq!(refusal.unreserved(), Pages::mib(80));
    }
}
