//! What a VM process reports of itself and its guest.

use serde::{Deserialize, Serialize};

use super::figures::{self, Counters, Gauges, Holding};
use super::{GuestMemoryStats, GuestReport, TakePath};
use crate::units::Pages;

/// The state of one VM.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Memory that the VM is charged for.
    pub holding: Holding,
    /// Memory of the VM process beside its guest's RAM: private memory, page tables and the kernel's
    /// memory for mappings.
    pub overhead: Pages,
    /// The rest, which nobody is charged for.
    pub measured: Measured,
}

/// What a VM process knows of its guest beside the memory that it is charged for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Guest pages that map a pool frame, unbroken.
    pub shared: Pages,
    /// Guest pages that have no memory.
    pub gauges: Gauges,
    /// What was done to the guest's pages.
    pub counters: Counters,
    /// How its pages are taken out.
    pub take_path: Option<TakePath>,
    /// Pages that were to be swapped found no room a moment ago.
    pub swap_full: bool,
    /// So the guest has not got on for seconds: it waits for memory that its own pages would have to
    /// make room for.
    pub stalled: bool,
    /// Estimated working set, once sampled.
    pub active: Option<Pages>,
    /// The estimate is within this of the truth 19 times of 20.
    pub active_error: Pages,
    /// Whether the guest's balloon driver is up.
    pub balloon_driver: bool,
    /// What the guest says its balloon holds. For display only: [`Gauges::ballooned`] is measured.
    pub balloon_actual: Pages,
    /// The guest's own memory statistics, if its driver sends them. Never trusted.
    pub guest_memory: GuestMemoryStats,
    /// Microseconds from the start of the VM process's program to the guest's first instruction;
    /// `None` before that.
    pub start_us: Option<u32>,
    /// What a built-in test guest reported on its console. Never trusted.
    pub guest: Option<GuestReport>,
}

impl Report {
    /// The same report with figures that a VM of `size` can have: a VM process can report what it
    /// likes, is charged for it, and shall not be charged for more than it was admitted with. The
    /// overhead is bounded apart, since it is charged apart.
    #[must_use]
    pub fn within(self, size: Pages) -> Report {
        let Report {
            holding,
            overhead,
            measured,
        } = self;
        let measured = measured.within(size);
        Report {
            holding: holding.within(size, measured.gauges.compressed),
            overhead: overhead.min(overhead_max(size)),
            measured,
        }
    }
}

impl Measured {
    /// The same figures, as a VM of `size` can have them.
    #[must_use]
    fn within(self, size: Pages) -> Measured {
        // Without `..`: a new figure must be given its bound here.
        let Measured {
            shared,
            gauges,
            counters,
            take_path,
            swap_full,
            stalled,
            active,
            active_error,
            balloon_driver,
            balloon_actual,
            guest_memory,
            start_us,
            guest,
        } = self;
        Measured {
            shared: shared.min(size),
            gauges: gauges.within(size),
            counters: counters.within(),
            take_path,
            swap_full,
            stalled,
            active: active.map(|active| active.min(size)),
            active_error: active_error.min(size),
            balloon_driver,
            balloon_actual: balloon_actual.min(size),
            // In bytes, of the guest's own: whoever reads them expects anything.
            guest_memory,
            start_us,
            guest: guest.map(|guest| GuestReport {
                pages_verified: figures::bounded(guest.pages_verified),
                pages_corrupt: figures::bounded(guest.pages_corrupt),
            }),
        }
    }
}

/// Memory of a VM process beside its guest's RAM, at most. Chosen: 32 times what admission expects,
/// since page tables and books of a guest that is swapped and shared to and fro grow.
fn overhead_max(size: Pages) -> Pages {
    Pages::mib(64) + Pages(size.0 / 4)
}
