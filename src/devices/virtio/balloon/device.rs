//! The balloon's queues.
//!
//! Everything is copied out of guest memory first; then the sink is called, which may take the
//! pager's locks; then the buffers are returned. So a page is accounted for before the guest may
//! use it again.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::super::chain::{Buffer, Chain, Direction, Malformed};
use super::super::ring::{Ring, read, read_config_of};
use super::super::{FEATURE_VERSION_1, Used, VirtioDevice};
use super::hints::Hints;
use super::{Shared, pfn, stats};
use crate::devices::sink::BalloonSink;
use crate::sys::guest_range::frames_inside;
use crate::sys::ram::GuestRam;
use crate::units::Gfn;
use crate::words::GuestMemoryStats;

/// Virtio device type of the traditional memory balloon (virtio 1.2, section 5).
const DEVICE_ID: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
/// Feature bits (virtio 1.2, section 5.5.3).
const FEATURE_MUST_TELL_HOST: u64 = 1 << 0;
const FEATURE_STATS_VQ: u64 = 1 << 1;
const FEATURE_DEFLATE_ON_OOM: u64 = 1 << 2;
const FEATURE_FREE_PAGE_HINT: u64 = 1 << 3;
const FEATURE_REPORTING: u64 = 1 << 5;

/// Where the statistics queue is when the driver accepted it.
pub(super) const STATS_QUEUE: usize = 2;
/// Linux uses 128 entries for page lists and needs 32 for reporting.
const QUEUE_SIZES: [u16; 5] = [128; 5];

/// Bytes of one listed page number.
const PFN_BYTES: u32 = 4;
/// Longest list in one buffer; Linux sends 1024 bytes (256 pages).
const LIST_BYTES_MAX: u32 = 4096;
/// Longest lists in one chain.
const CHAIN_BYTES_MAX: u64 = 16 * 1024;

/// Configuration space (virtio 1.2, section 5.5.4): three 32-bit words, `num_pages`, `actual`,
/// `free_page_hint_cmd_id`.
const CONFIG_ACTUAL: u64 = 4;
const CONFIG_BYTES: usize = 12;

/// What a queue is for; depends on the features the driver accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Inflate,
    Deflate,
    Stats,
    Hints,
    Reporting,
}

/// The device behind the transport.
pub(super) struct BalloonDevice {
    sink: Arc<dyn BalloonSink>,
    shared: Arc<Shared>,
    features: u64,
    /// The driver's statistics buffer, held until fresh ones are wanted.
    stats_head: Option<u16>,
    hints: Hints,
    /// Reused between notifications.
    gfns: Vec<Gfn>,
}

impl BalloonDevice {
    pub fn new(sink: Arc<dyn BalloonSink>, shared: Arc<Shared>) -> BalloonDevice {
        BalloonDevice {
            sink,
            shared,
            features: 0,
            stats_head: None,
            hints: Hints::default(),
            gfns: Vec::new(),
        }
    }

    /// Queues whose feature was not accepted do not exist, and those after them move up, as Linux
    /// and QEMU have it (the specification's fixed numbers are not what drivers do).
    fn role(&self, index: usize) -> Option<Role> {
        let all = [
            (0, Role::Inflate),
            (0, Role::Deflate),
            (FEATURE_STATS_VQ, Role::Stats),
            (FEATURE_FREE_PAGE_HINT, Role::Hints),
            (FEATURE_REPORTING, Role::Reporting),
        ];
        let accepted = |feature: u64| self.features & feature == feature;
        let mut there = all.iter().filter(|(feature, _)| accepted(*feature));
        there.nth(index).map(|(_, role)| *role)
    }

    /// Gives the held statistics buffer back, which makes the driver fill it afresh.
    pub fn return_stats(&mut self, ring: &mut Ring<'_>) -> Result<Used, Malformed> {
        if self.role(STATS_QUEUE) != Some(Role::Stats) {
            return Ok(Used::Nothing);
        }
        let Some(head) = self.stats_head.take() else {
            return Ok(Used::Nothing);
        };
        ring.give_back(head, 0)?;
        Ok(Used::Buffers)
    }

    /// Reads the pages that one chain lists into `self.gfns`, sorted, unique, all RAM.
    fn read_list(&mut self, chain: &Chain, ram: &GuestRam) -> Result<(), Malformed> {
        self.gfns.clear();
        let mut total = 0;
        for Buffer { gpa, length, .. } in &chain.buffers {
            total += u64::from(*length);
            if *length > LIST_BYTES_MAX || total > CHAIN_BYTES_MAX {
                return Err(Malformed::Length {
                    length: total,
                    allowed: LIST_BYTES_MAX.into(),
                });
            }
            if length % PFN_BYTES != 0 {
                return Err(Malformed::Entries {
                    length: *length,
                    entry: PFN_BYTES,
                });
            }
            let mut bytes = [0; LIST_BYTES_MAX as usize];
            let bytes = &mut bytes[..*length as usize];
            read(ram, *gpa, bytes)?;
            let listed = bytes.chunks_exact(PFN_BYTES as usize);
            let listed = listed.map(|pfn| u32::from_le_bytes(pfn.try_into().expect("4 bytes")));
            self.gfns.extend(listed.map(Gfn));
        }
        let dropped = pfn::compact(ram.layout(), &mut self.gfns);
        self.shared
            .malformed_pfns
            .fetch_add(dropped, Ordering::Relaxed);
        Ok(())
    }

    fn lists(&mut self, role: Role, ring: &mut Ring<'_>) -> Result<Used, Malformed> {
        ring.serve_each(Direction::ToDevice, |chain, ram| {
            self.read_list(chain, ram)?;
            if !self.gfns.is_empty() {
                match role {
                    Role::Inflate => self.sink.inflate(&self.gfns),
                    _ => self.sink.deflate(&self.gfns),
                }
            }
            Ok(0)
        })
    }

    fn statistics(&mut self, ring: &mut Ring<'_>) -> Result<Used, Malformed> {
        let mut used = Used::Nothing;
        for chain in ring.take(Direction::ToDevice)? {
            let mut bytes = Vec::new();
            for Buffer { gpa, length, .. } in &chain.buffers {
                let room = stats::ENTRIES_MAX * stats::ENTRY_BYTES - bytes.len();
                let start = bytes.len();
                bytes.resize(start + room.min(*length as usize), 0);
                read(ring.ram(), *gpa, &mut bytes[start..])?;
            }
            // The first buffer after the start may be empty: it carries nothing.
            if !bytes.is_empty() {
                self.store_stats(stats::parse(&bytes));
            }
            // A driver has one such buffer. One that sends a second gets the first back.
            if let Some(before) = self.stats_head.replace(chain.head) {
                ring.give_back(before, 0)?;
                used = Used::Buffers;
            }
        }
        Ok(used)
    }

    fn store_stats(&self, stats: GuestMemoryStats) {
        *self
            .shared
            .stats
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = stats;
        self.shared.stats_updates.fetch_add(1, Ordering::Release);
    }

    fn reports(&mut self, ring: &mut Ring<'_>) -> Result<Used, Malformed> {
        // Only when its chain is given back may the guest use a page again.
        ring.serve_each(Direction::FromDevice, |chain, ram| {
            for Buffer { gpa, length, .. } in &chain.buffers {
                if let Some(range) = frames_inside(ram.layout(), *gpa, (*length).into())? {
                    self.sink.report_free(range);
                }
            }
            Ok(0)
        })
    }
}

impl VirtioDevice for BalloonDevice {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn features(&self) -> u64 {
        FEATURE_VERSION_1
            | FEATURE_MUST_TELL_HOST
            | FEATURE_STATS_VQ
            | FEATURE_DEFLATE_ON_OOM
            | FEATURE_FREE_PAGE_HINT
            | FEATURE_REPORTING
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; CONFIG_BYTES];
        let target = self.shared.target_pages.load(Ordering::Acquire);
        let actual = self.shared.actual_pages.load(Ordering::Acquire);
        config[..4].copy_from_slice(&target.to_le_bytes());
        let command = self.shared.hint_command.load(Ordering::Acquire);
        config[4..8].copy_from_slice(&actual.to_le_bytes());
        config[8..].copy_from_slice(&command.to_le_bytes());
        read_config_of(&config, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if offset == CONFIG_ACTUAL
            && let Ok(bytes) = data.try_into()
        {
            let actual = u32::from_le_bytes(bytes);
            self.shared.actual_pages.store(actual, Ordering::Release);
        }
    }

    fn activate(&mut self, features: u64) {
        self.features = features;
        let hints = features & FEATURE_FREE_PAGE_HINT != 0;
        self.shared.driver_hints.store(hints, Ordering::Release);
    }

    fn notify(&mut self, ring: &mut Ring<'_>) -> Result<Used, Malformed> {
        match self.role(ring.index()) {
            Some(role @ (Role::Inflate | Role::Deflate)) => self.lists(role, ring),
            Some(Role::Stats) => self.statistics(ring),
            Some(Role::Hints) => self.hints.serve(ring, &self.shared, &*self.sink),
            Some(Role::Reporting) => self.reports(ring),
            None => Ok(Used::Nothing),
        }
    }

    fn reset(&mut self) {
        // Ballooned pages need no word to the sink: to the pager they are unbacked memory that the
        // guest may touch at any time.
        self.features = 0;
        self.stats_head = None;
        self.hints = Hints::default();
        self.shared.driver_hints.store(false, Ordering::Release);
        self.shared.hint_command.store(0, Ordering::Release);
        self.shared.actual_pages.store(0, Ordering::Release);
    }
}
