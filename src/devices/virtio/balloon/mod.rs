//! The virtio memory balloon (virtio 1.2, section 5.5): what the VMM sees of it.
//!
//! The device asks the guest for pages and tells a [`BalloonSink`] which ones it got; what happens
//! to their memory is the pager's business. `actual` and the statistics are the guest's words.
//!
//! Features: statistics, deflate on out-of-memory, free page hinting (`hints`) and reporting.
//! MUST_TELL_HOST is offered because it is honoured: a deflated page reaches the sink before its
//! buffer is returned, and the guest promises not to touch it before. Not offered: page poisoning.
//! A guest that poisons its free pages does not report them then (`virtballoon_validate`), but
//! hints: whatever a block holds when it is freed, the guest writes anew.

mod device;
mod hints;
mod pfn;
mod stats;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::mmio::Transport;
use crate::devices::bus::BusDevice;
use crate::devices::idle::IdlePort;
use crate::devices::interrupt::Interrupt;
use crate::devices::sink::BalloonSink;
use crate::sys::ram::GuestRam;
use crate::units::Pages;
use crate::words::GuestMemoryStats;

use device::{BalloonDevice, STATS_QUEUE};

/// What the device and its handle share without a lock between them.
#[derive(Debug, Default)]
struct Shared {
    target_pages: AtomicU32,
    actual_pages: AtomicU32,
    /// Whether the driver knows of free page hinting.
    driver_hints: AtomicBool,
    /// What the guest reads as `free_page_hint_cmd_id`.
    hint_command: AtomicU32,
    hint_rounds: AtomicU32,
    hinted_pages: AtomicU64,
    malformed_pfns: AtomicU64,
    stats_updates: AtomicU64,
    stats: Mutex<GuestMemoryStats>,
}

/// The VMM's handle on one guest's balloon.
///
/// Only [`Balloon::request_stats`] touches guest memory; all other methods never wait and may be
/// called from anywhere.
#[derive(Clone)]
pub struct Balloon {
    transport: Arc<Transport<BalloonDevice>>,
    shared: Arc<Shared>,
}

impl Balloon {
    /// A balloon for the guest whose memory is `ram`. Target: no page.
    pub fn new(
        ram: Arc<GuestRam>,
        sink: Arc<dyn BalloonSink>,
        interrupt: Arc<dyn Interrupt>,
        idle: Arc<IdlePort>,
    ) -> Balloon {
        let shared = Arc::new(Shared::default());
        let device = BalloonDevice::new(sink, Arc::clone(&shared));
        let transport = Arc::new(Transport::new("balloon", device, ram, interrupt, idle));
        Balloon { transport, shared }
    }

    /// The registers, to be placed on the memory bus.
    pub fn bus_device(&self) -> Arc<dyn BusDevice> {
        self.transport.clone()
    }

    /// Asks the guest to hold `pages` in its balloon. Interrupts it only when that is a change.
    pub fn set_target(&self, pages: Pages) {
        let pages = u32::try_from(pages.0).unwrap_or(u32::MAX);
        if self.shared.target_pages.swap(pages, Ordering::AcqRel) != pages {
            self.transport.config_changed();
        }
    }

    /// What the guest was asked to hold.
    pub fn target(&self) -> Pages {
        Pages(self.shared.target_pages.load(Ordering::Acquire).into())
    }

    /// What the guest says it holds. Never trusted.
    pub fn actual(&self) -> Pages {
        Pages(self.shared.actual_pages.load(Ordering::Acquire).into())
    }

    /// The guest's latest memory statistics; all absent until its driver sent some.
    pub fn stats(&self) -> GuestMemoryStats {
        *self
            .shared
            .stats
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// How often the guest has sent statistics.
    pub fn stats_updates(&self) -> u64 {
        self.shared.stats_updates.load(Ordering::Acquire)
    }

    /// Asks the guest for fresh statistics by returning the buffer the device holds, if it holds
    /// one and is not busy.
    ///
    /// Writes to guest memory, so it may wait for the pager: never call it from the thread that
    /// resolves the guest's faults.
    pub fn request_stats(&self) {
        self.transport
            .try_with_queue(STATS_QUEUE, BalloonDevice::return_stats);
    }

    /// Asks the guest for all the free memory that it has in blocks of 4 MiB, see `hints`. It has
    /// them back when there are no more; until then it takes back what it needs. A guest whose
    /// driver knows of no hints is not asked.
    pub fn begin_hints(&self) {
        if !self.shared.driver_hints.load(Ordering::Acquire) {
            return;
        }
        let round = self.shared.hint_rounds.fetch_add(1, Ordering::Relaxed);
        let round = hints::FIRST.saturating_add(round);
        self.shared.hint_command.store(round, Ordering::Release);
        self.transport.config_changed();
    }

    /// Whether the guest still works on the round that was begun last, or has not begun.
    pub fn hints_are_on(&self) -> bool {
        self.shared.hint_command.load(Ordering::Acquire) >= hints::FIRST
    }

    /// Pages that were dropped because of hints; one that was hinted at twice counts twice.
    pub fn hinted(&self) -> Pages {
        Pages(self.shared.hinted_pages.load(Ordering::Relaxed))
    }

    /// Whether the guest's driver runs the balloon.
    pub fn driver_up(&self) -> bool {
        self.transport.driver_up()
    }

    /// Page numbers outside RAM that the guest named; they were ignored.
    pub fn malformed_pfns(&self) -> u64 {
        self.shared.malformed_pfns.load(Ordering::Relaxed)
    }

    /// How often the device stopped because of malformed input.
    pub fn malformed_count(&self) -> u64 {
        self.transport.malformed_count()
    }
}
