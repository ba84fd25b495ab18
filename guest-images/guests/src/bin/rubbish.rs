//! Drives its balloon device with rubbish, one sort after the other or `case=N` alone, and exits
//! with code 0: a VMM must neither die of it nor let this guest touch what is not its own.
#![no_std]
#![no_main]

use tidemark_guest_runtime::balloon::{DEVICE_ID, FEATURE_REPORTING, FEATURE_STATS};
use tidemark_guest_runtime::guest::{options, usage};
use tidemark_guest_runtime::memory::Arena;
use tidemark_guest_runtime::mmio::Device;
use tidemark_guest_runtime::page::Frame;
use tidemark_guest_runtime::queue::{Access, Queue, Segment};
use tidemark_guest_runtime::{BootInfo, port, println};

tidemark_guest_runtime::guest!(main);

const FLAG_NEXT: u16 = 1;
const FLAG_INDIRECT: u16 = 4;
/// Queue registers. Source: virtio 1.2, 4.2.2.
const QUEUE_SELECT: u64 = 0x030;
const QUEUE_SIZE: u64 = 0x038;
const QUEUE_READY: u64 = 0x044;
const STATUS: u64 = 0x070;

/// A device that has just been reset and set up with fresh queues.
struct Victim {
    device: Device,
    inflate: Queue,
    deflate: Queue,
    stats: Option<Queue>,
    report: Option<Queue>,
    frames: [Frame; 4],
    ram_end: u64,
}

type Case = fn(&mut Victim);

const CASES: &[(&str, Case)] = &[
    ("descriptor outside memory", outside_memory),
    ("descriptor chain that is a loop", descriptor_loop),
    ("descriptor of 4 GiB", huge_length),
    ("descriptor that wraps around", wrapping_address),
    ("available index far ahead", index_jump),
    ("head outside the table", head_outside),
    ("next outside the table", next_outside),
    ("page frame numbers outside memory", pfns_outside),
    ("the same page frame number many times", pfns_repeated),
    ("page frame of the queue itself", pfn_of_queue),
    ("lengths that are no whole numbers of entries", odd_lengths),
    ("descriptors for the device to write", wrong_direction),
    ("indirect descriptors without the feature", indirect),
    ("reports of ranges that are not ours", bad_reports),
    ("statistics of rubbish", bad_statistics),
    ("queues outside memory", queue_outside),
    ("queue sizes out of range", queue_sizes),
    ("registers at random", random_registers),
    ("notifications without a cause", empty_notifications),
];

fn main(boot: BootInfo) -> u32 {
    let options = options(&boot, &["case", "wait_ms"]);
    let one = options
        .get("case")
        .map(|_| usage(options.number("case", 0, CASES.len() as u64 - 1)) as usize);
    let wait_ms = usage(options.number("wait_ms", 50, 60_000)) as u32;
    let mut arena = Arena::new(&boot);
    let frames = [(); 4].map(|()| arena.frame());
    let Some(device) = options
        .devices()
        .find_map(|base| Device::find(base, DEVICE_ID))
    else {
        println!("no balloon to torment");
        return 0;
    };
    for (number, (name, case)) in CASES.iter().enumerate() {
        if one.is_some_and(|one| one != number) {
            continue;
        }
        println!("case {number}: {name}");
        match Victim::new(device, frames, boot.ram_end) {
            Some(mut victim) => case(&mut victim),
            None => println!("case {number}: the device cannot be set up again"),
        }
        port::sleep_at_most_ms(wait_ms);
        println!("case {number}: status={:#x}", device.status());
    }
    println!("rubbish done");
    0
}

impl Victim {
    fn new(device: Device, frames: [Frame; 4], ram_end: u64) -> Option<Self> {
        let features = device.negotiate(FEATURE_STATS | FEATURE_REPORTING).ok()?;
        for frame in frames {
            (0..512).for_each(|word| frame.set_word(word, 0));
        }
        let inflate = Queue::new(device, 0, frames[0])?;
        let deflate = Queue::new(device, 1, frames[1])?;
        let has_stats = features & FEATURE_STATS != 0;
        let stats = has_stats
            .then(|| Queue::new(device, 2, frames[2]))
            .flatten();
        let report = (features & FEATURE_REPORTING != 0)
            .then(|| Queue::new(device, 2 + u16::from(has_stats), frames[3]))
            .flatten();
        device.start();
        Some(Self {
            device,
            inflate,
            deflate,
            stats,
            report,
            frames,
            ram_end,
        })
    }

    /// Submits one segment to the inflate and the deflate queue.
    fn both(&mut self, address: u64, bytes: u32) {
        for queue in [&mut self.inflate, &mut self.deflate] {
            queue.submit(&[Segment { address, bytes }], Access::DeviceReads);
        }
    }

    /// Submits page frame numbers to the inflate and the deflate queue.
    fn pfns(&mut self, numbers: &[u32]) {
        for queue in [&mut self.inflate, &mut self.deflate] {
            for (word, number) in numbers.iter().enumerate() {
                queue.set_buffer_u32(word, *number);
            }
            let buffer = queue.buffer(4 * numbers.len() as u32);
            queue.submit(&[buffer], Access::DeviceReads);
        }
    }
}

fn outside_memory(victim: &mut Victim) {
    victim.both(victim.ram_end, 1024);
    victim.both(victim.ram_end - 4, 1024);
    victim.both(0xfee0_0000, 1024);
    victim.both(1 << 52, 1024);
}

fn descriptor_loop(victim: &mut Victim) {
    for queue in [&mut victim.inflate, &mut victim.deflate] {
        let buffer = queue.buffer(4);
        queue.set_descriptor(0, buffer, FLAG_NEXT, 1);
        queue.set_descriptor(1, buffer, FLAG_NEXT, 0);
        queue.make_available(0);
        queue.notify();
        queue.set_descriptor(2, buffer, FLAG_NEXT, 2);
        queue.make_available(2);
        queue.notify();
    }
}

fn huge_length(victim: &mut Victim) {
    victim.both(victim.frames[0].address(), u32::MAX);
    victim.both(0, 0xffff_fffc);
}

fn wrapping_address(victim: &mut Victim) {
    victim.both(u64::MAX - 3, 1024);
    victim.both(u64::MAX, u32::MAX);
}

fn index_jump(victim: &mut Victim) {
    for queue in [&victim.inflate, &victim.deflate] {
        for index in [1000, 32_768, 65_535, 0] {
            queue.set_available_index(index);
            queue.notify();
        }
    }
}

fn head_outside(victim: &mut Victim) {
    for queue in [&mut victim.inflate, &mut victim.deflate] {
        for head in [queue.segments_max(), 32_767, 65_535] {
            queue.make_available(head);
            queue.notify();
        }
    }
}

fn next_outside(victim: &mut Victim) {
    for queue in [&mut victim.inflate, &mut victim.deflate] {
        let buffer = queue.buffer(4);
        for next in [queue.segments_max(), 65_535] {
            queue.set_descriptor(0, buffer, FLAG_NEXT, next);
            queue.make_available(0);
            queue.notify();
        }
    }
}

fn pfns_outside(victim: &mut Victim) {
    let end = (victim.ram_end >> 12) as u32;
    victim.pfns(&[
        end,
        end + 1,
        0xd_0000,
        0xf_ee00,
        0x10_0000,
        0x7fff_ffff,
        u32::MAX,
    ]);
}

fn pfns_repeated(victim: &mut Victim) {
    let last = (victim.ram_end >> 12) as u32 - 1;
    victim.pfns(&[last; 256]);
    // Deflating what was never inflated.
    victim.pfns(&[last - 1, last - 1]);
}

fn pfn_of_queue(victim: &mut Victim) {
    victim.pfns(&[victim.frames[0].number(), victim.frames[1].number()]);
}

fn odd_lengths(victim: &mut Victim) {
    let address = victim.frames[0].address() + 2048;
    for bytes in [0, 1, 3, 7] {
        victim.both(address, bytes);
    }
    victim.both(address + 1, 1023);
}

fn wrong_direction(victim: &mut Victim) {
    for queue in [&mut victim.inflate, &mut victim.deflate] {
        let buffer = queue.buffer(1024);
        queue.submit(&[buffer], Access::DeviceWrites);
    }
}

fn indirect(victim: &mut Victim) {
    for queue in [&mut victim.inflate, &mut victim.deflate] {
        for bytes in [16, 15, 1 << 20] {
            let table = Segment {
                bytes,
                ..queue.buffer(0)
            };
            queue.set_descriptor(0, table, FLAG_INDIRECT, 0);
            queue.make_available(0);
            queue.notify();
        }
    }
}

fn bad_reports(victim: &mut Victim) {
    let end = victim.ram_end;
    let Some(queue) = &mut victim.report else {
        println!("no reporting queue");
        return;
    };
    let ranges = [
        (end, 4096),
        (end - 4096, 8192),
        (end - 4095, 100),
        (end - 4096, 0),
        (u64::MAX - 4095, 4096),
        (0xd000_0000, 4096),
        (end - 8192, u32::MAX),
    ];
    for (address, bytes) in ranges {
        for access in [Access::DeviceWrites, Access::DeviceReads] {
            queue.submit(&[Segment { address, bytes }], access);
        }
    }
    let all = ranges.map(|(address, bytes)| Segment { address, bytes });
    queue.submit(&all, Access::DeviceWrites);
}

fn bad_statistics(victim: &mut Victim) {
    let end = victim.ram_end;
    let Some(queue) = &mut victim.stats else {
        println!("no statistics queue");
        return;
    };
    (0..1024).for_each(|word| queue.set_buffer_u16(word, 0xffff));
    for bytes in [0, 1, 9, 11, 2048] {
        let buffer = queue.buffer(bytes);
        queue.submit(&[buffer], Access::DeviceReads);
    }
    queue.submit(
        &[Segment {
            address: end,
            bytes: 80,
        }],
        Access::DeviceReads,
    );
    let huge = Segment {
        bytes: u32::MAX,
        ..queue.buffer(0)
    };
    queue.submit(&[huge], Access::DeviceReads);
}

fn queue_outside(victim: &mut Victim) {
    let end = victim.ram_end;
    for base in [end, end - 16, 1, u64::MAX - 4095, 0xd000_0000] {
        victim.device.set_register(STATUS, 0);
        if victim.device.negotiate(0).is_err() {
            return;
        }
        victim.device.set_queue(0, 64, base, base, base);
        victim
            .device
            .set_queue(1, 64, base, base.wrapping_add(2), base.wrapping_add(4));
        victim.device.start();
        victim.device.notify(0);
        victim.device.notify(1);
    }
}

fn queue_sizes(victim: &mut Victim) {
    for size in [0, 3, 4097, 0xffff, u32::MAX] {
        victim.device.set_register(STATUS, 0);
        if victim.device.negotiate(0).is_err() {
            return;
        }
        victim.device.set_register(QUEUE_SELECT, 0);
        victim.device.set_register(QUEUE_SIZE, size);
        victim.device.set_register(QUEUE_READY, 1);
        victim.device.start();
        victim.device.notify(0);
    }
}

fn random_registers(victim: &mut Victim) {
    let mut rng = tidemark_guest_model::rng::Rng::new(1);
    for _ in 0..500 {
        let offset = u64::from(rng.below(0x200 / 4)) * 4;
        let value = match rng.below(4) {
            0 => 0,
            1 => u32::MAX,
            2 => 1 << rng.below(32),
            _ => rng.next() as u32,
        };
        victim.device.set_register(offset, value);
        let _ = victim.device.register(u64::from(rng.below(0x200 / 4)) * 4);
    }
    victim.device.set_register(STATUS, 0);
}

fn empty_notifications(victim: &mut Victim) {
    for queue in [0, 1, 2, 3, 4, 7, 1000, u16::MAX] {
        for _ in 0..20 {
            victim.device.notify(queue);
        }
    }
    victim.device.set_register(STATUS, 0);
    victim.device.notify(0);
}
