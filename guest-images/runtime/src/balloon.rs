//! The virtio balloon driver. Source: virtio 1.2, 5.5 "Traditional Memory Balloon Device".
//!
//! Polled: [`Balloon::service`] does what the device asks for and never waits long, so a slow device
//! does not stop the guest. A frame goes into the balloon when it is offered to the device and never
//! gets touched after that; it comes back when the device has used the deflate request.
//!
//! Known gap: free page hinting (feature 3) is not driven; a device that offers it places the
//! reporting queue behind a queue we do not have, so reporting is then left alone.

use tidemark_guest_model::frames::Run;

use crate::clock::{self, Clock};
use crate::memory::{Arena, Memory};
use crate::mmio::{Device, DeviceError};
use crate::page::Frame;
use crate::queue::{Access, Queue, Segment};

/// Virtio's number for a balloon.
pub const DEVICE_ID: u32 = 5;
/// Feature: the statistics queue.
pub const FEATURE_STATS: u64 = 1 << 1;
/// Feature: the driver may take memory back when the guest has none.
pub const FEATURE_DEFLATE_ON_OOM: u64 = 1 << 2;
/// Feature: the free page reporting queue.
pub const FEATURE_REPORTING: u64 = 1 << 5;
/// Configuration: pages the device wants in the balloon.
const CONFIG_NUM_PAGES: u64 = 0;
/// Configuration: pages the driver has put there.
const CONFIG_ACTUAL: u64 = 4;
/// Page frame numbers of one request, as Linux has it.
const BATCH: usize = 256;
/// Requests of one service call: 16 MiB.
const BATCHES_PER_SERVICE: usize = 16;
/// How long a service call waits for the device.
const PATIENCE_MS: u64 = 5;
/// How long a guest without memory waits for the device.
const OOM_PATIENCE_MS: u64 = 1000;
/// Shortest run of free frames worth a report.
const REPORT_RUN_MIN: u32 = 16;
/// Longest run of one report: 2 MiB.
const REPORT_RUN_MAX: u32 = 512;
/// Runs of one report, as Linux has it.
const REPORT_RUNS: usize = 32;

/// Whether free memory is reported to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reporting {
    /// If the device offers it.
    Wanted,
    /// Never.
    Unwanted,
}

/// A balloon whose driver is running.
#[derive(Debug)]
pub struct Balloon {
    device: Device,
    clock: Clock,
    inflate: Queue,
    deflate: Queue,
    deflating: usize,
    stats: Option<Queue>,
    report: Option<Queue>,
    reporting: [Run; REPORT_RUNS],
    reporting_count: usize,
    deflates_on_oom: bool,
    actual: u32,
}

impl Balloon {
    /// Starts the driver of the first balloon among the devices.
    pub fn find(
        bases: impl Iterator<Item = u64>,
        arena: &mut Arena,
        clock: Clock,
        reporting: Reporting,
    ) -> Result<Option<Self>, DeviceError> {
        let mut devices = bases.filter_map(|base| Device::find(base, DEVICE_ID));
        let Some(device) = devices.next() else {
            return Ok(None);
        };
        let wanted = FEATURE_STATS
            | FEATURE_DEFLATE_ON_OOM
            | if reporting == Reporting::Wanted {
                FEATURE_REPORTING
            } else {
                0
            };
        let features = device.negotiate(wanted)?;
        let mut index = 0;
        let mut queue = |present: bool| {
            let queue = present
                .then(|| Queue::new(device, index, arena.frame()))
                .flatten();
            index += u16::from(present);
            queue
        };
        let (Some(inflate), Some(deflate)) = (queue(true), queue(true)) else {
            return Ok(None);
        };
        let stats = queue(features & FEATURE_STATS != 0);
        let report = queue(features & FEATURE_REPORTING != 0);
        device.start();
        Ok(Some(Self {
            device,
            clock,
            inflate,
            deflate,
            deflating: 0,
            stats,
            report,
            reporting: [Run { first: 0, count: 0 }; REPORT_RUNS],
            reporting_count: 0,
            deflates_on_oom: features & FEATURE_DEFLATE_ON_OOM != 0,
            actual: 0,
        }))
    }

    /// Does what the device asks for; true if there is more to do at once.
    pub fn service(&mut self, memory: &mut Memory) -> bool {
        let more = self.follow_target(memory);
        self.serve_statistics(memory);
        more | self.report_free(memory)
    }

    fn follow_target(&mut self, memory: &mut Memory) -> bool {
        self.finish_deflate(memory);
        let target = self.device.config(CONFIG_NUM_PAGES);
        let mut more = true;
        for _ in 0..BATCHES_PER_SERVICE {
            let held = memory.ballooned();
            let moved = if held < target {
                self.inflate_some(memory, target - held)
            } else if held > target {
                self.deflate_some(memory, held - target)
            } else {
                0
            };
            if moved == 0 {
                more = false;
                break;
            }
        }
        self.set_actual(memory.ballooned());
        more
    }

    fn set_actual(&mut self, pages: u32) {
        if self.actual != pages {
            self.actual = pages;
            self.device.set_config(CONFIG_ACTUAL, pages);
        }
    }

    /// Puts at most `wanted` frames into the balloon; returns how many it were.
    fn inflate_some(&mut self, memory: &mut Memory, wanted: u32) -> u32 {
        if self.inflate.is_busy() {
            return 0;
        }
        let mut count = 0;
        while count < BATCH.min(wanted as usize) {
            let Some(frame) = memory.take_for_balloon() else {
                break;
            };
            self.inflate.set_buffer_u32(count, frame.number());
            count += 1;
        }
        if count > 0 {
            let buffer = self.inflate.buffer(4 * count as u32);
            self.inflate.submit(&[buffer], Access::DeviceReads);
            let deadline = clock::now() + self.clock.ms(PATIENCE_MS);
            // Late is no harm: the queue is then busy when it is next looked at.
            let _ = self.inflate.wait(deadline);
        }
        count as u32
    }

    /// Takes at most `wanted` frames out of the balloon; returns how many it were.
    fn deflate_some(&mut self, memory: &mut Memory, wanted: u32) -> u32 {
        // A frame may come back only after the device has seen it go in.
        if self.deflating > 0 || self.inflate.is_busy() {
            return 0;
        }
        let mut count = 0;
        while count < BATCH.min(wanted as usize) {
            let Some(frame) = memory.take_from_balloon() else {
                break;
            };
            self.deflate.set_buffer_u32(count, frame.number());
            count += 1;
        }
        if count > 0 {
            self.deflating = count;
            let buffer = self.deflate.buffer(4 * count as u32);
            self.deflate.submit(&[buffer], Access::DeviceReads);
            let _ = self.deflate.wait(clock::now() + self.clock.ms(PATIENCE_MS));
            self.finish_deflate(memory);
        }
        count as u32
    }

    fn finish_deflate(&mut self, memory: &mut Memory) {
        if self.deflate.is_busy() {
            return;
        }
        for word in 0..core::mem::take(&mut self.deflating) {
            // SAFETY: `deflate_some` took this frame from memory and wrote its number here; the
            // device only reads the buffer.
            let frame = unsafe { Frame::new(self.deflate.buffer_u32(word)) };
            memory.give_back(frame);
        }
    }

    /// Takes memory back for a guest that has none; false if the balloon gives none.
    pub fn relieve(&mut self, memory: &mut Memory) -> bool {
        if !self.deflates_on_oom {
            return false;
        }
        let patience = self.clock.ms(OOM_PATIENCE_MS);
        if !self.inflate.wait(clock::now() + patience) {
            return false;
        }
        if self.deflating == 0 {
            self.deflate_some(memory, BATCH as u32);
        }
        let finished = self.deflate.wait(clock::now() + patience);
        self.finish_deflate(memory);
        self.set_actual(memory.ballooned());
        finished && memory.free() > 0
    }

    /// Answers a request for statistics; the device asks by using the last buffer.
    fn serve_statistics(&mut self, memory: &Memory) {
        let Some(queue) = &mut self.stats else { return };
        if queue.is_busy() {
            return;
        }
        let counts = memory.counts();
        let bytes = |pages: u32| u64::from(pages) * 4096;
        let statistics = [
            (0, 0),                                    // swapped in
            (1, 0),                                    // swapped out
            (2, counts.refilled),                      // major faults
            (3, counts.populated),                     // minor faults
            (4, bytes(memory.free())),                 // free
            (5, bytes(memory.frames())),               // total
            (6, bytes(memory.free() + counts.cached)), // available
            (7, bytes(counts.cached)),                 // caches
        ];
        for (at, (tag, value)) in statistics.into_iter().enumerate() {
            queue.set_buffer_u16(5 * at, tag);
            for part in 0..4 {
                queue.set_buffer_u16(5 * at + 1 + part, (value >> (16 * part)) as u16);
            }
        }
        let buffer = queue.buffer(10 * statistics.len() as u32);
        queue.submit(&[buffer], Access::DeviceReads);
    }

    /// Reports free frames; they stay out of use until the device has answered.
    fn report_free(&mut self, memory: &mut Memory) -> bool {
        let Some(queue) = &mut self.report else {
            return false;
        };
        if !queue.wait(clock::now() + self.clock.ms(PATIENCE_MS)) {
            return false;
        }
        let reported = core::mem::take(&mut self.reporting_count);
        self.reporting[..reported]
            .iter()
            .for_each(|run| memory.give_back_reported(*run));
        let mut segments = [Segment {
            address: 0,
            bytes: 0,
        }; REPORT_RUNS];
        let mut count = 0;
        while count < REPORT_RUNS.min(usize::from(queue.segments_max())) {
            let Some(run) = memory.take_unreported(REPORT_RUN_MIN, REPORT_RUN_MAX) else {
                break;
            };
            self.reporting[count] = run;
            segments[count] = Segment {
                address: memory.address(run),
                bytes: run.count * 4096,
            };
            count += 1;
        }
        self.reporting_count = count;
        if count > 0 {
            queue.submit(&segments[..count], Access::DeviceWrites);
        }
        count == REPORT_RUNS
    }
}
